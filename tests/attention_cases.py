"""Attention as a model has it, its kernels, and what it is in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda_harness import execute
from interpreted import Array, Model
from tilewright.codegen.cuda import emit_cuda
from tilewright.fusion.attention import with_attention
from tilewright.fusion.attention_rows import by_rows
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.narrow import computed_halves
from tilewright.loops.interpret import poisoned
from tilewright.loops.ir import Apply, Barrier, Block, Expr, Kernel, Node, rewrite
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, select
from tilewright.ops.contraction import matmul
from tilewright.ops.softmax import softmax
from tilewright.ops.tensor import Constant, Tensor, compute
from tilewright.runtime.cuda.kernel import KernelSource

NOTHING = float("-inf")
MASKS = ["none", "add", "where", "cleaned", "causal"]


@dataclass(frozen=True)
class Case:
    """What is attended to: query rows [batch, heads, rows, depth], and the rest."""

    heads: int = 2
    shared: int = 1  # heads of queries that read the same keys
    rows: int = 5
    keys: int = 7
    depth: int = 4
    columns: int = 4
    mask: str = "none"
    dtype: Any = np.float32
    batch: int = 1

    @property
    def scale(self) -> float:
        return 0.5 if self.dtype is not np.float32 else 0.3

    def numbers(self) -> dict[str, Array]:
        rng = np.random.default_rng([self.rows, self.keys, self.depth])

        def normal(*shape: int) -> Array:
            return rng.standard_normal((self.batch, *shape)).astype(self.dtype)

        few = self.heads // self.shared
        made = {
            "q": normal(self.heads, self.rows, self.depth),
            "k": normal(few, self.keys, self.depth),
            "v": normal(few, self.keys, self.columns),
            "keep": rng.random((self.rows, self.keys)) > 0.4,
        }
        made["keep"][-1] = False  # a row without any key
        made["keep"][0] = np.arange(self.keys) == self.keys - 1  # and one that begins late
        return made

    def tensor(self, model: Model, a: dict[str, Array]) -> Tensor:
        """The result as a model would compute it."""
        q, k, v, keep = (model.given(a[n]) for n in ("q", "k", "v", "keep"))
        shape = (self.batch, self.heads, self.depth, self.keys)
        turned = compute(shape, lambda b, h, d, n: k[b, h // self.shared, n, d])
        spread = (self.batch, self.heads, self.keys, self.columns)
        values = compute(spread, lambda b, h, n, c: v[b, h // self.shared, n, c])
        products = matmul(q, turned)

        def score(b: Expr, h: Expr, r: Expr, n: Expr) -> Expr:
            scaled = products[b, h, r, n] * self.scale
            if self.mask == "add":
                return scaled + cast(products.dtype, select(keep[r, n], 0.0, -2.0))
            if self.mask == "causal":
                return select(n <= r + (self.keys - self.rows), scaled, NOTHING)
            return select(keep[r, n], scaled, NOTHING) if self.mask != "none" else scaled

        weights = softmax(compute(products.shape, score), axis=-1)
        if self.mask == "cleaned":
            weights = compute(weights.shape, lambda *i: _cleaned(weights[i]))
        return matmul(weights, values)

    def expected(self, a: dict[str, Array]) -> Array:
        q, k, v = (a[n].astype(np.float64) for n in "qkv")
        k, v = (np.repeat(x, self.shared, axis=1) for x in (k, v))
        s = np.einsum("bhrd,bhnd->bhrn", q, k) * self.scale
        if self.mask == "add":
            s = s + np.where(a["keep"], 0.0, -2.0)
        elif self.mask == "causal":
            s = np.where(np.tri(self.rows, self.keys, self.keys - self.rows) > 0, s, NOTHING)
        elif self.mask != "none":
            s = np.where(a["keep"], s, NOTHING)
        with np.errstate(invalid="ignore"):
            p = np.exp(s - s.max(-1, keepdims=True))
            p = p / p.sum(-1, keepdims=True)
        weights = np.nan_to_num(p) if self.mask == "cleaned" else p
        return np.asarray(weights @ v)


def _cleaned(weight: Expr) -> Expr:
    return select(Apply(ScalarOp.ISNAN, (weight,)), 0.0, weight)


def groups(case: Case) -> tuple[Model, Tensor, list[Lowered], Array]:
    numbers, model = case.numbers(), Model()
    y = case.tensor(model, numbers)
    halves = computed_halves([y])
    (y,) = with_attention(legalize([y]), by_rows(halves))
    program = inline(model.inputs, [y])
    lowered = [lower(g, program) for g in form_groups(program)]
    return model, program.outputs[0], lowered, case.expected(numbers)


def attention_of(case: Case) -> Kernel:
    _, _, lowered, _ = groups(case)
    (found,) = (n.kernel for n in lowered if n.group.nest is not None)
    return found


def run_ptx(n: Lowered, kernel: Kernel, arrays: dict[str, Array]) -> None:
    """As `run_lowered`, by the machine or the emulator."""
    e = emit_cuda(kernel)
    for t in n.tensors:
        empty = t.value if isinstance(t, Constant) else poisoned(t.shape, t.dtype)
        arrays.setdefault(t.name, empty)
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, "sm_90a", bool(e.checks))
    given_ = [arrays[t.name] for t in n.tensors]
    found = execute(source, given_, e.numbers, e.blocks, e.shared_bytes)
    for t, a in zip(n.tensors, found, strict=False):
        arrays[t.name] = a


def without_barrier(kernel: Kernel, which: int) -> Kernel:
    """The kernel without one of its barriers."""
    seen = 0

    def rule(n: Node) -> Node | None:
        nonlocal seen
        if isinstance(n, Block) and any(isinstance(s, Barrier) for s in n.stmts):
            kept: list[Any] = []
            for s in n.stmts:
                if isinstance(s, Barrier):
                    seen += 1
                    if seen == which + 1:
                        continue
                kept.append(s)
            return Block(tuple(kept))
        return None

    body = rewrite(kernel.body, rule)
    return Kernel(kernel.name, kernel.params, body, kernel.outputs)  # type: ignore[arg-type]
