"""Float operators between DequantizeLinear and QuantizeLinear become operators on the integers.

These rules go first: once dequantised weights are folded, the integers are out of sight. Sums of
products of integers are exact, so results no longer depend on the order of summation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.graph.ir import Array, Node
from tilewright.graph.rewrite import Replacement, Rule, View

MICROSOFT = "com.microsoft"
SOFTMAX_OF_ONE_AXIS = 13
"""The opset since which Softmax takes one axis; that of every graph here is newer."""

BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


@dataclass(frozen=True)
class Quantized:
    """A dequantised value's integers, scale and zero point by name, and the constants of both."""

    name: str
    scale: str
    zero_point: str
    scale_value: Array
    zero_value: Array
    axis: int

    @property
    def inputs(self) -> tuple[str, str, str]:
        return self.name, self.scale, self.zero_point

    @property
    def per_tensor(self) -> bool:
        return self.scale_value.size == 1 and self.zero_value.size == 1


@dataclass(frozen=True)
class Result:
    """How a value is quantised: the names of scale and zero point, and the type of the integers."""

    names: tuple[str, str]
    dtype: np.dtype[Any]


def quantize_of_relu(node: Node, view: View) -> Replacement | None:
    """QuantizeLinear(Relu(x), s, z) = QuantizeLinear(x, s, z) where z is the least integer."""
    if node.op_type != "QuantizeLinear" or node.domain or len(node.inputs) < 3:
        return None
    relu, zero = view.producer(node.inputs[0], "Relu"), view.constant(node.inputs[2])
    if relu is None or zero is None or zero.dtype not in BYTES:
        return None
    if (zero != np.iinfo(zero.dtype).min).any():
        return None
    inputs = (relu.inputs[0], *node.inputs[1:])
    return Replacement((dataclasses.replace(node, inputs=inputs),))


def quantized_matmul(node: Node, view: View) -> Replacement | None:
    """QuantizeLinear(MatMul(DequantizeLinear(a), DequantizeLinear(b))) = QLinearMatMul(a, b)."""
    found = _quantised(node, view, "MatMul")
    if found is None:
        return None
    product, y = found
    a, b = (_dequantized(n, view) for n in product.inputs)
    if a is None or b is None or not a.per_tensor or not _per_column(b, view):
        return None
    return _instead(node, "QLinearMatMul", "", (*a.inputs, *b.inputs, *y.names), product)


def quantized_conv(node: Node, view: View) -> Replacement | None:
    """QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), bias)) = QLinearConv(x, w,
    bias) where the bias is an int32 with the scale of the products."""
    found = _quantised(node, view, "Conv")
    if found is None:
        return None
    product, y = found
    x, w = (_dequantized(n, view) for n in product.inputs[:2])
    if x is None or w is None or not x.per_tensor or not (w.per_tensor or w.axis == 0):
        return None
    bias = _bias(product, x, w, view)
    if bias is None:
        return None
    return _instead(node, "QLinearConv", "", (*x.inputs, *w.inputs, *y.names, *bias), product)


def quantized_gemm(node: Node, view: View) -> Replacement | None:
    """QuantizeLinear(Gemm(DequantizeLinear(a), DequantizeLinear(b), bias)) = QGemm(a, b, bias)
    where the bias is an int32 with the scale of the products."""
    found = _quantised(node, view, "Gemm")
    if found is None or found[0].attributes.get("beta", 1.0) != 1.0:
        return None
    product, y = found
    a, b = (_dequantized(n, view) for n in product.inputs[:2])
    columns = 0 if product.attributes.get("transB", 0) else 1
    if a is None or b is None or not a.per_tensor or not (b.per_tensor or b.axis == columns):
        return None
    if product.attributes.get("alpha", 1.0) != 1.0 and len(product.inputs) > 2:
        return None
    bias = _bias(product, a, b, view)
    if bias is None:
        return None
    operands = (*a.inputs, *b.inputs, *(bias or ("",)), *y.names)
    return _instead(node, "QGemm", MICROSOFT, operands, product, drop="beta")


