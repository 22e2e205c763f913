"""What classical models do with their scores: transforms into probabilities, and the choice of a
label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Expr, apply, index_const
from tilewright.loops.scalars import ScalarOp, identity
from tilewright.ops.common import cast, fail, maximum, minimum, select
from tilewright.ops.tensor import Tensor, compute, constant

NEAR_ZERO = 1e-7  # SOFTMAX_ZERO leaves scores closer to zero than this where they are


def post_transformed(scores: Tensor, transform: str) -> Tensor:
    """The scores [row, class] after one of ai.onnx.ml's transforms."""
    match transform:
        case "NONE" | "":
            return scores
        case "LOGISTIC":
            return compute(scores.shape, lambda *i: apply(ScalarOp.SIGMOID, scores[i]))
        case "SOFTMAX" | "SOFTMAX_ZERO":
            return _softmax(scores, transform == "SOFTMAX_ZERO")
        case "PROBIT":
            return compute(scores.shape, lambda *i: _probit(scores[i]))
    raise fail(f"post_transform {transform!r} is unknown")


def _softmax(scores: Tensor, keep_zero: bool) -> Tensor:
    rows, classes = scores.shape
    greatest = compute((rows,), lambda n, c: scores[n, c], reduce=ScalarOp.MAX, over=[classes])

    def power(n: Expr, c: Expr) -> Expr:
        value = scores[n, c]
        exponential = apply(ScalarOp.EXP, value - greatest[n])
        if not keep_zero:
            return exponential
        far = apply(ScalarOp.ABS, value) > NEAR_ZERO
        return select(far, exponential, value * apply(ScalarOp.EXP, -greatest[n]))

    powers = compute(scores.shape, power)
    total = compute((rows,), lambda n, c: powers[n, c], reduce=ScalarOp.ADD, over=[classes])
    if not keep_zero:
        return compute(scores.shape, lambda n, c: powers[n, c] / total[n])
    return compute(scores.shape, lambda n, c: select(total[n].eq(0), 0.5, powers[n, c] / total[n]))


def _probit(p: Expr) -> Expr:
    """The quantile of the normal distribution, by Winitzki's approximation of the inverse error
    function.
    """
    x = p * 2 - 1
    log = apply(ScalarOp.LOG, (1 - x) * (x + 1))
    half = log * 0.5 + 2 / (math.pi * 0.147)
    root = apply(ScalarOp.SQRT, apply(ScalarOp.SQRT, half * half - log * (1 / 0.147)) - half)
    return select(x < 0, -root, root) * math.sqrt(2.0)


def labels_of(scores: Tensor, labels: Sequence[int]) -> Tensor:
    """The label of the first greatest score of each row."""
    rows, classes = scores.shape
    table = constant(np.array(labels, np.int64))
    if table.size != classes:
        raise fail(f"{table.size} labels for {classes} classes")
    greatest = compute((rows,), lambda n, c: scores[n, c], reduce=ScalarOp.MAX, over=[classes])
    nowhere = int(identity(ScalarOp.MIN, DType.I64))
    first = compute(
        (rows,),
        lambda n, c: select(scores[n, c].eq(greatest[n]), c, nowhere),
        reduce=ScalarOp.MIN,
        over=[classes],
    )
    return compute((rows,), lambda n: table[minimum(maximum(first[n], 0), classes - 1)])


def binary_scores(
    sums: Tensor,
    scored: int,
    base: np.ndarray | Sequence[float],
    positive: bool,
    transform: str,
    labels: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Label and both scores of two classes of which only class `scored` has a sum. Weights that are
    all positive make it a probability, others a margin.
    """
    bases = np.asarray(base).ravel()
    if transform not in ("NONE", "LOGISTIC", "") or bases.size > 2:
        raise UnsupportedError(f"two classes with one score and post_transform {transform!r}")
    offset = float(bases[-1]) if bases.size else 0.0
    score = compute(sums.shape[:1], lambda n: cast(DType.F32, sums[n, scored]) + offset)
    limit = 0.5 if positive else 0.0
    label = compute(
        score.shape,
        lambda n: select(score[n] > limit, index_const(labels[1]), index_const(labels[0])),
    )

    def both(n: Expr, c: Expr) -> Expr:
        if positive and transform != "LOGISTIC":
            return select(c.eq(0), 1 - score[n], score[n])
        margin = select(c.eq(0), -score[n], score[n])
        return apply(ScalarOp.SIGMOID, margin) if transform == "LOGISTIC" else margin

    return label, compute((sums.shape[0], 2), both)
