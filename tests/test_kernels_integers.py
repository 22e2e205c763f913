"""Integer functions, conversions and checks against NumPy, for every width."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numba.core.errors import TypingError

from kernels_harness import compile_kernel, elementwise
from tilewright_kernels.cpu import machine

Array = np.ndarray[Any, Any]
INTEGERS: dict[str, np.dtype[Any]] = {
    f"{kind[0]}{bits}": np.dtype(f"{kind}{bits}")
    for kind in ("int", "uint")
    for bits in (8, 16, 32, 64)
}
FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}


def sample(dtype: np.dtype[Any]) -> Array:
    """The limits, small values, and random ones."""
    info = np.iinfo(dtype)
    corners = [info.min, info.min + 1, 0, 1, 2, 3, 5, 7, 8, 13, info.max - 1, info.max]
    corners += [-1, -2, -3, -7, -8] if info.min < 0 else []
    random = np.random.default_rng(0).integers(info.min, info.max, 20, dtype, endpoint=True)
    return np.concatenate([np.array(corners, dtype), random])


def pairs(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    values = sample(dtype)
    a, b = np.meshgrid(values, values)
    return a.ravel(), b.ravel()


def truncating_quotient(a: int, b: int) -> int:
    quotient = abs(a) // abs(b) if b else 0
    return -quotient if (a < 0) != (b < 0) else quotient


def shift(by: Callable[[int, int], int], bits: int) -> Callable[[int, int], int]:
    return lambda a, b: by(a, b) if 0 <= b < bits else 0


def power(a: int, b: int, bits: int) -> int:
    if b < 0:
        return {1: 1, -1: -1 if b % 2 else 1}.get(a, 0)
    return int(pow(a, b, 2**bits))


TWO: dict[str, Callable[[int, int], int] | None] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": truncating_quotient,
    "remainder": lambda a, b: a - truncating_quotient(a, b) * b if b else 0,
    "floor_divide": lambda a, b: a // b if b else 0,
    "floor_modulo": lambda a, b: a % b if b else 0,
    "minimum": min,
    "maximum": max,
    "shift_left": None,
    "shift_right": None,
    "power": None,
}
ONE: dict[str, Callable[[int], int]] = {
    "negate": operator.neg,
    "invert": operator.invert,
    "absolute": abs,
    "sign": lambda a: (a > 0) - (a < 0),
}


def meaning(name: str, bits: int) -> Callable[[int, int], int]:
    if name == "power":
        return lambda a, b: power(a, b, bits)
    if name.startswith("shift"):
        return shift(operator.lshift if name == "shift_left" else operator.rshift, bits)
    return TWO[name] or (lambda a, b: 0)


def wrapped(values: list[int], dtype: np.dtype[Any]) -> Array:
    """The values modulo 2^bits."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    mask = 2 ** (8 * dtype.itemsize) - 1
    return np.array([v & mask for v in values], unsigned).view(dtype)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", TWO)
def test_two_arguments(name: str, kind: str) -> None:
    dtype = INTEGERS[kind]
    a, b = pairs(dtype)
    result = np.full_like(a, 77)
    kernel = elementwise(f"{name}(x0[i], x1[i])", f"integers.{name}", f"{kind} {kind}", kind)
    kernel(result, a, b, a.size)
    function = meaning(name, 8 * dtype.itemsize)
    expected = wrapped([function(int(x), int(y)) for x, y in zip(a, b, strict=True)], dtype)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", ONE)
def test_one_argument(name: str, kind: str) -> None:
    a = sample(INTEGERS[kind])
    result = np.full_like(a, 77)
    elementwise(f"{name}(x0[i])", f"integers.{name}", kind, kind)(result, a, a.size)
    np.testing.assert_array_equal(result, wrapped([ONE[name](int(x)) for x in a], a.dtype))


def test_operands_of_two_types_are_refused() -> None:
    with pytest.raises(TypingError, match="convert one of them"):
        elementwise("add(x0[i], x1[i])", "integers.add", "i32 i64", "i64")


def expected_cast(values: Array, target: np.dtype[Any]) -> Array:
    if target.kind == "f":
        return values.astype(target)
    if values.dtype.kind in "iu":
        return wrapped([int(v) for v in values], target)
    info = np.iinfo(target)
    whole = [0 if np.isnan(v) else min(max(v, info.min), info.max) for v in values.tolist()]
    return np.array([int(v) for v in whole], target)


FLOAT_SAMPLE = [
    0,
    -0.0,
    0.5,
    -0.5,
    1.5,
    -1.5,
    127,
    128,
    -128,
    -129,
    255,
    256,
    3e9,
    -3e9,
    1e19,
    2e19,
]
FLOAT_SAMPLE += [-1e19, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-40]


