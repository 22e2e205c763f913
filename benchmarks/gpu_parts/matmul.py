"""Products of matrices beside cuBLAS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpu_parts.bench import PRECISIONS, checked, error_of
from gpu_parts.part import Figures, Setting
from gpu_parts.timing import KERNELS

if TYPE_CHECKING:
    from gpu_parts.bench import Array, Bench

# rows, depth, columns
SHAPES = {
    "square 8192": (8192, 8192, 8192),
    "square 4096": (4096, 4096, 4096),
    "square 1024": (1024, 1024, 1024),
    "bert up": (4096, 768, 3072),
    "bert down": (4096, 3072, 768),
    "bert one": (128, 768, 768),
    "llama up": (2048, 4096, 11008),
    "llama down": (2048, 11008, 4096),
    "16 tokens": (16, 4096, 11008),
    "one token": (1, 4096, 11008),
    "odd": (1000, 1001, 1003),
}
INT8 = "int8"
SAMPLE = 8  # rows of the result that are compared


def cases(setting: Setting) -> list[str]:
    """The halves of all shapes first: they are what GPUs are bought for."""
    kinds = [k for k in ("f16", "bf16", "f32", "tf32") if k in PRECISIONS]
    return [f"{shape} {kind}" for kind in (*kinds, INT8) for shape in SHAPES]


def run(bench: Bench, case: str) -> Figures:
    name, _, kind = case.rpartition(" ")
    m, k, n = map(bench.setting.size, SHAPES[name])
    figures = _integers(bench, m, k, n) if kind == INT8 else _floats(bench, kind, m, k, n)
    flops = 2.0 * m * k * n
    rates = {side: flops / s for side, s in figures["seconds"].items()}
    return {**figures, "shape": [m, k, n], "rate": rates[KERNELS], "rates": rates}


def _floats(bench: Bench, kind: str, m: int, k: int, n: int) -> Figures:
    precision = PRECISIONS[kind]
    t = precision.onnx
    text = f"g ({t}[m,k] x, {t}[k,n] w) => ({t}[m,n] y) {{ y = MatMul(x, w) }}"
    compiled = bench.compile(text, bench.options_for(precision))
    x, w = bench.random((m, k), precision.dtype), bench.random((k, n), precision.dtype, 1)
    there = bench.put(x), bench.put(w)
    got = compiled.run(dict(zip("xw", there)))["y"].get()
    verdict = checked(_sampled(got, x, w), precision.tolerance)
    rivals = bench.rival.matmul(*there, precision) if bench.rival else {}
    times = bench.time(compiled, rivals)
    return bench.figures(times, **verdict, schedules=compiled.schedules())


def _integers(bench: Bench, m: int, k: int, n: int) -> Figures:
    text = "g (int8[m,k] x, int8[k,n] w) => (int32[m,n] y) { y = MatMulInteger(x, w) }"
    compiled = bench.compile(text)
    x, w = bench.random((m, k), np.int8), bench.random((k, n), np.int8, 1)
    there = bench.put(x), bench.put(w)
    got = compiled.run(dict(zip("xw", there)))["y"].get()
    verdict = checked(_sampled(got, x, w), 0.0)
    rivals = bench.rival.integer_matmul(*there) if bench.rival else {}
    times = bench.time(compiled, rivals)
    return bench.figures(times, **verdict, schedules=compiled.schedules())


def _sampled(got: Array, x: Array, w: Array) -> float:
    """The error of some rows, the first and the last among them."""
    rows = np.unique(np.linspace(0, len(x) - 1, SAMPLE).astype(int))
    # Sums of products of bytes are exact in float64.
    wanted = x[rows].astype(np.float64) @ w.astype(np.float64)
    return error_of(got[rows].astype(np.float64), wanted)
