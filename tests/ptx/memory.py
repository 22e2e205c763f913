"""Memory with three facts about each byte: whether it was written, and who read or wrote it since.

Global memory is a list of allocations, shared and local memory of a batch of blocks are one region
each. All are accessed by words: an access of 16 bytes is two words of 8.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
GLOBAL_BASE = 0x7F00_0000_0000
ALIGNMENT = 256
WIDEST = 16
POISON = 0xFF  # NaN in every type of floats
MISSING, THERE, PENDING = 0, 1, 2  # what is known about a byte
WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
EVERY = {size: np.array([THERE] * size, np.uint8).view(word)[0] for size, word in WORDS.items()}


class Use(Enum):
    """What an access does; `UPDATE` is atomic."""

    READ = "read"
    WRITE = "write"
    UPDATE = "update"


CONFLICTS = {
    Use.READ: (Use.WRITE, Use.UPDATE),
    Use.WRITE: (Use.READ, Use.WRITE, Use.UPDATE),
    Use.UPDATE: (Use.READ, Use.WRITE),
}


class Users:
    """Who used each granule last, by use, to find uses that nothing orders.

    A user is a number: high bits are the epoch, the low `shift` bits who. Uses in different epochs
    are ordered. All low bits set stands for several users.
    """

    def __init__(self, size: int, shift: int) -> None:
        self.size, self.shift = size, shift
        self.several = (1 << shift) - 1
        self.granule = WIDEST
        self.last: dict[Use, Array] = {}

    def clear(self) -> None:
        self.last.clear()
        self.granule = WIDEST

    def refine(self, size: int) -> None:
        """Granules small enough for accesses of this size."""
        for use, last in self.last.items():
            self.last[use] = np.repeat(last, self.granule // size)
        self.granule = size

    def record(self, use: Use, offsets: Array, size: int, users: Array) -> Array | None:
        """Note a use; which of the accesses conflict with another, if any."""
        if size < self.granule:
            self.refine(size)
        places = offsets // self.granule
        found = None
        for k in range(size // self.granule):
            wrong = self._granule(use, places + k if k else places, users)
            found = wrong if found is None else found if wrong is None else found | wrong
        return found

    def _granule(self, use: Use, places: Array, users: Array) -> Array | None:
        wrong = None
        for other in CONFLICTS[use]:
            if other in self.last:
                last = self.last[other][places]
                clash = (last != users) & ((last ^ users) >> self.shift == 0)
                if clash.any():
                    wrong = clash if wrong is None else wrong | clash
        if use is Use.WRITE:
            clash = self._write(places, users)
            return clash if wrong is None else wrong
        self._add(use, places, users)
        return wrong

    def _of(self, use: Use) -> Array:
        if use not in self.last:
            self.last[use] = np.full(-(-self.size // self.granule), -1, np.int64)
        return self.last[use]

    def _write(self, places: Array, users: Array) -> Array | None:
        """Two that write at the same moment overwrite each other's mark."""
        last = self._of(Use.WRITE)
        last[places] = users
        lost = last[places] != users
        return lost if lost.any() else None

    def _add(self, use: Use, places: Array, users: Array) -> None:
        last = self._of(use)
        before = last[places]
        if (before == users).all():
            return
        others = (before != users) & ((before ^ users) >> self.shift == 0)
        marks = np.where(others, users | self.several, users)
        last[places] = marks
        lost = last[places] != marks
        if lost.any():
            last[places[lost]] = (users | self.several)[lost]


