"""Sliding windows: what convolutions and pools share. Output o and kernel position k read input
`at(o, k)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.loops.ir import Expr
from tilewright.ops.common import fail, inside

MAX_EXTENT = 1 << 40  # beyond this, attributes are nonsense and products might leave 64 bits


@dataclass(frozen=True)
class Window:
    """One spatial dimension of a sliding window; `before` and `after` is the padding asked for."""

    extent: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    out: int

    @property
    def reach(self) -> int:
        """How far the window extends: the distance from its first to its last element, plus one."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def leaves(self) -> bool:
        """Whether some window reads outside the input."""
        last = (self.out - 1) * self.stride + self.reach - 1 - self.before
        return self.before > 0 or last >= self.extent

    def at(self, o: Expr, k: Expr) -> Expr:
        """The input position that output o reads at kernel position k."""
        position = o if self.stride == 1 else o * self.stride
        if self.kernel > 1:
            position = position + (k if self.dilation == 1 else k * self.dilation)
        return position - self.before if self.before else position


def windows(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str = "NOTSET",
    ceil_mode: bool = False,
) -> list[Window]:
    """The windows over an input of extents `spatial`, by ONNX's attributes (None where absent)."""
    rank = len(spatial)
    strides = per_dimension("strides", strides, rank, 1)
    dilations = per_dimension("dilations", dilations, rank, 1)
    kernel = per_dimension("kernel_shape", kernel, rank, 1)
    if min((*strides, *dilations, *kernel)) < 1:
        raise fail("kernel extents, strides and dilations must be positive")
    sides = both_sides(pads, rank)
    made = []
    for k, n in enumerate(spatial):
        reach = (kernel[k] - 1) * dilations[k] + 1
        before, after, out = _padding(n, reach, strides[k], sides[k], auto_pad, ceil_mode)
        if out < 1:
            raise fail(f"a window of {reach} does not fit a padded extent of {n + before + after}")
        made.append(Window(n, kernel[k], strides[k], dilations[k], before, after, out))
    return made


def _padding(
    n: int, reach: int, stride: int, sides: tuple[int, int], auto_pad: str, ceil_mode: bool
) -> tuple[int, int, int]:
    """Padding before and after, and the number of windows."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        out = -(-n // stride)
        total = max((out - 1) * stride + reach - n, 0)
        less, more = total // 2, total - total // 2
        return (less, more, out) if auto_pad == "SAME_UPPER" else (more, less, out)
    before, after = (0, 0) if auto_pad == "VALID" else sides
    room = n + before + after - reach
    if not ceil_mode or auto_pad == "VALID":
        return before, after, room // stride + 1
    out = -(-room // stride) + 1
    starts_in_padding = (out - 1) * stride >= n + before
    return before, after, out - starts_in_padding


def spatial_kernel(
    kernel_shape: Sequence[int] | None, weight_spatial: Sequence[int]
) -> tuple[int, ...]:
    """The kernel extents of a weight tensor; an attribute that says otherwise is an error."""
    actual = tuple(weight_spatial)
    if kernel_shape is not None and tuple(kernel_shape) != actual:
        raise fail(f"kernel_shape {tuple(kernel_shape)} is not that of the weights, {actual}")
    return actual


def per_dimension(
    name: str, values: Sequence[int] | None, rank: int, default: int
) -> tuple[int, ...]:
    """One integer to a spatial dimension."""
    if values is None or len(values) == 0:
        return (default,) * rank
    if len(values) != rank:
        raise fail(f"{name} has {len(values)} entries for {rank} spatial dimensions")
    if any(abs(v) > MAX_EXTENT for v in values):
        raise fail(f"{name} {tuple(values)} is out of range")
    return tuple(int(v) for v in values)


def both_sides(pads: Sequence[int] | None, rank: int) -> list[tuple[int, int]]:
    """(before, after) for each spatial dimension."""
    flat = per_dimension("pads", pads, 2 * rank, 0)
    if any(p < 0 for p in flat):
        raise fail(f"pads {flat} must not be negative")
    return list(zip(flat[:rank], flat[rank:], strict=True))


def guard(dims: Sequence[Window], positions: Sequence[Expr]) -> Expr | None:
    """The condition that a window position lies in the input; None if it always does."""
    checks = [inside(i, d.extent) for d, i in zip(dims, positions, strict=True) if d.leaves]
    if not checks:
        return None
    condition: Expr = checks[0]
    for check in checks[1:]:
        condition = condition & check
    return condition


def require_spatial(name: str, shape: Sequence[int]) -> None:
    """An error unless the shape is (batch, channels, spatial...)."""
    if len(shape) < 3:
        raise fail(f"{name} needs an operand of rank 3 or more, not of shape {tuple(shape)}")
