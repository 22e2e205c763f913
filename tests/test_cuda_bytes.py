"""Sums of products of bytes on a GPU: exact, on tensor cores where they fit, right elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import NodeProto
from onnx.helper import make_node

import tilewright as tw
from cuda_harness import ARCHITECTURES, compiled, instructions, needs_compiler, needs_sass, uses
from emulated_device import EmulatedDevice, compile_for
from graph_samples import model_of
from interpreted import Model
from test_bytes import convolved, integers, kinds, points, wide, windows, zero_point
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.errors import ScheduleError
from tilewright.fusion.byte_lines import _Kinds, sums_of_bytes
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.lower import lower
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import Kernel, Mma, walk
from tilewright.ops.convolution import conv_windows
from tilewright.ops.integer_contraction import conv_integer, matmul_integer
from tilewright.ops.tensor import compute, constant, placeholder
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.cuda import BYTE_DEPTHS, WIDE_TILES
from tilewright.schedule.directives import schedule
from tilewright.schedule.mma_tiles import MmaTile

Array = np.ndarray[Any, Any]
REGISTERS = 216  # of a thread of the largest tile, whose warps have 64 x 64 sums
PATIENT = settings(max_examples=10, deadline=None)
SMALL = (MmaTile(16, 16, 32, 16, 16), MmaTile(32, 16, 32, 16, 16, 4))


def on_gpu(nodes: list[NodeProto], feeds: dict[str, Array], constants: dict[str, Array]) -> Any:
    """The model's result by the emulator, bit-equal with the processor's, and its kernels."""
    model = model_of(nodes, feeds, ["y"], constants)
    ours = compile_for(EmulatedDevice(), model)
    got = ours.run(feeds)["y"]
    want = tw.compile(model, threads=1).run(feeds)["y"]
    np.testing.assert_array_equal(got, want)
    return got, [k.kernel for k in ours.kernels]


def products(kernels: list[Kernel]) -> list[Kernel]:
    """Those on tensor cores."""
    return [k for k in kernels if any(isinstance(n, Mma) for n in walk(k.body))]


def has_floats(kernels: list[Kernel]) -> bool:
    return any(b.dtype.is_float for k in kernels for b in k.params)


def split(operands: dict[str, Array | None], known: set[str]) -> Any:
    """Names as a node has them, what is fed, and constants."""
    there = {name: a for name, a in operands.items() if a is not None}
    names = [name if name in there else "" for name in operands]
    feeds = {n: a for n, a in there.items() if n not in known}
    return names, feeds, {n: a for n, a in there.items() if n in known}


@needs_compiler
@PATIENT
@given(
    batch=st.integers(0, 2),
    size=st.tuples(st.integers(1, 40), st.integers(1, 140), st.integers(1, 70)),
    left=kinds,
    right=kinds,
    zeros=st.tuples(points, points),
    known=st.booleans(),
    shared=st.booleans(),
)
def test_matmuls(
    batch: int,
    size: tuple[int, int, int],
    left: Any,
    right: Any,
    zeros: tuple[str, str],
    known: bool,
    shared: bool,
) -> None:
    m, k, n = size
    outer = (batch,) if batch else ()
    a = integers(left, *outer, m, k)
    b = integers(right, *(() if shared else outer), k, n, seed=1)
    za = zero_point(left, "tensor" if outer and zeros[0] == "each" else zeros[0], m, 2)
    zb = zero_point(right, "tensor" if outer and zeros[1] == "each" else zeros[1], n, 3)
    constants = {"w", "wz"} if known else set[str]()
    names, feeds, rest = split({"x": a, "w": b, "xz": za, "wz": zb}, constants)
    got, kernels = on_gpu([make_node("MatMulInteger", names, ["y"])], feeds, rest)
    np.testing.assert_array_equal(got, (wide(a, za, -2) @ wide(b, zb)).astype(np.int32))
    assert not has_floats(kernels)
    event(f"{len(products(kernels))} on tensor cores")


@needs_compiler
@PATIENT
@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    extents=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(windows, windows),
    group=st.sampled_from([1, 1, 1, 2]),
    left=kinds,
    right=kinds,
    zeros=st.tuples(st.sampled_from(["none", "tensor"]), points),
    known=st.booleans(),
)
def test_convolutions(
    batch: int,
    channels: tuple[int, int],
    extents: tuple[int, int],
    window: Any,
    group: int,
    left: Any,
    right: Any,
    zeros: tuple[str, str],
    known: bool,
) -> None:
    if any(n + 2 * p < (k - 1) * d + 1 for n, (k, _, d, p) in zip(extents, window, strict=True)):
        return
    x = integers(left, batch, group * channels[0], *extents)
    kernel, strides, dilations, pads = zip(*window, strict=True)
    w = integers(right, group * channels[1], channels[0], *kernel, seed=1)
    zx, zw = zero_point(left, zeros[0], 1, 2), zero_point(right, zeros[1], len(w), 3)
    constants = {"w", "wz", "xz"} if known else {"w", "wz"}
    names, feeds, rest = split({"x": x, "w": w, "xz": zx, "wz": zw}, constants)
    how: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": (*pads, *pads)}
    node = make_node("ConvInteger", names, ["y"], group=group, **how)
    got, kernels = on_gpu([node], feeds, rest)
    want = convolved(wide(x, zx), wide(w, zw, 0), window, group)
    np.testing.assert_array_equal(got, want.astype(np.int32))
    found = products(kernels)
    event(f"{len(found)} on tensor cores, groups {group}")
    assert not (found and group > 1)
    assert group > 1 or not has_floats(kernels)


# -- where tensor cores compute


@needs_compiler
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("depth", [33, 64, 66, 144])
@pytest.mark.parametrize("known", [True, False])
def test_matmuls_on_tensor_cores(kind: Any, depth: int, known: bool) -> None:
    """A single product of bytes as they are stored; weights that are known are laid out before."""
    x, w = integers(kind, 40, depth), integers(np.int8, depth, 48, seed=1)
    names, feeds, rest = split({"x": x, "w": w}, {"w"} if known else set())
    _, kernels = on_gpu([make_node("MatMulInteger", names, ["y"])], feeds, rest)
    (product,) = products(kernels)
    assert {b.dtype for b in product.params} == {
        DType.U8 if kind is np.uint8 else DType.I8,
        DType.I8,
        DType.I32,
    }
    copies = (depth % 4 != 0) + (not known)
    assert len(kernels) == 1 + copies


@needs_compiler
@pytest.mark.parametrize("inputs", [3, 16, 20])
def test_convolutions_on_tensor_cores(inputs: int) -> None:
    """A zero point that is known only at run time, around the image too."""
    x, w = integers(np.uint8, 1, inputs, 9, 8), integers(np.int8, 24, inputs, 3, 3, seed=1)
    names, feeds, rest = split({"x": x, "w": w, "z": np.array(9, np.uint8)}, {"w"})
    node = make_node("ConvInteger", names, ["y"], pads=[1, 1, 1, 1])
    _, kernels = on_gpu([node], feeds, rest)
    assert len(products(kernels)) == 1 and len(kernels) == 2  # channels last, then the product


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 300, 64), (3, 300, 64), (40, 300, 8), (40, 6, 48)])
@pytest.mark.parametrize("known", [True, False])
def test_what_tensor_cores_do_not_fit_is_whole_numbers(
    shape: tuple[int, int, int], known: bool
) -> None:
    m, k, n = shape
    x, w = integers(np.uint8, m, k), integers(np.uint8, k, n, seed=1)
    names, feeds, rest = split({"x": x, "w": w}, {"w"} if known else set())
    _, kernels = on_gpu([make_node("MatMulInteger", names, ["y"])], feeds, rest)
    assert not products(kernels) and not has_floats(kernels)


@needs_compiler
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("each", [True, False])
def test_a_quantised_network_keeps_its_bytes(kind: Any, each: bool) -> None:
    """Two convolutions with biases and a matrix: each sum is scaled and quantised where it is."""
    rng = np.random.default_rng(3)
    w, v = integers(np.int8, 40, 16, 3, 3, seed=1), integers(np.int8, 32, 40, 1, 1, seed=2)
    scales = rng.uniform(0.001, 0.01, 40 if each else ()).astype(np.float32)
    constants = {
        **{"xs": np.float32(0.02), "ys": np.float32(0.4), "z": kind(11), "w": w, "v": v},
        **{"ws": scales, "wz": np.zeros(scales.shape, np.int8), "u": integers(np.int8, 80, 16)},
        **{"vs": np.float32(0.004), "vz": np.int8(3)},
        "b": rng.integers(-3000, 3000, 40).astype(np.int32),
        "shape": np.array([1, -1, 80], np.int64),
    }
    first = ["x", "xs", "z", "w", "ws", "wz", "ys", "z", "b"]
    nodes = [
        make_node("QLinearConv", first, ["c"], pads=[1, 1, 1, 1]),
        make_node("QLinearConv", ["c", "ys", "z", "v", "vs", "vz", "ys", "z"], ["d"]),
        make_node("Reshape", ["d", "shape"], ["r"]),
        make_node("QLinearMatMul", ["r", "ys", "z", "u", "vs", "vz", "ys", "z"], ["y"]),
    ]
    _, kernels = on_gpu(nodes, {"x": integers(kind, 1, 16, 10, 8)}, constants)
    found = products(kernels)
    assert len(found) == 3
    for k in found:
        (out,) = (b for b in k.params if b.name in k.outputs)
        assert out.dtype in (DType.U8, DType.I8)
    assert not any(b.dtype is DType.F64 for k in kernels for b in k.params)


@needs_compiler
def test_sums_with_a_bias_stay_whole_only_within_32_bits() -> None:
    x, w = np.full((16, 64), 255, np.uint8), np.full((16, 64, 1, 1), 127, np.int8)
    bias = np.full(16, np.iinfo(np.int32).max, np.int32)
    constants: dict[str, Any] = {"xs": np.float32(1), "ws": np.float32(1)}
    constants |= {"ys": np.float32(2.0**26), "z": np.uint8(0), "wz": np.int8(0), "w": w}
    node = make_node(
        "QLinearConv", ["x", "xs", "z", "w", "ws", "wz", "ys", "z", "b"], ["y"], name="c"
    )
    got, _ = on_gpu([node], {"x": x.reshape(1, 64, 4, 4)}, {**constants, "b": bias})
    total = 64 * 255 * 127 + np.iinfo(np.int32).max
    assert (got == round(total / 2**26)).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), windows)
def test_places_by_the_taps_inside(extent: int, window: tuple[int, int, int, int]) -> None:
    kernel, stride, dilation, pad = window
    if extent + 2 * pad < (kernel - 1) * dilation + 1:
        return
    x, w = placeholder((1, 1, extent), DType.F32), placeholder((1, 1, kernel), DType.F32)
    how = {"strides": [stride], "dilations": [dilation], "pads": [pad, pad]}
    (d,) = conv_windows(x, w, **how)  # type: ignore[arg-type]
    found = _Kinds.of(d)
    assert len(found.taps) <= d.out
    for out in range(d.out):
        at = out * stride + np.arange(kernel) * dilation - pad
        kind = min(out, found.first) + max(out - found.last, 0) if len(found.taps) > 1 else 0
        np.testing.assert_array_equal(found.taps[kind], (at >= 0) & (at < extent))


# -- the loops and the machine code


def kernel_of(kind: str, left: Any, right: Any, m: int, n: int, k: int) -> Kernel:
    """A product of bytes with zero points, and something after it."""
    model = Model()
    zero = constant(np.array(5, left))
    if kind == "conv":
        x, w = integers(left, 1, k, m, 4), integers(right, n, k, 3, 2, seed=1)
        image = model.given(x)
        last = compute(x.shape, lambda *i: image[i], channels_last=True)
        y = conv_integer(last, model.given(w, True), zero, strides=[2, 1], pads=[1, 1, 1, 1])
    else:
        y = matmul_integer(model.given(integers(left, m, k)),
                           model.given(integers(right, k, n, seed=1), True), zero)  # fmt: skip
    after = compute(y.shape, lambda *i: y[i] + 1)
    program = inline(model.inputs, sums_of_bytes([after], PackedWeights()))
    lowered = [lower(g, program) for g in form_groups(program, side_by_side=True)]
    return lowered[-1].kernel


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["matmul", "conv"]),
    kinds,
    kinds,
    st.integers(4, 12),
    st.integers(4, 20),
    st.integers(5, 40),
    st.sampled_from(SMALL),
)
def test_loops(kind: str, left: Any, right: Any, m: int, n: int, k: int, tile: MmaTile) -> None:
    plain = kernel_of(kind, left, right, m, n, k)
    try:
        tiled = schedule(plain, (tile,))
    except ScheduleError as error:
        event(f"refused: {str(error).partition(': ')[2][:40]}")
        return
    event("tiled")
    rng, given = np.random.default_rng(0), {}
    for b in plain.params:
        if b.name not in plain.outputs:
            limits = np.iinfo(b.dtype.numpy) if b.dtype.bits == 8 else np.iinfo(np.int16)
            given[b.name] = rng.integers(limits.min, limits.max, b.shape).astype(b.dtype.numpy)
    found = []
    for k_ in (plain, tiled):
        (name,) = k_.outputs
        out = next(poisoned(b.shape, b.dtype) for b in k_.params if b.name == name)
        interpret(k_, {**given, name: out})
        found.append(out)
    np.testing.assert_array_equal(found[0], found[1])


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("depth", BYTE_DEPTHS)
@pytest.mark.parametrize("tile", WIDE_TILES, ids=str)
def test_machine_code(tile: MmaTile, depth: int, architecture: str) -> None:
    tile = replace(tile, depth=depth)
    e = emit_cuda(schedule(kernel_of("matmul", np.uint8, np.int8, 256, 256, 256), (tile,)))
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, False)
    made = compiled(source)
    assert made.usage.spill_bytes == 0
    assert made.usage.registers <= REGISTERS
    found = instructions(made)
    for wanted in ("IMMA.16832.U8.S8", "LDSM.M88", "LDGSTS.128"):
        assert uses(found, wanted), wanted
