"""Element-wise operators, casts, creation and random values against NumPy and ONNX's reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import tilewright.driver  # noqa: F401  (registers the operators)
from strategies import shapes
from tilewright.dtypes import DType, from_numpy
from tilewright.errors import ExecutionError, OperatorError, UnsupportedError
from tilewright.ops.evaluate import evaluate
from tilewright.ops.registry import find, find_host
from tilewright.ops.tensor import NeedsValue, Tensor, constant, placeholder

Arrays = Sequence[np.ndarray]
FLOATS = (DType.F32, DType.F64, DType.F16)
SIGNED = (DType.I8, DType.I16, DType.I32, DType.I64)
UNSIGNED = (DType.U8, DType.U16, DType.U32, DType.U64)
INTEGERS = SIGNED + UNSIGNED
FEW = settings(max_examples=25, deadline=None)


def expression(name: str, *operands: Tensor | None, **attributes: Any) -> Any:
    """What the operator makes of the operands."""
    definition = find("", name)
    assert definition is not None, name
    return definition(*operands, **attributes)


def run(name: str, *arrays: np.ndarray | None, **attributes: Any) -> np.ndarray:
    """The operator's only result, its operands known at run time only."""
    operands = [
        None if a is None else placeholder(a.shape, from_numpy(a.dtype), f"x{k}")
        for k, a in enumerate(arrays)
    ]
    given = {f"x{k}": a for k, a in enumerate(arrays) if a is not None}
    made = expression(name, *operands, **attributes)
    result = evaluate(made, given)
    assert result.dtype == made.dtype.numpy and result.shape == made.shape
    return result


