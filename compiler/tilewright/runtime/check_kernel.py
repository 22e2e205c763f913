"""Whether a kernel computes what another one does: the loops it came from are interpreted, both
are run on random and on given data, and what they write is compared element by element.

What may differ is measured: the old kernel runs again on inputs that are wrong by as much as
reordered sums of that many terms may be (eps * sqrt(terms), up and down), and its results may move
by MOVES times what they moved then, and by ULPS units in the last place. Integers, copies and
comparisons must be equal unless that moves them too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tilewright.loops.ir import Buffer, Kernel
from tilewright.loops.sample import choose, interpret_iterations, shaken, summed_terms
from tilewright.runtime.sandbox import Crashed, Watch, call
from tilewright.runtime.tolerance import Tolerance, differing, moved, size_of_moves
from tilewright.runtime.trial import (
    ATTEMPTS,
    Arrays,
    Caller,
    Code,
    Memory,
    drawn,
    poison,
    shaped,
)

SEED = 20
INTERPRETED = 250_000  # evaluations by the interpreter in one pass: a fraction of a second
SHAKES = 3  # passes in which its rounding is wrong
HANG_SECONDS = 5.0  # that one run may take at least, and
SLOWER = 100  # so many times what the old kernel took
ALL_SECONDS = 180.0
PIECES = 7  # tasks in which a kernel is tried
ALONE = 3  # of these each on memory of its own
ALONE_BYTES = 64 << 20

RANDOM, SPECIAL = "random arrays", "random arrays with infinities and NaNs"
CAPTURED = "the model's own data"


@dataclass(frozen=True)
class Question:
    """Whether `new` computes what `old` does, and both what `kernel` means, on random data and on
    what is `captured`. Parameters in `loose` may lie at any address that suits their elements."""

    kernel: Kernel
    old: Code
    new: Code
    captured: Arrays | None = None
    loose: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Difference:
    """The first element that differs; `index` is empty and `why` not where that says it all."""

    buffer: str
    index: tuple[int, ...]
    wanted: str
    got: str
    why: str

    def __str__(self) -> str:
        if not self.index and not self.wanted:
            return self.why
        return f"{self.buffer}{list(self.index)}: wanted {self.wanted}, got {self.got}{self.why}"


@dataclass(frozen=True)
class Finding:
    """`difference` is None if all is well. `error` is the largest difference as a share of the
    largest element; `checked` says what was compared."""

    difference: Difference | None
    error: float
    checked: tuple[str, ...]


class Different(Exception):
    """Ends an examination."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


def answer(question: Question) -> Finding:
    """What an examination in a child process finds."""
    try:
        found = call(lambda watch: asdict(_Examination(question, watch).run()), ALL_SECONDS)
    except Crashed as crash:
        return Finding(Difference("", (), "", "", str(crash)), math.nan, ())
    different = found["difference"]
    if different is not None:
        different = Difference(**{**different, "index": tuple(different["index"])})
    return Finding(different, float(found["error"]), tuple(found["checked"]))


