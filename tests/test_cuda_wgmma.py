"""Products by warpgroups of what hardware copies (sm_90a): the plain loops' meaning, by the
interpreter and as machine instructions; kernels that break a rule are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import parser

from cuda_harness import compiled, execute, instructions, needs_compiler, needs_sass, uses
from emulated_device import EmulatedDevice, compile_for
from interpreted import Array, Model
from test_cuda_mma import HALVES, agree, arrays_of, interpreted, numbers
from tilewright.codegen.cuda import Launch, emit_cuda
from tilewright.dtypes import DType
from tilewright.errors import ScheduleError, VerifyError
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.loops.ir import (
    Apply,
    Arrived,
    Barrier,
    Block,
    Fetch,
    For,
    If,
    Kernel,
    LoopKind,
    Node,
    Settle,
    Wgmma,
    rewrite,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops.activations import relu
from tilewright.ops.contraction import gemm, matmul
from tilewright.ops.convolution import conv
from tilewright.ops.tensor import Tensor, compute
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.directives import schedule
from tilewright.schedule.mma_tiles import MmaTile
from tilewright.schedule.wgmma_tiles import TILES, WgmmaTile

SMALL = WgmmaTile(64, 64, 2)
REGISTERS = 1 << 16  # of a multiprocessor
KINDS = ("matmul", "batched", "right transposed", "left transposed", "both transposed", "conv")
kinds, dtypes = st.sampled_from(KINDS), st.sampled_from(HALVES)


TURNED = {"right transposed": (0, 1), "left transposed": (1, 0), "both transposed": (1, 1)}


def lowered(kind: str, dtype: DType, m: int, n: int, k: int) -> tuple[Lowered, Array]:
    """One kernel, a product and what comes after it; and its results in float64."""
    model, given = Model(), []

    def some(*shape: int) -> Tensor:
        given.append(numbers(dtype, *shape).astype(np.float64))
        return model.given(numbers(dtype, *shape))

    if kind == "conv":
        y = conv(some(2, k, -(-m // 8), 8), some(n, k, 1, 1))
        wanted = np.einsum("bchw,ocuv->bohw", *given)
    elif kind in TURNED:
        left, right = TURNED[kind]
        a, b = some(*((k, m) if left else (m, k))), some(*((n, k) if right else (k, n)))
        y = gemm(a, b, some(n), transA=left, transB=right)
        x, w = given[0].T if left else given[0], given[1].T if right else given[1]
        wanted = x @ w + given[2]
    else:
        y = matmul(some(2, m, k), some(*([2] if kind == "batched" else []), k, n))
        wanted = given[0] @ given[1]
    beside = some(*y.shape)
    after = compute(y.shape, lambda *i: y[i] * 0.5 + beside[i])
    program = inline(model.inputs, legalize([relu(after)]))
    (found,) = (lower(g, program) for g in form_groups(program))
    return found, np.maximum(wanted * 0.5 + given[-1], 0)


def source_of(e: Launch, architecture: str = "sm_90a") -> KernelSource:
    checks, maps = bool(e.checks), len(e.maps)
    return KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, checks, maps)


def emulated(kernel: Kernel) -> Array:
    e, arrays = emit_cuda(kernel), arrays_of(kernel)
    raw = [arrays[b.name].view(np.uint16) for b in kernel.params]
    found = execute(source_of(e), raw, e.numbers, e.blocks, e.shared_bytes, e.maps)
    (result,) = (
        a.view(b.dtype.numpy)
        for b, a in zip(kernel.params, found, strict=True)
        if b.name in kernel.outputs
    )
    return result


@needs_compiler
@settings(max_examples=15, deadline=None)
@given(
    *(kinds, dtypes, st.integers(1, 100), st.integers(1, 100), st.integers(65, 200)),
    *(st.sampled_from([t for t, _ in TILES[1:]] + [SMALL, WgmmaTile(64, 192, 3)]), st.booleans()),
)
def test_instructions(
    kind: str, dtype: DType, m: int, n: int, k: int, tile: WgmmaTile, whole: bool
) -> None:
    """Of any size; where lines do not begin at multiples of 16 bytes the reason is given."""
    if whole:
        m, n, k = (-(-size // 8) * 8 for size in (m, n, k))
    found, wanted = lowered(kind, dtype, m, n, k)
    try:
        tiled = schedule(found.kernel, (tile,))
    except ScheduleError as error:
        event(f"refused: {str(error).partition(': ')[2][:60]}")
        assert not whole or m == 1 or n == 1
        return
    event("tiled")
    agree(emulated(tiled), wanted, dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", ["matmul", "left transposed"])
def test_largest_tile(kind: str, dtype: DType) -> None:
    found, wanted = lowered(kind, dtype, 136, 264, 200)
    agree(emulated(schedule(found.kernel, (TILES[0][0],))), wanted, dtype)


CASES = [  # few results, which the interpreter takes minutes for otherwise
    ("right transposed", WgmmaTile(64, 8, 2), (3, 6, 66)),
    ("right transposed", WgmmaTile(64, 8, 3), (10, 7, 72)),
]


@pytest.mark.parametrize(("kind", "tile", "size"), CASES)
def test_loops(kind: str, tile: WgmmaTile, size: tuple[int, int, int]) -> None:
    """The meaning is that of plain loops."""
    found, wanted = lowered(kind, DType.F16, *size)
    if any(n % 8 for n in size[2:]):
        with pytest.raises(ScheduleError, match="do not begin at multiples of 16 bytes"):
            schedule(found.kernel, (tile,))
        return
    agree(interpreted(schedule(found.kernel, (tile,))), wanted, DType.F16)


# -- machine code


@needs_sass
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tile", "room"), TILES, ids=str)
def test_machine_code(tile: WgmmaTile, room: int, kind: str, log: list[str]) -> None:
    """Products run on while threads do other things: the assembler says so where they may not.
    As many blocks as there should be have enough registers and shared memory."""
    found, _ = lowered(kind, DType.F16, 256, 512, 256)
    e = emit_cuda(schedule(found.kernel, (tile,)))
    made = compiled(source_of(e))
    assert made.usage.spill_bytes == made.usage.local_bytes == 0
    assert -(-made.usage.registers // 8) * 8 * tile.threads * room <= REGISTERS
    assert (e.shared_bytes + 1024) * room <= 228 << 10
    used = instructions(made)
    for wanted in ("HGMMA", "UTMALDG", "SYNCS"):
        assert uses(used, wanted), wanted
    assert not [line for line in log if "Performance Loss" in line]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the assembler says."""
    from tilewright.runtime.cuda import compiling

    lines: list[str] = []
    link = compiling.link

    def noted(ptx: str, architecture: str) -> tuple[bytes, str]:
        cubin, text = link(ptx, architecture)
        lines.extend(text.splitlines())
        return cubin, text

    monkeypatch.setattr(compiling, "link", noted)
    return lines


