"""float32 on tensor cores: only where it is asked for, of factors that are rounded as the loops
say, without bank conflicts."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import currently_in_test_context, event, given, settings
from hypothesis import strategies as st
from onnx import parser

import tilewright as tw
from cuda_harness import (
    ARCHITECTURES,
    THREADS,
    compiled,
    execute,
    instructions,
    needs_compiler,
    needs_sass,
    program,
    runs,
    source_of,
    uses,
)
from emulated_device import EmulatedDevice, compile_for
from interpreted import Model
from ptx import Memory, Statistics, launch
from tilewright.codegen.cuda import emit_cuda
from tilewright.driver import compile_in
from tilewright.dtypes import DType
from tilewright.errors import ScheduleError, VerifyError
from tilewright.explore import cli, doctor
from tilewright.explore.precompile import offline_workshop
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.lower import lower
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import Kernel, Mma, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.contraction import gemm, matmul
from tilewright.ops.convolution import conv
from tilewright.ops.tensor import Tensor, compute
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.cuda import TF32_DEPTHS, WIDE_TILES
from tilewright.schedule.directives import schedule
from tilewright.schedule.mma_tiles import MmaTile
from tilewright.schedule.round_factors import RoundFactors

Array = np.ndarray[Any, Any]
F32, U32 = DType.F32, DType.U32
TILES = (MmaTile(16, 16, 8, 16, 16), MmaTile(16, 32, 16, 16, 16, 2), MmaTile(32, 16, 8, 16, 16, 4))
KINDS = ("matmul", "batched", "right transposed", "left transposed", "conv")
REGISTERS = 216  # of a thread of the largest tile, whose warps have 64 x 64 sums
ROUNDING = 2.0**-10  # of a product of two rounded factors, at most, and a little for the sum
AGREE = 1e-5  # of sums in another order, of the largest


def normal(*shape: int) -> Array:
    return np.random.default_rng([*shape]).standard_normal(shape).astype(np.float32)


def product_of(kind: str, m: int, n: int, k: int) -> Kernel:
    """The product, something after it."""
    model = Model()

    def some(*shape: int) -> Tensor:
        return model.given(normal(*shape))

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
    (lowered,) = (lower(g, p) for p in [inline(model.inputs, [after])] for g in form_groups(p))
    return lowered.kernel


def arrays_of(kernel: Kernel) -> dict[str, Array]:
    return {
        b.name: poisoned(b.shape, b.dtype) if b.name in kernel.outputs else normal(*b.shape)
        for b in kernel.params
    }


def interpreted(kernel: Kernel) -> Array:
    arrays = arrays_of(kernel)
    interpret(kernel, arrays)
    (name,) = kernel.outputs
    return arrays[name]


def emulated(kernel: Kernel) -> tuple[Array, Statistics]:
    e, arrays, memory = emit_cuda(kernel), arrays_of(kernel), Memory()
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, "sm_80", False)
    places = [memory.put(arrays[b.name]) for b in kernel.params]
    grid = (e.blocks, e.threads, [*places, *e.numbers], e.shared_bytes)
    found = launch(program(compiled(source).ptx), memory, *grid, traffic=True)
    out = next(k for k, b in enumerate(kernel.params) if b.name in kernel.outputs)
    return memory.get(places[out], kernel.params[out].shape, np.float32), found


def agree(got: Array, want: Array, tolerance: float = AGREE) -> None:
    limit = tolerance * max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)


kinds = st.sampled_from(KINDS)


def note(what: str) -> None:
    if currently_in_test_context():
        event(what)


def tiled(kind: str, m: int, n: int, k: int, tile: MmaTile) -> tuple[Kernel, Kernel] | None:
    """The product of rounded factors, as plain loops and on tensor cores."""
    rounded = schedule(product_of(kind, m, n, k), (RoundFactors(),))
    try:
        made = schedule(rounded, (tile,))
    except ScheduleError as error:
        note(f"refused: {str(error).partition(': ')[2][:40]}")
        return None
    except VerifyError:  # the heuristics take other tiles then
        assert kind == "conv"
        note("not shown to stay inside")
        return None
    note(f"{kind} is tiled")
    return rounded, made


@settings(max_examples=8, deadline=None)
@given(kinds, st.integers(1, 12), st.integers(1, 12), st.integers(9, 24), st.sampled_from(TILES))
def test_loops(kind: str, m: int, n: int, k: int, tile: MmaTile) -> None:
    made = tiled(kind, m, n, 3 if kind == "conv" else k, tile)
    if made:
        agree(interpreted(made[1]), interpreted(made[0]))


@needs_compiler
@settings(max_examples=10, deadline=None)
@given(
    kinds,
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(17, 60),
    st.sampled_from((*TILES, *WIDE_TILES[2:])),
)
def test_instructions(kind: str, m: int, n: int, k: int, tile: MmaTile) -> None:
    made = tiled(kind, m, n, 5 if kind == "conv" else k, tile)
    if made:
        agree(emulated(made[1])[0], interpreted(made[0]))


@needs_compiler
@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("tile", WIDE_TILES[:3], ids=str)
def test_fragments_are_read_without_bank_conflicts(kind: str, tile: MmaTile) -> None:
    made = tiled(kind, tile.rows, tile.columns, 64, tile)
    assert made is not None
    traffic = emulated(made[1])[1].traffic
    assert traffic is not None and traffic.of_shared.count
    assert traffic.of_shared.share == 1.0


def test_rounding_is_stated_in_the_loops() -> None:
    rounded = interpreted(schedule(product_of("batched", 5, 6, 7), (RoundFactors(),)))
    a, b = (ScalarOp.TF32.meaning(normal(*s)) for s in ((2, 5, 7), (2, 7, 6)))
    agree(rounded, a.astype(np.float64) @ b * 2 + 1)
    assert np.abs(rounded - (normal(2, 5, 7) @ normal(2, 7, 6) * 2 + 1)).max() > 1e-5


@needs_compiler
def test_the_scalar_function_is_the_instruction() -> None:
    from tilewright_kernels.cuda.halves import to_tf32

    bits = np.random.default_rng(0).integers(0, 1 << 32, 4096, dtype=np.uint32)
    special = [0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x80000000, 0x00000FFF, 0x00001000, 0x3F801000]
    x = np.concatenate([bits, np.array(special, np.uint32)]).view(np.float32)
    x = x[~np.isnan(x)]
    want = to_tf32.meaning(x).view(np.float32)
    np.testing.assert_array_equal(ScalarOp.TF32.meaning(x), want)
    assert np.isnan(ScalarOp.TF32.meaning(np.float32(np.nan)))


@runs
@pytest.mark.parametrize("pitch", [24, 40])
def test_words_of_turned_matrices(pitch: int) -> None:
    from tilewright_kernels.cuda import halves, mma

    body = f"""
