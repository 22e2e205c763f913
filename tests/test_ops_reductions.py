"""Reductions, softmax, normalisation and quantisation against NumPy and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
import tilewright.driver
from operator_oracle import Array, check, normal, own
from strategies import shapes
from tilewright.dtypes import DType
from tilewright.errors import OperatorError, UnsupportedError
from tilewright.ops.registry import find, find_host
from tilewright.ops.tensor import NeedsValue, placeholder

FEW = settings(max_examples=25, deadline=None)
F16, F32, F64, I32, I64, U32 = (
    np.float16,
    np.float32,
    np.float64,
    np.int32,
    np.int64,
    np.uint32,
)


def ints(*values: int) -> Array:
    return np.array(values, I64)


def scalar(value: float, dtype: Any = F32) -> Array:
    return np.asarray(value, dtype)


def one(op: str, *inputs: Array | None, **attributes: Any) -> Array:
    """The first result of this package's definition."""
    with np.errstate(all="ignore"):
        return own(op, inputs, **attributes)[0]


def close(got: Array, wanted: Array, tolerance: float = 1e-5) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def log_sum_exp(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.asarray(np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims)))


Reduction = Callable[[Array, tuple[int, ...], bool], Any]
REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": lambda x, a, k: x.sum(a, keepdims=k),
    "ReduceMean": lambda x, a, k: x.mean(a, keepdims=k),
    "ReduceMax": lambda x, a, k: x.max(a, keepdims=k),
    "ReduceMin": lambda x, a, k: x.min(a, keepdims=k),
    "ReduceProd": lambda x, a, k: x.prod(a, keepdims=k),
    "ReduceL1": lambda x, a, k: np.abs(x).sum(a, keepdims=k),
    "ReduceL2": lambda x, a, k: np.sqrt((x * x).sum(a, keepdims=k)),
    "ReduceSumSquare": lambda x, a, k: (x * x).sum(a, keepdims=k),
    "ReduceLogSum": lambda x, a, k: np.log(x.sum(a, keepdims=k)),
    "ReduceLogSumExp": log_sum_exp,
}


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(REDUCTIONS)),
    shapes(0, 4),
    st.sets(st.integers(0, 3)),
    st.booleans(),
    st.sampled_from([F32, F64, I32]),
    st.integers(0, 99),
)
def test_reductions_are_numpys(
    name: str,
    shape: tuple[int, ...],
    axes: set[int],
    keepdims: bool,
    dtype: Any,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.uniform(1, 1.1, shape)).astype(dtype)
    chosen = tuple(sorted(a for a in axes if a < len(shape)))
    # Negative axes count from the end; no axes at all means every one.
    given_axes = ints(*(a - len(shape) if a % 2 else a for a in chosen))
    wanted = REDUCTIONS[name](x.astype(F64), chosen or tuple(range(len(shape))), keepdims)
    got = one(name, x, given_axes, keepdims=int(keepdims))
    if dtype is I32:
        wanted = np.trunc(np.asarray(wanted) + 1e-9)
    close(got, np.asarray(wanted).astype(dtype))


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_reductions_of_nothing_give_the_identity(name: str) -> None:
    if name == "ReduceMean":  # which ONNX leaves open
        assert np.isnan(one(name, np.zeros((2, 0), F32), ints(1))).all()
        np.testing.assert_array_equal(one(name, np.zeros((2, 0), I32), ints(1)), [[0], [0]])
        return
    check(name, [np.zeros((2, 0, 3), F32), ints(1)])
    check(name, [np.zeros((2, 0, 3), I32), ints(1)])
    check(name, [np.zeros((2, 0, 3), F32), ints(2)])


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_no_axes_at_all(name: str) -> None:
    x = np.abs(normal(3, 4)) + 1
    check(name, [x], tolerance=1e-4)
    check(name, [x], keepdims=0, tolerance=1e-4)
    check(name, [scalar(2.5)])
    none = one(name, x, ints(), noop_with_empty_axes=1)
    squared = name in ("ReduceSumSquare",)
    wanted = x * x if squared else np.log(x) if name == "ReduceLogSum" else x
    close(none, wanted)
    close(one(name, x, noop_with_empty_axes=1), wanted)