# -- which kernels get it


def chosen(architecture: str, *size: int, kind: str = "right transposed") -> Kernel:
    return verify(
        choose_cuda_schedule(lowered(kind, DType.F16, *size)[0], architecture=architecture)
    )


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_89", "sm_100a", "sm_120a"])
def test_other_architectures_never_get_it(architecture: str) -> None:
    kernel = chosen(architecture, 2048, 1024, 256)
    assert not any(isinstance(n, (Wgmma, Fetch)) for n in walk(kernel.body))
    (tile,) = kernel.schedule
    assert isinstance(tile, MmaTile)


@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((4096, 4096, 256), WgmmaTile(128, 256, 4)),
        ((1024, 1024, 256), WgmmaTile(64, 64, 4)),
        ((64, 32768, 256), WgmmaTile(64, 128, 4)),
    ],
)
def test_large_products_get_it(size: tuple[int, int, int], tile: WgmmaTile) -> None:
    assert chosen("sm_90a", *size).schedule == (tile,)


def test_small_products_do_not() -> None:
    (tile,) = chosen("sm_90a", 128, 256, 256).schedule
    assert isinstance(tile, MmaTile)


def test_what_hardware_cannot_copy_is_refused() -> None:
    model = Model()
    y = conv(
        *(model.given(numbers(DType.F16, *s)) for s in ((1, 8, 16, 16), (8, 8, 3, 3))), pads=[1] * 4
    )
    program = inline(model.inputs, legalize([y]))
    (padded,) = (lower(g, program) for g in form_groups(program))
    with pytest.raises(ScheduleError, match="is padded"):
        schedule(padded.kernel, (SMALL,))
    short, _ = lowered("right transposed", DType.F16, 64, 64, 64)
    with pytest.raises(ScheduleError, match="too short"):
        schedule(short.kernel, (SMALL,))
    with pytest.raises(ScheduleError, match="no whole rows"):
        schedule(lowered("matmul", DType.F16, 64, 64, 72)[0].kernel, (WgmmaTile(64, 32, 2),))


