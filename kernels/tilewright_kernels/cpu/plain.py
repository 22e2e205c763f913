"""Formulas for any float type, and libm for float64."""

from __future__ import annotations

import math
from collections.abc import Callable

from llvmlite import ir

from tilewright_kernels.cpu.values import Number

Formula = Callable[[Number], Number]


def llvm(name: str) -> Formula:
    """The intrinsic `llvm.NAME`."""
    return lambda x: x.call(name)


def libm(name: str) -> Callable[..., Number]:
    """The C function `double NAME(double, ...)`."""

    def formula(*operands: Number) -> Number:
        values = [x.value for x in operands]
        module, t = operands[0].builder.module, values[0].type
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(t, [t] * len(values)), name)
        return operands[0].of(operands[0].builder.call(function, values))

    return formula


def rsqrt(x: Number) -> Number:
    return 1.0 / x.sqrt()


def sign(x: Number) -> Number:
    return (x > 0.0).choose(1.0, (x < 0.0).choose(-1.0, x))


def maximum(x: Number, y: Number) -> Number:
    """NaN if either is NaN."""
    return x.call("maximum", y)


def minimum(x: Number, y: Number) -> Number:
    """NaN if either is NaN."""
    return x.call("minimum", y)


def remainder(x: Number, y: Number) -> Number:
    """C's fmod: the sign of x."""
    return x.of(x.builder.frem(x.value, y.value, flags=("contract",)))


def floor_mod(x: Number, y: Number) -> Number:
    """The sign of y."""
    r = remainder(x, y)
    other_sign = (r < 0.0) ^ (y < 0.0)
    shifted = (other_sign & r.compare("!=", 0.0)).choose(r + y, r)
    return r.eq(0.0).choose(r.with_sign_of(y), shifted)


def is_nan(x: Number) -> Number:
    return x.is_nan()


def is_inf(x: Number) -> Number:
    return x.magnitude().eq(math.inf)


_exp, _log1p = libm("exp"), libm("log1p")


def sigmoid_f64(x: Number) -> Number:
    """By way of e^-|x|, which keeps the relative precision of small results."""
    e = _exp(-x.magnitude())
    return (x >= 0.0).choose(1.0, e) / (e + 1.0)


def softplus_f64(x: Number) -> Number:
    """log(1 + e^x)."""
    return x.at_least(0.0) + _log1p(_exp(-x.magnitude()))
