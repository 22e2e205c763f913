"""What calls cost that have next to nothing to compute: kernels in a row, and the host."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from onnx import parser

import tilewright as tw
from gpu_parts.bench import HEADER, checked, error_of
from gpu_parts.part import Figures, Setting
from gpu_parts.timing import host_seconds

if TYPE_CHECKING:
    from gpu_parts.bench import Bench

LENGTHS = (1, 8, 64)
WIDTH, CALLS = 64, 100


def cases(setting: Setting) -> list[str]:
    return [f"{length} products" for length in LENGTHS]


def text_of(length: int) -> str:
    """Products one after the other, which no kernel does together."""
    names = ["x", *(f"a{k}" for k in range(1, length)), "y"]
    steps = [f"{b} = MatMul({a}, w)" for a, b in pairwise(names)]
    return f"g (float[n,m] x, float[m,m] w) => (float[n,m] y) {{ {' '.join(steps)} }}"


def run(bench: Bench, case: str) -> Figures:
    length, width = int(case.split()[0]), bench.setting.size(WIDTH)
    compiled = bench.compile(text_of(length))
    x = bench.random((width, width), np.float32)
    w = np.eye(width, dtype=np.float32)[::-1].copy()  # products stay as large as they are
    feeds = {"x": bench.put(x), "w": bench.put(w)}
    got = compiled.run(feeds)["y"].get()
    wanted = tw.compile(parser.parse_model(HEADER + text_of(length))).run({"x": x, "w": w})["y"]
    count = bench.setting.size(CALLS, 1)
    rivals = bench.rival.products(*feeds.values(), length) if bench.rival else {}
    times = bench.time(compiled, rivals)
    return bench.figures(
        times,
        **checked(error_of(got, wanted), 1e-5),
        kernels=compiled.count,
        host_call=host_seconds(bench.device, compiled.call, count),
        host_start=host_seconds(bench.device, compiled.kernels, count),
        how=[d for s in compiled.model.explain().stages for d in s.decisions if "started" in d],
    )
