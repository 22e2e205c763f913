"""Attention on blocks of threads: against NumPy in float64, by the interpreter and as PTX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_harness import ARCHITECTURES, compiled, execute, instructions, needs_compiler, needs_sass
from interpreted import Array, Model, run_lowered
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.errors import VerifyError
from tilewright.fusion.attention import with_attention
from tilewright.fusion.attention_rows import by_rows
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.loops.interpret import poisoned
from tilewright.loops.ir import Apply, Barrier, Block, Const, Expr, For, Kernel, Node, rewrite, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops.common import cast, select
from tilewright.ops.contraction import matmul
from tilewright.ops.softmax import softmax
from tilewright.ops.tensor import Constant, Tensor, compute
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.attention_keys import AttentionKeys
from tilewright.schedule.attention_tiles import AttentionTile
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.directives import Directive, schedule

NOTHING = float("-inf")
TILES: tuple[Directive, ...] = (
    AttentionTile(8, 8, 4, 32),
    AttentionTile(16, 4, 4, 32),
    AttentionTile(8, 16, 8, 64),
    AttentionKeys(2, 32, 2),
    AttentionKeys(8, 64, 1),
)


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
        scale = 0.5 if self.dtype is not np.float32 else 0.3

        def score(b: Expr, h: Expr, r: Expr, n: Expr) -> Expr:
            scaled = products[b, h, r, n] * scale
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
        s = np.einsum("bhrd,bhnd->bhrn", q, k) * (0.5 if self.dtype is not np.float32 else 0.3)
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
    (y,) = with_attention(legalize([y]), by_rows())
    program = inline(model.inputs, [y])
    lowered = [lower(g, program) for g in form_groups(program)]
    return model, program.outputs[0], lowered, case.expected(numbers)


def attention_of(case: Case) -> Kernel:
    _, _, lowered, _ = groups(case)
    (found,) = (n.kernel for n in lowered if n.group.nest is not None)
    return found


def close(got: Array, want: Array, dtype: Any) -> None:
    loose = 2e-5 if dtype is np.float32 else 2e-2
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=loose, atol=loose)


MASKS = ["none", "add", "where", "cleaned", "causal"]
cases = st.builds(
    Case,
    heads=st.just(2),
    shared=st.sampled_from([1, 2]),
    rows=st.sampled_from([1, 2, 9]),
    keys=st.sampled_from([2, 3, 8, 11]),
    depth=st.sampled_from([3, 4, 8, 10]),
    columns=st.sampled_from([2, 4, 12, 13]),
    mask=st.sampled_from(MASKS),
    dtype=st.sampled_from([np.float32, np.float32, np.float16, ml_dtypes.bfloat16]),
    batch=st.sampled_from([1, 2]),
)


@settings(max_examples=12, deadline=None)
@given(cases, st.sampled_from(TILES))
def test_loops(case: Case, tile: Directive) -> None:
    model, y, lowered, want = groups(case)
    arrays = dict(model.arrays)
    rounded = case.mask == "cleaned" and case.dtype is not np.float32  # each weight to a half
    assert sum(n.group.nest is not None for n in lowered) == (not rounded)
    for n in lowered:
        kernel = n.kernel if n.group.nest is None else schedule(n.kernel, [tile])
        run_lowered(n, verify(kernel), arrays)
    close(arrays[y.name], want, case.dtype)


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


REAL = [
    Case(rows=70, keys=75, depth=64, columns=64, mask="causal"),
    Case(rows=33, keys=21, depth=40, columns=36, mask="cleaned", shared=2),
    Case(rows=17, keys=70, depth=128, columns=96, mask="where", heads=1),
    Case(rows=19, keys=35, depth=32, columns=32, dtype=np.float16, mask="add"),
    Case(rows=1, keys=600, depth=64, columns=64, mask="where", batch=2),
    Case(rows=3, keys=70, depth=80, columns=50, mask="where", dtype=ml_dtypes.bfloat16),
]


@needs_compiler
@pytest.mark.parametrize("case", REAL, ids=str)
def test_machine_code(case: Case) -> None:
    model, y, lowered, want = groups(case)
    arrays = dict(model.arrays)
    for n in lowered:
        kernel = choose_cuda_schedule(n)
        if n.group.nest is not None:
            assert isinstance(kernel.schedule[0], (AttentionTile, AttentionKeys))
        run_ptx(n, kernel, arrays)
    close(arrays[y.name], want, case.dtype)


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("case", "registers"),
    [
        (Case(heads=32, rows=512, keys=512, depth=64, columns=64), 168),
        (Case(heads=32, rows=512, keys=512, depth=128, columns=128, dtype=np.float16), 208),
        (Case(heads=32, rows=1, keys=4096, depth=128, columns=128), 128),
    ],
)
def test_instructions(case: Case, registers: int, architecture: str) -> None:
    (n,) = (n for n in groups(case)[2] if n.group.nest is not None)
    e = emit_cuda(choose_cuda_schedule(n))
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, False)
    kernel = compiled(source)
    assert kernel.usage.spill_bytes == 0 and kernel.usage.local_bytes == 0
    assert kernel.usage.registers <= registers
    found = instructions(kernel)
    wide = sum(count for name, count in found.items() if name.startswith("LDS.128"))
    reads = sum(count for name, count in found.items() if name.startswith("LDS"))
    assert reads - wide <= 40 and any(name.startswith("LDG.E.") for name in found)


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


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_barrier_is_needed(tile: Directive) -> None:
    kernel = schedule(attention_of(Case(rows=9, keys=13)), [tile])
    barriers = 3 if isinstance(tile, AttentionTile) else 1
    for which in range(barriers):
        with pytest.raises(VerifyError, match="without a barrier"):
            verify(without_barrier(kernel, which))


def test_heads_that_share_all_keys_are_rows() -> None:
    kernel = attention_of(Case(heads=6, shared=6, rows=1, keys=9, depth=8, columns=8))
    assert [p.dtype for p in kernel.params] == [DType.F32] * 4
    chosen: Sequence[object] = kernel_schedule(Case(heads=6, shared=6, rows=1, keys=9))
    assert isinstance(chosen[0], AttentionTile)


def kernel_schedule(case: Case) -> Sequence[object]:
    (n,) = (n for n in groups(case)[2] if n.group.nest is not None)
    return choose_cuda_schedule(n).schedule


def test_keys_that_no_row_needs_are_left_out() -> None:
    masked, free = (attention_of(Case(rows=16, keys=40, mask=m)) for m in ("causal", "where"))
    for kernel, limited in ((masked, True), (free, False)):
        tiled = schedule(kernel, [AttentionTile(8, 8, 4, 32)])
        loop = next(n for n in walk(tiled.body) if isinstance(n, For) and n.axis == "tile")
        assert isinstance(loop.extent, Const) != limited
    (found,) = (p for p in masked.params if p.dtype is DType.I64)
    assert found.values == (25, 40)
