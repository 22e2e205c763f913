"""Memory of a device that serves again and again, where CuPy's pool is not there."""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from collections.abc import Callable

from tilewright.errors import DeviceError

LEAST_BYTES = 512
STEPS = 4  # sizes between one power of two and the next: at most a fifth is wasted


class PooledMemory:
    """Memory that goes back to the pool with the last reference."""

    def __init__(self, address: int) -> None:
        self.address = address


class MemoryPool:
    """Free memory by stream and size; `allocate` and `free` are the driver's.

    Memory goes back to the stream that it was for, whose work is in order; no other stream gets it.
    Safe to use from several threads, and from finalizers: queues need no lock.
    """

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], object]) -> None:
        self._allocate, self._free_now = allocate, free
        self._free: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)

    def take(self, nbytes: int, stream: int) -> PooledMemory:
        """Memory of at least this size for work in a stream."""
        room = rounded(nbytes)
        free = self._free[stream, room]
        try:
            address = free.pop()
        except IndexError:
            address = self._more(room)
        made = PooledMemory(address)
        weakref.finalize(made, free.append, address).atexit = False
        return made

    def _more(self, room: int) -> int:
        try:
            return self._allocate(room)
        except DeviceError:
            self.give_up()
            return self._allocate(room)

    def give_up(self) -> None:
        """Gives all free memory back to the driver, which waits for work that uses it."""
        for free in list(self._free.values()):
            while True:
                try:
                    self._free_now(free.pop())
                except IndexError:
                    break


def rounded(nbytes: int) -> int:
    """The size that serves this one."""
    if nbytes <= LEAST_BYTES:
        return LEAST_BYTES
    unit = max(LEAST_BYTES, (1 << ((nbytes - 1).bit_length() - 1)) // STEPS)
    return -(-nbytes // unit) * unit
