"""Attention of halves on tensor cores: against float64 and the CPU, by the interpreter and as
machine instructions; kernels that break a rule are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

import cuda_kernels
import tilewright as tw
from attention_cases import MASKS, Case, attention_of, groups, run_ptx, without_barrier
from cuda_harness import (
    ARCHITECTURES,
    compiled,
    instructions,
    needs_compiler,
    needs_sass,
    uses,
)
from emulated_device import EmulatedDevice, compile_for
from interpreted import Array, run_lowered
from ptx import PtxError
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.errors import ScheduleError, VerifyError
from tilewright.fusion.lower import Lowered
from tilewright.loops.ir import (
    Apply,
    Block,
    Commit,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    LoopKind,
    Mma,
    Node,
    Space,
    Stmt,
    Wait,
    rewrite,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.attend import MMA_SUMS, SHARED_BYTES, choose_mma
from tilewright.schedule.attention import find_attention
from tilewright.schedule.attention_mma import AttentionMma
from tilewright.schedule.attention_tiles import AttentionTile
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.directives import schedule

UNIT: dict[Any, float] = {
    np.float16: 2.0**-10,
    ml_dtypes.bfloat16: 2.0**-7,
}  # of the last place of 1
HALVES = list(UNIT)
TILES = (AttentionMma(16, 16, 16), AttentionMma(32, 16, 32), AttentionMma(32, 32, 16, 3))
MORE_TILES = (*TILES, AttentionMma(64, 32, 64), AttentionMma(128, 16, 32, 4))
REGISTERS = 255


def close(got: Array, want: Array, case: Case) -> None:
    """Weights are rounded once, and the result is: half a unit each, of the largest value."""
    largest = float(np.abs(case.numbers()["v"].astype(np.float32)).max())
    unit = UNIT[case.dtype] * largest
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=1.1 * unit)


def shapes(**sizes: list[int]) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        heads=st.just(2),
        shared=st.sampled_from([1, 2]),
        mask=st.sampled_from(MASKS),
        dtype=st.sampled_from(HALVES),
        **{name: st.sampled_from(values) for name, values in sizes.items()},
    )


@settings(max_examples=6, deadline=None)
@given(
    shapes(rows=[5, 9], keys=[2, 11, 37], depth=[3, 16, 18], columns=[4, 13, 24]),
    st.sampled_from(TILES[:1]),
)
def test_loops(case: Case, tile: AttentionMma) -> None:
    model, y, lowered, want = groups(case)
    arrays = dict(model.arrays)
    for n in lowered:
        kernel = n.kernel if n.group.nest is None else schedule(n.kernel, [tile])
        run_lowered(n, verify(kernel), arrays)
    close(arrays[y.name], want, case)


def run(case: Case, of: Callable[[Lowered], Kernel]) -> tuple[Array, Array]:
    """What the kernels with this schedule compute as machine instructions, and what is right."""
    model, y, lowered, want = groups(case)
    arrays = dict(model.arrays)
    for n in lowered:
        run_ptx(n, choose_cuda_schedule(n) if n.group.nest is None else of(n), arrays)
    return arrays[y.name], want


@needs_compiler
@settings(max_examples=10, deadline=None)
@given(
    shapes(
        rows=[1, 16, 35, 70],
        keys=[1, 15, 64, 75, 130],
        depth=[8, 20, 33, 64],
        columns=[2, 16, 31, 64],
    ),
    st.sampled_from(MORE_TILES),
)
def test_instructions(case: Case, tile: AttentionMma) -> None:
    got, want = run(case, lambda n: schedule(n.kernel, [tile]))
    close(got, want, case)


REAL = [
    Case(rows=70, keys=75, depth=64, columns=64, mask="causal", dtype=np.float16),
    Case(rows=33, keys=70, depth=128, columns=96, mask="cleaned", dtype=ml_dtypes.bfloat16),
    Case(rows=49, keys=49, depth=32, columns=32, mask="add", dtype=np.float16, shared=2),
    Case(rows=20, keys=77, depth=256, columns=256, mask="where", dtype=np.float16, heads=1),
    Case(rows=40, keys=40, depth=40, columns=40, dtype=ml_dtypes.bfloat16, batch=2),
]


@needs_compiler
@pytest.mark.parametrize("case", REAL, ids=str)
def test_chosen(case: Case) -> None:
    def chosen(n: Lowered) -> Kernel:
        kernel = choose_cuda_schedule(n)
        assert isinstance(kernel.schedule[0], AttentionMma)
        return kernel

    close(*run(case, chosen), case)


class Alike(Case):
    """One key is before the others, which weigh alike: rounded, all of them err to one side."""

    def numbers(self) -> dict[str, Array]:
        made = super().numbers()
        for name, number in (("q", 0.0), ("k", 0.0), ("v", 1.0)):
            made[name][:] = number
        made["q"][..., 0], made["k"][..., 0, 0] = 4.0, 1.0
        return made


@needs_compiler
def test_totals_are_of_weights_that_are_not_rounded() -> None:
    case = Alike(rows=16, keys=512, depth=16, columns=16, dtype=ml_dtypes.bfloat16, heads=1)
    model, _, lowered, _ = groups(case)
    (n,) = (n for n in lowered if n.group.nest is not None)
    arrays = dict(model.arrays)
    run_ptx(n, schedule(n.kernel, [TILES[1]]), arrays)
    names = zip(n.kernel.params, n.tensors, strict=True)
    (got,) = (arrays[t.name] for b, t in names if b.name in n.kernel.outputs)
    exact = float(np.exp(-2.0))
    share = (1 + 511 * float(ml_dtypes.bfloat16(exact))) / (1 + 511 * exact)
    assert abs(share - 1) > 1e-3
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, share, rtol=1e-5)


# -- models


HEAD = '<ir_version: 10, opset_import: ["" : 23]>\n'
MODELS = {
    "layer": """g (T[1,24,64] x, T[64,192] w, T[64,64] o) => (T[1,24,64] y)
        <int64[4] sh = {1,24,2,32}, int64[3] back = {1,24,64}> {
        a = MatMul(x, w) q, k, v = Split<axis=2, num_outputs=3>(a)
        half = Constant<value_float=0.25>() s = CastLike(half, x)
        q4 = Reshape(q, sh) k4 = Reshape(k, sh) v4 = Reshape(v, sh)
        qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4)
        vt = Transpose<perm=[0,2,1,3]>(v4) qs = Mul(qt, s) p = MatMul(qs, kt)
        weights = Softmax<axis=-1>(p) r = MatMul(weights, vt)
        rt = Transpose<perm=[0,2,1,3]>(r) rr = Reshape(rt, back) y = MatMul(rr, o) }""",
    "operator": """g (T[1,4,24,32] q, T[1,2,40,32] k, T[1,2,40,32] v) => (T[1,4,24,32] y)
        { y = Attention<is_causal=1>(q, k, v) }""",
    "wide softmax": """g (T[1,2,24,32] q, T[1,2,32,24] k, T[1,2,24,32] v) => (T[1,2,24,32] y)
        { p = MatMul(q, k) f = Cast<to=1>(p) s = Softmax<axis=-1>(f)
        weights = CastLike(s, q) y = MatMul(weights, v) }""",
    "keys lie across": """g (T[1,2,24,32] q, T[1,2,32,40] k, T[1,2,40,32] v) => (T[1,2,24,32] y)
        { p = MatMul(q, k) weights = Softmax<axis=-1>(p) y = MatMul(weights, v) }""",
}


def feeds_of(model: Any, dtype: Any) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    sizes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: (rng.standard_normal(n) * 0.5).astype(dtype) for name, n in sizes.items()}


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_models_beside_the_cpu(name: str, dtype: str) -> None:
    model = parser.parse_model(HEAD + MODELS[name].replace("T[", f"{dtype}["))
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    feeds = feeds_of(model, kind)
    ours = compile_for(EmulatedDevice(), model)
    got = ours.run(feeds)["y"].astype(np.float64)
    want = tw.compile(model, threads=1).run(feeds)["y"].astype(np.float64)
    unit = UNIT[kind] * float(np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=0, atol=3 * unit)
    assert sum("AttentionMma" in str(k.schedule) for k in ours.kernels) == 1


SINGLES = {
    "float32": MODELS["operator"].replace("T[", "float["),
    "halves cast to float32": """g (float16[1,2,24,32] a, float16[1,2,32,24] b,
        float16[1,2,24,32] c) => (float[1,2,24,32] y)
        { q = Cast<to=1>(a) k = Cast<to=1>(b) v = Cast<to=1>(c)
        p = MatMul(q, k) weights = Softmax<axis=-1>(p) y = MatMul(weights, v) }""",
    "weights in float32": """g (float16[1,2,24,32] q, float16[1,2,32,24] k,
        float16[1,2,24,32] c) => (float[1,2,24,32] y)
        { p = MatMul(q, k) f = Cast<to=1>(p) v = Cast<to=1>(c)
        weights = Softmax<axis=-1>(f) y = MatMul(weights, v) }""",
}


@needs_compiler
@pytest.mark.parametrize("name", SINGLES)
def test_float32_stays_float32(name: str) -> None:
    model = parser.parse_model(HEAD + SINGLES[name])
    feeds = feeds_of(model, np.float32 if name == "float32" else np.float16)
    ours = compile_for(EmulatedDevice(), model)
    got, want = (m.run(feeds)["y"] for m in (ours, tw.compile(model, threads=1)))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    assert any("AttentionTile" in str(k.schedule) for k in ours.kernels)
    for k in ours.kernels:
        assert not any(isinstance(n, Mma) for n in walk(k.kernel.body))
        assert "mma" not in k.compiled.ptx


def test_other_attentions_are_refused() -> None:
    with pytest.raises(ScheduleError, match="no halves"):
        schedule(attention_of(Case()), [TILES[0]])
    with pytest.raises(ScheduleError, match="no whole matrices"):
        schedule(attention_of(Case(dtype=np.float16)), [AttentionMma(24, 24, 16)])


# -- machine code

SIZES = [
    Case(heads=32, rows=500, keys=300, depth=d, columns=d, mask=mask, dtype=dtype)
    for d, mask, dtype in (
        (32, "none", np.float16),
        (64, "causal", np.float16),
        (64, "add", ml_dtypes.bfloat16),
        (96, "where", np.float16),
        (128, "none", ml_dtypes.bfloat16),
        (128, "cleaned", np.float16),
        (256, "where", np.float16),
    )
]


def made(case: Case, architecture: str) -> tuple[Any, AttentionMma]:
    (n,) = (n for n in groups(case)[2] if n.group.nest is not None)
    kernel = choose_cuda_schedule(n)
    e, (how,) = emit_cuda(kernel), kernel.schedule
    assert isinstance(how, AttentionMma)
    assert e.shared_bytes == how.shared_bytes(case.depth, case.columns) <= SHARED_BYTES
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, False)
    return compiled(source), how


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_machine_code(case: Case, architecture: str) -> None:
    kernel, how = made(case, architecture)
    assert kernel.usage.spill_bytes == 0 and kernel.usage.local_bytes == 0
    assert kernel.usage.registers <= REGISTERS and how.sums(case.columns) <= MMA_SUMS
    found = instructions(kernel)
    for wanted in ("HMMA", "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.128"):
        assert uses(found, wanted), wanted
    assert not any(name.split(".")[0] in ("STS", "LDL", "STL") for name in found)


@needs_compiler
@pytest.mark.parametrize("size", [32, 40, 64, 96, 128])
def test_banks_are_apart(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(heads=1, rows=64, keys=96, depth=size, columns=size, dtype=np.float16)
    model, _, lowered, _ = groups(case)
    (n,) = (n for n in lowered if n.group.nest is not None)
    tile = AttentionMma(64, 16, 32)
    monkeypatch.setattr(cuda_kernels, "choose_cuda_schedule", lambda n: schedule(n.kernel, [tile]))
    run = cuda_kernels.emulated(n, dict(model.arrays))
    assert run.statistics.traffic is not None
    assert run.statistics.traffic.of_shared.share == 1.0
    if size % 16 == 0:
        assert all(run.share(place) == 1.0 for place in run.places)


def test_choices_fit() -> None:
    for depth in (16, 64, 80, 128, 192, 256):
        for rows in (5, 49, 197, 2048):
            case = Case(rows=rows, keys=rows, depth=depth, columns=depth, dtype=np.float16)
            found = find_attention(attention_of(case))
            assert found is not None
            how = choose_mma(found)
            assert how.shared_bytes(depth, depth) <= SHARED_BYTES
            assert how.rows < max(2 * rows, 32) and how.sums(depth) <= MMA_SUMS


# -- what is refused


def without_first_group(n: Node) -> Node | None:
    """The queries' group is open when threads wait."""
    if isinstance(n, Block) and any(isinstance(s, Commit) for s in n.stmts):
        return Block(tuple(s for s in n.stmts if not isinstance(s, Commit)))
    return None


