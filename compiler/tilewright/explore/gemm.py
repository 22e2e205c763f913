"""Products of matrices against NumPy: shapes of real models, and every combination of odd sizes.

Each library has a process of its own, as in `compare`. A product is a model of one MatMul whose
right side is a weight; where weights are large, calls go around so many that no cache holds them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

import tilewright
from tilewright import CompiledModel
from tilewright.explore.compare import OURS
from tilewright.explore.engines import Engine
from tilewright.explore.process import serve
from tilewright.explore.screen import Screen
from tilewright.options import Options
from tilewright.runtime.ceilings import ceilings_for

NUMPY = "numpy"
OPSET = 21

NAMED_SHAPES = {
    "BERT": ((128, 768, 768), (128, 768, 3072), (128, 3072, 768)),
    "ViT": ((197, 768, 768), (197, 768, 2304), (197, 768, 3072), (197, 3072, 768)),
    "one token": ((1, 768, 768), (1, 768, 3072), (1, 3072, 768)),
}
ODD_SIZES = (1, 3, 7, 17, 31, 63, 100, 129, 1000)
CYCLED_FROM = 1 << 20  # bytes of a weight
CYCLED_BYTES = 96 << 20  # of all weights that calls go around
TURNS = 5
NAMED_SECONDS, ODD_SECONDS = 0.12, 0.004  # of one turn
PROFILE_SECONDS = 0.01
TOLERANCE = 1e-5  # of the sum of magnitudes; what float32 keeps is a hundred times less
SLOWEST = 15
HALF, LARGE_FLOPS = 0.5, 1e7


@dataclass(frozen=True)
class Product:
    """One product: seconds of a call, operations in a second, and the error of our result.

    `ratio` is NumPy's time over ours, the median of turns; `peak` the share of multiply-adds that
    all threads reach. `kernels` are the seconds of the kernels alone, the weight being in a cache
    that holds it. `error` is relative to the sum of the magnitudes of what is added.
    """

    label: str
    rows: int
    depth: int
    columns: int
    ours: float
    kernels: float
    numpy: float
    ratio: float
    flops_rate: float
    numpy_flops_rate: float
    peak: float
    error: float

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.depth * self.columns

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.depth}x{self.columns}"


@dataclass(frozen=True)
class Products:
    """All of them, and what the peak is."""

    threads: int
    peak_flops: float
    products: tuple[Product, ...]

    @property
    def right(self) -> bool:
        return all(p.error <= TOLERANCE for p in self.products)

    @property
    def slow(self) -> tuple[Product, ...]:
        """Large ones below half of NumPy's speed: there should be none."""
        return tuple(p for p in self.products if p.ratio < HALF and p.flops >= LARGE_FLOPS)


# -- the processes


