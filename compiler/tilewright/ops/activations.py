"""Activation functions.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from math import pi, sqrt

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Expr, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import broadcast_shape, cast, elementwise, fail, maximum, minimum, select
from tilewright.ops.operands import FLOATS, NUMBERS, require, same_type
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute, known

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _exp(v: Expr) -> Expr:
    return apply(ScalarOp.EXP, v)


def _sigmoid(v: Expr) -> Expr:
    return apply(ScalarOp.SIGMOID, v)


def _expm1(v: Expr) -> Expr:
    return apply(ScalarOp.EXPM1, v)


@op("Sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    require(FLOATS, x)
    return elementwise(_sigmoid, x)


@op("Relu")
def relu(x: Tensor) -> Tensor:
    require(NUMBERS, x)
    return elementwise(lambda v: maximum(v, 0), x)


@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: select(v < 0, v * alpha, v), x)


@op("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    same_type(x, slope, kinds=NUMBERS)
    if broadcast_shape(x.shape, slope.shape) != x.shape:
        raise fail(f"a slope of shape {slope.shape} does not broadcast to {x.shape}")
    return elementwise(lambda v, s: select(v < 0, v * s, v), x, slope)


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: select(v < 0, _expm1(minimum(v, 0.0)) * alpha, v), x)


@op("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: select(v < 0, _expm1(minimum(v, 0.0) * (1 / alpha)) * alpha, v), x)


@op("Selu")
def selu(x: Tensor, *, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> Tensor:
    require(FLOATS, x)
    return elementwise(
        lambda v: select(v <= 0, _expm1(minimum(v, 0.0)) * (alpha * gamma), v * gamma), x
    )


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: select(v > alpha, v, 0.0), x)


@op("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: _unit(v * alpha + beta), x)


def _unit(v: Expr) -> Expr:
    return maximum(minimum(v, 1.0), 0.0)


@op("HardSwish")
def hard_swish(x: Tensor) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: v * _unit(v * (1 / 6) + 0.5), x)


@op("Softplus")
def softplus(x: Tensor) -> Tensor:
    require(FLOATS, x)
    return elementwise(_softplus, x)


def _softplus(v: Expr) -> Expr:
    return apply(ScalarOp.LOG1P, _exp(-apply(ScalarOp.ABS, v))) + maximum(v, 0.0)


@op("Softsign")
def softsign(x: Tensor) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: v / (apply(ScalarOp.ABS, v) + 1.0), x)


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    require(FLOATS, x)
    if approximate == "tanh":
        return elementwise(_gelu_tanh, x)
    if approximate != "none":
        raise fail(f"approximate={approximate!r} is neither 'none' nor 'tanh'")
    return elementwise(lambda v: v * 0.5 * (apply(ScalarOp.ERF, v * sqrt(0.5)) + 1.0), x)


def _gelu_tanh(v: Expr) -> Expr:
    inner = (v + v * v * v * 0.044715) * sqrt(2 / pi)
    return v * 0.5 * (apply(ScalarOp.TANH, inner) + 1.0)


@op("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: v * _sigmoid(v * alpha), x)


@op("Mish")
def mish(x: Tensor) -> Tensor:
    require(FLOATS, x)
    return elementwise(lambda v: v * apply(ScalarOp.TANH, _softplus(v)), x)


@op("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Integers are compared and moved as doubles, for neither number need be whole."""
    require(NUMBERS, x)
    wide = x.dtype if x.dtype.is_float else DType.F64

    def element(v: Expr) -> Expr:
        w = cast(wide, v)
        return cast(x.dtype, select(w < -lambd, w + bias, select(w > lambd, w - bias, 0.0)))

    return elementwise(element, x)


@op("Dropout")
def dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training: Tensor | None = None,
    *,
    seed: int | None = None,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """The operand itself: at inference, or at a ratio of 0, nothing is dropped."""
    if training is not None and known(training).any() and (ratio is None or known(ratio).any()):
        raise UnsupportedError("Dropout in training mode")
    if outputs == 1:
        return (x,)
    return x, compute(x.shape, lambda *i: True, dtype=DType.BOOL)
