"""A model on two engines: the same answers, and their times side by side.

Each engine has a process of its own. They take turns of a fraction of a second, one idle while the
other runs, so that a machine whose speed drifts hurts both alike; the ratio is the turns' median.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tilewright.errors import InputError
from tilewright.explore import process
from tilewright.explore.engines import Engine
from tilewright.explore.feeds import Wanted, make_feeds

OURS = "tilewright"
TURN_SECONDS = 0.2
FEWEST_TURNS = 3


@dataclass(frozen=True, kw_only=True)
class Request(Wanted):
    """What is compared, and how."""

    model: str
    against: str = ""
    threads: int = 1
    seconds: float = 4.0
    limit: float = 600.0
    memory: bool = False  # also start both anew, to measure what a start needs


@dataclass(frozen=True)
class Start:
    """A new process when kernels are cached: seconds to load and to answer the first call, and
    bytes of peak resident memory by then."""

    load: float
    first: float
    peak_bytes: int


@dataclass(frozen=True)
class EngineResult:
    """One engine's side: seconds, and bytes of peak resident memory."""

    engine: str
    load: float
    first: float
    median: float
    least: float
    calls: int
    peak_bytes: int
    again: Start | None = None


@dataclass(frozen=True)
class Comparison:
    """`ratio` is the other engine's time over ours: above 1 we are faster.

    `error` is the largest absolute difference of an output over its largest magnitude; infinite
    where types, shapes, integers, text or NaNs differ.
    """

    model: str
    threads: int
    inputs: Mapping[str, str]
    error: float
    ratio: float
    turns: int
    engines: tuple[EngineResult, EngineResult]


def compare(request: Request) -> Comparison:
    """Runs both. Raises EngineError or InputError if that cannot be done."""
    with (
        tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder,
        _start(OURS, request) as ours,
        _start(request.against, request) as other,
    ):
        feeds = make_feeds(ours.hello["inputs"], request)
        held = f"{folder}/inputs.npz"
        np.savez(held, **feeds)  # type: ignore[arg-type]
        firsts, outputs = [], []
        for k, engine in enumerate((ours, other)):
            firsts.append(engine.ask("first", feeds=held, save=f"{folder}/{k}.npz")["first"])
            outputs.append(_load(f"{folder}/{k}.npz"))
        times, ratios = take_turns(ours, other, request.seconds)
        results = [
            _result(engine, first, taken)
            for engine, first, taken in zip((ours, other), firsts, times, strict=True)
        ]
        if request.memory:
            ours.close()
            other.close()
            results = [replace(r, again=_start_again(r.engine, request, folder)) for r in results]
    return Comparison(
        request.model,
        request.threads,
        {n: f"{a.dtype}{list(a.shape)}" for n, a in feeds.items()},
        largest_error(outputs[0], outputs[1]),
        statistics.median(ratios),
        len(ratios),
        (results[0], results[1]),
    )


def _start(engine: str, request: Request) -> Engine:
    words = ["-P", process.__file__, engine, request.model, str(request.threads)]
    return Engine(engine, words, request.limit)


def _result(engine: Engine, first: float, taken: list[float]) -> EngineResult:
    load, peak = engine.hello["load"], engine.ask("memory")["bytes"]
    middle = statistics.median(taken)
    return EngineResult(engine.name, load, first, middle, min(taken), len(taken), peak)


def _start_again(engine: str, request: Request, folder: str) -> Start:
    with _start(engine, request) as fresh:
        paths = {"feeds": f"{folder}/inputs.npz", "save": f"{folder}/again.npz"}
        first = fresh.ask("first", **paths)["first"]
        return Start(fresh.hello["load"], first, fresh.ask("memory")["bytes"])


def _load(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        return {name[1:]: held[name] for name in held.files}


def take_turns(
    ours: Engine, other: Engine, seconds: float
) -> tuple[tuple[list[float], list[float]], list[float]]:
    """Times of all calls of both, and the ratio of each turn."""
    times: tuple[list[float], list[float]] = ([], [])
    ratios: list[float] = []
    each = min(TURN_SECONDS, seconds / 2 / FEWEST_TURNS)
    for _ in range(max(FEWEST_TURNS, round(seconds / 2 / TURN_SECONDS))):
        turn = [engine.ask("turn", seconds=each)["times"] for engine in (ours, other)]
        for all_times, taken in zip(times, turn, strict=True):
            all_times.extend(taken)
        ratios.append(statistics.median(turn[1]) / statistics.median(turn[0]))
    return times, ratios


def largest_error(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> float:
    """The largest error of any output; infinite if they are not the same outputs."""
    if got.keys() != want.keys():
        return math.inf
    return max((array_error(got[n], want[n]) for n in want), default=0.0)


def array_error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference over the largest magnitude; 0 or infinity but for floats."""
    if got.shape != want.shape or got.dtype.kind != want.dtype.kind:
        return math.inf
    if want.dtype.kind not in "fc":
        return 0.0 if np.array_equal(got, want) else math.inf
    if not want.size:
        return 0.0
    kind = np.complex128 if want.dtype.kind == "c" else np.float64
    got, want = got.astype(kind), want.astype(kind)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    finite = np.isfinite(want)
    if not (same | (finite & np.isfinite(got))).all():
        return math.inf
    scale = float(np.abs(want[finite]).max(initial=0.0)) or 1.0
    differences = np.abs(got[~same] - want[~same])
    return float(differences.max(initial=0.0)) / scale


def check_model(path: str) -> None:
    """InputError unless there is such a file."""
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