def test_axes_that_are_not_known_yet() -> None:
    reduce_sum = find("", "ReduceSum")
    assert reduce_sum is not None
    x, axes = placeholder((2, 3), DType.F32), placeholder((1,), DType.I64)
    with pytest.raises(NeedsValue) as error:
        reduce_sum(x, axes)
    assert error.value.tensor is axes
    reduce_sum(x, placeholder((0,), DType.I64))  # nothing to be known


@pytest.mark.parametrize("axis", [2, -3])
def test_axes_out_of_range(axis: int) -> None:
    for name in ("ReduceSum", "CumSum"):
        with pytest.raises(OperatorError, match="out of range"):
            one(name, normal(2, 3), ints(axis))
    for name in ("ArgMax", "Softmax", "Hardmax", "LayerNormalization", "LpNormalization"):
        operands = [normal(2, 3)] * (2 if name == "LayerNormalization" else 1)
        with pytest.raises(OperatorError, match="out of range"):
            one(name, *operands, axis=axis)


def test_booleans_have_extrema_only() -> None:
    x = np.array([[True, False], [True, True]])
    np.testing.assert_array_equal(one("ReduceMax", x, ints(1), keepdims=0), [True, True])
    np.testing.assert_array_equal(one("ReduceMin", x, ints(1), keepdims=0), [False, True])
    with pytest.raises(OperatorError, match="not defined for BOOL"):
        one("ReduceSum", x, ints(1))


def test_integer_means_truncate() -> None:
    x = np.array([[7, -8, 3, -5], [-7, -1, -1, -2]], I32)
    check("ReduceMean", [x, ints(1)])
    np.testing.assert_array_equal(one("ReduceMean", x, ints(1), keepdims=0), [0, -2])


def test_nan_is_extreme() -> None:
    x = np.array([[1, np.nan, 3], [1, 2, 3]], F32)
    for name in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceLogSumExp", "ReduceMean"):
        got = one(name, x, ints(1), keepdims=0)
        assert np.isnan(got[0]) and not np.isnan(got[1]), name
    for name, last in (("ArgMax", 2), ("ArgMin", 0)):
        np.testing.assert_array_equal(one(name, x, axis=1, keepdims=0), [1, last])


def test_log_sum_exp_neither_overflows_nor_loses_infinities() -> None:
    x = np.array([[1000, 1000], [-1000, -1000], [-np.inf, -np.inf], [np.inf, 0]], F32)
    got = one("ReduceLogSumExp", x, ints(1), keepdims=0)
    np.testing.assert_allclose(got, [1000 + np.log(2), -1000 + np.log(2), -np.inf, np.inf])


def test_halves_are_summed_in_float32() -> None:
    x = np.full((1, 4096), 100, F16)
    for name, wanted in (("ReduceMean", 100), ("ReduceL2", 6400), ("ReduceLogSum", 12.92)):
        close(one(name, x, ints(1)), np.full((1, 1), wanted, F16), 1e-3)
    close(one("CumSum", np.full((4096,), 0.1, F16), ints(0))[-1:], np.array([409.5], F16), 1e-3)
    close(one("Softmax", np.zeros((1, 4096), F16)), np.full((1, 4096), 1 / 4096, F16), 1e-7)


EXTREMA: dict[str, Callable[..., Any]] = {"ArgMax": np.argmax, "ArgMin": np.argmin}


