"""The emulator of PTX instruction by instruction, against exact arithmetic and the PTX ISA."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptx.frame import TYPES
from ptx.rounding import fused_double, fused_single
from ptx_harness import apply, run

U32 = 0xFFFFFFFF
INF, NAN = np.inf, np.nan
MIN32, MIN64 = -(2**31), -(2**63)
CASES: list[tuple[str, str, list[list[Any]], list[Any]]] = [
    # Integers: wrapping, quotients towards zero, the least number by -1, products' halves.
    ("add.s32 d, x, y;", "s32 s32 s32", [[2**31 - 1, -5], [1, 3]], [MIN32, -2]),
    ("sub.s64 d, x, y;", "s64 s64 s64", [[MIN64], [1]], [2**63 - 1]),
    (
        "div.s32 d, x, y;",
        "s32 s32 s32",
        [[7, -7, 7, -7, MIN32], [2, 2, -2, -2, -1]],
        [3, -3, -3, 3, MIN32],
    ),
    (
        "rem.s32 d, x, y;",
        "s32 s32 s32",
        [[7, -7, 7, -7, MIN32], [2, 2, -2, -2, -1]],
        [1, -1, 1, -1, 0],
    ),
    ("div.s64 d, x, y;", "s64 s64 s64", [[MIN64, MIN64, 9], [-1, 1, -4]], [MIN64, MIN64, -2]),
    ("div.u32 d, x, y;", "u32 u32 u32", [[U32, 7], [2, 9]], [U32 // 2, 0]),
    ("mul.hi.s32 d, x, y;", "s32 s32 s32", [[MIN32, -1], [MIN32, 1]], [2**30, -1]),
    ("mul.hi.u32 d, x, y;", "u32 u32 u32", [[U32], [U32]], [U32 - 1]),
    ("mul.hi.s64 d, x, y;", "s64 s64 s64", [[MIN64, -1, 2**62], [MIN64, 1, 12]], [2**62, -1, 3]),
    ("mul.hi.u64 d, x, y;", "u64 u64 u64", [[2**64 - 1], [2**64 - 1]], [2**64 - 2]),
    ("mul.wide.s32 d, x, y;", "s64 s32 s32", [[MIN32, -3], [MIN32, 5]], [2**62, -15]),
    ("mad.lo.s32 d, x, y, z;", "s32 s32 s32 s32", [[65536, 3], [65536, 4], [7, 5]], [7, 17]),
    ("mad.wide.u32 d, x, y, z;", "u64 u32 u32 u64", [[U32], [U32], [U32]], [U32 * U32 + U32]),
    ("abs.s32 d, x;", "s32 s32", [[-5, MIN32]], [5, MIN32]),
    ("min.s16 d, x, y;", "s16 s16 s16", [[-5, 3], [2, 9]], [-5, 3]),
    ("max.u64 d, x, y;", "u64 u64 u64", [[2**63, 1], [5, 2]], [2**63, 2]),
    ("sad.s32 d, x, y, z;", "s32 s32 s32 s32", [[-3, 5], [4, 1], [10, 20]], [17, 24]),
    (
        "dp4a.s32.s32 d, x, y, z;",
        "s32 u32 u32 s32",
        [[0xFF020304], [0x01FE0102], [5]],
        [-1 - 4 + 3 + 8 + 5],
    ),
    (
        "dp2a.lo.u32.u32 d, x, y, z;",
        "u32 u32 u32 u32",
        [[0x00020003] * 2, [0x00000504, 0x07060504], [7, U32]],
        [10 + 12 + 7, 21],
    ),
    (
        "dp2a.hi.s32.s32 d, x, y, z;",
        "s32 u32 u32 s32",
        [[0xFFFF0003], [0x02FE0000], [1]],
        [-2 - 6 + 1],
    ),
    # Bits.
    ("shl.b32 d, x, y;", "b32 b32 u32", [[1, 1, 3], [31, 32, 999]], [2**31, 0, 0]),
    ("shr.s32 d, x, y;", "s32 s32 u32", [[-8, -8, 8], [1, 40, 40]], [-4, -1, 0]),
    ("shr.u32 d, x, y;", "u32 u32 u32", [[2**31, 8], [31, 32]], [1, 0]),
    ("shf.l.wrap.b32 d, x, y, z;", "u32 u32 u32 u32", [[0x80000000], [1], [33]], [3]),
    ("shf.r.clamp.b32 d, x, y, z;", "u32 u32 u32 u32", [[4], [0x80000001], [40]], [0x80000001]),
    (
        "bfe.u32 d, x, y, z;",
        "u32 u32 u32 u32",
        [[0xABCD1234] * 3, [8, 0, 28], [8, 32, 8]],
        [0x12, 0xABCD1234, 0xA],
    ),
    (
        "bfe.s32 d, x, y, z;",
        "s32 u32 u32 u32",
        [[0x80, 0x80000000, 5], [4, 24, 0], [4, 16, 0]],
        [-8, -128, 0],
    ),
    (
        "bfi.b32 d, x, y, z, 8;",
        "u32 u32 u32 u32",
        [[0xFFF, 0xAB], [0, U32], [4, 28]],
        [0xFF0, 0xBFFFFFFF],
    ),
    (
        "prmt.b32 d, x, y, z;",
        "u32 u32 u32 u32",
        [[0x33221180, 0x80], [0x77665544, 0], [0x7410, 0x8888]],
        [0x77441180, U32],
    ),
    ("popc.b64 d, x;", "u32 u64", [[2**64 - 1, 5]], [64, 2]),
    ("clz.b32 d, x;", "u32 u32", [[0, 1, U32]], [32, 31, 0]),
    ("brev.b32 d, x;", "u32 u32", [[1, 6]], [2**31, 0x60000000]),
    ("bfind.s32 d, x;", "u32 s32", [[0, -1, 8, -9]], [U32, U32, 3, 3]),
    ("lop3.b32 d, x, y, z, 0xE8;", "u32 u32 u32 u32", [[0b1100], [0b1010], [0b0110]], [0b1110]),
    # Floats: extremes of zeros and NaN, approximations at their ends.
    ("min.f32 d, x, y;", "f32 f32 f32", [[0.0, NAN, 1], [-0.0, 2, NAN]], [-0.0, 2, 1]),
    ("max.NaN.f32 d, x, y;", "f32 f32 f32", [[-0.0, NAN], [0.0, 2]], [0.0, NAN]),
    ("copysign.f32 d, x, y;", "f32 f32 f32", [[-1.0, 2.0], [5.0, -3.0]], [-5.0, 3.0]),
    ("neg.f64 d, x;", "f64 f64", [[0.0, INF]], [-0.0, -INF]),
    ("add.rz.f32 d, x, y;", "f32 f32 f32", [[1, -1], [0.75 * 2.0**-23, -0.75 * 2.0**-23]], [1, -1]),
    ("add.rm.f32 d, x, y;", "f32 f32 f32", [[1, -1], [2.0**-60, -(2.0**-60)]], [1, -1 - 2.0**-23]),
    ("fma.rm.f32 d, x, y, z;", "f32 f32 f32 f32", [[1], [1], [-(2.0**-60)]], [1 - 2.0**-24]),
    (
        "fma.rn.f32 d, x, y, z;",
        "f32 f32 f32 f32",
        [[1 + 2.0**-12], [1 + 2.0**-12], [2.0**-60]],
        [1 + 2.0**-11 + 2.0**-23],
    ),
    ("add.sat.f32 d, x, y;", "f32 f32 f32", [[1, -2, NAN], [1, 1, 0]], [1, 0, 0]),
    ("mul.ftz.f32 d, x, y;", "f32 f32 f32", [[1e-39, -1e-20], [1e10, 1e-20]], [0.0, -0.0]),
    ("div.approx.f32 d, x, y;", "f32 f32 f32", [[1, INF, 6], [2e38, 2e38, 2]], [0, NAN, 3]),
    ("ex2.approx.ftz.f32 d, x;", "f32 f32", [[-INF, INF, 3, NAN, -140]], [0, INF, 8, NAN, 0]),
    ("lg2.approx.f32 d, x;", "f32 f32", [[0, 8, -1, INF]], [-INF, 3, NAN, INF]),
    ("rcp.rn.f32 d, x;", "f32 f32", [[-0.0, 3, INF]], [-INF, np.float32(1) / np.float32(3), 0]),
    ("sqrt.rn.f64 d, x;", "f64 f64", [[2, -1, -0.0]], [2**0.5, NAN, -0.0]),
    ("rsqrt.approx.f32 d, x;", "f32 f32", [[4, 0, INF]], [0.5, INF, 0]),
    # Conversions: limits, NaN, every rounding.
    ("cvt.rzi.s32.f32 d, x;", "s32 f32", [[3e9, -3e9, NAN, -1.9]], [2**31 - 1, MIN32, 0, -1]),
    ("cvt.rzi.u32.f32 d, x;", "u32 f32", [[5e9, -3, NAN]], [U32, 0, 0]),
    (
        "cvt.rzi.s64.f32 d, x;",
        "s64 f32",
        [[1e19, -1e19, NAN, INF]],
        [2**63 - 1, MIN64, MIN64, 2**63 - 1],
    ),
    ("cvt.rzi.u64.f64 d, x;", "u64 f64", [[2e19, -1, NAN, 2.0**63]], [2**64 - 1, 0, 2**63, 2**63]),
    ("cvt.rzi.s32.f64 d, x;", "s32 f64", [[NAN, 1e10]], [MIN32, 2**31 - 1]),
    ("cvt.rni.s32.f32 d, x;", "s32 f32", [[0.5, 1.5, 2.5, -0.5]], [0, 2, 2, 0]),
    ("cvt.rmi.f32.f32 d, x;", "f32 f32", [[-0.5, 1.5]], [-1, 1]),
    ("cvt.rpi.f64.f64 d, x;", "f64 f64", [[-0.5, 1.5]], [-0.0, 2]),
    ("cvt.sat.f32.f32 d, x;", "f32 f32", [[-1, 0.25, 7, NAN]], [0, 0.25, 1, 0]),
    (
        "cvt.rz.f32.f64 d, x;",
        "f32 f64",
        [[1 + 2.0**-24 + 2.0**-30, 1e300]],
        [1, np.finfo("f4").max],
    ),
    ("cvt.rp.f32.f64 d, x;", "f32 f64", [[1 + 2.0**-40]], [1 + 2.0**-23]),
    (
        "cvt.rn.f32.s64 d, x;",
        "f32 s64",
        [[2**24 + 1, 2**62 + 2**38 + 1]],
        [2**24, 2.0**62 + 2.0**39],
    ),
    ("cvt.rn.f32.u64 d, x;", "f32 u64", [[2**64 - 1]], [2.0**64]),
    ("cvt.s32.s8 d, x;", "s32 s16", [[0x180, 127]], [-128, 127]),
    ("cvt.u64.u32 d, x;", "u64 u32", [[U32]], [U32]),
    ("cvt.s64.s32 d, x;", "s64 s32", [[-7]], [-7]),
    ("cvt.sat.s16.s32 d, x;", "s16 s32", [[40000, -40000, 3]], [32767, -32768, 3]),
    (
        "cvt.rn.f16.f32 d, x;",
        "u16 f32",
        [[1 + 2.0**-11, 65520, NAN, -1e-8]],
        [0x3C00, 0x7C00, 0x7FFF, 0x8000],
    ),
    ("cvt.rz.f16.f32 d, x;", "u16 f32", [[65535]], [0x7BFF]),
    ("cvt.f32.f16 d, x;", "f32 u16", [[0x3C00, 0x0001, 0xFC00]], [1, 2.0**-24, -INF]),
    (
        "cvt.rn.bf16.f32 d, x;",
        "u16 f32",
        [[1 + 2.0**-8, 1 + 3 * 2.0**-8, NAN, 3.4e38]],
        [0x3F80, 0x3F82, 0x7FFF, 0x7F80],
    ),
    ("cvt.f32.bf16 d, x;", "f32 u16", [[0x3F80, 0xFF80]], [1, -INF]),
    ("cvt.rn.f16x2.f32 d, x, y;", "u32 f32 f32", [[1], [2]], [0x3C004000]),
    ("cvt.rn.bf16x2.f32 d, x, y;", "u32 f32 f32", [[1], [2]], [0x3F804000]),
    ("cvt.rna.tf32.f32 d, x;", "u32 f32", [[1 + 2.0**-11, INF]], [0x3F802000, 0x7F800000]),
    # Choices.
    ("slct.s32.f32 d, x, y, z;", "s32 s32 s32 f32", [[1] * 3, [2] * 3, [0, -1, NAN]], [1, 2, 2]),
    ("set.lt.u32.f32 d, x, y;", "u32 f32 f32", [[1, NAN], [2, 2]], [U32, 0]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0].split()[0])
def test_results(case: tuple[str, str, list[list[Any]], list[Any]]) -> None:
    instruction, kinds, inputs, wanted = case
    types = kinds.split()
    arrays = [np.array(v, TYPES[k]) for v, k in zip(inputs, types[1:], strict=True)]
    found = apply(instruction, kinds, arrays)
    exact = np.array(wanted, TYPES[types[0]])
    np.testing.assert_array_equal(found, exact)
    if exact.dtype.kind == "f":
        numbers = ~np.isnan(exact)
        np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(exact[numbers]))


COMPARISONS = {
    "eq": [0, 1, 0, 0], "ne": [1, 0, 1, 0], "lt": [1, 0, 0, 0], "le": [1, 1, 0, 0],
    "gt": [0, 0, 1, 0], "ge": [0, 1, 1, 0], "equ": [0, 1, 0, 1], "neu": [1, 0, 1, 1],
    "ltu": [1, 0, 0, 1], "leu": [1, 1, 0, 1], "gtu": [0, 0, 1, 1], "geu": [0, 1, 1, 1],
    "num": [1, 1, 1, 0], "nan": [0, 0, 0, 1],
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str) -> None:
    """Of a number with a greater one, an equal one, a smaller one and NaN."""
    x, y = np.array([1, 2, 3, NAN]), np.array([2, 2, 2, 2])
    text = f"setp.{name}.f32 %p1|%p2, x, y; selp.u32 %r8, 1, 0, %p1; @%p2 add.u32 d, d, 2;"
    found = apply(text, "u32 f32 f32", [x, y])
    wanted = np.array(COMPARISONS[name])
    np.testing.assert_array_equal(found, np.where(wanted == 1, 1, 2))


def test_joined_comparisons() -> None:
    text = "setp.lt.s32 %p1, x, 5; setp.gt.and.s32 %p2, x, 1, !%p1; selp.u32 d, 1, 0, %p2;"
    found = apply(text, "u32 s32", [np.array([0, 3, 7])])
    assert found.tolist() == [0, 0, 1]


def test_unsigned_comparisons() -> None:
    text = "setp.hi.u32 %p1, x, 5; selp.u32 d, 1, 0, %p1;"
    assert apply(text, "u32 u32", [np.array([U32, 3])]).tolist() == [1, 0]


def test_carries() -> None:
    """128 bits from products of 32, as libdevice has them."""
    body = """