def product_model(weight: np.ndarray, rows: int) -> ModelProto:
    """x @ weight."""
    depth, columns = weight.shape
    declare = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [declare("x", TensorProto.FLOAT, [rows, depth])],
        [declare("y", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def copies(depth: int, columns: int) -> int:
    """How many weights the calls go around."""
    size = 4 * depth * columns
    return -(-CYCLED_BYTES // size) if size >= CYCLED_FROM else 1


def relative_error(got: np.ndarray, x: np.ndarray, weight: np.ndarray) -> float:
    """Against float64; NaN counts as infinite."""
    a, b = x.astype(np.float64), weight.astype(np.float64)
    magnitude = np.maximum(np.abs(a) @ np.abs(b), np.finfo(np.float32).tiny)
    worst = float((np.abs(got - a @ b) / magnitude).max(initial=0.0))
    return worst if worst == worst and got.shape == magnitude.shape else float("inf")


class _Server:
    """A library that multiplies."""

    def __init__(self, library: str, threads: int) -> None:
        self._library, self._threads = library, threads
        self._calls: Iterator[Callable[[], Any]] = itertools.cycle([])

    def prepare(self, shape: Sequence[int]) -> dict[str, Any]:
        """Makes the product of this shape, [rows, depth, columns]; the error of its first weight
        and of its last."""
        rows, depth, columns = shape
        rng = np.random.default_rng(depth)
        x = rng.standard_normal((rows, depth), np.float32)
        weights = [
            rng.standard_normal((depth, columns), np.float32) for _ in range(copies(depth, columns))
        ]
        calls = [self._call(x, w) for w in weights]
        results = [(call(), w) for call, w in zip(calls, weights, strict=True)]
        self._calls = itertools.cycle(calls)
        error = max(relative_error(y, x, w) for y, w in (results[0], results[-1]))
        return {"error": error, "kernels": self._kernel_seconds(x, weights[0])}

    def turn(self, seconds: float) -> dict[str, Any]:
        """Times of calls for so long; at least one, after one to warm up."""
        next(self._calls)()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            call = next(self._calls)
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return {"median": statistics.median(times)}

    def ceilings(self) -> dict[str, Any]:
        return dataclasses.asdict(ceilings_for(self._options))

    @property
    def _options(self) -> Options:
        return dataclasses.replace(Options.from_environment(), threads=self._threads)

    def _kernel_seconds(self, x: np.ndarray, weight: np.ndarray) -> float:
        """Of our kernels alone."""
        if self._library == NUMPY:
            return 0.0
        found = self._model(weight, len(x)).profile({"x": x}, seconds=PROFILE_SECONDS)
        return sum(s.seconds for s in found)

    def _model(self, weight: np.ndarray, rows: int) -> CompiledModel:
        return tilewright.compile(product_model(weight, rows), options=self._options)

    def _call(self, x: np.ndarray, weight: np.ndarray) -> Callable[[], np.ndarray]:
        if self._library == NUMPY:
            return lambda: x @ weight
        model, feeds = self._model(weight, len(x)), {"x": x}

        def call() -> np.ndarray:
            result: np.ndarray = model.run(feeds)["y"]
            return result

        return call


def _start(library: str, threads: int) -> tuple[_Server, dict[str, Any]]:
    return _Server(library, threads), {}


# -- the other side


def count(sizes: Sequence[int]) -> int:
    """How many products `bench` measures."""
    return sum(map(len, NAMED_SHAPES.values())) + len(sizes) ** 3


def bench(
    sizes: Sequence[int], threads: int, limit: float, begin: Callable[[str], None]
) -> Products:
    """Every product; `begin` is told of each. Raises EngineError if a process fails."""
    wanted = [(label, shape) for label, shapes in NAMED_SHAPES.items() for shape in shapes]
    wanted += [("odd", (a, b, c)) for a, b, c in itertools.product(sizes, repeat=3)]
    with _engine(OURS, threads, limit) as ours, _engine(NUMPY, threads, limit) as other:
        peak = float(ours.ask("ceilings")["flops"])
        found = []
        for label, shape in wanted:
            begin("x".join(map(str, shape)))
            seconds = NAMED_SECONDS if label in NAMED_SHAPES else ODD_SECONDS
            found.append(_measure(label, shape, seconds, (ours, other), peak))
    return Products(threads, peak, tuple(found))


def _engine(library: str, threads: int, limit: float) -> Engine:
    """NumPy's own threads are set by variables, and must be before it is imported."""
    blas = str(threads if library == NUMPY else 1)
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    words = ["-m", "tilewright.explore.gemm", library, str(threads)]
    return Engine(library, words, limit, dict.fromkeys(names, blas))


def _measure(
    label: str,
    shape: tuple[int, int, int],
    seconds: float,
    engines: tuple[Engine, Engine],
    peak: float,
) -> Product:
    made, _ = (e.ask("prepare", shape=shape) for e in engines)
    turns = [[e.ask("turn", seconds=seconds)["median"] for e in engines] for _ in range(TURNS)]
    ours, other = (statistics.median(t[k] for t in turns) for k in (0, 1))
    ratio = statistics.median(t[1] / t[0] for t in turns)
    flops = 2.0 * shape[0] * shape[1] * shape[2]
    return Product(
        label,
        *shape,
        ours=ours,
        kernels=made["kernels"],
        numpy=other,
        ratio=ratio,
        flops_rate=flops / ours,
        numpy_flops_rate=flops / other,
        peak=flops / ours / peak,
        error=made["error"],
    )


def show(found: Products, screen: Screen, everything: bool) -> None:
    """Tables: products of models, and of odd sizes the slowest beside NumPy."""
    screen.heading(
        f"Products of matrices (rows x depth x columns) with {found.threads} threads; "
        f"the peak is {found.peak_flops / 1e9:,.0f} GFLOP/s"
    )
    columns = [
        "product",
        "of",
        "us",
        "kernels us",
        "GFLOP/s",
        "NumPy's",
        "ratio",
        "of peak",
        "error",
    ]
    named = [p for p in found.products if p.label in NAMED_SHAPES]
    screen.table(columns, [_row(p) for p in named])
    odd = [p for p in found.products if p.label not in NAMED_SHAPES]
    if odd:
        shown = odd if everything else sorted(odd, key=lambda p: p.ratio)[:SLOWEST]
        screen.heading(f"{len(shown)} of {len(odd)} products of odd sizes")
        screen.table(columns, [_row(p) for p in shown])
        screen.line(f"ratio: {_spread([p.ratio for p in odd])}")
        screen.line(f"of the kernels alone: {_spread([p.numpy / p.kernels for p in odd])}")
    slow = [f"{p.shape} ({p.ratio:.2f})" for p in found.slow]
    screen.line(f"from 10 MFLOP below half of NumPy's speed: {', '.join(slow) or 'none'}")
    wrong = [p.shape for p in found.products if not p.error <= TOLERANCE]
    screen.line(f"WRONG: {', '.join(wrong)}" if wrong else "every product is right")


def _spread(ratios: Sequence[float]) -> str:
    mean, below = statistics.geometric_mean(ratios), sum(r < 1 for r in ratios)
    return f"geometric mean {mean:.2f}, below 1 for {below} of {len(ratios)}"


def _row(p: Product) -> list[str]:
    times = [f"{t * 1e6:,.1f}" for t in (p.ours, p.kernels)]
    rates = [f"{rate / 1e9:,.1f}" for rate in (p.flops_rate, p.numpy_flops_rate)]
    return [p.shape, p.label, *times, *rates, f"{p.ratio:.2f}"] + [
        f"{p.peak:.0%}",
        f"{p.error:.0e}",
    ]


if __name__ == "__main__":
    serve(functools.partial(_start, sys.argv[1], int(sys.argv[2])))
