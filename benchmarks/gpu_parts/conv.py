"""Convolutions of ResNet and a depthwise one, beside cuDNN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

import tilewright as tw
from gpu_parts.bench import PRECISIONS, Precision, checked, error_of
from gpu_parts.part import Figures, Setting
from gpu_parts.timing import KERNELS

if TYPE_CHECKING:
    from gpu_parts.bench import Array, Bench


Dims = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shape:
    """Channels in and out, pixels of a side, window."""

    inside: int
    outside: int
    side: int
    window: int
    stride: int = 1
    groups: int = 1


SHAPES = {
    "stem 7x7": Shape(3, 64, 224, 7, 2),
    "56 3x3": Shape(64, 64, 56, 3),
    "56 1x1": Shape(64, 256, 56, 1),
    "28 3x3": Shape(128, 128, 28, 3),
    "14 3x3": Shape(256, 256, 14, 3),
    "7 3x3": Shape(512, 512, 7, 3),
    "shrink 1x1": Shape(256, 512, 56, 1, 2),
    "depthwise": Shape(96, 96, 56, 3, 1, 96),
}
BATCHES = (32, 1)
INT8 = "int8"
KINDS = ("f32", "tf32", "f16", INT8)


def cases(setting: Setting) -> list[str]:
    return [f"{name} x{batch} {kind}" for batch in BATCHES for kind in KINDS for name in SHAPES]


def model(shape: Shape, batch: int, precision: Precision, weights: Array) -> ModelProto:
    """One convolution of constant weights, as models have them."""
    kind = TensorProto.FLOAT16 if precision.dtype == np.float16 else TensorProto.FLOAT
    pad = shape.window // 2
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        pads=[pad] * 4,
        strides=[shape.stride] * 2,
        group=shape.groups,
        kernel_shape=[shape.window] * 2,
    )
    x = [batch, shape.inside, shape.side, shape.side]
    w = TensorProto(name="w", data_type=kind, dims=weights.shape, raw_data=weights.tobytes())
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", kind, None)],
        [w],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def scaled(shape: Shape, setting: Setting) -> Shape:
    groups = shape.groups if shape.groups == 1 else setting.size(shape.groups)
    inside = shape.inside if shape.inside < 8 else setting.size(shape.inside)
    side = setting.size(shape.side, 7)
    return Shape(inside, setting.size(shape.outside), side, shape.window, shape.stride, groups)


def quantised(shape: Shape, batch: int, weights: Array) -> ModelProto:
    """The same of bytes to bytes, with a zero point for pixels and a scale for each channel."""
    made = model(shape, batch, PRECISIONS["f32"], weights)
    (node,) = made.graph.node
    node.op_type = "QLinearConv"
    node.input[:] = ["x", "xs", "z", "w", "ws", "wz", "ys", "z"]
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    made.graph.initializer[0].data_type = TensorProto.INT8
    fan = weights[0].size
    constants = {
        "xs": np.float32(0.02),
        "ys": np.float32(0.02 * np.sqrt(fan)),
        "z": np.uint8(117),
        "ws": np.linspace(0.005, 0.02, shape.outside, dtype=np.float32),
        "wz": np.zeros(shape.outside, np.int8),
    }
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()
    )
    return made


def run(bench: Bench, case: str) -> Figures:
    name, batch_text, kind = case.rsplit(" ", 2)
    batch = bench.setting.size(int(batch_text[1:]), 1)
    shape = scaled(SHAPES[name], bench.setting)
    dims = (shape.outside, shape.inside // shape.groups, shape.window, shape.window)
    measured = _integers if kind == INT8 else _floats
    figures, results = measured(bench, kind, shape, batch, dims)
    fan = shape.inside // shape.groups * shape.window**2
    return {**figures, "rate": 2.0 * results * fan / figures["seconds"][KERNELS]}


def _integers(bench: Bench, _: str, shape: Shape, batch: int, dims: Dims) -> tuple[Figures, int]:
    """To the bit as the processor has it."""
    made = quantised(shape, batch, bench.random(dims, np.int8, 1))
    x = bench.random((batch, shape.inside, shape.side, shape.side), np.uint8)
    compiled = bench.compile(made)
    got = compiled.run({"x": bench.put(x)})["y"].get()
    wanted = tw.compile(made).run({"x": x})["y"]
    verdict = checked(error_of(got.astype(np.float64), wanted.astype(np.float64)), 0.0)
    times = bench.time(compiled)
    return bench.figures(times, **verdict, schedules=compiled.schedules()), got.size


def _floats(bench: Bench, kind: str, shape: Shape, batch: int, dims: Dims) -> tuple[Figures, int]:
    precision, fan = PRECISIONS[kind], dims[1] * shape.window**2
    w = (bench.random(dims, np.float32, 1) / np.sqrt(fan)).astype(precision.dtype)
    x = bench.random((batch, shape.inside, shape.side, shape.side), precision.dtype)
    compiled = bench.compile(model(shape, batch, precision, w), bench.options_for(precision))
    there = bench.put(x)
    got = compiled.run({"x": there})["y"].get()
    single = PRECISIONS["f32"]
    plain = tw.compile(model(shape, batch, single, w.astype(np.float32)))
    wanted = plain.run({"x": x.astype(np.float32)})["y"]
    verdict = checked(error_of(got.astype(np.float32), wanted), precision.tolerance)
    rivals = {}
    if bench.rival:
        rest = (shape.stride, shape.window // 2, shape.groups)
        rivals = bench.rival.conv(there, bench.put(w), precision, *rest)
    times = bench.time(compiled, rivals)
    return bench.figures(times, **verdict, schedules=compiled.schedules()), got.size
