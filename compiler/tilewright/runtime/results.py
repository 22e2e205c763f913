"""Memory for results, and where arrays have their elements."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tilewright.ops.tensor import Constant, Placeholder, Tensor

LEAST_BYTES = 1 << 18  # the allocator keeps smaller blocks itself
MOST_LENT = 8  # buffers of one result that are watched at a time
LINE_BYTES = 64


Arrays = Sequence[np.ndarray]
NOTHING = partial(np.empty, 0)  # where a result will be a copy


def computed(outputs: Sequence[Tensor]) -> dict[str, int]:
    """The outputs that kernels compute; one that comes several times by its first place."""
    places: dict[str, int] = {}
    for k, t in enumerate(outputs):
        if not isinstance(t, (Placeholder, Constant)):
            places.setdefault(t.name, k)
    return places


class Results:
    """What a plan returns: an array for each output in every call."""

    def __init__(self, inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> None:
        places = computed(outputs)
        self._again = [
            (k, first) for k, t in enumerate(outputs) if (first := places.get(t.name, k)) != k
        ]
        self._constants = [(k, t.value) for k, t in enumerate(outputs) if isinstance(t, Constant)]
        names = [t.name for t in inputs]
        self._inputs = [
            (k, names.index(t.name)) for k, t in enumerate(outputs) if isinstance(t, Placeholder)
        ]
        self._memory = {
            k: Memory(outputs[k].shape, outputs[k].dtype.numpy) for k in places.values()
        }
        self._makers = [
            self._memory[k].maker() if k in self._memory else NOTHING for k, _ in enumerate(outputs)
        ]
        self._simple = len(self._memory) == len(outputs)

    def make(self) -> list[np.ndarray]:
        """Arrays for kernels to fill."""
        return [make() for make in self._makers]

    def complete(self, results: list[np.ndarray], arrays: Arrays) -> list[np.ndarray]:
        """The results, once kernels have run, with those that are constants, inputs or other
        results.
        """
        if self._simple:
            return results
        for k, value in self._constants:
            results[k] = value.copy()
        for k, at in self._inputs:
            results[k] = arrays[at].copy()
        for k, first in self._again:
            results[k] = results[first].copy()
        return results

    @property
    def nbytes(self) -> int:
        """Bytes of memory that is kept for results of later calls."""
        return sum(m.nbytes for m in self._memory.values())


class Memory:
    """Arrays of one shape for a result that belongs to the caller.

    A large one lies in memory of an earlier result once nobody holds that any more, nor a view of
    it: fresh memory costs a page fault every few kilobytes. One spare buffer is kept. NumPy sees
    such an array as a view, so it cannot be resized in place.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._shape, self._dtype = shape, dtype
        self._nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._recycles = self._nbytes >= LEAST_BYTES and COUNTS_ARE_EXACT
        self._lent: deque[np.ndarray] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept although no result may need them."""
        return self._nbytes if self._lent else 0

    def maker(self) -> Callable[[], np.ndarray]:
        """What makes an array that nobody else holds; its elements are arbitrary."""
        return self._make if self._recycles else partial(np.empty, self._shape, self._dtype)

    def _make(self) -> np.ndarray:
        raw = self._spare()
        if raw is None:
            raw = np.empty(self._nbytes + LINE_BYTES, np.uint8)
        start = -address_of(raw) % LINE_BYTES
        made: np.ndarray = np.ndarray(self._shape, self._dtype, raw, start)
        self._lent.append(raw)  # only now: who finds it there counts the result's reference
        return made

    def _spare(self) -> np.ndarray | None:
        """A lent buffer that came back. Others that came back go, one apart; so do the oldest of
        too many.

        A buffer that is not in the queue belongs to the thread that took it out.
        """
        found: list[np.ndarray] = []
        for _ in range(len(self._lent)):
            try:
                raw, references = _taken(self._lent)
            except IndexError:  # another thread has them
                break
            if references > ALONE:
                self._lent.append(raw)
            elif len(found) < 2:
                found.append(raw)
        while len(self._lent) >= MOST_LENT:
            self._lent.popleft()
        if len(found) == 2:
            self._lent.append(found.pop())
        return found.pop() if found else None


def _taken(lent: deque[np.ndarray]) -> tuple[np.ndarray, int]:
    """The oldest buffer and how many references it has, those of this function among them."""
    raw = lent.popleft()
    return raw, sys.getrefcount(raw)


def _counts_are_exact() -> bool:
    """Whether a count of references says that nobody else has one: with an interpreter lock."""
    enabled: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return sys.implementation.name == "cpython" and enabled()


COUNTS_ARE_EXACT = _counts_are_exact()
ALONE = _taken(deque([np.empty(1, np.uint8)]))[1]


def _data_field() -> int | None:
    """Where in an array object the address of its elements stands; None if that is not known."""
    if sys.implementation.name != "cpython":
        return None
    samples = [np.empty(n, np.uint8) for n in (1, 100, 100_000)]
    for offset in range(16, 64, 8):
        if all(_word(id(s) + offset) == s.ctypes.data for s in samples):
            return offset
    return None


def _word(address: int) -> int:
    return int(ctypes.c_size_t.from_address(address).value)


def _ask(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _reader() -> Callable[[np.ndarray], int]:
    field, pointer_at = _data_field(), ctypes.c_size_t.from_address
    if field is None:
        return _ask

    def read(array: np.ndarray) -> int:
        return pointer_at(id(array) + field).value

    return read


address_of = _reader()
"""The address of an array's first element; NumPy's own way takes most of a microsecond."""
