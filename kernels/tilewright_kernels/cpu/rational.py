"""Sigmoid and tanh as quotients of polynomials, to the bits of the other runtimes that use them.

The coefficients are those that Eigen and ONNX Runtime share; every step is one fused operation.
Results are right to 3e-7, but small ones of the sigmoid have no relative precision.
"""

from __future__ import annotations

from tilewright_kernels.cpu.values import Number

# Numerators in x^2, to be multiplied by x, and denominators; highest power first.
SIGMOID = (
    (
        4.37031012579801e-11,
        1.15627324459942e-07,
        6.08574864600143e-05,
        8.51377133304701e-03,
        2.48287947061529e-01,
    ),
    (
        6.10247389755681e-13,
        5.76102136993427e-09,
        6.29106785017040e-06,
        1.70198817374094e-03,
        1.16817656904453e-01,
        9.93151921023180e-01,
    ),
)
TANH = (
    (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ),
    (
        1.19825839466702e-06,
        1.18534705686654e-04,
        2.26843463243900e-03,
        4.89352518554385e-03,
    ),
)
Quotient = tuple[tuple[float, ...], tuple[float, ...]]


def _odd(x: Number, quotient: Quotient) -> Number:
    square = x * x
    above, below = (square.polynomial(part) for part in quotient)
    return above * x / below


def sigmoid(x: Number) -> Number:
    held = x.at_least(-18.0).at_most(18.0)
    return (_odd(held, SIGMOID) + 0.5).at_least(0.0).at_most(1.0)


def tanh(x: Number) -> Number:
    return _odd(x.at_least(-9.0).at_most(9.0), TANH)