class _Examination:
    def __init__(self, question: Question, watch: Watch) -> None:
        self.q, self.watch = question, watch
        self.kernel = question.kernel
        self.random = np.random.default_rng(SEED)
        self.outputs = [b for b in self.kernel.params if b.name in self.kernel.outputs]
        self.poison = {b.name: poison(b) for b in self.outputs}
        self.tolerance = Tolerance(self.outputs, summed_terms(self.kernel))
        self.caller = Caller(self.kernel.params)
        self.error, self.elements = 0.0, 0
        self.checked: list[str] = []
        self.seconds = 0.0  # of the old kernel
        self.what = ""

    def run(self) -> Finding:
        try:
            for what, contents in self._data():
                self.what = f"on {what}"
                self._compare(contents, is_first=not self.checked)
                self.checked.append(what)
            self._report_bad_data()
        except Different as found:
            return Finding(found.difference, math.nan, tuple(self.checked))
        return Finding(None, self.error, tuple(self._told()))

    def _told(self) -> Iterator[str]:
        yield f"{self.elements:,} elements on {', '.join(self.checked) or 'no data'}"
        yield from self.notes

    notes: tuple[str, ...] = ()

    # -- data

    def _data(self) -> Iterator[tuple[str, Arrays]]:
        ordinary = self._good(special=False)
        if ordinary is not None:
            yield RANDOM, ordinary
        else:
            self.notes += ("random integers are bad data for it: not tried on random arrays",)
        if any(b.dtype.is_float for b in self.kernel.params if b not in self.outputs):
            special = self._good(special=True)
            if special is not None:
                yield SPECIAL, special
        if self.q.captured is not None:
            yield CAPTURED, self.q.captured
        elif ordinary is None:
            raise Different(Difference("", (), "", "", "there is no data to check it on"))

    def _good(self, special: bool) -> Arrays | None:
        """Random contents in which the old kernel finds nothing bad."""
        for attempt in range(ATTEMPTS):
            contents = drawn(self.kernel, self.random, attempt, special)
            if not self._call(self.q.old, contents)[1]:
                return contents
        return None

    # -- runs

    def _call(
        self, code: Code, contents: Mapping[str, np.ndarray], pieces: int = 1
    ) -> tuple[Memory, bool]:
        """Memory after a run in so many tasks, in some order; whether it found bad data."""
        memory = self._memory(contents)
        tasks, chunk = code.cut(pieces)
        start = time.perf_counter()
        failed = self.caller(code, memory, chunk, self.random.permutation(tasks).tolist())
        if code is self.q.old:
            self.seconds = max(self.seconds, time.perf_counter() - start)
        return memory, failed

    def _memory(self, contents: Mapping[str, np.ndarray]) -> Memory:
        return Memory(self.kernel.params, {**contents, **self.poison}, self.q.loose, self.random)

    def _old(self, contents: Mapping[str, np.ndarray]) -> Arrays:
        memory, _ = self._call(self.q.old, contents)
        return {b.name: memory.arrays[b.name] for b in self.outputs}

    def _new(self, contents: Mapping[str, np.ndarray], pieces: int) -> tuple[Memory, bool]:
        self.watch.tell(self.what)
        with self.watch.limited(HANG_SECONDS + SLOWER * self.seconds):
            memory, failed = self._call(self.q.new, contents, pieces)
        spilled = memory.spilled()
        if spilled is not None:
            self._refuse(f"it writes outside of {spilled} {self.what}", spilled)
        for name, content in contents.items():
            if memory.arrays[name].tobytes() != content.tobytes():
                self._refuse(f"it writes to {name}, which it may only read, {self.what}", name)
        return memory, failed

    def _refuse(self, why: str, name: str = "") -> None:
        raise Different(Difference(name, (), "", "", why))

    # -- comparisons

    def _compare(self, contents: Arrays, is_first: bool) -> None:
        want = self._old(contents)
        self.tolerance.measure(contents, want, self._old, self.random)
        for pieces in (PIECES, 1) if is_first else (3,):
            memory, failed = self._new(contents, pieces)
            if failed:
                self._refuse(f"it reports bad data {self.what}, where there is none")
            self._compare_all(memory, want)
        if is_first:
            self._compare_tasks(contents, want)
            self._interpret(contents, want, memory)

    def _compare_all(self, memory: Memory, want: Arrays) -> None:
        for b in self.outputs:
            got = memory.arrays[b.name]
            bad = differing(got, want[b.name], self.poison[b.name], self.tolerance.of(b))
            self._require(b, bad, got, want[b.name], f" {self.what}{self._piece()}")
            self.error = max(self.error, self.tolerance.share(b, got, want[b.name]))
            self.elements += math.prod(b.shape)

    def _piece(self) -> str:
        return ""

    def _compare_tasks(self, contents: Arrays, want: Arrays) -> None:
        """Each task writes what is right by itself: others may run at any time."""
        tasks, chunk = self.q.new.cut(PIECES)
        if tasks == 1 or sum(p.nbytes for p in self.poison.values()) > ALONE_BYTES:
            return
        for task in self.random.permutation(tasks)[:ALONE].tolist():
            memory = self._memory(contents)
            with self.watch.limited(HANG_SECONDS + SLOWER * self.seconds):
                self.caller(self.q.new, memory, chunk, [task])
            for b in self.outputs:
                got, nothing = memory.arrays[b.name], self.poison[b.name]
                bad = differing(got, want[b.name], nothing, self.tolerance.of(b))
                bad &= ~same_bits(got, nothing)
                why = f" {self.what}, when one task runs without the others"
                self._require(b, bad, got, want[b.name], why)

    def _require(
        self, b: Buffer, bad: np.ndarray, got: np.ndarray, want: np.ndarray, why: str
    ) -> None:
        if not bad.any():
            return
        inside = shaped(b, bad.view(np.uint8)).ravel()
        places = np.flatnonzero(inside)
        if not places.size:
            self._refuse(f"it writes to the gaps between the elements of {b.name}{why}", b.name)
        index = tuple(map(int, np.unravel_index(places[0], b.shape))) if b.shape else ()
        values = [shaped(b, a)[index] for a in (want, got)]
        texts = [
            "nothing" if shaped(b, same_bits(a, self.poison[b.name]).view(np.uint8))[index] else t
            for a, t in zip((want, got), map(_number, values), strict=True)
        ]
        raise Different(Difference(b.name, index, texts[0], texts[1], why))

    # -- the meaning

    def _interpret(self, contents: Arrays, want: Arrays, memory: Memory) -> None:
        """Some elements by the interpreter, also with rounding that is wrong."""
        chosen = choose(self.kernel, INTERPRETED, self.random)
        if not chosen:
            self.notes += ("its loops take too long to be interpreted",)
            return
        meant = self._meant(self.kernel, contents, chosen)
        tolerance = Tolerance(self.outputs, self.tolerance.terms)
        size = size_of_moves(self.tolerance.terms)

        def wrong() -> Arrays:
            kernel = shaken(self.kernel, self.random, 4.0)
            return self._meant(kernel, moved(contents, size, self.random, together=False), chosen)

        tolerance.learn(meant, [wrong() for _ in range(SHAKES)])
        count, doubtful = 0, 0
        for b in self.outputs:
            nothing, allow = self.poison[b.name], tolerance.of(b)
            seen = ~same_bits(meant[b.name], nothing)
            count += int(seen.sum())
            doubt = differing(want[b.name], meant[b.name], nothing, allow) & seen
            doubtful += int(doubt.sum())
            got = memory.arrays[b.name]
            bad = differing(got, meant[b.name], nothing, allow) & seen & ~doubt
            self._require(b, bad, got, meant[b.name], f" by its loops {self.what}")
        self.notes += (f"{count:,} of them by the interpreter",)
        if doubtful:
            self.notes += (f"in {doubtful:,} of these the generated kernel differs from its loops",)

    def _meant(self, kernel: Kernel, contents: Arrays, chosen: list[dict[str, int]]) -> Arrays:
        made = {n: p.copy() for n, p in self.poison.items()}
        flat = {**contents, **made}
        arrays = {b.name: shaped(b, flat[b.name]) for b in kernel.params}
        interpret_iterations(kernel, chosen, arrays)
        return made

    def _report_bad_data(self) -> None:
        """What the old kernel reports, the new one reports too, and writes nowhere else."""
        if not self.q.old.checks:
            return
        contents = drawn(self.kernel, self.random)
        for b in self.kernel.params:
            if b.name in contents and b.dtype.is_integer and b.values is None:
                contents[b.name][:] = np.iinfo(b.dtype.numpy).max
        for fill in (None, 0):
            if fill is not None:
                for b in self.kernel.params:
                    if b.name in contents and b.dtype.is_integer and b.values is None:
                        contents[b.name][:] = fill
            self.what = "on bad data"
            if self._call(self.q.old, contents)[1] and not self._new(contents, PIECES)[1]:
                self._refuse("it does not report bad data, which the generated kernel does")


def same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where elements of two arrays of one type are the same bytes."""
    unsigned = np.dtype(f"u{a.itemsize}")
    same: np.ndarray = a.view(unsigned) == b.view(unsigned)
    return same


def _number(value: Any) -> str:
    return str(np.asarray(value).astype(object) if value.dtype.kind in "iub" else float(value))