def quantized_softmax(node: Node, view: View) -> Replacement | None:
    """QuantizeLinear(Softmax(DequantizeLinear(x))) = QLinearSoftmax(x), by a table."""
    found = _quantised(node, view, "Softmax")
    x = None if found is None else _dequantized(found[0].inputs[0], view)
    if found is None or x is None or not x.per_tensor or x.zero_value.dtype != found[1].dtype:
        return None
    softmax, y = found[0], found[1].names
    axis = softmax.attributes.get("axis", -1)
    attributes = {"axis": axis, "opset": SOFTMAX_OF_ONE_AXIS}
    name, inputs = softmax.name or node.name, (*x.inputs, *y)
    return Replacement((Node(name, "QLinearSoftmax", MICROSOFT, inputs, node.outputs, attributes),))


QUANTIZED_RULES: tuple[Rule, ...] = (
    quantize_of_relu,
    quantized_matmul,
    quantized_conv,
    quantized_gemm,
    quantized_softmax,
)


def _quantised(node: Node, view: View, op_type: str) -> tuple[Node, Result] | None:
    """What is quantised to bytes here, if it is an `op_type` nobody else reads, and its scale and
    zero point."""
    if node.op_type != "QuantizeLinear" or node.domain or len(node.inputs) < 3:
        return None
    product = view.producer(node.inputs[0], op_type)
    scale, zero = (view.constant(n) for n in node.inputs[1:])
    if product is None or scale is None or zero is None or not view.only_use(node.inputs[0]):
        return None
    if zero.dtype not in BYTES or scale.dtype != np.float32 or scale.size != 1 or zero.size != 1:
        return None
    return product, Result((node.inputs[1], node.inputs[2]), zero.dtype)


def _dequantized(name: str, view: View) -> Quantized | None:
    """The integers of a value that was dequantised from bytes to float32, not block by block."""
    node = view.producer(name, "DequantizeLinear")
    if node is None or len(node.inputs) < 3 or node.attributes.get("block_size", 0):
        return None
    scale, zero = (view.constant(n) for n in node.inputs[1:])
    if scale is None or zero is None or zero.dtype not in BYTES or scale.dtype != np.float32:
        return None
    axis = node.attributes.get("axis", 1)
    integers, *parameters = node.inputs
    if not isinstance(axis, int):
        return None
    return Quantized(integers, parameters[0], parameters[1], scale, zero, axis)


def _per_column(b: Quantized, view: View) -> bool:
    """Whether the scales are one, or one to each column of a constant matrix."""
    if b.per_tensor:
        return True
    value = view.constant(b.name)
    return value is not None and value.ndim == 2 and b.axis % 2 == 1


def _bias(product: Node, x: Quantized, w: Quantized, view: View) -> tuple[str, ...] | None:
    """The name of the integer bias, or nothing without one; None if its scale is not that of the
    products."""
    if len(product.inputs) < 3 or not product.inputs[2]:
        return ()
    node = view.producer(product.inputs[2], "DequantizeLinear")
    if node is None:
        return None
    integers, scale = view.constant(node.inputs[0]), view.constant(node.inputs[1])
    zero = view.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if integers is None or scale is None or integers.dtype != np.int32 or integers.ndim != 1:
        return None
    if zero is not None and zero.any():
        return None
    same = np.allclose(scale, x.scale_value * w.scale_value, rtol=1e-6, atol=0.0)
    return (node.inputs[0],) if same else None


def _instead(
    node: Node, op_type: str, domain: str, inputs: tuple[str, ...], product: Node, drop: str = ""
) -> Replacement:
    attributes = {k: v for k, v in product.attributes.items() if k != drop}
    name = product.name or node.name
    return Replacement((Node(name, op_type, domain, inputs, node.outputs, attributes),))
