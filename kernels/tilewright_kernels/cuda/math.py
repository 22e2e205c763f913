"""Scalar functions for kernels, by element type: `exp_f32`, `exp_f64`; the names of the CPU's.

Most are libdevice's, compiled with denormals, divisions and roots as IEEE arithmetic has them and
without fast-math. All take infinities and NaN as IEEE arithmetic does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from tilewright_kernels.cpu import plain, rational
from tilewright_kernels.cpu.values import F32, Number, Operand
from tilewright_kernels.cuda.intrinsics import intrinsic, ptx

# The largest error of the float32 functions, in units of the last place of the exact result:
# above what the CUDA Programming Guide states for libdevice and what was measured.
ACCURACY: dict[str, float] = {
    "reciprocal": 1.0,
    "exp": 2.0,
    "exp2": 2.0,
    "expm1": 1.5,
    "log": 1.0,
    "log1p": 1.0,
    "sqrt": 0.5,
    "rsqrt": 1.6,
    "tanh": 2.0,
    "sigmoid": 4.0,
    "softplus": 3.0,
    "erf": 2.0,
    "sin": 2.0,
    "cos": 2.0,
    "tan": 4.0,
    "asin": 2.0,
    "acos": 2.0,
    "atan": 2.0,
    "sinh": 3.0,
    "cosh": 2.0,
    "asinh": 3.0,
    "acosh": 4.0,
    "atanh": 3.0,
    "pow": 4.0,
    "floor": 0.0,
    "ceil": 0.0,
    "rint": 0.0,
    "trunc": 0.0,
    "abs": 0.0,
    "sign": 0.0,
    "maximum": 0.0,
    "minimum": 0.0,
    "mod": 0.0,
    "floor_mod": 0.0,
}


Formula = Callable[..., Number]


def libdevice(name: str) -> Formula:
    """The function `__nv_NAME` of libdevice, for float32 with an f at its end."""

    def formula(*operands: Number) -> Number:
        values = [x.value for x in operands]
        module, t = operands[0].builder.module, values[0].type
        symbol = f"__nv_{name}{'f' if t == F32 else ''}"
        function = module.globals.get(symbol)
        if function is None:
            function = ir.Function(module, ir.FunctionType(t, [t] * len(values)), symbol)
        return operands[0].of(operands[0].builder.call(function, values))

    return formula


@dataclass(frozen=True)
class DeviceNumber(Number):
    """A number under construction in NVVM's language, which has few of LLVM's intrinsics and no
    negation of floats. Its `fma` is always one operation."""

    def of(self, value: Any) -> Number:
        return DeviceNumber(self.builder, value)

    def call(self, name: str, *others: Operand) -> Number:
        """The function of this name in libdevice: fabs, sqrt, copysign."""
        return libdevice(name)(self, *(self.of(self.like(o)) for o in others))

    def fma(self, factor: Operand, addend: Operand) -> Number:
        return self.of(self.builder.fma(self.value, self.like(factor), self.like(addend)))

    def __neg__(self) -> Number:
        return self * -1.0 if self.is_float else super().__neg__()


_exp, _log1p, _fmod = libdevice("exp"), libdevice("log1p"), libdevice("fmod")


def _quick(name: str, of_doubles: Formula) -> Formula:
    """By one instruction for float32: 0 instead of a subnormal number."""

    def formula(x: Number) -> Number:
        if x.value.type != F32:
            return of_doubles(x)
        return x.of(ptx(x.builder, f"{name}.approx.ftz.f32 $0, $1;", [F32], [x.value])[0])

    return formula


def _rsqrt(x: Number) -> Number:
    return 1.0 / x.sqrt()


def _sigmoid(x: Number) -> Number:
    """By way of e^-|x|, which keeps the relative precision of small results."""
    e = _exp(-x.magnitude())
    return (x >= 0.0).choose(1.0, e) / (e + 1.0)


def _softplus(x: Number) -> Number:
    """log(1 + e^x)."""
    return x.at_least(0.0) + _log1p(_exp(-x.magnitude()))


def _floor_mod(x: Number, y: Number) -> Number:
    """The sign of y."""
    r = _fmod(x, y)
    other_sign = (r < 0.0) ^ (y < 0.0)
    shifted = (other_sign & r.compare("!=", 0.0)).choose(r + y, r)
    return r.eq(0.0).choose(r.with_sign_of(y), shifted)


def _order(name: str) -> Formula:
    """NaN if either is NaN; -0 is less than 0."""

    def formula(x: Number, y: Number) -> Number:
        b, t = x.builder, x.value.type
        if t == F32:
            return x.of(ptx(b, f"{name}.NaN.f32 $0, $1, $2;", [t], [x.value, y.value])[0])
        either = libdevice(f"f{name}")(x, y)
        unordered = x.of(b.fcmp_unordered("uno", x.value, y.value))
        return unordered.choose(x + y, either)

    return formula


maximum_of, minimum_of = _order("max"), _order("min")


def _function(formula: Formula, dtype: Any, arity: int, result: Any = None) -> Any:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return formula(*(DeviceNumber(builder, v) for v in values)).value

    if arity == 1:

        @intrinsic
        def one(typing: Any, x: Any) -> Any:
            return (result or dtype)(dtype), emit

        return one

    @intrinsic
    def two(typing: Any, x: Any, y: Any) -> Any:
        return dtype(dtype, dtype), emit

    return two


def _unary(formula: Formula, result: Any = None) -> tuple[Any, Any]:
    """The functions for float32 and float64."""
    f32, f64 = types.float32, types.float64
    return _function(formula, f32, 1, result), _function(formula, f64, 1, result)


def _binary(formula: Formula) -> tuple[Any, Any]:
    """The functions for float32 and float64."""
    return _function(formula, types.float32, 2), _function(formula, types.float64, 2)


exp_f32, exp_f64 = _unary(libdevice("exp"))
exp2_f32, exp2_f64 = _unary(_quick("ex2", libdevice("exp2")))
reciprocal_f32, reciprocal_f64 = _unary(_quick("rcp", lambda x: 1.0 / x))
expm1_f32, expm1_f64 = _unary(libdevice("expm1"))
log_f32, log_f64 = _unary(libdevice("log"))
log1p_f32, log1p_f64 = _unary(libdevice("log1p"))
sqrt_f32, sqrt_f64 = _unary(libdevice("sqrt"))
rsqrt_f32, rsqrt_f64 = _unary(_rsqrt)
tanh_f32, tanh_f64 = _unary(libdevice("tanh"))
sigmoid_f32, sigmoid_f64 = _unary(_sigmoid)
rational_sigmoid_f32 = _function(rational.sigmoid, types.float32, 1)
rational_sigmoid_f64 = sigmoid_f64
rational_tanh_f32, rational_tanh_f64 = _function(rational.tanh, types.float32, 1), tanh_f64
softplus_f32, softplus_f64 = _unary(_softplus)
erf_f32, erf_f64 = _unary(libdevice("erf"))
sin_f32, sin_f64 = _unary(libdevice("sin"))
cos_f32, cos_f64 = _unary(libdevice("cos"))
tan_f32, tan_f64 = _unary(libdevice("tan"))
asin_f32, asin_f64 = _unary(libdevice("asin"))
acos_f32, acos_f64 = _unary(libdevice("acos"))
atan_f32, atan_f64 = _unary(libdevice("atan"))
sinh_f32, sinh_f64 = _unary(libdevice("sinh"))
cosh_f32, cosh_f64 = _unary(libdevice("cosh"))
asinh_f32, asinh_f64 = _unary(libdevice("asinh"))
acosh_f32, acosh_f64 = _unary(libdevice("acosh"))
atanh_f32, atanh_f64 = _unary(libdevice("atanh"))
floor_f32, floor_f64 = _unary(libdevice("floor"))
ceil_f32, ceil_f64 = _unary(libdevice("ceil"))
rint_f32, rint_f64 = _unary(libdevice("rint"))
trunc_f32, trunc_f64 = _unary(libdevice("trunc"))
abs_f32, abs_f64 = _unary(libdevice("fabs"))
sign_f32, sign_f64 = _unary(plain.sign)
isnan_f32, isnan_f64 = _unary(plain.is_nan, types.boolean)
isinf_f32, isinf_f64 = _unary(plain.is_inf, types.boolean)

pow_f32, pow_f64 = _binary(libdevice("pow"))
maximum_f32, maximum_f64 = _binary(maximum_of)
minimum_f32, minimum_f64 = _binary(minimum_of)
mod_f32, mod_f64 = _binary(_fmod)
floor_mod_f32, floor_mod_f64 = _binary(_floor_mod)
