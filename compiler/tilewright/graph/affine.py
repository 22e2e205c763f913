"""Convolutions and matrix products absorb a scale and a shift per channel into their weights.

Weights are recomputed in float64 and rounded once. Where that gives an infinity, nothing is done.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tilewright.dtypes import from_numpy
from tilewright.graph.ir import Array, Node
from tilewright.graph.rewrite import Replacement, View

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def convolution_absorbs_normalization(node: Node, view: View) -> Replacement | None:
    """BatchNormalization(Conv(x, w, b)) = Conv(x, w * s, b * s + t), also for ConvTranspose."""
    affine = _normalization(node, view)
    convolution = _absorber(node, 0, view, *_CONVOLUTIONS) if affine else None
    if affine is None or convolution is None:
        return None
    return _convolution(convolution, node, *affine, view)


def convolution_absorbs_constant(node: Node, view: View) -> Replacement | None:
    """Conv(x, w, b) * s + t = Conv(x, w * s, b * s + t), for constants per channel."""
    if node.op_type not in ("Mul", "Add", "Sub", "Div") or node.domain:
        return None
    for place in (0, 1) if node.op_type in ("Mul", "Add") else (0,):
        constant = view.constant(node.inputs[1 - place])
        convolution = None if constant is None else _absorber(node, place, view, *_CONVOLUTIONS)
        weight = None if convolution is None else view.constant(convolution.inputs[1])
        if constant is None or convolution is None or weight is None:
            continue
        vector = _per_channel(constant, _channels(convolution, weight), weight.ndim)
        if vector is not None:
            return _convolution(convolution, node, *_affine(node.op_type, vector), view)
    return None


def gemm_absorbs_normalization(node: Node, view: View) -> Replacement | None:
    """BatchNormalization(Gemm(a, b, c)) = Gemm(a, b * s, c * s + t)."""
    affine = _normalization(node, view)
    gemm = _absorber(node, 0, view, "Gemm") if affine else None
    if affine is None or gemm is None:
        return None
    scale, shift = affine
    weight, bias = view.constant(gemm.inputs[1]), _bias(gemm, view)
    transposed = bool(gemm.attributes.get("transB", 0))
    if weight is None or bias is None or weight.shape[0 if transposed else 1] != scale.size:
        return None
    beta = gemm.attributes.get("beta", 1.0)
    assert isinstance(beta, float)
    new_weight = _wide(weight) * (scale[:, None] if transposed else scale)
    gemm = dataclasses.replace(gemm, attributes={**gemm.attributes, "beta": 1.0})
    return _rebuilt(gemm, node, weight, new_weight, bias * beta * scale + shift, view)


def _convolution(
    convolution: Node, node: Node, scale: Array, shift: Array, view: View
) -> Replacement | None:
    weight, bias = view.constant(convolution.inputs[1]), _bias(convolution, view)
    if weight is None or bias is None or _channels(convolution, weight) != scale.size:
        return None
    ones = (1,) * (weight.ndim - 2)
    if convolution.op_type == "Conv":
        new_weight = _wide(weight) * scale.reshape(-1, 1, *ones)
    else:
        groups = _group(convolution)
        by_group = _wide(weight).reshape(groups, -1, *weight.shape[1:])
        new_weight = (by_group * scale.reshape(groups, 1, -1, *ones)).reshape(weight.shape)
    return _rebuilt(convolution, node, weight, new_weight, bias * scale + shift, view)


def _rebuilt(
    producer: Node, node: Node, old: Array, weight: Array, bias: Array, view: View
) -> Replacement | None:
    """`producer` with other weights in place of `node`, or None where they are out of range."""
    with np.errstate(over="ignore"):
        values = [np.asarray(v).astype(old.dtype) for v in (weight, bias)]
    if not all(np.isfinite(v).all() for v in values):
        return None
    for value in values:
        value.flags.writeable = False
    names = [view.fresh(f"{producer.inputs[1]}/{part}") for part in ("weight", "bias")]
    merged = dataclasses.replace(
        producer, inputs=(producer.inputs[0], *names), outputs=(node.outputs[0],)
    )
    return Replacement((merged,), dict(zip(names, values, strict=True)))


def _absorber(node: Node, place: int, view: View, *op_types: str) -> Node | None:
    """What computes an operand of `node`, if nobody else reads it and its weights are constant."""
    name = node.inputs[place]
    producer = view.producer(name, *op_types) if view.only_use(name) else None
    weight = None if producer is None else view.constant(producer.inputs[1])
    if weight is None or weight.ndim < 2 or not from_numpy(weight.dtype).is_float:
        return None
    return producer


def _normalization(node: Node, view: View) -> tuple[Array, Array] | None:
    """The scale and the shift that BatchNormalization applies to a channel at inference."""
    if node.op_type != "BatchNormalization" or node.domain or len(node.outputs) != 1:
        return None
    values = [view.constant(name) for name in node.inputs[1:5]]
    if node.attributes.get("training_mode", 0) or any(v is None for v in values):
        return None
    gamma, beta, mean, variance = (_wide(v) for v in values if v is not None)
    epsilon = node.attributes.get("epsilon", 1e-5)
    assert isinstance(epsilon, float)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
        return scale, beta - mean * scale


def _affine(op_type: str, vector: Array) -> tuple[Array, Array]:
    """The scale and the shift that an operator with a constant second operand applies."""
    one, zero = np.ones_like(vector), np.zeros_like(vector)
    with np.errstate(divide="ignore"):
        return {
            "Mul": (vector, zero),
            "Div": (1 / vector, zero),
            "Add": (one, vector),
            "Sub": (one, -vector),
        }[op_type]


def _per_channel(constant: Array, channels: int, rank: int) -> Array | None:
    """One number per channel, if the constant is that or a single number; channels are axis 1."""
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if len(shape) != rank or shape[1] not in (1, channels) or math.prod(shape) != shape[1]:
        return None
    return np.broadcast_to(_wide(constant).reshape(-1), (channels,))


def _bias(producer: Node, view: View) -> Array | None:
    """The constant bias, zero where it is omitted, None where it is not constant."""
    if len(producer.inputs) < 3 or not producer.inputs[2]:
        return np.zeros(1)
    bias = view.constant(producer.inputs[2])
    return None if bias is None else _wide(bias)


def _channels(convolution: Node, weight: Array) -> int:
    if convolution.op_type == "Conv":
        return int(weight.shape[0])
    return int(weight.shape[1]) * _group(convolution)


def _group(convolution: Node) -> int:
    group = convolution.attributes.get("group", 1)
    assert isinstance(group, int)
    return group


def _wide(value: Array) -> Array:
    return value.astype(np.float64)