s = shared_f32(0)
t = thread()
for k in range({pitch * 8 // 32}):
    s[k * 32 + t] = p0[k * 32 + t]
sync()
a = stack_u32(4)
load_words4(a, 0, s, lane_across({pitch}), 8, {4 * pitch})
for k in range(4):
    p1[t * 4 + k] = word_to_tf32(a[k])
"""
    imports = {"threads": THREADS, "pointers": "shared_f32, stack_u32", "halves": "word_to_tf32"}
    imports |= {"mma": "lane_across, load_words4"}
    x = normal(8 * pitch)
    source = source_of(imports, body, [F32, U32], threads=32)
    found = execute(source, [x, np.zeros(128, np.uint32)], shared=4 * x.size)[1].reshape(32, 4)
    want = np.zeros((32, 4), np.uint32)
    mma.load_words4.meaning(want, 0, x, mma.lane_across.meaning(pitch), 8, 4 * pitch)
    np.testing.assert_array_equal(found, halves.word_to_tf32.meaning(want))
    # As the PTX ISA draws the left fragment: row and column of each word.
    row, column = mma.left_indices(1)
    exact = x.reshape(8, pitch)[column, row][..., 0].view(np.uint32)
    np.testing.assert_array_equal(want, exact)


# -- models

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
MODELS = {
    "dense": """g (float[40,64] x, float[64,48] w, float[48] b) => (float[40,48] y)
        { a = MatMul(x, w) c = Add(a, b) y = Gelu(c) }""",
    "turned": "g (float[40,64] x, float[48,64] w) => (float[40,48] y) { y = Gemm<transB=1>(x, w) }",
    "conv": """g (float[1,16,12,12] x, float[24,16,3,3] w, float[24] b) => (float[1,24,12,12] y)
        { a = Conv<pads = [1,1,1,1]>(x, w, b) y = Relu(a) }""",
    "one row": "g (float[1,64] x, float[64,48] w) => (float[1,48] y) { y = MatMul(x, w) }",
}


def with_tf32(wanted: bool) -> tw.Options:
    return dataclasses.replace(tw.Options.from_environment(), tf32=wanted)


def feeds_of(model: Any) -> dict[str, Array]:
    dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: normal(*shape) for name, shape in dims.items()}


@needs_compiler
@pytest.mark.parametrize("name", MODELS)
def test_models_are_rounded_only_if_that_is_asked_for(name: str) -> None:
    model = parser.parse_model(HEAD + MODELS[name])
    feeds = feeds_of(model)
    want = tw.compile(model, threads=1).run(feeds)["y"]
    exact = compile_for(EmulatedDevice(), model, with_tf32(False))
    rounded = compile_for(EmulatedDevice(), model, with_tf32(True))
    agree(exact.run(feeds)["y"], want)
    agree(rounded.run(feeds)["y"], want, ROUNDING)
    for made, is_asked in ((exact, False), (rounded, True)):
        loops = [n for k in made.kernels for n in walk(k.kernel.body)]
        assert any(isinstance(n, Mma) for n in loops) == (is_asked and name != "one row")
        assert ("mma_tf32" in "".join(k.source for k in made.kernels)) == (
            is_asked and name != "one row"
        )
        assert ("TF32" in str(made.explain())) == is_asked


def test_the_processor_takes_no_notice() -> None:
    model = parser.parse_model(HEAD + MODELS["dense"])
    feeds = feeds_of(model)
    one, other = (tw.compile(model, options=with_tf32(b)).run(feeds)["y"] for b in (False, True))
    np.testing.assert_array_equal(one, other)


# -- the machine code


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("depth", TF32_DEPTHS)
@pytest.mark.parametrize("tile", WIDE_TILES, ids=str)
@pytest.mark.parametrize("kind", ["right transposed", "left transposed"])
def test_machine_code(kind: str, tile: MmaTile, depth: int, architecture: str) -> None:
    tile = dataclasses.replace(tile, depth=depth)
    made = tiled(kind, 256, 256, 128, tile)
    assert made is not None
    e = emit_cuda(made[1])
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, False)
    kernel = compiled(source)
    assert kernel.usage.spill_bytes == 0
    assert kernel.usage.registers <= REGISTERS
    found = instructions(kernel)
    loads = "LDSM.M88" if kind == "right transposed" else "LDS"
    for wanted in ("HMMA.1688.F32.TF32", "LDGSTS.128", loads):
        assert uses(found, wanted), wanted


@needs_sass
@pytest.mark.parametrize("name", ["dense", "conv"])
def test_without_the_option_no_tensor_core_is_used(name: str) -> None:
    model = parser.parse_model(HEAD + MODELS[name])
    uses_them = partial(any_tensor_core, model)
    assert uses_them(True) and not uses_them(False)


def any_tensor_core(model: Any, tf32: bool) -> bool:
    made = compile_in(offline_workshop(with_tf32(tf32), "sm_90a"), model)
    made.warmup({i.name: feeds_of(model)[i.name].shape for i in model.graph.input})
    found = [instructions(k.compiled) for k in made.kernels]
    return any(name.startswith(("HMMA", "HGMMA", "IMMA", "DMMA")) for f in found for name in f)


# -- what refuses, and what is told


def test_other_products_are_not_rounded() -> None:
    model = Model()
    y = matmul(*(model.given(normal(20, 20).astype(np.float64)) for _ in range(2)))
    p = inline(model.inputs, [y])
    (lowered,) = (lower(g, p) for g in form_groups(p))
    with pytest.raises(ScheduleError, match="of float32"):
        schedule(lowered.kernel, (RoundFactors(),))
    with pytest.raises(ScheduleError, match="no halves or bytes"):
        schedule(product_of("matmul", 32, 32, 32), (TILES[0],))


def test_the_command_and_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "none.onnx", "--tf32"]) == cli.FAILED
    assert "--tf32 is of --target cuda" in capsys.readouterr().err
    said = {b: doctor.diagnose(with_tf32(b)).cuda["float32"] for b in (False, True)}
    assert "TF32" in said[True] and "exact" in said[False]