ld.global.u32 %r0, [%q0]; ld.global.u32 %r1, [%q0+4];
mad.lo.cc.u32 %r2, %r0, %r1, 4294967295; madc.hi.u32 %r3, %r0, %r1, 0;
sub.cc.u32 %r4, 3, %r0; subc.u32 %r5, 10, 2;
add.cc.u32 %r6, %r0, %r1; addc.cc.u32 %r7, %r0, 0; addc.u32 %r8, 0, 0;
st.global.v2.u32 [%q1], {%r2, %r3}; st.global.v2.u32 [%q1+8], {%r4, %r5};
st.global.v2.u32 [%q1+16], {%r6, %r7}; st.global.u32 [%q1+24], %r8;
"""
    operands = np.array([0xFFFFFFFF, 0xFFFFFFFE], np.uint32)
    found = run(body, [operands, np.zeros(8, np.uint32)], 1)[0][1]
    total = 0xFFFFFFFF * 0xFFFFFFFE + 0xFFFFFFFF
    wanted = [total & U32, total >> 32, 4, 7, 0xFFFFFFFD, 0, 1, 0]
    assert found.tolist() == wanted


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=8))
def test_fused_singles_round_once(rows: list[tuple[float, float, float]]) -> None:
    a, b, c = np.array(rows, np.float32).T.copy()
    with np.errstate(all="ignore"):
        found = fused_single(a, b, c)
    for k in range(len(rows)):
        exact = Fraction(float(a[k])) * Fraction(float(b[k])) + Fraction(float(c[k]))
        assert is_nearest(found[k], exact, np.float32)


DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
NEAR_ONE = st.integers(1, 2**20).map(lambda k: 1 + k * 2.0**-52) | st.floats(-4, 4)


@settings(max_examples=300, deadline=None)
@given(st.tuples(DOUBLES, DOUBLES, DOUBLES) | st.tuples(NEAR_ONE, NEAR_ONE, NEAR_ONE))
def test_fused_doubles_round_once(row: tuple[float, float, float]) -> None:
    a, b, c = (np.array([v]) for v in row)
    with np.errstate(all="ignore"):
        found = fused_double(a, b, c)
    exact = Fraction(row[0]) * Fraction(row[1]) + Fraction(row[2])
    assert is_nearest(found[0], exact, np.float64)


def is_nearest(found: Any, exact: Fraction, dtype: Any) -> bool:
    """Whether no float is nearer to the exact number; beyond the range an infinity is right."""
    info = np.finfo(dtype)
    beyond = Fraction(float(info.max)) + Fraction(2) ** (info.maxexp - info.nmant - 2)
    if not np.isfinite(found):
        return abs(exact) >= beyond and (found > 0) == (exact > 0)
    error = abs(Fraction(float(found)) - exact)
    with np.errstate(over="ignore"):
        neighbours = [np.nextafter(found, dtype(d)) for d in (-np.inf, np.inf)]
    nearer = (abs(Fraction(float(n)) - exact) < error for n in neighbours if np.isfinite(n))
    return not any(nearer)


def test_bfloat_rounds_as_ml_dtypes_does() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 1000, np.uint32).view(np.float32)
    x = x[~np.isnan(x)]
    found = apply("cvt.rn.bf16.f32 d, x;", "u16 f32", [x])
    assert found.tobytes() == x.astype(ml_dtypes.bfloat16).tobytes()
