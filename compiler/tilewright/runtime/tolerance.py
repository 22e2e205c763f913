"""How far results may lie apart: see `check_kernel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tilewright.dtypes import DType, from_numpy
from tilewright.loops.ir import Buffer
from tilewright.runtime.trial import Arrays

MOVES = 8.0  # times what was measured
ULPS = 4.0
HALF_ULPS = 1.5  # of halves, whose last step is a rounding from float32
RUNS = 8
SUBSET = 16  # one of so many halves moves, by a whole unit
DENORMALS = 8.0  # times the smallest number that is not flushed, or the last step of a half
DRAWN = 1 << 16  # random moves, used again and again in large arrays

EPS = float(np.finfo(np.float32).eps)
SMALLEST = {2: 2.0**-24, 4: 2.0**-126, 8: 2.0**-1022}


def size_of_moves(terms: int) -> float:
    """By which share inputs are moved, for sums of so many terms."""
    return EPS * float(np.sqrt(terms))


def is_float(array: np.ndarray) -> bool:
    """Also of bfloat16, which NumPy itself does not count."""
    return from_numpy(array.dtype).is_float


def unit(array: np.ndarray) -> float:
    """The step from 1 to the next number of the array's type."""
    return {DType.F64: 2.0**-52, DType.F32: EPS, DType.F16: 2.0**-10}.get(
        from_numpy(array.dtype), 2.0**-7
    )


class Tolerance:
    """What the elements of outputs may differ by, as measured on one set of data."""

    def __init__(self, outputs: Sequence[Buffer], terms: int) -> None:
        self.outputs, self.terms = outputs, terms
        self._allowed: dict[str, np.ndarray] = {}

    def of(self, b: Buffer) -> np.ndarray:
        """For every element as it lies in memory."""
        return self._allowed[b.name]

    def measure(
        self,
        contents: Mapping[str, np.ndarray],
        want: Arrays,
        run: Callable[[Mapping[str, np.ndarray]], Arrays],
        random: np.random.Generator,
    ) -> None:
        """From runs of the old kernel on moved inputs."""
        floats = [a for a in contents.values() if is_float(a)]
        size, scale = size_of_moves(self.terms), 1.0
        halves = [unit(a) for a in floats if a.itemsize == 2]
        if halves:  # they cannot move by less than a unit
            scale = size / (max(halves) / np.sqrt(SUBSET))
            size /= scale
        if any(a.itemsize == 8 for a in floats) and all(a.itemsize == 8 for a in floats):
            size *= float(np.finfo(np.float64).eps) / EPS
        runs = range(RUNS if floats else 0)
        self.learn(want, (run(moved(contents, size, random, k % 4 == 3)) for k in runs), scale)

    def learn(self, want: Arrays, others: Iterable[Arrays], scale: float = 1.0) -> None:
        """From results that are as good, up to a factor."""
        farthest = {b.name: np.zeros(want[b.name].size) for b in self.outputs}
        with np.errstate(all="ignore"):
            for other in others:
                for n, far in farthest.items():
                    np.fmax(far, distance(other[n], want[n]), out=far)
            for b in self.outputs:
                self._allowed[b.name] = MOVES * scale * farthest[b.name] + _rounding(want[b.name])

    def share(self, b: Buffer, got: np.ndarray, want: np.ndarray) -> float:
        """The largest difference as a share of the largest element, infinities apart."""
        with np.errstate(all="ignore"):
            far, whole = distance(got, want), np.abs(want.astype(np.float64))
            far, whole = far[np.isfinite(far)], whole[np.isfinite(whole)]
            most = float(whole.max(initial=0.0))
            return float(far.max(initial=0.0)) / most if most else 0.0


def _rounding(want: np.ndarray) -> np.ndarray:
    if not is_float(want):
        return np.zeros(want.size)
    ulps = HALF_ULPS if want.itemsize == 2 else ULPS
    room = ulps * unit(want) * np.abs(want.astype(np.float64))
    return np.asarray(
        np.nan_to_num(room, nan=0.0, posinf=0.0) + DENORMALS * SMALLEST[want.itemsize]
    )


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far elements lie apart: 0 for equal ones and two NaNs, infinity where one is no finite
    number."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        far = np.abs(x - y)
    far[np.isnan(far)] = np.inf
    far[(a == b) | (np.isnan(x) & np.isnan(y))] = 0.0
    if not is_float(a):
        far[(a != b) & (far == 0)] = 1.0  # large integers
    return far


def differing(
    got: np.ndarray, want: np.ndarray, nothing: np.ndarray, allowed: np.ndarray
) -> np.ndarray:
    """Where elements differ by more than is allowed. What was not to be written must hold
    `nothing`, and what was to be written must not."""
    unsigned = np.dtype(f"u{got.itemsize}")
    bits, wanted, empty = got.view(unsigned), want.view(unsigned), nothing.view(unsigned)
    with np.errstate(all="ignore"):
        far = distance(got, want) > allowed
    return np.asarray((bits != wanted) & (far | (bits == empty) | (wanted == empty)))


def moved(
    contents: Mapping[str, np.ndarray], size: float, random: np.random.Generator, together: bool
) -> Arrays:
    """The contents with each float wrong by about this share, up or down: all of a buffer alike, or
    each for itself. Halves, which cannot, move by a unit here and there."""
    return {n: _moved(a, size, random, together) if is_float(a) else a for n, a in contents.items()}


def _moved(
    array: np.ndarray, size: float, random: np.random.Generator, together: bool
) -> np.ndarray:
    count = min(array.size, DRAWN)
    steps = random.choice((-1.0, 1.0), 1) if together else random.standard_normal(count)
    if array.itemsize == 2:
        chosen = random.integers(0, SUBSET, count) == 0
        steps, size = np.where(chosen, np.sign(steps), 0.0), unit(array)
    wide = array.astype(np.float64 if array.itemsize == 8 else np.float32)
    factors = np.resize((1 + size * steps).astype(wide.dtype), array.size)
    with np.errstate(all="ignore"):
        return np.asarray((wide * factors).astype(array.dtype))