@FEW
@given(
    st.sampled_from(sorted(EXTREMA)),
    shapes(1, 4),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([F32, F16, I32, np.uint8]),
    st.integers(0, 99),
)
def test_positions_of_extrema(
    name: str,
    shape: tuple[int, ...],
    axis: int,
    keepdims: bool,
    last: bool,
    dtype: Any,
    seed: int,
) -> None:
    # Few different elements, so that extrema repeat.
    x = np.random.default_rng(seed).integers(0, 3, shape).astype(dtype)
    at = axis % len(shape)
    last_wins = shape[at] - 1 - EXTREMA[name](np.flip(x, at), at)
    wanted = last_wins if last else EXTREMA[name](x, at)
    wanted = np.expand_dims(wanted, at) if keepdims else np.asarray(wanted)
    got = one(name, x, axis=at - len(shape), keepdims=int(keepdims), select_last_index=int(last))
    close(got, wanted.astype(I64))


def test_no_extremum_of_nothing() -> None:
    with pytest.raises(OperatorError, match="no elements"):
        one("ArgMax", np.zeros((2, 0), F32), axis=1)
    assert one("ArgMax", scalar(3)) == 0


RUNNING: dict[str, Callable[..., Any]] = {"CumSum": np.cumsum, "CumProd": np.cumprod}


def running(name: str, x: Array, axis: int, exclusive: bool, reverse: bool) -> Array:
    y = np.flip(x, axis) if reverse else x
    made = RUNNING[name](y, axis=axis, dtype=x.dtype)
    if exclusive:
        start = np.full_like(np.take(made, [0], axis), 0 if name == "CumSum" else 1)
        stay = np.take(made, range(x.shape[axis] - 1), axis)
        made = np.concatenate([start, stay], axis)
    return np.asarray(np.flip(made, axis) if reverse else made)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(RUNNING)),
    shapes(1, 3),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.sampled_from([F32, F64, I32, I64, U32]),
)
def test_running_sums_and_products(
    name: str, shape: tuple[int, ...], axis: int, exclusive: bool, reverse: bool, dtype: Any
) -> None:
    at = axis % len(shape)
    x = np.random.default_rng(len(shape)).integers(1, 4, shape).astype(dtype)
    wanted = running(name, x, at, exclusive, reverse)
    flags = {"exclusive": int(exclusive), "reverse": int(reverse)}
    close(one(name, x, np.asarray(at, I64), **flags), wanted)
    close(one(name, x, ints(at - len(shape)), **flags), wanted)


def test_running_sums_of_nothing() -> None:
    assert one("CumSum", np.zeros((0, 3), F32), ints(0)).shape == (0, 3)
    close(one("CumSum", np.ones((1, 1), F32), ints(0), exclusive=1), np.zeros((1, 1), F32))
    for x, axes in ((scalar(1), ints(0)), (normal(3), ints(0, 0))):
        with pytest.raises(OperatorError, match="one axis"):
            one("CumSum", np.asarray(x), axes)


@FEW
@given(
    st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"]),
    shapes(1, 4),
    st.integers(-4, 3),
    st.integers(0, 99),
)
def test_softmax(name: str, shape: tuple[int, ...], axis: int, seed: int) -> None:
    at = max(-len(shape), min(axis, len(shape) - 1))
    check(name, [normal(*shape, seed=seed) * 20], axis=at)


def test_softmax_of_infinities() -> None:
    x = np.array([[0, -np.inf, 0], [-np.inf] * 3, [np.nan, 0, 0], [200, -200, 0]], F32)
    for name in ("Softmax", "LogSoftmax"):
        with np.errstate(all="ignore"):
            check(name, [x])
    assert np.isnan(one("Softmax", x)[1:3]).all()
    np.testing.assert_array_equal(one("Hardmax", x[:2]), [[1, 0, 0], [1, 0, 0]])


def test_scalars_have_no_axis() -> None:
    for name in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"):
        with pytest.raises(OperatorError):
            one(name, np.asarray(1, F32))
    for name in ("LayerNormalization", "RMSNormalization"):
        with pytest.raises(OperatorError, match="axis"):
            one(name, np.asarray(1, F32), np.asarray(1, F32))


