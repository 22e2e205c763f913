"""Kernels that memory limits, on tensors far larger than any cache: bytes in a second beside a
copy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import parser

import tilewright as tw
from gpu_parts.bench import HEADER, checked, error_of
from gpu_parts.part import Figures, Setting
from gpu_parts.timing import KERNELS

if TYPE_CHECKING:
    from gpu_parts.bench import Array, Bench

LARGE = 1 << 14  # the square of it are 2^28 elements: 1 GiB of float32
F32, F16, I64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int64)
TOLERANCE = {F32: 1e-4, F16: 1e-2}


@dataclass(frozen=True)
class Case:
    """A graph's text and its inputs by name."""

    text: str
    inputs: dict[str, tuple[Sequence[int], np.dtype[np.generic]]]

    def shapes(self, setting: Setting) -> dict[str, tuple[int, ...]]:
        return {n: tuple(map(setting.size, shape)) for n, (shape, _) in self.inputs.items()}


SQUARE = (LARGE, LARGE)
ROWS = (LARGE * 16, LARGE // 16)
CASES = {
    "elementwise": Case(
        "g (float[n,m] x, float[n,m] z) => (float[n,m] y)"
        " { a = Mul(x, z) b = Add(a, z) c = Sigmoid(b) y = Mul(b, c) }",
        {"x": ((LARGE, LARGE // 2), F32), "z": ((LARGE, LARGE // 2), F32)},
    ),
    "elementwise f16": Case(
        "g (float16[n,m] x, float16[n,m] z) => (float16[n,m] y)"
        " { a = Mul(x, z) b = Add(a, z) c = Sigmoid(b) y = Mul(b, c) }",
        {"x": (SQUARE, F16), "z": (SQUARE, F16)},
    ),
    "bias of rows": Case(
        "g (float[n,m] x, float[m] z) => (float[n,m] y) { a = Add(x, z) y = Relu(a) }",
        {"x": (SQUARE, F32), "z": ((LARGE,), F32)},
    ),
    "softmax": Case(
        "g (float[n,m] x) => (float[n,m] y) { y = Softmax<axis = -1>(x) }", {"x": (ROWS, F32)}
    ),
    "softmax wide": Case(
        "g (float[n,m] x) => (float[n,m] y) { y = Softmax<axis = -1>(x) }", {"x": (SQUARE, F32)}
    ),
    "softmax f16": Case(
        "g (float16[n,m] x) => (float16[n,m] y) { y = Softmax<axis = -1>(x) }", {"x": (ROWS, F16)}
    ),
    "layernorm": Case(
        "g (float[n,m] x, float[m] s, float[m] b) => (float[n,m] y)"
        " { y = LayerNormalization<axis = -1>(x, s, b) }",
        {"x": (ROWS, F32), "s": ((LARGE // 16,), F32), "b": ((LARGE // 16,), F32)},
    ),
    "transpose": Case(
        "g (float[n,m] x) => (float[m,n] y) { y = Transpose<perm = [1, 0]>(x) }",
        {"x": (SQUARE, F32)},
    ),
    "transpose f16": Case(
        "g (float16[n,m] x) => (float16[m,n] y) { y = Transpose<perm = [1, 0]>(x) }",
        {"x": (SQUARE, F16)},
    ),
    "heads apart": Case(
        "g (float[b,s,h,d] x) => (float[b,h,s,d] y) { y = Transpose<perm = [0, 2, 1, 3]>(x) }",
        {"x": ((64, 2048, 16, 128), F32)},
    ),
    "channels last": Case(
        "g (float[b,c,h,w] x) => (float[b,h,w,c] y) { y = Transpose<perm = [0, 2, 3, 1]>(x) }",
        {"x": ((64, 64, 256, 256), F32)},
    ),
    "sums of rows": Case(
        "g (float[n,m] x) => (float[n] y) <int64[1] a = {1}>"
        " { y = ReduceMean<keepdims = 0>(x, a) }",
        {"x": (ROWS, F32)},
    ),
    "sums of columns": Case(
        "g (float[n,m] x) => (float[m] y) <int64[1] a = {0}>"
        " { y = ReduceMean<keepdims = 0>(x, a) }",
        {"x": (ROWS, F32)},
    ),
    "sum of all": Case(
        "g (float[n,m] x) => (float y) { y = ReduceMax<keepdims = 0>(x) }", {"x": (SQUARE, F32)}
    ),
    "gather": Case(
        "g (float[t,m] x, int64[n] i) => (float[n,m] y) { y = Gather<axis = 0>(x, i) }",
        {"x": ((LARGE * 32, LARGE // 64), F32), "i": ((LARGE * 32,), I64)},
    ),
}


def cases(setting: Setting) -> list[str]:
    return list(CASES)


def feeds(bench: Bench, case: Case) -> dict[str, Array]:
    """The inputs on the host."""
    shapes = case.shapes(bench.setting)
    made: dict[str, Array] = {}
    for k, (name, (_, dtype)) in enumerate(case.inputs.items()):
        if dtype == I64:
            rng = np.random.default_rng(k)
            made[name] = rng.integers(0, shapes["x"][0], shapes[name])
        else:
            made[name] = bench.random(shapes[name], dtype, k)
    return made


def run(bench: Bench, name: str) -> Figures:
    """All results are compared with those of the processor."""
    case = CASES[name]
    given = feeds(bench, case)
    compiled = bench.compile(case.text)
    outputs = compiled.run({n: bench.put(a) for n, a in given.items()})
    wanted = tw.compile(parser.parse_model(HEADER + case.text)).run(given)["y"]
    got = outputs["y"].get()
    verdict = checked(error_of(got, wanted), TOLERANCE[np.dtype(got.dtype)])
    nbytes = got.nbytes + sum(a.nbytes for a in given.values())
    if "i" in given:  # only the rows that are chosen are read
        chosen = len(np.unique(given["i"]))
        nbytes -= (len(given["x"]) - chosen) * given["x"][0].nbytes
    times = bench.time(compiled)
    rate = nbytes / times.seconds[KERNELS]
    return bench.figures(
        times,
        **verdict,
        bytes=nbytes,
        rate=rate,
        of_copy=rate / bench.copy_bandwidth,
        schedules=compiled.schedules(),
    )
