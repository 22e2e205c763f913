"""Formulas for float32: exponentials, logarithms and what is made of them.

All are branch-free and right over the whole range: infinities, NaN, denormals, overflow, underflow.
The coefficients are minimax fits of the functions named beside them, highest power first.
"""

from __future__ import annotations

import math

from tilewright_kernels.cpu.values import F32, F64, Number

LOG2_E = math.log2(math.e)
LN2 = math.log(2.0)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # the products of n with the first are exact
ROUND_F32 = 1.5 * 2.0**23  # adding it leaves an integer in the low bits of the sum
ROUND_F64 = 1.5 * 2.0**52
SMALLEST_NORMAL = 2.0**-126

# (e^r - 1 - r) / r^2 on [-ln(2)/2, ln(2)/2]
EXPM1 = (
    0.00019913705182261765,
    0.0013941116631031036,
    0.00833327416330576,
    0.04166635498404503,
    0.1666666716337204,
    0.5,
)
# (log(1 + f) - f + f^2/2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1]
LOG1P = (
    -0.07859545946121216,
    0.12881621718406677,
    -0.13128767907619476,
    0.14181196689605713,
    -0.16624553501605988,
    0.2000228613615036,
    -0.25000810623168945,
    0.33333316445350647,
)
# (sinh(r) - r) / r^3 in r^2, on [-1, 1]
SINH = (
    2.8174395083624404e-06,
    0.0001983606634894386,
    0.008333350531756878,
    0.1666666716337204,
)
# erf(x) / x in x^2, on [-1, 1]
ERF_NEAR = (
    7.853857823647559e-05,
    -0.0008010192541405559,
    0.005188327748328447,
    -0.026853810995817184,
    0.1128358542919159,
    -0.3761262595653534,
    1.1283791065216064,
)
# -log(1 - erf(x)) / x on [0.9, 4]
ERF_FAR = (
    5.150880497239996e-06,
    -4.820222966372967e-05,
    -3.606475729611702e-05,
    0.00289230071939528,
    -0.022612009197473526,
    0.10520291328430176,
    0.6356565356254578,
    1.1285449266433716,
)
# log2((1 + s) / (1 - s)) / s in s^2, |s| up to (sqrt(2) - 1) / (sqrt(2) + 1), in double precision
LOG2_F64 = (
    0.28294029077110294,
    0.3199029886740421,
    0.4122093148440914,
    0.5770779417981482,
    0.9617966941150312,
    2.8853900817778495,
)
# 2^r on [-1/2, 1/2], in double precision
EXP2_F64 = (
    1.5201810012298613e-05,
    0.0001546942201828827,
    0.0013333924065601372,
    0.009618026848701411,
    0.05550410350311863,
    0.2402265120114822,
    0.6931471807298132,
    0.9999999999613779,
)


def _reduce_ln2(x: Number) -> tuple[Number, Number]:
    """(n, r): x = n ln(2) + r, |r| <= ln(2)/2 and n an integer in the low bits of an int32."""
    shifted = x.fma(LOG2_E, ROUND_F32)
    n = shifted - ROUND_F32
    r = n.fma(-LN2_LOW, n.fma(-LN2_HIGH, x))
    return shifted.bits() - _bits_of(ROUND_F32), r


def _bits_of(value: float) -> int:
    """The pattern of a float32 that is a power of two times 1 or 1.5."""
    mantissa, exponent = math.frexp(value)
    return (exponent + 126 << 23) + int((2 * mantissa - 1) * 2**23)


def _power_of_two(n: Number) -> Number:
    """2^n as float32, for n from -126 to 127."""
    return (n + 127 << 23).as_float()


def _scale(x: Number, n: Number) -> Number:
    """x * 2^n for n from -252 to 254: in two steps, so that the factors exist."""
    half = n >> 1
    return x * _power_of_two(half) * _power_of_two(n - half)


def exp(x: Number) -> Number:
    n, r = _reduce_ln2(x.at_least(-104.5).at_most(89.0))
    return _scale(r.polynomial((*EXPM1, 1.0, 1.0)), n)


