"""Scalar functions for kernels, by element type: `exp_f32`, `exp_f64`.

Those for float32 are straight formulas, so LLVM vectorises loops that call them (`mod` and
`floor_mod` call libm); most of those for float64 are libm's. All take infinities, NaN and denormals
as IEEE arithmetic does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types

from tilewright_kernels.cpu import exponentials, plain, rational, trigonometry
from tilewright_kernels.cpu.intrinsics import intrinsic
from tilewright_kernels.cpu.plain import libm, llvm
from tilewright_kernels.cpu.values import Number

# The largest error of the float32 functions, in units of the last place of the exact result,
# with FMA instructions or without.
ACCURACY: dict[str, float] = {
    "reciprocal": 0.5,
    "exp": 1.1,
    "exp2": 1.1,
    "expm1": 1.5,
    "log": 0.9,
    "log1p": 1.6,
    "sqrt": 0.5,
    "rsqrt": 1.6,
    "tanh": 2.8,
    "sigmoid": 2.8,
    "softplus": 2.1,
    "erf": 2.6,
    "sin": 1.7,
    "cos": 1.7,
    "tan": 4.0,
    "asin": 2.4,
    "acos": 1.4,
    "atan": 2.2,
    "sinh": 1.8,
    "cosh": 1.5,
    "asinh": 2.1,
    "acosh": 2.8,
    "atanh": 2.6,
    "pow": 0.6,
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


def _one_argument(formula: Formula, argument: Any, result: Any) -> Any:
    @intrinsic
    def function(typing: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return formula(Number(builder, values[0])).value

        return result(argument), emit

    return function


def _two_arguments(formula: Formula, argument: Any, result: Any) -> Any:
    @intrinsic
    def function(typing: Any, x: Any, y: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return formula(*(Number(builder, v) for v in values)).value

        return result(argument, argument), emit

    return function


def _unary(single: Formula, double: Formula) -> tuple[Any, Any]:
    """The functions for float32 and float64."""
    f32, f64 = types.float32, types.float64
    return _one_argument(single, f32, f32), _one_argument(double, f64, f64)


def _binary(single: Formula, double: Formula) -> tuple[Any, Any]:
    """The functions for float32 and float64."""
    f32, f64 = types.float32, types.float64
    return _two_arguments(single, f32, f32), _two_arguments(double, f64, f64)


def _test(formula: Formula) -> tuple[Any, Any]:
    """The predicates for float32 and float64."""
    truth = types.boolean
    return _one_argument(formula, types.float32, truth), _one_argument(
        formula, types.float64, truth
    )


reciprocal_f32, reciprocal_f64 = _unary(lambda x: 1.0 / x, lambda x: 1.0 / x)
exp_f32, exp_f64 = _unary(exponentials.exp, libm("exp"))
exp2_f32, exp2_f64 = _unary(exponentials.exp2, libm("exp2"))
expm1_f32, expm1_f64 = _unary(exponentials.expm1, libm("expm1"))
log_f32, log_f64 = _unary(exponentials.log, libm("log"))
log1p_f32, log1p_f64 = _unary(exponentials.log1p, libm("log1p"))
sqrt_f32, sqrt_f64 = _unary(llvm("sqrt"), llvm("sqrt"))
rsqrt_f32, rsqrt_f64 = _unary(plain.rsqrt, plain.rsqrt)
tanh_f32, tanh_f64 = _unary(exponentials.tanh, libm("tanh"))
sigmoid_f32, sigmoid_f64 = _unary(exponentials.sigmoid, plain.sigmoid_f64)
rational_sigmoid_f32, rational_sigmoid_f64 = _unary(rational.sigmoid, plain.sigmoid_f64)
rational_tanh_f32, rational_tanh_f64 = _unary(rational.tanh, libm("tanh"))
softplus_f32, softplus_f64 = _unary(exponentials.softplus, plain.softplus_f64)
erf_f32, erf_f64 = _unary(exponentials.erf, libm("erf"))
sin_f32, sin_f64 = _unary(trigonometry.sin, libm("sin"))
cos_f32, cos_f64 = _unary(trigonometry.cos, libm("cos"))
tan_f32, tan_f64 = _unary(trigonometry.tan, libm("tan"))
asin_f32, asin_f64 = _unary(trigonometry.asin, libm("asin"))
acos_f32, acos_f64 = _unary(trigonometry.acos, libm("acos"))
atan_f32, atan_f64 = _unary(trigonometry.atan, libm("atan"))
sinh_f32, sinh_f64 = _unary(exponentials.sinh, libm("sinh"))
cosh_f32, cosh_f64 = _unary(exponentials.cosh, libm("cosh"))
asinh_f32, asinh_f64 = _unary(exponentials.asinh, libm("asinh"))
acosh_f32, acosh_f64 = _unary(exponentials.acosh, libm("acosh"))
atanh_f32, atanh_f64 = _unary(exponentials.atanh, libm("atanh"))
floor_f32, floor_f64 = _unary(llvm("floor"), llvm("floor"))
ceil_f32, ceil_f64 = _unary(llvm("ceil"), llvm("ceil"))
rint_f32, rint_f64 = _unary(llvm("rint"), llvm("rint"))
trunc_f32, trunc_f64 = _unary(llvm("trunc"), llvm("trunc"))
abs_f32, abs_f64 = _unary(llvm("fabs"), llvm("fabs"))
sign_f32, sign_f64 = _unary(plain.sign, plain.sign)
isnan_f32, isnan_f64 = _test(plain.is_nan)
isinf_f32, isinf_f64 = _test(plain.is_inf)

pow_f32, pow_f64 = _binary(exponentials.power, libm("pow"))
maximum_f32, maximum_f64 = _binary(plain.maximum, plain.maximum)
minimum_f32, minimum_f64 = _binary(plain.minimum, plain.minimum)
mod_f32, mod_f64 = _binary(plain.remainder, plain.remainder)
floor_mod_f32, floor_mod_f64 = _binary(plain.floor_mod, plain.floor_mod)