def test_softmax_of_integers_is_an_error() -> None:
    with pytest.raises(OperatorError, match="not defined for I32"):
        one("Softmax", np.zeros((2,), I32))


def variance_of(x: Array, axes: Sequence[int]) -> tuple[Array, Array]:
    wide = x.astype(F64)
    return wide.mean(tuple(axes), keepdims=True), wide.var(tuple(axes), keepdims=True)


@FEW
@given(
    shapes(1, 4),
    st.integers(-4, 3),
    st.booleans(),
    st.sampled_from([F32, F64]),
    st.integers(0, 99),
)
def test_layer_normalization(
    shape: tuple[int, ...], axis: int, bias: bool, dtype: Any, seed: int
) -> None:
    at = max(-len(shape), min(axis, len(shape) - 1)) % len(shape)
    x = normal(*shape, seed=seed, dtype=dtype) + 3
    operands = [normal(*shape[at:], seed=seed + k, dtype=dtype) for k in range(1 + bias)]
    mean, variance = variance_of(x, range(at, len(shape)))
    wanted = (x - mean) / np.sqrt(variance + 1e-3) * operands[0]
    wanted = wanted + operands[1] if bias else wanted
    made = own("LayerNormalization", [x, *operands], 3, axis=at, epsilon=1e-3)
    inverse = 1 / np.sqrt(variance + 1e-3)
    for got, right in zip(made, (wanted.astype(dtype), mean.astype(F32), inverse.astype(F32))):
        close(got, right, 2e-5)


def test_layer_normalization_is_the_runtimes() -> None:
    x, w, b = normal(2, 3, 8), normal(8, seed=1), normal(8, seed=2)
    check("LayerNormalization", [x, w, b], 3, axis=-1)
    check("LayerNormalization", [x, normal(3, 8)], axis=1)


def test_layer_normalization_of_halves_far_from_zero() -> None:
    # Squares of these overflow float16, and their variance drowns in one pass.
    x = (np.array([[0, 1, 2, 3]]) + 1000).astype(F16)
    got = one("LayerNormalization", x, np.ones(4, F16))
    np.testing.assert_allclose(got, [[-1.342, -0.4473, 0.4473, 1.342]], rtol=2e-3)


@pytest.mark.parametrize(("x", "scale"), [(F32, F32), (F16, F16), (F16, F32), (F64, F64)])
def test_rms_normalization(x: Any, scale: Any) -> None:
    a, w = normal(2, 3, 8, dtype=x), normal(8, seed=1, dtype=scale)
    wide = a.astype(F64)
    normalized = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + 1e-5)
    wanted = (normalized * w.astype(F64)).astype(scale)
    close(one("RMSNormalization", a, w), wanted, 4e-3 if x is F16 else 1e-5)
    whole = one("RMSNormalization", a, np.ones((3, 8), scale), axis=1)
    assert whole.shape == a.shape


def test_parameters_that_do_not_fit() -> None:
    x, w = normal(2, 4, 3), normal(4)
    for name, operands in (
        ("LayerNormalization", [x, normal(5)]),
        ("LayerNormalization", [x, normal(3), normal(2, 2, 4, 3)]),
        ("RMSNormalization", [x, normal(2, 2, 4, 3)]),
        ("InstanceNormalization", [x, normal(3), w]),
        ("InstanceNormalization", [normal(2, 4), w, w]),
        ("BatchNormalization", [x, w, w, w, normal(3)]),
        ("LayerNormalization", [x, normal(3).astype(F16)]),
    ):
        with pytest.raises(OperatorError):
            one(name, *operands)
    for groups in (3, 0):
        with pytest.raises(OperatorError, match="groups"):
            one("GroupNormalization", x, w, w, num_groups=groups)