def exp2(x: Number) -> Number:
    limited = x.at_least(-151.0).at_most(129.0)
    shifted = limited + ROUND_F32
    r = (limited - (shifted - ROUND_F32)) * LN2
    n = shifted.bits() - _bits_of(ROUND_F32)
    return _scale(r.polynomial((*EXPM1, 1.0, 1.0)), n)


def expm1(x: Number) -> Number:
    """2^n ((1 - 2^-n) + (e^r - 1)): no cancellation near 0."""
    n, r = _reduce_ln2(x.at_least(-18.0).at_most(89.0))
    fraction = (r * r).fma(r.polynomial(EXPM1), r)
    return _scale((1.0 - _power_of_two((-n).at_least(-126))) + fraction, n)


def _log_parts(x: Number) -> tuple[Number, Number]:
    """(e, f): a positive normal x = 2^e (1 + f), 1 + f between sqrt(1/2) and sqrt(2)."""
    sqrt_half_bits = 0x3F3504F3
    exponent = (x.bits() - sqrt_half_bits) >> 23
    mantissa = (x.bits() - (exponent << 23)).as_float()
    return exponent, mantissa - 1.0


def _log_of_parts(exponent: Number, f: Number) -> Number:
    """log(2^e (1 + f))."""
    e = exponent.to_float(F32)
    square = f * f
    tail = square.fma(f.polynomial(LOG1P) * f, e * LN2_LOW)
    return e.fma(LN2_HIGH, f + square.fma(-0.5, tail))


def _log_limits(x: Number, result: Number) -> Number:
    """`result`, and what it must be at 0, below, at infinity and for NaN."""
    result = (x < math.inf).choose(result, x)
    result = (x < 0.0).choose(math.nan, result)
    return x.eq(0.0).choose(-math.inf, result)


def log(x: Number) -> Number:
    tiny = x < SMALLEST_NORMAL
    normal = tiny.choose(x * 2.0**23, x)
    exponent, f = _log_parts(normal)
    exponent = tiny.choose(exponent - 23, exponent)
    return _log_limits(x, _log_of_parts(exponent, f))


def log1p(x: Number) -> Number:
    """log(u) + (1 + x - u) / u for the rounded u = 1 + x."""
    u = x + 1.0
    large = x >= 1.0
    lost = large.choose(1.0 - (u - x), x - (u - 1.0))
    exponent, f = _log_parts(u)
    result = _log_of_parts(exponent, f) + (u < 2.0**30).choose(lost / u, lost.filled(0.0))
    return _log_limits(u, result)


def sigmoid(x: Number) -> Number:
    """By way of e^-|x|, which keeps the relative precision of small results."""
    n, r = _reduce_ln2((-x.magnitude()).at_least(-104.5))
    e = r.polynomial((*EXPM1, 1.0, 1.0)) * _power_of_two(n + 64) * 2.0**-64  # may be denormal
    s = 1.0 / (e + 1.0)
    return (x >= 0.0).choose(s, e * s)


def tanh(x: Number) -> Number:
    """By way of e^2x - 1, as `expm1` has it, where the power of two is far from the limits."""
    n, r = _reduce_ln2((x * 2.0).at_least(-18.0).at_most(19.0))
    fraction = (r * r).fma(r.polynomial(EXPM1), r)
    e = ((1.0 - _power_of_two(-n)) + fraction) * _power_of_two(n)
    return (e / (e + 2.0)).with_sign_of(x)


def softplus(x: Number) -> Number:
    """log(1 + e^x)."""
    return x.at_least(0.0) + log1p(exp(-x.magnitude()))


def _half_exp(x: Number) -> Number:
    """e^x / 2, for x from 0 to where it overflows."""
    n, r = _reduce_ln2(x.at_most(90.0))
    return _scale(r.polynomial((*EXPM1, 1.0, 1.0)), n - 1)


def cosh(x: Number) -> Number:
    h = _half_exp(x.magnitude())
    return h + 0.25 / h