class Region:
    """Bytes, what is known about them and who uses them."""

    def __init__(self, size: int, shift: int) -> None:
        self.size = size
        room = -(-size // WIDEST) * WIDEST
        self.data = np.full(room, POISON, np.uint8)
        self.known = np.full(room, MISSING, np.uint8)
        self.users = Users(room, shift) if shift else None
        self.is_complete = False
        self._words = {n: self.data.view(t) for n, t in WORDS.items()}
        self._flags = {n: self.known.view(t) for n, t in WORDS.items()}

    def forget(self) -> None:
        """As new, for another batch of blocks."""
        self.data.fill(POISON)
        self.known.fill(MISSING)
        if self.users:
            self.users.clear()

    def unknown(self, offsets: Array, size: int) -> Array | None:
        """Which of the accesses touch a byte that is not there."""
        if self.is_complete:
            return None
        word = min(size, 8)
        found = None
        for k in range(size // word):
            missing = self._flags[word][offsets // word + k] != EVERY[word]
            found = missing if found is None else found | missing
        return found if found is not None and found.any() else None

    def is_pending(self, offset: int, size: int) -> bool:
        return bool((self.known[offset : offset + size] == PENDING).any())

    def read(self, offsets: Array, size: int, count: int) -> Array:
        """[access, component]: `count` neighbouring words."""
        words = self._words[size]
        if count == 1:
            single: Array = words[offsets // size]
            return single[:, None]
        rows: Array = words.reshape(-1, count)[offsets // (size * count)]
        return rows

    def write(self, offsets: Array, size: int, values: Array) -> None:
        """`values` [access, component]; of accesses to one place the last one stays."""
        count = values.shape[1]
        self._words[size].reshape(-1, count)[offsets // (size * count)] = values
        self.mark(offsets, size * count, THERE)

    def mark(self, offsets: Array, size: int, fact: int) -> None:
        if self.is_complete and fact == THERE:
            return
        word = min(size, 8)
        for k in range(size // word):
            self._flags[word][offsets // word + k] = EVERY[word] * WORDS[word](fact)

    def typed(self, dtype: Any) -> Array:
        return self.data.view(dtype)


class Allocation(Region):
    """A piece of global memory. Uses by different blocks are never ordered."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(size, BLOCK_BITS)
        self.address = address


BLOCK_BITS = 40


class Memory:
    """Global memory; between allocations is nothing."""

    def __init__(self) -> None:
        self._allocations: list[Allocation] = []
        self._starts: list[int] = []
        self._next = GLOBAL_BASE

    def empty(self, nbytes: int) -> int:
        """The address of new memory, whose bytes must be written before they are read."""
        allocation = Allocation(self._next, nbytes)
        self._allocations.append(allocation)
        self._starts.append(allocation.address)
        self._next += -(-(nbytes + ALIGNMENT) // ALIGNMENT) * ALIGNMENT
        return allocation.address

    def free(self, address: int) -> None:
        """Ends an allocation; its addresses are not used again."""
        at = self._starts.index(address)
        del self._starts[at], self._allocations[at]

    def holds(self, address: int) -> bool:
        """Whether the address lies in an allocation."""
        allocation = self.holding(address)
        return allocation is not None and address < allocation.address + allocation.size

    def is_written(self, address: int, size: int) -> bool:
        """Whether somebody wrote all these bytes."""
        allocation, start = self._place(address, size)
        return allocation.is_complete or bool(
            (allocation.known[start : start + size] == THERE).all()
        )

    def put(self, array: Array) -> int:
        """The address of a copy."""
        data = np.ascontiguousarray(array)
        address = self.empty(data.nbytes)
        self.write(address, data)
        self._allocations[-1].is_complete = True
        return address

    def write(self, address: int, array: Array) -> None:
        """Copy an array to memory that was allocated before."""
        data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        allocation, start = self._place(address, data.nbytes)
        allocation.data[start : start + data.nbytes] = data
        allocation.known[start : start + data.nbytes] = THERE

    def get(self, address: int, shape: Any, dtype: Any) -> Array:
        """A copy of what is there; bytes that nobody wrote are poison."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        allocation, start = self._place(address, size)
        raw = allocation.data[start : start + size].tobytes()
        return np.frombuffer(raw, kind).reshape(shape).copy()

    def _place(self, address: int, size: int) -> tuple[Allocation, int]:
        """Where so many bytes lie."""
        allocation = self.holding(address)
        if allocation is None or address + size > allocation.address + allocation.size:
            raise ValueError(f"{size} bytes at {address:#x} are not allocated")
        return allocation, address - allocation.address

    def holding(self, address: int) -> Allocation | None:
        """The allocation that an address lies in, or the last one before it."""
        at = bisect_right(self._starts, address) - 1
        return self._allocations[at] if at >= 0 else None

    def begin_launch(self) -> None:
        """Launches are ordered: nobody has used anything."""
        for allocation in self._allocations:
            if allocation.users:
                allocation.users.clear()
