"""The text of generated CUDA kernels, run as Python by Numba's CUDA simulator.

Nothing of a compiler is between the text and its result: what goes wrong here is wrong in what was
printed, or in what the functions of the library are said to mean.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda_kernels import in_memory, laid_out, lowered, value_of
from strategies import random_array
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.loops.ir import apply
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops import common
from tilewright.ops.contraction import matmul
from tilewright.ops.convolution import conv
from tilewright.ops.tensor import Constant, Tensor, footprint, placeholder
from tilewright.schedule.cuda import choose_cuda_schedule

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent
ROOTS = (HERE, HERE.parent / "compiler", HERE.parent / "kernels")

pytestmark = pytest.mark.skipif(
    not find_spec("numba_cuda"), reason="Numba's CUDA simulator is a part of numba-cuda"
)


@dataclass(frozen=True)
class Case:
    """One kernel: inputs by shape, what it computes, the same in NumPy, and how it is scheduled."""

    shapes: tuple[tuple[int, ...], ...]
    build: Callable[..., Tensor]
    wanted: Callable[..., Array]
    directive: str


def scaled(x: Tensor, s: Tensor) -> Tensor:
    return common.elementwise(lambda a, b: apply(ScalarOp.SIGMOID, a * b) - b, x, s)


def softmax(x: Tensor) -> Tensor:
    top = common.reduce(ScalarOp.MAX, x, [1], True)
    e = common.elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), x, top)
    whole = common.reduce(ScalarOp.ADD, e, [1], True)
    return common.elementwise(lambda a, b: a / b, e, whole)


def softmax_of(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    result: Array = e / e.sum(1, keepdims=True)
    return result


def largest(axis: int) -> Callable[[Tensor], Tensor]:
    return lambda x: common.reduce(ScalarOp.MAX, x, [axis], False)


def transpose(x: Tensor) -> Tensor:
    rows, columns = x.shape
    return common.view(x, (columns, rows), lambda i, j: [j, i])


def rectified(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return common.elementwise(lambda a, b: apply(ScalarOp.MAX, a + b, a - a), matmul(x, w), bias)


def windows_of(x: Array, w: Array) -> Array:
    views = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    result: Array = np.einsum("nchwij,ocij->nohw", views, w)
    return result


CASES = {
    "map": Case(((5, 60), (60,)), scaled, lambda x, s: 1 / (1 + np.exp(-x * s)) - s, "Elements"),
    "rows of warps": Case(((8, 124),), softmax, softmax_of, "Cooperate(threads=256, width=32"),
    "rows of blocks": Case(
        ((2, 1000),), largest(1), lambda x: x.max(1), "Cooperate(threads=256, width=256"
    ),
    "columns": Case(((300, 24),), largest(0), lambda x: x.max(0), "Columns"),
    "transpose": Case(((70, 41),), transpose, lambda x: x.T, "Transpose"),
    "product": Case(
        ((20, 33), (33, 70), (70,)),
        rectified,
        lambda x, w, b: np.maximum(x @ w + b, 0),
        "BlockTile",
    ),
    "convolution": Case(((1, 5, 9, 9), (18, 5, 3, 3)), conv, windows_of, "BlockTile"),
}


@dataclass(frozen=True)
class Prepared:
    """A kernel's job for the simulator, its arrays by parameter, and what they must become."""

    job: dict[str, Any]
    arrays: list[Array]
    output: Tensor
    inputs: list[Array]


def prepared(name: str, case: Case, seed: int = 1) -> Prepared:
    """The only kernel of a case, on arrays that end where the tensors do."""
    inputs = [placeholder(s, DType.F32) for s in case.shapes]
    output = case.build(*inputs)
    kernels, settled = lowered(inputs, [output])
    assert not settled and len(kernels) == 1
    n = kernels[0]
    values = {t.name: random_array(seed + k, t.shape) for k, t in enumerate(inputs)}
    kernel = verify(choose_cuda_schedule(n))
    assert case.directive in " ".join(map(str, kernel.schedule))
    e = emit_cuda(kernel)
    assert not any(isinstance(t, Constant) for t in n.tensors)
    arrays = [
        np.full(footprint(t), np.nan, np.float32)
        if b.name in kernel.outputs
        else in_memory(t, value_of(t, values))
        for b, t in zip(kernel.params, n.tensors, strict=True)
    ]
    job: dict[str, Any] = {"name": name, "text": e.text, "numbers": list(map(int, e.numbers))}
    job |= {"blocks": e.blocks, "threads": e.threads, "shared": e.shared_bytes}
    return Prepared(job, arrays, n.tensors[-1], list(values.values()))


def simulate(made: list[Prepared], folder: Path) -> dict[str, list[Array]]:
    """The arrays after a run of each kernel, all of them in one process."""
    for p in made:
        np.savez(folder / f"{p.job['name']}.npz", *p.arrays)
    (folder / "kernels.json").write_text(json.dumps([p.job for p in made]))
    path = os.pathsep.join([*map(str, ROOTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_ENABLE_CUDASIM": "1"}
    command = [sys.executable, str(HERE / "cuda_simulator.py"), str(folder)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    found = {}
    for p in made:
        with np.load(folder / f"{p.job['name']}.npz") as file:
            found[p.job["name"]] = [file[key] for key in file.files]
    return found


def test_texts_mean_what_they_compute(tmp_path: Path) -> None:
    made = [prepared(name, case) for name, case in CASES.items()]
    found = simulate(made, tmp_path)
    for p in made:
        name = p.job["name"]
        got = laid_out(p.output, found[name][-1])
        np.testing.assert_allclose(
            got, CASES[name].wanted(*p.inputs), rtol=2e-5, atol=1e-5, err_msg=name
        )