def waits_for_less(n: Node) -> Node | None:
    return Wait(n.pending + 1) if isinstance(n, Wait) else None


def without_wait(n: Node) -> Node | None:
    if isinstance(n, Block) and any(isinstance(s, Wait) for s in n.stmts):
        return Block(tuple(s for s in n.stmts if not isinstance(s, Wait)))
    return None


def of_other_rows(n: Node) -> Node | None:
    """Weights of the lane four on."""
    if isinstance(n, Load) and n.buffer.space is Space.THREAD and not _is_own(n.index[0]):
        return replace(n, index=(n.index[0] + 4, *n.index[1:]))
    return None


def _is_own(index: Expr) -> bool:
    return not isinstance(index, Apply)


def at_once(n: Node) -> Node | None:
    """Weights are computed in the loop that multiplies them."""
    if not isinstance(n, Block):
        return None
    kept: list[Stmt] = []
    for s in n.stmts:
        before = kept[-1] if kept else None
        both = isinstance(s, For) and isinstance(before, For) and s.kind is LoopKind.THREAD
        lends = any(isinstance(m, Mma) and m.left.buffer.space is Space.THREAD for m in walk(s))
        if both and lends and isinstance(before, For) and isinstance(s, For):
            kept[-1] = replace(s, body=Block((before.body, s.body)))
        else:
            kept.append(s)
    return Block(tuple(kept)) if len(kept) < len(n.stmts) else None