def reference(name: str, *arrays: np.ndarray, **attributes: Any) -> np.ndarray:
    """ONNX's own definition on the same operands."""
    names = [f"x{k}" for k in range(len(arrays))]
    node = helper.make_node(name, names, ["y"], **attributes)
    infos = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in (*names, "y")]
    graph = helper.make_graph([node], "g", infos[:-1], infos[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    with np.errstate(all="ignore"):
        made: Any = ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))
    return np.asarray(made[0])


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal, but for rounding in the type of the result."""
    assert got.dtype == wanted.dtype
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, wanted)
        return
    step = float(np.finfo(got.dtype).eps)
    np.testing.assert_allclose(got, wanted, rtol=16 * step, atol=16 * step)


@st.composite
def broadcastable(draw: st.DrawFn, count: int) -> list[tuple[int, ...]]:
    """Shapes that broadcast: leading dimensions left out, others set to one."""
    full = draw(shapes(0, 5))
    made = []
    for _ in range(count):
        tail = full[draw(st.integers(0, len(full))) :]
        made.append(tuple(1 if draw(st.booleans()) else n for n in tail))
    return made


def numbers(seed: int, shape: Sequence[int], dtype: DType, low: int = -4) -> np.ndarray:
    """Reproducible elements between `low` and 5; unsigned ones from 0."""
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        return np.asarray(rng.uniform(low, 5, tuple(shape))).astype(dtype.numpy)
    if dtype is DType.BOOL:
        return np.asarray(rng.integers(0, 2, tuple(shape))).astype(np.bool_)
    least = max(low, 0) if dtype.kind == "u" else low
    return np.asarray(rng.integers(least, 6, tuple(shape))).astype(dtype.numpy)


def truncating(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.trunc(a.astype(np.float64) / b)).astype(a.dtype)


Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]
ARITHMETIC: dict[str, Binary] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Max": np.maximum,
    "Min": np.minimum,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}
LOGIC: dict[str, Binary] = {
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
}
BITS: dict[str, Binary] = {
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}


@FEW
@given(
    st.sampled_from(sorted(ARITHMETIC)),
    st.sampled_from(FLOATS + INTEGERS),
    broadcastable(2),
    st.integers(0, 99),
)
def test_arithmetic_broadcasts_as_numpy(
    name: str, dtype: DType, two: list[tuple[int, ...]], seed: int
) -> None:
    a, b = numbers(seed, two[0], dtype), numbers(seed + 1, two[1], dtype)
    close(run(name, a, b), np.asarray(ARITHMETIC[name](a, b)))


@FEW
@given(st.sampled_from(sorted(LOGIC)), broadcastable(2), st.integers(0, 99))
def test_logic_is_numpys(name: str, two: list[tuple[int, ...]], seed: int) -> None:
    a, b = (numbers(seed + k, s, DType.BOOL) for k, s in enumerate(two))
    close(run(name, a, b), np.asarray(LOGIC[name](a, b)))
    close(run("Not", a), np.asarray(~a))


@FEW
@given(
    st.sampled_from(sorted(BITS)),
    st.sampled_from(INTEGERS),
    broadcastable(2),
    st.integers(0, 99),
)
def test_bits_are_numpys(name: str, dtype: DType, two: list[tuple[int, ...]], seed: int) -> None:
    a, b = (numbers(seed + k, s, dtype) for k, s in enumerate(two))
    close(run(name, a, b), np.asarray(BITS[name](a, b)))
    close(run("BitwiseNot", a), np.asarray(~a))


@FEW
@given(st.sampled_from(INTEGERS), broadcastable(2), st.integers(0, 99))
def test_integer_division_truncates(dtype: DType, two: list[tuple[int, ...]], seed: int) -> None:
    a, b = numbers(seed, two[0], dtype), numbers(seed, two[1], dtype, low=1)
    close(run("Div", a, b), truncating(a, b))
    close(run("Mod", a, b), np.asarray(np.mod(a, b)))
    close(run("Mod", a, b, fmod=1), np.asarray(np.fmod(a, b)))


@pytest.mark.parametrize("name", ["Div", "Mod"])
def test_integer_division_by_zero_is_an_error(name: str) -> None:
    with pytest.raises(ExecutionError, match="zero"):
        run(name, np.array([1, 2], np.int32), np.array([1, 0], np.int32))


@FEW
@given(st.sampled_from(FLOATS), broadcastable(2), st.integers(0, 99))
def test_float_remainder(dtype: DType, two: list[tuple[int, ...]], seed: int) -> None:
    a, b = numbers(seed, two[0], dtype), numbers(seed, two[1], dtype, low=1)
    # Operands in quarters, so that no quotient is close to a whole number by rounding alone.
    a, b = (np.asarray(np.round(v * 4) / 4).astype(v.dtype) for v in (a, b))
    close(run("Div", a, b), np.asarray(a / b))
    close(run("Mod", a, b, fmod=1), np.asarray(np.fmod(a, b)))


@FEW
@given(
    st.sampled_from([DType.F32, DType.F64, DType.I32, DType.I64]),
    st.sampled_from([DType.F32, DType.F64, DType.I32, DType.I64, DType.U8]),
    broadcastable(2),
    st.integers(0, 99),
)
def test_power_has_the_type_of_its_base(
    base: DType, exponent: DType, two: list[tuple[int, ...]], seed: int
) -> None:
    a, b = numbers(seed, two[0], base, low=1), numbers(seed, two[1], exponent, low=0)
    wanted = np.power(a.astype(np.float64), b.astype(np.float64)).astype(base.numpy)
    got = run("Pow", a, b)
    assert got.dtype == base.numpy
    # A power of whole numbers is whole, and truncation must not take one off it.
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


@FEW
@given(
    st.sampled_from(["Sum", "Mean", "Max", "Min"]),
    broadcastable(4),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_variadic(name: str, four: list[tuple[int, ...]], count: int, seed: int) -> None:
    arrays = [numbers(seed + k, s, DType.F32) for k, s in enumerate(four[:count])]
    whole = np.stack(np.broadcast_arrays(*arrays))
    numpys: dict[str, Callable[..., Any]] = {
        "Sum": np.sum,
        "Mean": np.mean,
        "Max": np.max,
        "Min": np.min,
    }
    wanted = numpys[name](whole, 0)
    close(run(name, *arrays), np.asarray(wanted, np.float32))


@FEW
@given(broadcastable(3), st.sampled_from(FLOATS + INTEGERS), st.integers(0, 99))
def test_where_broadcasts_all_three(three: list[tuple[int, ...]], dtype: DType, seed: int) -> None:
    c = numbers(seed, three[0], DType.BOOL)
    a, b = numbers(seed + 1, three[1], dtype), numbers(seed + 2, three[2], dtype)
    close(run("Where", c, a, b), np.where(c, a, b))


UNARY = {
    "Neg": -4,
    "Abs": -4,
    "Sign": -4,
    "Sqrt": 0,
    "Reciprocal": 1,
    "Exp": -4,
    "Log": 1,
    "Sin": -4,
    "Cos": -4,
    "Atan": -4,
    "Sinh": -4,
    "Cosh": -4,
    "Tanh": -4,
    "Asinh": -4,
    "Acosh": 1,
    "Erf": -4,
    "Floor": -4,
    "Ceil": -4,
    "Round": -4,
    "Relu": -4,
    "LeakyRelu": -4,
    "Elu": -4,
    "Celu": -4,
    "Selu": -4,
    "ThresholdedRelu": -4,
    "Sigmoid": -4,
    "HardSigmoid": -4,
    "HardSwish": -4,
    "Softplus": -4,
    "Softsign": -4,
    "Gelu": -4,
    "Mish": -4,
    "Shrink": -4,
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(UNARY)),
    st.sampled_from([DType.F32, DType.F64]),
    shapes(0, 4),
    st.integers(0, 99),
)
def test_functions_of_one_operand(
    name: str, dtype: DType, shape: tuple[int, ...], seed: int
) -> None:
    x = numbers(seed, shape, dtype, low=UNARY[name])
    got, wanted = run(name, x), reference(name, x.reshape(-1)).reshape(shape)
    assert got.dtype == dtype.numpy
    np.testing.assert_allclose(got, wanted, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("name", ["Tan", "Asin", "Acos", "Atanh"])
def test_functions_near_zero(name: str) -> None:
    x = np.linspace(-0.9, 0.9, 13, dtype=np.float32)
    close(run(name, x), reference(name, x))


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.25}),
        ("Elu", {"alpha": 2.0}),
        ("Celu", {"alpha": 0.5}),
        ("Selu", {"alpha": 2.0, "gamma": 3.0}),
        ("ThresholdedRelu", {"alpha": 2.0}),
        ("HardSigmoid", {"alpha": 0.5, "beta": 0.25}),
        ("Gelu", {"approximate": "tanh"}),
        ("Swish", {"alpha": 1.5}),
        ("Shrink", {"bias": 0.5, "lambd": 1.5}),
        ("IsInf", {"detect_negative": 0}),
        ("IsInf", {"detect_positive": 0}),
        ("IsInf", {"detect_positive": 0, "detect_negative": 0}),
        ("IsNaN", {}),
    ],
)
def test_attributes(name: str, attributes: dict[str, Any]) -> None:
    x = np.array([[-3, -1.5, -0.5], [0, 0.5, 1.5], [3, np.inf, np.nan]], np.float32)
    with np.errstate(all="ignore"):
        wanted = reference(name, x, **attributes)
    got = run(name, x, **attributes)
    if got.dtype == np.bool_:
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_integers_in_functions_of_fractions() -> None:
    x = np.array([-3, -1, 0, 1, 3], np.int32)
    np.testing.assert_array_equal(run("Shrink", x, bias=0.75, lambd=1.5), [-2, 0, 0, 0, 2])
    np.testing.assert_array_equal(run("Erf", np.array([-9, 0, 9], np.int32)), [-1, 0, 1])


def test_nan_and_infinity_pass_through() -> None:
    x = np.array([np.nan, np.inf], np.float32)
    for name in ("Relu", "Elu", "Selu", "Celu", "LeakyRelu", "Softplus", "Mish", "Sigmoid"):
        got = run(name, x)
        assert np.isnan(got[0]) and not np.isnan(got[1]), name


@FEW
@given(shapes(1, 4), st.sampled_from([DType.F32, DType.I32]), st.integers(0, 99))
def test_prelu_broadcasts_its_slope(shape: tuple[int, ...], dtype: DType, seed: int) -> None:
    x, slope = numbers(seed, shape, dtype), numbers(seed, shape[-1:], dtype)
    close(run("PRelu", x, slope), np.where(x < 0, x * slope, x))


def test_prelu_refuses_a_larger_slope() -> None:
    with pytest.raises(OperatorError, match="slope"):
        run("PRelu", np.zeros((3,), np.float32), np.zeros((2, 3), np.float32))


@FEW
@given(
    shapes(0, 4),
    st.sampled_from(FLOATS + INTEGERS),
    st.none() | st.integers(0, 3),
    st.none() | st.integers(0, 3),
    st.integers(0, 99),
)
def test_clip(
    shape: tuple[int, ...], dtype: DType, low: int | None, high: int | None, seed: int
) -> None:
    x = numbers(seed, shape, dtype)
    bounds = [None if b is None else np.asarray(b, dtype.numpy) for b in (low, high)]
    wanted = x
    if bounds[0] is not None:
        wanted = np.maximum(wanted, bounds[0])
    if bounds[1] is not None:
        wanted = np.minimum(wanted, bounds[1])
    close(run("Clip", x, *bounds), np.asarray(wanted))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts(dtype: DType, direction: str) -> None:
    x = np.array([5, 1, 100, 64], dtype.numpy)
    if dtype.kind == "i":
        x[1] = -7
    by = np.array([0, 1, 2, dtype.bits + 1], dtype.numpy)
    wanted = [int(v) << int(b) if direction == "LEFT" else int(v) >> int(b) for v, b in zip(x, by)]
    modulus = 1 << dtype.bits
    whole = np.array([w % modulus for w in wanted], np.uint64).astype(dtype.numpy)
    close(run("BitShift", x, by, direction=direction), whole)


def test_a_shift_beyond_the_width_keeps_the_sign() -> None:
    got = run("BitShift", np.array([-8, 8], np.int8), np.array([9, 9], np.int8), direction="RIGHT")
    np.testing.assert_array_equal(got, [-1, 0])


@FEW
@given(
    shapes(0, 4),
    st.sampled_from((*FLOATS, *INTEGERS, DType.BOOL)),
    st.sampled_from((*FLOATS, *INTEGERS, DType.BOOL)),
    st.integers(0, 99),
)
def test_cast(shape: tuple[int, ...], source: DType, target: DType, seed: int) -> None:
    x = numbers(seed, shape, source, low=0)
    close(run("Cast", x, to=target.onnx), x.astype(target.numpy))
    like = np.zeros((2,), target.numpy)
    close(run("CastLike", x, like), x.astype(target.numpy))


def test_casts_to_integers_truncate_towards_zero() -> None:
    x = np.array([-1.9, -0.5, 0.5, 1.9], np.float32)
    np.testing.assert_array_equal(run("Cast", x, to=DType.I32.onnx), [-1, 0, 0, 1])


@FEW
@given(shapes(0, 5), st.integers(-6, 6), st.none() | st.integers(-6, 6))
def test_shape_and_size(shape: tuple[int, ...], start: int, end: int | None) -> None:
    x = placeholder(shape, DType.F32)
    limits = {"start": start} if end is None else {"start": start, "end": end}
    # ONNX clamps both limits to the rank: not so its reference, whose negative ends wrap twice.
    first, last = (
        min(max(n + len(shape) if n < 0 else n, 0), len(shape))
        for n in (start, len(shape) if end is None else end)
    )
    wanted = np.array([shape[k] for k in range(first, last)], np.int64)
    close(evaluate(expression("Shape", x, **limits)), wanted)
    close(evaluate(expression("Size", x)), np.asarray(np.prod(shape, dtype=np.int64)))


@FEW
@given(shapes(0, 4), st.sampled_from((*FLOATS, *INTEGERS, DType.BOOL)))
def test_constant_of_shape(shape: tuple[int, ...], dtype: DType) -> None:
    value = np.array([1], dtype.numpy)
    dims = constant(np.array(shape, np.int64))
    close(evaluate(expression("ConstantOfShape", dims, value=value)), np.full(shape, value[0]))
    close(evaluate(expression("ConstantOfShape", dims)), np.zeros(shape, np.float32))


@FEW
@given(
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.integers(-4, 4).filter(bool),
    st.sampled_from([DType.F32, DType.F64, DType.I16, DType.I32, DType.I64]),
)
def test_range(start: int, limit: int, delta: int, dtype: DType) -> None:
    half = 2 if dtype.is_float else 1
    numbers = [dtype.numpy.type(v / half if half == 2 else v) for v in (start, limit, delta)]
    got = evaluate(expression("Range", *(constant(n) for n in numbers)))
    close(got, np.arange(*numbers).astype(dtype.numpy))


def test_range_counts_large_integers_exactly() -> None:
    start = 1 << 62
    made = expression("Range", *(constant(np.int64(v)) for v in (start, start + 3, 1)))
    np.testing.assert_array_equal(evaluate(made), [start, start + 1, start + 2])


@FEW
@given(shapes(2, 2), st.integers(-7, 7), st.sampled_from([DType.F32, DType.I64, DType.BOOL]))
def test_eye_like(shape: tuple[int, ...], k: int, dtype: DType) -> None:
    got = run("EyeLike", np.zeros(shape, np.float32), k=k, dtype=dtype.onnx)
    close(got, np.eye(shape[0], shape[1], k, dtype.numpy))


def test_results_whose_shape_depends_on_elements_ask_for_them() -> None:
    unknown = placeholder((2,), DType.I64)
    with pytest.raises(NeedsValue):
        expression("ConstantOfShape", unknown)
    number = placeholder((), DType.I64)
    with pytest.raises(NeedsValue):
        expression("Range", number, number, number)


def test_dropout_does_nothing_at_inference() -> None:
    x = placeholder((2, 3), DType.F32, "x")
    ratio, yes, no = constant(np.float32(0.5)), constant(True), constant(False)
    assert expression("Dropout", x, ratio, no)[0] is x
    assert expression("Dropout", x, constant(np.float32(0)), yes)[0] is x
    _, mask = expression("Dropout", x, outputs=2)
    close(evaluate(mask), np.ones((2, 3), np.bool_))
    with pytest.raises(UnsupportedError, match="training"):
        expression("Dropout", x, ratio, yes)
    with pytest.raises(NeedsValue):
        expression("Dropout", x, ratio, placeholder((), DType.BOOL))


@pytest.mark.parametrize("dtype", [DType.F8E5M2, DType.STRING, DType.C64, DType.I4])
@pytest.mark.parametrize(
    ("name", "count"),
    [("Add", 2), ("Equal", 2), ("Relu", 1), ("Gelu", 1), ("IsNaN", 1), ("Erf", 1)],
)
def test_foreign_types_are_refused(dtype: DType, name: str, count: int) -> None:
    with pytest.raises(UnsupportedError, match=dtype.name):
        expression(name, *(placeholder((2,), dtype) for _ in range(count)))


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("Add", (DType.F32, DType.F64)),
        ("And", (DType.F32, DType.F32)),
        ("BitwiseAnd", (DType.F32, DType.F32)),
        ("Exp", (DType.I32,)),
        ("Sigmoid", (DType.I32,)),
        ("Where", (DType.I32, DType.F32, DType.F32)),
    ],
)
def test_wrong_types_are_errors(name: str, dtypes: tuple[DType, ...]) -> None:
    with pytest.raises(OperatorError):
        expression(name, *(placeholder((2,), d) for d in dtypes))


def random_values(name: str, *operands: np.ndarray, **attributes: Any) -> np.ndarray:
    definition = find_host("", name)
    assert definition is not None
    return np.asarray(definition(*operands, **attributes))


LIKE = np.full((40, 50), 0.25, np.float32)
RANDOM: list[tuple[str, tuple[np.ndarray, ...], dict[str, Any], float, float]] = [
    ("RandomNormal", (), {"shape": (40, 50), "mean": 3.0, "scale": 2.0}, 3.0, 2.0),
    ("RandomNormalLike", (LIKE,), {"mean": -1.0}, -1.0, 1.0),
    ("RandomUniform", (), {"shape": (40, 50), "low": 2.0, "high": 8.0}, 5.0, 3**0.5),
    ("RandomUniformLike", (LIKE,), {}, 0.5, 12**-0.5),
    ("Bernoulli", (LIKE,), {}, 0.25, 0.1875**0.5),
]


@pytest.mark.parametrize(("name", "operands", "attributes", "mean", "spread"), RANDOM)
def test_random_values(
    name: str, operands: Arrays, attributes: dict[str, Any], mean: float, spread: float
) -> None:
    first = random_values(name, *operands, seed=1.5, **attributes)
    assert first.shape == (40, 50) and first.dtype == np.float32
    assert abs(first.mean() - mean) < 0.1 * spread and abs(first.std() - spread) < 0.1 * spread
    np.testing.assert_array_equal(first, random_values(name, *operands, seed=1.5, **attributes))
    assert (first != random_values(name, *operands, seed=-1.5, **attributes)).any()
    double = random_values(name, *operands, dtype=DType.F64.onnx, **attributes)
    assert double.dtype == np.float64


def test_multinomial_draws_by_the_odds() -> None:
    odds = np.log(np.array([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], np.float32) + 1e-30)
    got = random_values("Multinomial", odds.astype(np.float32), sample_size=2000, seed=7.0)
    assert got.dtype == np.int32 and got.shape == (2, 2000)
    assert abs((got[0] == 0).mean() - 0.5) < 0.05 and (got[1] == 2).all()
