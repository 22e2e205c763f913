"""The activation functions that LSTM, GRU and RNN name in their attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.loops.ir import Expr, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import fail, maximum, minimum, select

Function = Callable[[Expr], Expr]
Parametric = Callable[[Expr, float, float], Expr]


def _softplus(x: Expr, _a: float, _b: float) -> Expr:
    return maximum(x, 0) + apply(ScalarOp.LOG1P, apply(ScalarOp.EXP, -apply(ScalarOp.ABS, x)))


# name: (which of alpha and beta it takes, their defaults, meaning)
_RATIONAL: dict[str, Parametric] = {
    "tanh": lambda x, a, b: apply(ScalarOp.RATIONAL_TANH, x),
    "sigmoid": lambda x, a, b: apply(ScalarOp.RATIONAL_SIGMOID, x),
}
_FUNCTIONS: dict[str, tuple[int, tuple[float, float], Parametric]] = {
    "relu": (0, (0, 0), lambda x, a, b: maximum(x, 0)),
    "tanh": (0, (0, 0), lambda x, a, b: apply(ScalarOp.TANH, x)),
    "sigmoid": (0, (0, 0), lambda x, a, b: apply(ScalarOp.SIGMOID, x)),
    "affine": (2, (1, 0), lambda x, a, b: x * a + b),
    "leakyrelu": (1, (0.01, 0), lambda x, a, b: select(x < 0, x * a, x)),
    "thresholdedrelu": (1, (1, 0), lambda x, a, b: select(x > a, x, 0)),
    "scaledtanh": (2, (1, 1), lambda x, a, b: apply(ScalarOp.TANH, x * b) * a),
    "hardsigmoid": (2, (0.2, 0.5), lambda x, a, b: minimum(maximum(x * a + b, 0), 1)),
    "elu": (1, (1, 0), lambda x, a, b: select(x < 0, apply(ScalarOp.EXPM1, x) * a, x)),
    "softsign": (0, (0, 0), lambda x, a, b: x / (apply(ScalarOp.ABS, x) + 1)),
    "softplus": (0, (0, 0), _softplus),
}


def gate_functions(
    names: Sequence[str],
    alpha: Sequence[float] | None,
    beta: Sequence[float] | None,
    clip: float | None,
    *,
    rational: bool = False,
) -> list[Function]:
    """The named functions, their inputs clipped. Functions that take an alpha or beta draw them in
    order. `rational` asks for sigmoid and tanh in the bits that other runtimes have.
    """
    alphas, betas = list(alpha or ()), list(beta or ())
    functions = []
    for name in names:
        found = _FUNCTIONS.get(name.lower())
        if found is None:
            raise fail(f"{name!r} is no activation function of a recurrent operator")
        takes, (a, b), meaning = found
        if rational:
            meaning = _RATIONAL.get(name.lower(), meaning)
        a = alphas.pop(0) if takes > 0 and alphas else a
        b = betas.pop(0) if takes > 1 and betas else b
        functions.append(_bound(meaning, float(a), float(b), clip))
    return functions


def _bound(meaning: Parametric, a: float, b: float, clip: float | None) -> Function:
    if clip is None or clip <= 0:
        return lambda x: meaning(x, a, b)
    return lambda x: meaning(minimum(maximum(x, -clip), clip), a, b)
