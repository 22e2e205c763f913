"""Pad: zeros, a given value, the edge, a mirror image or a repetition around a tensor.

Source: https://onnx.ai/onnx/operators/onnx__Pad.html
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.loops.ir import Expr, Operand, index_const
from tilewright.ops.common import fail, maximum, minimum, normalize_axis, select, view
from tilewright.ops.registry import op
from tilewright.ops.slicing import window
from tilewright.ops.tensor import Constant, Tensor, compute, known_ints


@op("Pad")
def pad(
    x: Tensor,
    pads: Tensor,
    constant_value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """x with elements added before and after, or taken away where a pad is negative."""
    before, after = _amounts(x, known_ints(pads), None if axes is None else known_ints(axes))
    for k in range(x.rank):
        left, right = max(-before[k], 0), max(-after[k], 0)
        if left + right > x.shape[k]:
            raise fail(f"pads {before[k]} and {after[k]} leave less than nothing of {x.shape}")
        x = window(x, k, left, x.shape[k] - left - right)
    before, after = [max(b, 0) for b in before], [max(a, 0) for a in after]
    if not any(before) and not any(after):
        return x
    shape = [n + b + a for n, b, a in zip(x.shape, before, after, strict=True)]
    if mode == "constant":
        return _framed(x, shape, before, after, constant_value)
    if mode not in ("reflect", "edge", "wrap"):
        raise fail(f"{mode!r} is no way to pad")
    if x.size == 0:
        if prod(shape):
            raise fail(f"mode {mode!r} cannot pad shape {x.shape}")
        return compute(shape, lambda *i: 0, dtype=x.dtype)
    sides = list(zip(x.shape, before, after, strict=True))
    return view(x, shape, lambda *i: [_source(v, *s, mode) for v, s in zip(i, sides, strict=True)])


def _amounts(
    x: Tensor, amounts: Sequence[int], axes: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """How many elements are added before and after each dimension."""
    dims = [normalize_axis(a, x.rank) for a in (range(x.rank) if axes is None else axes)]
    if len(amounts) != 2 * len(dims) or len(set(dims)) != len(dims):
        raise fail(f"{len(amounts)} pads for the axes {dims} of {x.shape}")
    before, after = [0] * x.rank, [0] * x.rank
    for k, d in enumerate(dims):
        before[d], after[d] = amounts[k], amounts[k + len(dims)]
    return before, after


def _framed(
    x: Tensor, shape: Sequence[int], before: list[int], after: list[int], value: Tensor | None
) -> Tensor:
    fill = _fill(value)
    if x.size == 0:
        return compute(shape, lambda *i: fill, dtype=x.dtype)

    def element(*i: Expr) -> Operand:
        at = [v - b if b else v for v, b in zip(i, before, strict=True)]
        low = [v >= 0 for v, b in zip(at, before, strict=True) if b]
        high = [v < n for v, n, a in zip(at, x.shape, after, strict=True) if a]
        condition, *others = [*low, *high]
        for other in others:
            condition = condition & other
        return select(condition, x[at], fill)

    return compute(shape, element)


def _fill(value: Tensor | None) -> Operand:
    """The element to pad with: a number if it is known, otherwise read when the model runs."""
    if value is None:
        return 0
    if isinstance(value, Constant) and value.dtype.is_native:
        item: Operand = value.value.reshape(-1)[0].item()
        return item
    return value[[0] * value.rank]


def _source(i: Expr, n: int, before: int, after: int, mode: str) -> Expr:
    """The element that stands at index i of a padded dimension."""
    if not before and not after:
        return i
    if n == 1:
        return index_const(0)
    at = i - before if before else i
    if mode == "edge":
        return minimum(maximum(at, 0), n - 1)
    period = n if mode == "wrap" else 2 * (n - 1)
    turned = (at + -(-before // period) * period) % period
    return turned if mode == "wrap" else minimum(turned, index_const(period) - turned)
