"""Sums of products on tensor cores: the plain loops' meaning, by the interpreter and as machine
instructions, and kernels that break a rule are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import parser

import tilewright as tw
from cuda_harness import compiled, execute, instructions, needs_compiler, needs_sass, uses
from cuda_products import LAYOUTS, Case, ran
from cuda_products import agree as agree_wide
from emulated_device import EmulatedDevice, compile_for
from interpreted import Array, Model
from tilewright.codegen.cuda import Launch, emit_cuda
from tilewright.dtypes import DType
from tilewright.errors import ScheduleError, VerifyError
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import lower
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import Barrier, Block, Kernel, Mma, Node, Wait, rewrite, walk
from tilewright.loops.verify import verify
from tilewright.ops.contraction import gemm, matmul
from tilewright.ops.convolution import conv
from tilewright.ops.tensor import Tensor, compute
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.cuda import MMA_TILES
from tilewright.schedule.directives import schedule
from tilewright.schedule.mma_tiles import MmaTile

SMALL = MmaTile(16, 16, 16, 16, 16)
TILES = (SMALL, MmaTile(16, 32, 16, 16, 16, 2), MmaTile(32, 16, 32, 16, 16, 4))
HALVES = (DType.F16, DType.BF16)
REGISTERS = 168  # of a thread of the largest tile
TOLERANCE = {DType.F16: 2e-3, DType.BF16: 2e-2}  # of results that are halves themselves


def numbers(dtype: DType, *shape: int) -> Array:
    return np.random.default_rng([*shape]).standard_normal(shape).astype(dtype.numpy)


def product_of(kind: str, dtype: DType, m: int, n: int, k: int) -> Kernel:
    """One kernel: the product, something after it, rounded to a half."""
    model = Model()

    def some(*shape: int) -> Tensor:
        return model.given(numbers(dtype, *shape))

    match kind:
        case "matmul":
            y = matmul(some(2, m, k), some(k, n))
        case "batched":
            y = matmul(some(2, m, k), some(2, k, n))
        case "right transposed":
            y = gemm(some(m, k), some(n, k), some(n), transB=1)
        case "left transposed":
            y = gemm(some(k, m), some(k, n), some(n), transA=1)
        case _:
            y = conv(some(1, k, m, 4), some(n, k, 3, 3), pads=[1, 1, 1, 1], strides=[2, 1])
    after = compute(y.shape, lambda *i: y[i] * 2 + 1)
    program = inline(model.inputs, legalize([after]))
    (lowered,) = (lower(g, program) for g in form_groups(program))
    return lowered.kernel


def arrays_of(kernel: Kernel) -> dict[str, Array]:
    return {
        b.name: poisoned(b.shape, b.dtype)
        if b.name in kernel.outputs
        else numbers(b.dtype, *b.shape)
        for b in kernel.params
    }


def interpreted(kernel: Kernel) -> Array:
    arrays = arrays_of(kernel)
    interpret(kernel, arrays)
    (name,) = kernel.outputs
    return arrays[name]


def source_of(e: Launch, architecture: str = "sm_80") -> KernelSource:
    return KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, bool(e.checks))


def emulated(kernel: Kernel) -> Array:
    e, arrays = emit_cuda(kernel), arrays_of(kernel)
    raw = [arrays[b.name].view(np.uint16) for b in kernel.params]
    found = execute(source_of(e), raw, e.numbers, e.blocks, e.shared_bytes)
    for b, a in zip(kernel.params, found, strict=True):
        if b.name in kernel.outputs:
            return a.view(b.dtype.numpy)
    raise AssertionError("a kernel without results")


def agree(got: Array, want: Array, dtype: DType) -> None:
    wide, exact = got.astype(np.float32), want.astype(np.float32)
    limit = TOLERANCE[dtype] * max(1.0, float(np.abs(exact).max()))
    np.testing.assert_allclose(wide, exact, rtol=0, atol=limit)


KINDS = ("matmul", "batched", "right transposed", "left transposed", "conv")
kinds, dtypes = st.sampled_from(KINDS), st.sampled_from(HALVES)


@settings(max_examples=10, deadline=None)
@given(kinds, dtypes, st.integers(1, 20), st.integers(1, 20), st.integers(17, 40), st.data())
def test_loops(kind: str, dtype: DType, m: int, n: int, k: int, data: st.DataObject) -> None:
    plain = product_of(kind, dtype, m, n, 4 if kind == "conv" else k)
    try:
        tiled = schedule(plain, (data.draw(st.sampled_from(TILES)),))
    except ScheduleError as error:
        event(f"refused: {str(error).partition(': ')[2][:40]}")
        return
    event("tiled")
    agree(interpreted(tiled), interpreted(plain), dtype)


@needs_compiler
@settings(max_examples=8, deadline=None)
@given(kinds, dtypes, st.integers(1, 40), st.integers(1, 40), st.integers(17, 80), st.data())
def test_instructions(kind: str, dtype: DType, m: int, n: int, k: int, data: st.DataObject) -> None:
    plain = product_of(kind, dtype, m, n, 8 if kind == "conv" else k)
    try:
        tiled = schedule(plain, (data.draw(st.sampled_from((*TILES, *MMA_TILES[2:]))),))
    except ScheduleError:
        return
    agree(emulated(tiled), interpreted(plain), dtype)


@needs_sass
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("tile", MMA_TILES, ids=str)
def test_machine_code(tile: MmaTile, architecture: str) -> None:
    plain = product_of("matmul", DType.F16, 256, 256, 128)
    made = compiled(source_of(emit_cuda(schedule(plain, (tile,))), architecture))
    assert made.usage.spill_bytes == 0
    assert made.usage.registers <= REGISTERS
    found = instructions(made)
    for wanted in ("HMMA", "LDSM", "LDGSTS.128"):
        assert uses(found, wanted), wanted


@needs_compiler
@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.name)
@pytest.mark.parametrize("tile", MMA_TILES[1:4], ids=str)
def test_results_are_whole_sectors(tile: MmaTile, dtype: DType) -> None:
    """Stores, and the residual's loads, are of 128 bits, side by side; so is what lies between
    them and the sums in shared memory."""
    case = Case(tile.rows, 2 * tile.depth, 2 * tile.columns, dtype, LAYOUTS[1], "residual")
    done, found, _ = ran(case, (tile,))
    agree_wide(case, found)
    (run,) = done
    assert run.statistics.traffic is not None
    nbytes = case.rows * case.columns * dtype.itemsize
    for place in run.kernel.params[-2:]:
        requests = run.statistics.traffic.of_global[run.places[place.name]]
        assert requests.asked == requests.needed == nbytes // 32
        assert requests.count == nbytes // (16 * 32)
    factors = tile.stages * (tile.rows + tile.columns) * (tile.depth + 8) * dtype.itemsize
    sums = tile.rows * (tile.columns + 8) * 4
    assert run.launch.shared_bytes == max(factors, sums), "results lie where the factors lay"


MODELS = {
    "dense": """g (T[40,64] x, T[64,48] w, T[48] b) => (T[40,48] y)
        { a = MatMul(x, w) c = Add(a, b) y = Gelu(c) }""",
    "two": """g (T[40,64] x, T[64,48] w, T[48,40] v) => (T[40,40] y)
        { a = MatMul(x, w) c = Relu(a) y = MatMul(c, v) }""",
    "conv": """g (T[1,16,12,12] x, T[24,16,3,3] w, T[24] b) => (T[1,24,12,12] y)
        { a = Conv<pads = [1,1,1,1]>(x, w, b) y = Relu(a) }""",
}


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_models_in_their_own_type(name: str, dtype: str) -> None:
    head = '<ir_version: 10, opset_import: ["" : 21]>\n'
    model = parser.parse_model(head + MODELS[name].replace("T[", f"{dtype}["))
    kind = DType.F16 if dtype == "float16" else DType.BF16
    feeds = {
        i.name: numbers(kind, *(d.dim_value for d in i.type.tensor_type.shape.dim))
        for i in model.graph.input
    }
    ours = compile_for(EmulatedDevice(), model)
    agree(ours.run(feeds)["y"], tw.compile(model, threads=1).run(feeds)["y"], kind)
    for k in ours.kernels:
        assert any(isinstance(n, Mma) for n in walk(k.kernel.body)), k.schedule
        assert {b.dtype for b in k.kernel.params} == {kind}


# -- what is refused


def with_copies_left(n: Node) -> Node | None:
    return Wait(1) if n == Wait(0) else None


def test_memory_that_copies_go_to_is_not_used_again() -> None:
    kernel = schedule(product_of("matmul", DType.F16, 32, 32, 64), (SMALL,))
    verify(kernel)
    wrong = rewrite(kernel.body, with_copies_left)
    with pytest.raises(VerifyError, match="used again before copies"):
        verify(replace(kernel, body=wrong))  # type: ignore[arg-type]


def test_other_sums_are_refused() -> None:
    with pytest.raises(ScheduleError, match="no halves or bytes"):
        schedule(_singles(), (SMALL,))
    with pytest.raises(ScheduleError, match="too short"):
        schedule(product_of("matmul", DType.F16, 16, 16, 16), (SMALL,))


def _singles() -> Kernel:
    model = Model()
    y = matmul(*(model.given(np.ones((32, 32), np.float32)) for _ in range(2)))
    program = inline(model.inputs, [y])
    (lowered,) = (lower(g, program) for g in form_groups(program))
    return lowered.kernel


def without(kind: type) -> Callable[[Node], Node | None]:
    def rule(n: Node) -> Node | None:
        if isinstance(n, Block) and any(isinstance(s, kind) for s in n.stmts):
            return Block(tuple(s for s in n.stmts if not isinstance(s, kind)))
        return None

    return rule


def waits_for_less(n: Node) -> Node | None:
    return Wait(n.pending + 1) if isinstance(n, Wait) else None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (without(Wait), "before copies to it are waited for"),
        (waits_for_less, "before copies to it are waited for"),
        (without(Barrier), "without a barrier|waited for"),
    ],
)
def test_copies_that_may_not_have_arrived(fault: Any, message: str) -> None:
    kernel = schedule(product_of("matmul", DType.F16, 32, 32, 64), (SMALL,))
    wrong = rewrite(kernel.body, fault)
    assert wrong is not kernel.body
    with pytest.raises(VerifyError, match=message):
        verify(replace(kernel, body=wrong))  # type: ignore[arg-type]