@pytest.mark.parametrize("target", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("source", [*INTEGERS, *FLOATS])
def test_casts(source: str, target: str) -> None:
    if source in FLOATS:
        values = np.array(FLOAT_SAMPLE, FLOATS[source])
    else:
        values = sample(INTEGERS[source])
    dtype = {**INTEGERS, **FLOATS}[target]
    result = np.full(values.shape, 77, dtype)
    elementwise(f"to_{target}(x0[i])", f"casts.to_{target}", source, target)(
        result, values, values.size
    )
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, expected_cast(values, dtype))


def bounds(integer: np.dtype[Any], floating: np.dtype[Any]) -> Array:
    """Around both ends of an integer's range: the nearest floats, and fractions between them."""
    info = np.iinfo(integer)
    ends = np.array([info.min, info.min - 1, 0, info.max, info.max + 1], floating)
    steps = [np.nextafter(ends, floating.type(side)) for side in (-np.inf, np.inf)]
    fractions = [ends + floating.type(f) for f in (-0.75, -0.5, -0.25, 0.25, 0.5, 0.75)]
    return np.concatenate([ends, *steps, *fractions])


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", FLOATS)
def test_floats_saturate(source: str, target: str) -> None:
    """At both ends of the range, and for every 65537th bit pattern (those of NaN too)."""
    floating, integer = FLOATS[source], INTEGERS[target]
    width = f"u{floating.itemsize}"
    step = 65537 << 8 * (floating.itemsize - 4)
    patterns = np.arange(0, 2 ** (8 * floating.itemsize), step, dtype=width).view(floating)
    values = np.concatenate([bounds(integer, floating), patterns])
    result = np.full(values.shape, 77, integer)
    kernel = elementwise(f"to_{target}(x0[i])", f"casts.to_{target}", source, target)
    kernel(result, values, values.size)
    np.testing.assert_array_equal(result, expected_cast(values, integer))


@pytest.mark.skipif(machine.vector_bytes() < 32, reason="needs registers that tell vectors apart")
@pytest.mark.parametrize("target", ["i8", "u8", "i16", "u16", "i32"])
def test_loops_over_casts_are_vectorised(target: str) -> None:
    kernel = elementwise(f"to_{target}(x0[i])", f"casts.to_{target}", "f32", target)
    assert re.search(r"vcvttps2dq\s.*%[yz]mm", kernel.assembly)


@pytest.mark.parametrize("source", [*INTEGERS, *FLOATS])
def test_cast_to_bool(source: str) -> None:
    values = np.array([0, 1, 2, 100], {**INTEGERS, **FLOATS}[source])
    if source in FLOATS:
        values = np.append(values, np.array([np.nan, -0.0, 1e-40, np.inf], values.dtype))
    result = np.full(values.shape, 77, np.uint8)
    kernel = elementwise("to_u8(to_bool(x0[i]))", "casts.to_bool casts.to_u8", source, "u8")
    kernel(result, values, values.size)
    np.testing.assert_array_equal(result, values.astype(np.bool_).astype(np.uint8))


HALVES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}


def rounded_to_half(values: Array, kind: str) -> Array:
    """By a kernel, as float32."""
    result = np.empty(values.shape, np.float32)
    source = "f32" if values.dtype == np.float32 else "f64"
    kernel = elementwise(f"to_{kind}(x0[i])", f"casts.to_{kind}", source, "f32")
    kernel(result, values, values.size)
    return result


@pytest.mark.parametrize("kind", HALVES)
def test_rounding_to_halves(kind: str) -> None:
    values = np.random.default_rng(0).normal(0, 1e4, 500).astype(np.float32)
    expected = values.astype(HALVES[kind]).astype(np.float32)
    np.testing.assert_array_equal(rounded_to_half(values, kind), expected)


def middles(kind: str) -> tuple[Array, Array, Array]:
    """The positive finite halves, all but the last; the next ones; the numbers half way between.
    All are exact.
    """
    most = int(np.array(np.inf, HALVES[kind]).view(np.uint16)) - 1
    halves = np.arange(most + 1, dtype=np.uint16).view(HALVES[kind]).astype(np.float64)
    low, high = halves[:-1], halves[1:]
    return low, high, (low + high) / 2


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", HALVES)
def test_float64_is_rounded_to_halves_once(kind: str, sign: int) -> None:
    """A float32 cannot tell a middle of two halves from its neighbours in float64."""
    low, high, middle = middles(kind)
    even = np.where(np.arange(low.size) % 2 == 0, low, high)
    above, below = np.nextafter(middle, np.inf), np.nextafter(middle, 0)
    for values, expected in ((below, low), (middle, even), (above, high)):
        result = rounded_to_half(sign * values, kind)
        np.testing.assert_array_equal(result, sign * expected)
        np.testing.assert_array_equal(np.signbit(result), sign < 0)