def sinh(x: Number) -> Number:
    a = x.magnitude()
    h = _half_exp(a)
    square = x * x
    near = (square * x).fma(square.polynomial(SINH), x)
    return (a < 1.0).choose(near, (h - 0.25 / h).with_sign_of(x))


def asinh(x: Number) -> Number:
    """log(|x| + sqrt(x^2 + 1)), written for log1p; beyond 2^13 that is log(2 |x|)."""
    a = x.magnitude()
    near = a.at_most(2.0**14)
    square = near * near
    small = log1p(near + square / ((square + 1.0).sqrt() + 1.0))
    return (a > 2.0**13).choose(log(a) + LN2, small).with_sign_of(x)


def acosh(x: Number) -> Number:
    t = x.at_most(2.0**14) - 1.0
    small = log1p(t + (t * (t + 2.0)).sqrt())
    result = (x > 2.0**13).choose(log(x) + LN2, small)
    return (x < 1.0).choose(math.nan, result)


def atanh(x: Number) -> Number:
    a = x.magnitude()
    return (log1p((a + a) / (1.0 - a)) * 0.5).with_sign_of(x)


def erf(x: Number) -> Number:
    a = x.magnitude().at_most(4.0)
    near = x * (a * a).polynomial(ERF_NEAR)
    n, r = _reduce_ln2(-(a * a.polynomial(ERF_FAR)))
    far = 1.0 - r.polynomial((*EXPM1[1:], 1.0, 1.0)) * _power_of_two(n)
    return (a < 1.0).choose(near, far.with_sign_of(x))


def _log2_f64(x: Number) -> Number:
    """log2 of a positive, normal float64, right to about 2^-44."""
    sqrt_half_bits = 0x3FE6A09E667F3BCD
    exponent = (x.bits() - sqrt_half_bits) >> 52
    mantissa = (x.bits() - (exponent << 52)).as_float()
    s = (mantissa - 1.0) / (mantissa + 1.0)
    e = exponent.low_bits(32).to_float(F64)
    return s.fma((s * s).polynomial(LOG2_F64), e)


def _exp2_f64(x: Number) -> Number:
    """2^x for |x| up to 1000."""
    shifted = x + ROUND_F64
    r = x - (shifted - ROUND_F64)
    power = (shifted.bits() + 1023 << 52).as_float()
    return r.polynomial(EXP2_F64) * power


def power(x: Number, y: Number) -> Number:
    """x^y with C's special cases; the inside is done in double precision."""
    a = x.magnitude().widen()
    logarithm = _log2_f64(a.at_least(2.0**-149)) * y.widen()
    result = _exp2_f64(logarithm.at_least(-200.0).at_most(200.0)).narrow()
    result = _power_limits(x.magnitude(), y, result)
    whole = y.call("trunc").eq(y)
    odd = whole & (y * 0.5).call("trunc").compare("!=", y * 0.5)
    negative = x.bits() < 0
    result = (negative & odd).choose(-result, result)
    finite_base = (x < 0.0) & (x > -math.inf)
    needs_whole = finite_base & (y.magnitude() < math.inf)
    result = (needs_whole & (whole ^ True)).choose(math.nan, result)
    is_one = x.eq(1.0) | y.eq(0.0)
    return is_one.choose(1.0, result)


def _power_limits(a: Number, y: Number, result: Number) -> Number:
    """|x|^y where |x| or y is 0 or infinite, or where either is NaN."""
    grows = y > 0.0
    result = a.eq(0.0).choose(grows.choose(0.0, y.filled(math.inf)), result)
    result = a.eq(math.inf).choose(grows.choose(math.inf, y.filled(0.0)), result)
    infinite = y.magnitude().eq(math.inf)
    at_infinity = ((a > 1.0) ^ (y < 0.0)).choose(math.inf, a.filled(0.0))
    result = infinite.choose(a.eq(1.0).choose(1.0, at_infinity), result)
    return (a.is_nan() | y.is_nan()).choose(math.nan, result)
