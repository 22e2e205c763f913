"""Products x @ w of whatever is needed, and their kernels as the emulator ran them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda_kernels import Run, emulated, lowered
from tilewright.dtypes import DType
from tilewright.loops.ir import apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops import common
from tilewright.ops.contraction import gemm, matmul
from tilewright.ops.tensor import Placeholder, Tensor, constant, placeholder
from tilewright.schedule.directives import Directive

Array = np.ndarray[Any, Any]
DTYPES = (DType.F32, DType.F16, DType.BF16)
LAYOUTS = ("depth first", "depth last")
ROUNDING = {DType.F32: 1e-5, DType.F16: 4e-3, DType.BF16: 4e-2}


def numbers(seed: int, shape: tuple[int, ...], dtype: DType) -> Array:
    """Some, always the same."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype.numpy)


@dataclass(frozen=True)
class Case:
    """x @ w, of which w is [depth, columns] or [columns, depth], and what comes after it."""

    rows: int
    depth: int
    columns: int
    dtype: DType
    layout: str = LAYOUTS[0]
    after: str = "nothing"
    batch: int = 0
    settled: bool = False  # w is known

    @property
    def tensors(self) -> list[Placeholder]:
        """x, w, a bias and a residual."""
        x = (self.batch, self.rows, self.depth) if self.batch else (self.rows, self.depth)
        w = (self.depth, self.columns)
        w = w if self.layout == LAYOUTS[0] else w[::-1]
        whole = (self.rows, self.columns)
        shapes = (x, (self.batch, *w) if self.batch else w, (self.columns,), whole)
        return [placeholder(s, self.dtype) for s in shapes]

    def arrays(self) -> list[Array]:
        """Values of the tensors."""
        return [numbers(k, t.shape, t.dtype) for k, t in enumerate(self.tensors)]

    def build(self, x: Tensor, w: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        """What is computed."""
        if self.batch:
            turned = self.layout == LAYOUTS[1]
            columns_last = common.view(
                w, (self.batch, self.depth, self.columns), lambda b, i, j: [b, j, i]
            )
            y = matmul(x, columns_last if turned else w)
        else:
            y = matmul(x, w) if self.layout == LAYOUTS[0] else gemm(x, w, transB=1)
        match self.after:
            case "bias":
                return common.elementwise(lambda v, b: v + b, y, bias)
            case "residual":
                return common.elementwise(
                    lambda v, b, r: apply(ScalarOp.TANH, v + b) + r, y, bias, residual
                )
        return y

    def wanted(self, x: Array, w: Array, bias: Array, residual: Array) -> Array:
        """The same in float64."""
        left, right, b, r = (a.astype(np.float64) for a in (x, w, bias, residual))
        if self.layout == LAYOUTS[1]:
            right = np.swapaxes(right, -1, -2)
        y: Array = left @ right
        match self.after:
            case "bias":
                y = y + b
            case "residual":
                y = np.tanh(y + b) + r
        return y


def ran(
    case: Case, directives: Sequence[Directive] = ()
) -> tuple[list[Run], Array, dict[str, str]]:
    """The kernels as the emulator ran them, by these directives or those chosen, the result, and
    the tensors that are x and w."""
    inputs, values = case.tensors, case.arrays()
    tensors: list[Tensor] = list(inputs)
    if case.settled:
        tensors[1] = constant(values[1])
    result = case.build(*tensors)
    arrays = {t.name: a for t, a in zip(inputs, values, strict=True)}
    kernels, settled = lowered(inputs, [result])
    arrays |= {name: c.value for name, c in settled.items()}
    names = {tensors[0].name: "x", tensors[1].name: "w"} | dict.fromkeys(settled, "w")
    done: list[Run] = []
    for n in kernels:
        done.append(emulated(n, arrays, directives))
        arrays.update(done[-1].written)
        pairs = zip(n.kernel.params, n.tensors, strict=True)
        names |= {f"{len(done) - 1} {names.get(t.name, '')}": b.name for b, t in pairs}
    return done, arrays[kernels[-1].tensors[-1].name], names


def agree(case: Case, found: Array) -> None:
    """Asserts that this is what is wanted, but for rounding."""
    wanted = case.wanted(*case.arrays())
    limit = ROUNDING[case.dtype] * max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=0, atol=limit)


def name_of(case: Case) -> str:
    """Of a test."""
    return f"{case.rows}x{case.depth}x{case.columns}_{case.dtype.name}_{case.layout[6:]}"
