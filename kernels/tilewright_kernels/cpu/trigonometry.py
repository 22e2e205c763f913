"""Formulas for float32: circular functions and their inverses, right over the whole range."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright_kernels.cpu.exponentials import ROUND_F64
from tilewright_kernels.cpu.values import Number

# (sin(r) - r) / r^3 in r^2, on [-pi/4, pi/4]
SIN = (-0.00019516654720064253, 0.008332173340022564, -0.16666655242443085)
# (cos(r) - 1 + r^2/2) / r^4 in r^2, on [-pi/4, pi/4]
COS = (2.4437729734927416e-05, -0.001388736185617745, 0.04166664555668831)
# (atan(r) - r) / r^3 in r^2, on [-1, 1]
ATAN = (
    0.002974563976749778,
    -0.016581078991293907,
    0.043553370982408524,
    -0.07580564171075821,
    0.10678933560848236,
    -0.14214207231998444,
    0.19994136691093445,
    -0.3333316743373871,
)
# (asin(r) - r) / r^3 in r^2, on [-1/2, 1/2]
ASIN = (
    0.04227852076292038,
    0.024114485830068588,
    0.045483335852622986,
    0.07495196163654327,
    0.16666755080223083,
)


@dataclass(frozen=True)
class Octave:
    """The arguments from `2^(23 + shift)` on: x 2/pi mod 4 is (x 2^-shift) (high + low) mod 4."""

    shift: int
    high: float
    low: float


# For shift > 0 the scaled argument is a whole number below 2^44: multiples of 4 may be left out.
OCTAVES = (
    Octave(0, 0.6366197723675814, -3.935735335036497e-17),
    Octave(21, 0.42886021794879353, 1.2738156800822154e-17),
    Octave(42, 1.063791748279411, 1.0868183711658421e-16),
    Octave(63, 0.9924876636310758, -1.5589282983320628e-17),
    Octave(84, 1.4887592377745509, 8.550831001313827e-17),
)


def _quadrant(x: Number) -> tuple[Number, Number]:
    """(q, r): x = q pi/2 + r, |r| <= pi/4, r as float32 and q's low bits as int32.

    The product with 2/pi is taken in twice double precision; float32 numbers come no nearer to
    multiples of pi/2 than that resolves.
    """
    a = x.magnitude()
    wide = x.widen()
    scaled, high, low = wide, wide.filled(OCTAVES[0].high), wide.filled(OCTAVES[0].low)
    for octave in OCTAVES[1:]:
        here = a >= 2.0 ** (23 + octave.shift)
        scaled = here.choose(wide * 2.0**-octave.shift, scaled)
        high, low = here.choose(octave.high, high), here.choose(octave.low, low)
    shifted = scaled * high + ROUND_F64
    whole = shifted - ROUND_F64
    upper = (high.bits() & -(2**27)).as_float()  # 26 bits: its product with 24 is exact
    fraction = (scaled * upper - whole) + scaled * (high - upper) + scaled * low
    return shifted.bits().low_bits(32), (fraction * (math.pi / 2)).narrow()


def _sine(r: Number) -> Number:
    square = r * r
    return (square * r).fma(square.polynomial(SIN), r)


def _cosine(r: Number) -> Number:
    square = r * r
    return (square * square).fma(square.polynomial(COS), square.fma(-0.5, 1.0))


def _turn(quadrant: Number, r: Number) -> Number:
    """sin(quadrant pi/2 + r)."""
    odd, negative = (quadrant & 1).eq(1), (quadrant & 2) << 30
    value = odd.choose(_cosine(r), _sine(r))
    return (value.bits() ^ negative).as_float()


def sin(x: Number) -> Number:
    return _turn(*_quadrant(x))


def cos(x: Number) -> Number:
    quadrant, r = _quadrant(x)
    return _turn(quadrant + 1, r)


def tan(x: Number) -> Number:
    quadrant, r = _quadrant(x)
    odd = (quadrant & 1).eq(1)
    s, c = _sine(r), _cosine(r)
    return odd.choose(-c, s) / odd.choose(s, c)


def atan(x: Number) -> Number:
    """Beyond 1, pi/2 - atan(1/|x|)."""
    a = x.magnitude()
    beyond = a > 1.0
    r = beyond.choose(1.0 / a, a)
    square = r * r
    near = (square * r).fma(square.polynomial(ATAN), r)
    return beyond.choose(math.pi / 2 - near, near).with_sign_of(x)


def _arcsine_near(r: Number) -> Number:
    square = r * r
    return (square * r).fma(square.polynomial(ASIN), r)


def asin(x: Number) -> Number:
    """Beyond 1/2, pi/2 - 2 asin(sqrt((1 - |x|) / 2))."""
    a = x.magnitude()
    beyond = a > 0.5
    value = _arcsine_near(beyond.choose(((1.0 - a) * 0.5).sqrt(), a))
    return beyond.choose(value.fma(-2.0, math.pi / 2), value).with_sign_of(x)


def acos(x: Number) -> Number:
    a = x.magnitude()
    beyond = a > 0.5
    value = _arcsine_near(beyond.choose(((1.0 - a) * 0.5).sqrt(), a))
    twice = value + value
    far = (x < 0.0).choose(math.pi - twice, twice)
    return beyond.choose(far, math.pi / 2 - value.with_sign_of(x))