SEVERAL = Case(rows=40, keys=90, depth=16, columns=16, dtype=np.float16, heads=1)
FAULTS = {
    "no group": (without_first_group, "before copies to it are waited for"),
    "no wait": (without_wait, "before copies to it are waited for"),
    "waits for less": (waits_for_less, "before copies to it are waited for"),
    "other rows": (of_other_rows, "lane with other rows|spans"),
    "at once": (at_once, "read where it is written"),
}


@pytest.mark.parametrize("tile", [TILES[1], TILES[2]], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused(fault: str, tile: AttentionMma) -> None:
    kernel = schedule(attention_of(SEVERAL), [tile])
    rule, message = FAULTS[fault]
    wrong = rewrite(kernel.body, rule)
    assert wrong is not kernel.body
    with pytest.raises(VerifyError, match=message):
        verify(replace(kernel, body=wrong))  # type: ignore[arg-type]


def test_the_barrier_is_needed() -> None:
    kernel = schedule(attention_of(SEVERAL), [TILES[1]])
    with pytest.raises(VerifyError, match=r"without a barrier|waited for"):
        verify(without_barrier(kernel, 0))


@needs_compiler
@pytest.mark.parametrize("fault", ["no wait", "waits for less", "no barrier"])
def test_faults_show_in_the_emulator(fault: str) -> None:
    def wrong(n: Lowered) -> Kernel:
        kernel = schedule(n.kernel, [TILES[1]])
        if fault == "no barrier":
            return without_barrier(kernel, 0)
        return replace(kernel, body=rewrite(kernel.body, FAULTS[fault][0]))  # type: ignore[arg-type]

    with pytest.raises(PtxError):
        run(SEVERAL, wrong)


def test_only_needed_keys_are_copied() -> None:
    masked, free = (
        schedule(attention_of(replace(SEVERAL, mask=m)), [TILES[0]]) for m in ("causal", "where")
    )
    for kernel, limited in ((masked, True), (free, False)):
        loop = next(n for n in walk(kernel.body) if isinstance(n, For) and n.axis == "tile")
        assert isinstance(loop.extent, Const) != limited


def test_weights_are_powers_of_two() -> None:
    kernel = schedule(attention_of(SEVERAL), [TILES[0]])
    functions = {n.op for n in walk(kernel.body) if isinstance(n, Apply)}
    assert ScalarOp.EXP2 in functions and ScalarOp.EXP not in functions


def test_registers_that_are_lent_show_in_the_source() -> None:
    text = emit_cuda(schedule(attention_of(SEVERAL), [TILES[0]])).text
    assert "left[m * 4 + n] = pack_f16(" in text and "load_matrix4_transposed(right" in text
    assert DType.F16 in {n.dtype for n in attention_of(SEVERAL).params}
    assert AttentionTile.__name__ not in text