@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 4, 3, 5), (2, 4, 2, 3, 2)])
def test_instance_normalization(shape: tuple[int, ...]) -> None:
    check("InstanceNormalization", [normal(*shape), normal(4, seed=1), normal(4, seed=2)])


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (1, 6, 3, 4)])
def test_group_normalization(shape: tuple[int, ...], groups: int) -> None:
    x, w, b = normal(*shape), normal(6, seed=1), normal(6, seed=2)
    rows = x.reshape(shape[0], groups, -1)
    mean, variance = variance_of(rows, [2])
    flat = ((rows - mean) / np.sqrt(variance + 1e-2)).reshape(shape)
    each = (1, 6, *[1] * (len(shape) - 2))
    wanted = (flat * w.reshape(each) + b.reshape(each)).astype(F32)
    close(one("GroupNormalization", x, w, b, num_groups=groups, epsilon=1e-2), wanted, 2e-5)


def channel_operands(channels: int) -> list[Array]:
    made = [normal(channels, seed=k) for k in range(1, 4)]
    return [*made, np.abs(normal(channels, seed=4)) + 0.5]


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5), (2, 4, 3, 2)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    check("BatchNormalization", [normal(*shape), *channel_operands(4)], epsilon=1e-3)
    check(
        "BatchNormalization",
        [normal(*shape, dtype=F64), *(a.astype(F64) for a in channel_operands(4))],
    )


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3, 2)])
def test_batch_normalization_in_training_mode(shape: tuple[int, ...]) -> None:
    x, (w, b, m, v) = normal(*shape), channel_operands(4)
    axes = [k for k in range(len(shape)) if k != 1]
    mean, variance = variance_of(x, axes)
    each = (1, 4, *[1] * (len(shape) - 2))
    y = (x - mean) / np.sqrt(variance + 1e-5) * w.reshape(each) + b.reshape(each)
    moved = (m * 0.75 + mean.ravel() * 0.25, v * 0.75 + variance.ravel() * 0.25)
    made = own("BatchNormalization", [x, w, b, m, v], 3, training_mode=1, momentum=0.75)
    for got, wanted in zip(made, (y, *moved), strict=True):
        close(got, wanted.astype(F32), 2e-5)


def test_batch_normalization_of_a_vector_has_one_channel() -> None:
    x, each = normal(5), [np.array([v], F32) for v in (2, 1, 0.5, 4)]
    wanted = ((x - 0.5) / np.sqrt(4 + 1e-5) * 2 + 1).astype(F32)
    close(one("BatchNormalization", x, *each), wanted)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_lp_normalization(p: int, axis: int) -> None:
    x = normal(3, 4, 5)
    x[:, 1, 2] = x[2, :, 0] = x[0, 0] = 0
    check("LpNormalization", [x], p=p, axis=axis)


def test_lp_normalization_of_another_order() -> None:
    with pytest.raises(OperatorError, match="p=3"):
        one("LpNormalization", normal(3), p=3)


@pytest.mark.parametrize("axes", [(0, 2, 3), (0, 1, 2, 3), (-1,)])
def test_mean_variance_normalization(axes: tuple[int, ...]) -> None:
    x = normal(2, 3, 4, 5) + 2
    mean, variance = variance_of(x, axes)
    wanted = ((x - mean) / np.sqrt(variance)).astype(F32)
    close(one("MeanVarianceNormalization", x, axes=axes), wanted, 2e-5)


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_lrn(size: int) -> None:
    check("LRN", [normal(2, 6, 3, 4) * 3], size=size, alpha=0.01, beta=0.5, bias=2.0)