def test_float64_to_float16_is_numpys() -> None:
    patterns = np.arange(0, 2**64, 65537 << 31, dtype=np.uint64)
    around = (patterns & 0x800FFFFFFFFFFFFF) | (
        np.arange(patterns.size, dtype=np.uint64) % 48 + 995 << 52
    )
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 65519.999, 65520, -65520, 1e300, -1e300, 1e-300]
    )
    values = np.concatenate([special, patterns.view(np.float64), around.view(np.float64)])
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rounded_to_half(values, "f16"), expected)


@pytest.mark.parametrize("kind", HALVES)
def test_float64_beyond_the_halves(kind: str) -> None:
    values = np.array([np.inf, -np.inf, np.nan, 1e300, -1e300, 3.4e38, 1e-300])
    expected = [np.inf, -np.inf, np.nan, np.inf, -np.inf, np.inf, 0]
    np.testing.assert_array_equal(rounded_to_half(values, kind), expected)


def test_select() -> None:
    a, b = np.arange(20, dtype=np.int32), np.arange(20, 0, -1).astype(np.int32)
    result = np.empty_like(a)
    kernel = elementwise("select(x0[i] < x1[i], x0[i], x1[i])", "casts.select", "i32 i32", "i32")
    kernel(result, a, b, a.size)
    np.testing.assert_array_equal(result, np.minimum(a, b))


def test_select_of_booleans() -> None:
    a, b = np.arange(8, dtype=np.int32), np.array([3, 0] * 4, np.int32)
    result = np.full(8, 77, np.uint8)
    call = "to_u8(select(x0[i] > 3, x1[i] > 2, x0[i] > 1))"
    elementwise(call, "casts.select casts.to_u8", "i32 i32", "u8")(result, a, b, a.size)
    np.testing.assert_array_equal(result, np.where(a > 3, b > 2, a > 1))


def test_select_refuses_two_types() -> None:
    with pytest.raises(TypingError, match="convert one of them"):
        elementwise("select(x0[i] < 0, x0[i], 0.0)", "casts.select", "f32", "f32")


CHECKED_INDEX = """
x, y, index, count = f32(args, 0), f32(args, 1), i64(args, 2), integer(args, 3)
errors = stack_i64(1)
errors[0] = 0
for i in range(integer(args, 4)):
    y[i] = x[checked_index(index[i], count, errors, 7)]
report(errors, i64(args, 5))
"""
CHECK_IMPORTS = "pointers.f32 pointers.i64 pointers.integer pointers.stack_i64 checks.report"


@pytest.mark.parametrize(
    ("index", "code"), [([0, 4, 2], 0), ([5], 7), ([0, -1], 7), ([2**40], 7), ([-(2**63), 1], 7)]
)
def test_checked_index(index: list[int], code: int) -> None:
    x = np.arange(10, 15).astype(np.float32)
    indices, errors = np.array(index, np.int64), np.zeros(1, np.int64)
    y = np.zeros(len(index), np.float32)
    kernel = compile_kernel(CHECKED_INDEX, f"{CHECK_IMPORTS} checks.checked_index")
    kernel(x, y, indices, 5, len(index), errors)
    assert errors[0] == code
    inside = (indices >= 0) & (indices < 5)
    np.testing.assert_array_equal(y, x[np.where(inside, indices, 0)])


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("checked_div", "divide"),
        ("checked_rem", "remainder"),
        ("checked_floor_mod", "floor_modulo"),
    ],
)
def test_checked_division(name: str, same_as: str, kind: str) -> None:
    body = f"""
    a, b, y = {kind}(args, 0), {kind}(args, 1), {kind}(args, 2)
    errors = stack_i64(1)
    errors[0] = 0
    for i in range(integer(args, 3)):
        y[i] = {name}(a[i], b[i], errors, 3)
    report(errors, i64(args, 4))
    """
    imports = f"pointers.{kind} {CHECK_IMPORTS} checks.{name}"
    dtype = INTEGERS[kind]
    a, b = pairs(dtype)
    function = meaning(same_as, 8 * dtype.itemsize)
    for keep, code in ((b != 0, 0), (b == b, 3)):
        left, right, errors = a[keep], b[keep], np.zeros(1, np.int64)
        y = np.empty_like(left)
        compile_kernel(body, imports)(left, right, y, left.size, errors)
        expected = [function(int(p), int(q)) for p, q in zip(left, right, strict=True)]
        np.testing.assert_array_equal(y, wrapped(expected, dtype))
        assert errors[0] == code