# -- whole models


MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (T[B,512,K] x, T[K,N] w, T[N] c) => (T[B,512,N] y)
{ a = MatMul(x, w) b = Add(a, c) y = Relu(b) }"""


@needs_compiler
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_models(dtype: DType) -> None:
    """Calls with other addresses, and a batch; the report says why a kernel has it not."""
    kind = {DType.F16: "float16", DType.BF16: "bfloat16"}[dtype]
    text = MODEL.replace("T[", f"{kind}[").replace("K", "128").replace("N", "256")
    ours = compile_for(EmulatedDevice(), parser.parse_model(text))
    for batch in (2, 3, 2):
        feeds = {"x": numbers(dtype, batch, 512, 128), "w": numbers(dtype, 128, 256)}
        feeds["c"] = numbers(dtype, 256)
        x, w, c = (a.astype(np.float64) for a in feeds.values())
        agree(ours.run(feeds)["y"], np.maximum(x @ w + c, 0), dtype)
    assert all(k.schedule[0].startswith("WgmmaTile") for k in ours.kernels)


def test_the_report_says_why_not() -> None:
    text = MODEL.replace("T[", "float16[").replace("K", "136").replace("N", "260")
    ours = compile_for(EmulatedDevice(), parser.parse_model(text))
    ours.warmup({"x": (2, 512, 136), "w": (136, 260), "c": (260,)})
    (kernel,) = ours.kernels
    assert "lines that do not begin at multiples of 16 bytes" in str(ours.explain(kernel.name))


# -- rules of copies and products that are under way


def without(kind: type) -> Callable[[Node], Node | None]:
    def rule(n: Node) -> Node | None:
        if isinstance(n, Block) and any(isinstance(s, kind) for s in n.stmts):
            return Block(tuple(s for s in n.stmts if not isinstance(s, kind)))
        return None

    return rule


def another_step(n: Node) -> Node | None:
    return replace(n, step=n.step + 1) if isinstance(n, Arrived) else None


def waits_for_less(n: Node) -> Node | None:
    return replace(n, pending=n.pending + 1) if isinstance(n, Settle) else None


def by_all_threads(n: Node) -> Node | None:
    is_one = isinstance(n, If) and isinstance(n.condition, Apply)
    return n.body if is_one and n.condition.op is ScalarOp.EQ else None  # type: ignore[union-attr]


def one_stage_on(n: Node) -> Node | None:
    return replace(n, step=n.step + 1) if isinstance(n, Fetch) else None


def further_ahead(n: Node) -> Node | None:
    """Into the stage that the last product reads."""
    if not isinstance(n, For) or n.kind is not LoopKind.SERIAL or n.axis != "step":
        return None
    arrived, products, settled, barrier, fetch = n.body.stmts  # type: ignore[union-attr]
    return replace(n, body=Block((arrived, products, fetch, settled, barrier)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (without(Arrived), "before what was fetched to it has arrived"),
        (another_step, "before what was fetched to it has arrived"),
        (without(Settle), "while a product reads it|while products add to it"),
        (waits_for_less, "while a product reads it|while products add to it"),
        (without(Barrier), "while a product reads it|without a barrier"),
        (by_all_threads, "several threads|all threads write"),
        (one_stage_on, "not filled stage by stage"),
        (further_ahead, "while a product reads it|without a barrier"),
    ],
)
def test_faults(fault: Callable[[Node], Node | None], message: str) -> None:
    kernel = schedule(lowered("right transposed", DType.F16, 64, 64, 512)[0].kernel, (SMALL,))
    wrong: Any = rewrite(kernel.body, fault)
    assert wrong is not kernel.body
    with pytest.raises(VerifyError, match=message):
        verify(replace(kernel, body=wrong))