QUANTIZED = [np.uint8, np.int8, np.uint16, np.int16]


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_quantization_per_tensor(dtype: Any) -> None:
    x = np.array([-1e9, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 1e9, np.inf, -np.inf], F32)
    check("QuantizeLinear", [x, scalar(0.5), np.asarray(5, dtype)])
    q = np.array([0, 1, 100, np.iinfo(dtype).max, np.iinfo(dtype).min]).astype(dtype)
    check("DequantizeLinear", [q, scalar(0.5), np.asarray(5, dtype)])
    check("DequantizeLinear", [q, np.array([0.5], F32)])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_quantization_per_axis(axis: int) -> None:
    x = normal(3, 4, 5) * 50
    n = x.shape[axis]
    scale, zero = np.abs(normal(n)) + 0.5, np.arange(n).astype(np.int8)
    check("QuantizeLinear", [x, scale, zero], axis=axis)
    q = x.astype(np.int8)
    check("DequantizeLinear", [q, scale, zero], axis=axis)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("block", [2, 3])
def test_quantization_in_blocks(axis: int, block: int) -> None:
    x = normal(3, 4, 5) * 50
    shape = list(x.shape)
    shape[axis] = -(-shape[axis] // block)
    scale = np.abs(normal(*shape)) + 0.5
    zero = np.arange(scale.size).reshape(shape).astype(np.uint8)
    check("QuantizeLinear", [x, scale, zero], axis=axis, block_size=block)
    check("DequantizeLinear", [x.astype(np.uint8), scale, zero], axis=axis, block_size=block)


def test_quantization_of_a_vector_in_blocks() -> None:
    scale, zero = np.array([1, 2], F32), np.array([1, 2], np.int8)
    check("QuantizeLinear", [np.arange(4, dtype=F32), scale, zero], axis=0, block_size=2)


def test_quantization_in_half_precision() -> None:
    x = np.arange(-8, 8).astype(F16) / 3
    check("QuantizeLinear", [x, scalar(0.25, F16), scalar(1, np.int8)])
    check("DequantizeLinear", [np.arange(5).astype(np.int8), scalar(0.3, F16), scalar(1, np.int8)])
    wide = one("DequantizeLinear", np.arange(5).astype(np.int8), scalar(0.5, F16), output_dtype=1)
    close(wide, np.arange(5).astype(F32) / 2)


def test_quantization_of_integers_and_to_other_types() -> None:
    x = np.array([-7, 0, 3, 1000], I32)
    np.testing.assert_array_equal(one("QuantizeLinear", x, scalar(2)), [0, 0, 2, 255])
    got = one("QuantizeLinear", x.astype(F32), scalar(2), output_dtype=DType.I16.onnx)
    close(got, np.array([-4, 0, 2, 500], np.int16))
    check("DequantizeLinear", [x, scalar(0.5)])


def test_quantization_parameters_that_do_not_fit() -> None:
    x, q = normal(3, 4), np.zeros((3, 4), np.int8)
    for name, operands, attributes in (
        ("QuantizeLinear", [x, normal(3), np.zeros(3, np.int8)], {}),
        ("QuantizeLinear", [x, normal(4), np.zeros(3, np.int8)], {}),
        ("QuantizeLinear", [x, normal(3, 3)], {"block_size": 2}),
        ("QuantizeLinear", [x, normal(4)], {"axis": 5}),
        ("QuantizeLinear", [x, scalar(1)], {"output_dtype": DType.I32.onnx}),
        ("QuantizeLinear", [x, scalar(1), scalar(0, np.uint8)], {"output_dtype": DType.I8.onnx}),
        ("DequantizeLinear", [q, scalar(1), scalar(0, np.uint8)], {}),
        ("DequantizeLinear", [q, normal(3)], {}),
    ):
        arrays = [np.asarray(a) for a in operands]
        with pytest.raises(OperatorError):
            one(name, *arrays, **attributes)


@pytest.mark.parametrize("dtype", [DType.F8E4M3FN, DType.I4, DType.F4E2M1])
def test_quantization_to_types_that_kernels_do_not_know(dtype: DType) -> None:
    quantize, dequantize = find("", "QuantizeLinear"), find("", "DequantizeLinear")
    assert quantize is not None and dequantize is not None
    x, scale = placeholder((3,), DType.F32), placeholder((), DType.F32)
    with pytest.raises(UnsupportedError):
        quantize(x, scale, output_dtype=dtype.onnx)
    with pytest.raises(UnsupportedError):
        quantize(x, scale, placeholder((), dtype))
    with pytest.raises(UnsupportedError):
        dequantize(placeholder((3,), dtype), scale)


@pytest.mark.parametrize(
    "values", [[0, 0], [5, 5], [-3, -3], [-1, 2, 0.5], [1, 2, 3], [], [-1e30, 1e30]]
)
def test_dynamic_quantization(values: list[float]) -> None:
    x = np.array(values, F32)
    check("DynamicQuantizeLinear", [x], 3)
    check("DynamicQuantizeLinear", [x.reshape(-1, 1)], 3)


def test_the_bits_of_another_type() -> None:
    x = normal(2, 3)
    np.testing.assert_array_equal(one("BitCast", x, to=DType.I32.onnx), x.view(I32))
    assert one("BitCast", np.asarray(1.0), to=DType.I64.onnx) == 0x3FF0000000000000
    with pytest.raises(OperatorError, match="bits"):
        one("BitCast", x, to=DType.I64.onnx)
    assert find_host("", "BitCast") is not None


ELEMENT_TYPES = {F32: TensorProto.FLOAT, F16: TensorProto.FLOAT16, I32: TensorProto.INT32}
COMPILED: list[tuple[str, list[Array], dict[str, Any]]] = [
    ("CumSum", [normal(3, 5, 4), ints(0)], {"reverse": 1}),
    ("CumSum", [normal(3, 5, 4), ints(1)], {"exclusive": 1}),
    ("CumSum", [normal(3, 5, 4), ints(2)], {"exclusive": 1, "reverse": 1}),
    ("CumSum", [normal(3, 5, 4, dtype=F16), ints(2)], {}),
    ("CumSum", [np.arange(7, dtype=I32), ints(0)], {}),
    ("ArgMax", [normal(3, 5, 4)], {"axis": 1}),
    ("ArgMin", [normal(3, 5, 4, dtype=F16)], {"axis": 2, "select_last_index": 1, "keepdims": 0}),
    ("ReduceMean", [np.arange(12, dtype=I32).reshape(3, 4) - 9, ints(1)], {}),
    ("ReduceL2", [np.arange(12, dtype=I32).reshape(3, 4) - 9, ints(1)], {}),
    ("ReduceLogSumExp", [normal(3, 5, 4), ints(0, 2)], {"keepdims": 0}),
    ("GroupNormalization", [normal(2, 6, 3, 4), normal(6), normal(6)], {"num_groups": 3}),
    ("LRN", [normal(2, 6, 3, 4)], {"size": 3}),
    ("Softmax", [normal(3, 5, 4, dtype=F16)], {"axis": 1}),
    ("Hardmax", [normal(3, 5)], {}),
]


@pytest.mark.parametrize(
    ("name", "arrays", "attributes"), COMPILED, ids=[f"{c[0]}{k}" for k, c in enumerate(COMPILED)]
)
def test_kernels_agree_with_the_definition(
    name: str, arrays: list[Array], attributes: dict[str, Any]
) -> None:
    wanted = one(name, *arrays, **attributes)
    x = helper.make_tensor_value_info("x", ELEMENT_TYPES[arrays[0].dtype.type], arrays[0].shape)
    y = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)
    y.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(wanted.dtype)
    constants = [helper.make_node("Identity", ["x"], ["x0"])]
    names = ["x0", *(f"x{k}" for k in range(1, len(arrays)))]
    weights = [numpy_helper.from_array(a, n) for n, a in zip(names[1:], arrays[1:], strict=True)]
    node = helper.make_node(name, names, ["y"], **attributes)
    graph = helper.make_graph([*constants, node], "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    got = tw.compile(model).run({"x": arrays[0]})["y"]
    close(got, wanted, 2e-3 if wanted.dtype == F16 else 1e-5)
