"""The windows of ConvTranspose: which input, if any, an output position receives from a kernel
position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.loops.ir import Expr, index_const
from tilewright.ops.common import fail, inside
from tilewright.ops.windows import Window, both_sides, per_dimension


@dataclass(frozen=True)
class Read:
    """An input position, and the condition under which it exists (None: always)."""

    position: Expr
    valid: Expr | None


@dataclass(frozen=True)
class TransposedWindow:
    """One spatial dimension: input i adds to output i * stride + k * dilation - before."""

    extent: int
    kernel: int
    stride: int
    dilation: int
    before: int
    out: int

    def read(self, o: Expr, k: Expr) -> Read:
        """The input that output o receives at kernel position k."""
        low, high = self.before - (self.kernel - 1) * self.dilation, self.out - 1 + self.before
        shift = max(0, -(low // self.stride))  # whole strides that make the dividend non-negative
        if self.stride == 1:
            shift = 0
        constant = self.before + shift * self.stride
        t = o + constant if constant else o
        if self.kernel > 1:
            t = t - (k if self.dilation == 1 else k * self.dilation)
        if self.stride == 1:
            return Read(t, None if low >= 0 and high < self.extent else inside(t, self.extent))
        position = t // self.stride - shift if shift else t // self.stride
        return Read(position, (t % self.stride).eq(0) & inside(position, self.extent))


@dataclass(frozen=True)
class Phases:
    """A dimension of a ConvTranspose as one convolution for every remainder of the output position.

    Output o is position `(o + before) // stride - first` of phase `(o + before) % stride`; in each
    phase kernel position k is `phase + stride * tap`, as far as the kernel has that many.
    """

    window: TransposedWindow

    @property
    def count(self) -> int:
        return self.window.stride

    @property
    def taps(self) -> int:
        return -(-self.window.kernel // self.count)

    @property
    def first(self) -> int:
        return self.window.before // self.count

    @property
    def out(self) -> int:
        return (self.window.out - 1 + self.window.before) // self.count - self.first + 1

    def split(self, o: Expr) -> tuple[Expr, Expr]:
        """The phase of an output position and its place there."""
        u = o + self.window.before if self.window.before else o
        if self.count == 1:
            return index_const(0), u - self.first if self.first else u
        place = u // self.count
        return u % self.count, place - self.first if self.first else place

    def kernel(self, phase: Expr, tap: Expr) -> Expr:
        """The kernel position of a tap, taps running as the input does."""
        return phase + (self.taps - 1 - tap) * self.count

    def image(self) -> Window:
        """The windows of all phases alike."""
        w = self.window
        before = (self.taps - 1) * w.dilation - self.first
        after = max(0, self.out - 1 + self.first - w.extent + 1)
        return Window(w.extent, self.taps, 1, w.dilation, before, after, self.out)


def phases(dims: Sequence[TransposedWindow]) -> list[Phases] | None:
    """The dimensions in phases; None where strides and dilations mix kernel positions."""
    if any(d.stride > 1 and d.dilation > 1 for d in dims):
        return None
    made = [Phases(d) for d in dims]
    return made if all(p.image().before >= 0 for p in made) else None


def transposed_windows(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
    auto_pad: str,
) -> list[TransposedWindow]:
    """The windows over an input of extents `spatial`, by ONNX's attributes (None where absent)."""
    rank = len(spatial)
    strides = per_dimension("strides", strides, rank, 1)
    dilations = per_dimension("dilations", dilations, rank, 1)
    extra = per_dimension("output_padding", output_padding, rank, 0)
    if min((*strides, *dilations, *kernel)) < 1 or min(extra) < 0:
        raise fail(
            "kernel extents, strides and dilations must be positive, output_padding not negative"
        )
    wanted = _wanted(spatial, strides, output_shape, auto_pad)
    sides = both_sides(pads, rank)
    made = []
    for k, n in enumerate(spatial):
        whole = (n - 1) * strides[k] + extra[k] + (kernel[k] - 1) * dilations[k] + 1
        before, out = _padding(whole, wanted[k] if wanted else None, sides[k], auto_pad)
        if out < 1:
            raise fail(f"the result would have an extent of {out}")
        made.append(TransposedWindow(n, kernel[k], strides[k], dilations[k], before, out))
    return made


def _wanted(
    spatial: Sequence[int],
    strides: Sequence[int],
    output_shape: Sequence[int] | None,
    auto_pad: str,
) -> tuple[int, ...] | None:
    """The extents asked for; `output_shape` may name batch and channels too."""
    if output_shape is not None and len(output_shape) > 0:
        return per_dimension("output_shape", output_shape[-len(spatial) :], len(spatial), 0)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(n * s for n, s in zip(spatial, strides, strict=True))
    return None


def _padding(
    whole: int, wanted: int | None, sides: tuple[int, int], auto_pad: str
) -> tuple[int, int]:
    """The padding cut off before, and the extent that remains."""
    if wanted is None:
        before, after = (0, 0) if auto_pad == "VALID" else sides
        return before, whole - before - after
    total = max(whole - wanted, 0)
    return (total // 2 if auto_pad == "SAME_UPPER" else total - total // 2), wanted
