"""Kernels that the compiler made, kept as PTX, each with a launch and the result that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptx import Memory, Module, Statistics, launch

Array = np.ndarray[Any, Any]
FOLDER = Path(__file__).parent / "ptx_samples"


@dataclass(frozen=True)
class Sample:
    """A kernel's text and launch; `numbers` follow the arrays and the result as parameters."""

    name: str
    arrays: tuple[Array, ...]
    result: tuple[tuple[int, ...], Any]
    numbers: tuple[int, ...]
    blocks: int
    threads: int
    shared: int
    wanted: Callable[..., Array]
    tolerance: float = 0.0

    @property
    def text(self) -> str:
        return (FOLDER / f"{self.name}.ptx").read_text()

    def run(
        self, text: str | None = None, batch: int = 8192, **changes: Any
    ) -> tuple[Array, Statistics]:
        """The result of this kernel or of an edited text; `changes` are to the launch."""
        memory = Memory()
        places = [memory.put(a) for a in changes.get("arrays", self.arrays)]
        shape, dtype = self.result
        places.append(memory.empty(int(np.prod(shape)) * np.dtype(dtype).itemsize))
        parameters = [*places, *changes.get("numbers", self.numbers)]
        kernel = Module(text or self.text).kernel()
        blocks, threads = changes.get("blocks", self.blocks), changes.get("threads", self.threads)
        shared = changes.get("shared", self.shared)
        statistics = launch(kernel, memory, blocks, threads, parameters, shared, batch)
        return memory.get(places[-1], shape, dtype), statistics


def normal(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def product() -> Sample:
    """Two float32 matrices, by tiles of 16 rows and 64 columns in shared memory."""
    m, n, k = 48, 128, 32
    strides = (16 * k, 4 * k, k, 16, 16 * n, n, 64, 16 * n, 4 * n, n, 64, 4)
    arrays = normal((m, k), np.float32), normal((k, n), np.float32, 1)
    numbers, blocks = (n // 64, k // 16, *strides), (m // 16) * (n // 64)
    result = ((m, n), np.float32)
    return Sample("product", arrays, result, numbers, blocks, 64, 5632, np.matmul, 1e-5)


def sine() -> Sample:
    """Doubles of every size: large ones are reduced by a function with a table and an array."""
    x = normal((150,), np.float64) * 10.0 ** np.linspace(-5, 300, 150)
    x[:3] = np.inf, 0.0, -0.0
    return Sample("sine", (x,), (x.shape, np.float64), (150,), 3, 64, 0, np.sin, 1e-15)


def sums() -> Sample:
    """Of the 96 threads of each block, by shuffles and shared memory."""
    x = normal((5, 96), np.float32)
    wanted = lambda a: a.sum(1)  # noqa: E731
    return Sample("sums", (x,), ((5,), np.float32), (), 5, 96, 16, wanted, 1e-5)


def pipeline() -> Sample:
    """Sums over rows that are copied while the row before is added."""
    x = normal((6, 128, 4), np.float32)
    wanted = lambda a: a[:, ::-1].sum((0, 2))  # noqa: E731
    return Sample("pipeline", (x,), ((128,), np.float32), (6,), 1, 128, 4096, wanted, 1e-5)


def tensor() -> Sample:
    """16 x 16 by 16 x 8 halves by one warp."""
    a, b = normal((16, 16), np.float16), normal((16, 8), np.float16, 1)
    wanted = lambda a, b: a.astype(np.float32) @ b.astype(np.float32)  # noqa: E731
    result = ((16, 8), np.float32)
    return Sample("tensor", (a, b), result, (), 1, 32, 768, wanted, 1e-5)


SAMPLES = {s.name: s for s in (product(), sine(), sums(), pipeline(), tensor())}
