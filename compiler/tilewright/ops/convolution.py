"""Conv, ConvTranspose and DeformConv in any number of spatial dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypedDict, Unpack

from tilewright.loops.ir import Expr, index_const
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, fail, select
from tilewright.ops.registry import op
from tilewright.ops.sampling import corners
from tilewright.ops.tensor import Compute, Tensor, compute
from tilewright.ops.transposed import Phases, TransposedWindow, phases, transposed_windows
from tilewright.ops.windows import Window, guard, require_spatial, spatial_kernel, windows


class WindowAttributes(TypedDict, total=False):
    """Where the windows of a convolution lie, as ONNX names it."""

    auto_pad: str
    dilations: Sequence[int] | None
    kernel_shape: Sequence[int] | None
    pads: Sequence[int] | None
    strides: Sequence[int] | None


@op("Conv")
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    group: int = 1,
    **attributes: Unpack[WindowAttributes],
) -> Tensor:
    """A convolution (correlation) of (N, C, spatial...) with (M, C / group, kernel...).

    https://onnx.ai/onnx/operators/onnx__Conv.html
    """
    require_spatial("Conv", x.shape)
    dims = conv_windows(x, w, **attributes)
    return add_bias(convolve(x, w, dims, group), b)


def conv_windows(
    x: Tensor,
    w: Tensor,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> list[Window]:
    """The windows of a convolution."""
    if w.rank != x.rank:
        raise fail(f"weights of shape {w.shape} do not fit an input of shape {x.shape}")
    kernel = spatial_kernel(kernel_shape, w.shape[2:])
    return windows(x.shape[2:], kernel, strides, dilations, pads, auto_pad)


def convolve(x: Tensor, w: Tensor, dims: Sequence[Window], group: int) -> Compute:
    """The sum over a group's input channels and the kernel of x * w."""
    inputs, outputs = w.shape[1], w.shape[0]
    check_groups(x.shape[1], inputs, outputs, group)
    rank = len(dims)

    def element(n: Expr, oc: Expr, *axes: Expr) -> Expr:
        out, ic, kernel = axes[:rank], axes[rank], axes[rank + 1 :]
        c = group_channel(oc, ic, group, inputs, outputs // group)
        positions = [d.at(o, k) for d, o, k in zip(dims, out, kernel, strict=True)]
        loaded: Expr = x[(n, c, *positions)]
        condition = guard(dims, positions)
        if condition is not None:
            loaded = select(condition, loaded, 0)
        return loaded * w[(oc, ic, *kernel)]

    shape = (x.shape[0], outputs, *(d.out for d in dims))
    over = [inputs, *(d.kernel for d in dims)]
    return compute(shape, element, reduce=ScalarOp.ADD, over=over, channels_last=True)


def check_groups(channels: int, inputs: int, outputs: int, group: int) -> None:
    """An error unless `channels` are `group` times `inputs`, and the outputs divide evenly."""
    if group < 1 or inputs * group != channels or outputs % group or outputs == 0:
        raise fail(
            f"{channels} channels and weights for {inputs} to {outputs} do not fit {group} groups"
        )


def group_channel(oc: Expr, ic: Expr, group: int, inputs: int, outputs: int) -> Expr:
    """The input channel of output channel oc; a group has `inputs` and `outputs` channels."""
    if group == 1:
        return ic
    first = oc if outputs == 1 else oc // outputs
    return first if inputs == 1 else first * inputs + ic


def add_bias(y: Tensor, b: Tensor | None) -> Tensor:
    """y + b along the channels."""
    if b is None:
        return y
    if b.shape != (y.shape[1],):
        raise fail(f"a bias of shape {b.shape} does not fit {y.shape[1]} channels")
    return compute(y.shape, lambda *i: y[i] + b[i[1]])


@op("ConvTranspose")
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The gradient of a convolution: (N, C, spatial...) with (C, M / group, kernel...).

    https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    require_spatial("ConvTranspose", x.shape)
    if w.rank != x.rank or w.shape[0] != x.shape[1]:
        raise fail(f"weights of shape {w.shape} do not fit an input of shape {x.shape}")
    kernel = spatial_kernel(kernel_shape, w.shape[2:])
    dims = transposed_windows(
        x.shape[2:], kernel, strides, dilations, pads, output_padding, output_shape, auto_pad
    )
    split = phases(dims)
    found = _transposed(x, w, dims, group) if split is None else _in_phases(x, w, split, group)
    return add_bias(found, b)


def _in_phases(x: Tensor, w: Tensor, dims: Sequence[Phases], group: int) -> Tensor:
    """One convolution whose channels are (group, phases..., output of the group), then sorted."""
    if group < 1 or x.shape[1] % group:
        raise fail(f"{x.shape[1]} channels do not split into {group} groups")
    inputs, share = x.shape[1] // group, w.shape[1]
    counts = [d.count for d in dims]

    def weight(m: Expr, i: Expr, *taps: Expr) -> Expr:
        rest, digits = m // share, []
        for n in reversed(counts):
            digits.append(rest % n)
            rest = rest // n
        kernel = [d.kernel(p, t) for d, p, t in zip(dims, reversed(digits), taps, strict=True)]
        value: Expr = w[(rest * inputs + i, m % share, *kernel)]
        for d, k in zip(dims, kernel, strict=True):
            if d.taps * d.count > d.window.kernel:
                value = select(k < d.window.kernel, value, 0)
        return value

    channels = group * prod(counts) * share
    weights = compute((channels, inputs, *(d.taps for d in dims)), weight)
    sums = convolve(x, weights, [d.image() for d in dims], group)

    def element(n: Expr, oc: Expr, *out: Expr) -> Expr:
        split = [d.split(o) for d, o in zip(dims, out, strict=True)]
        m: Expr = oc // share
        for (phase, _), count in zip(split, counts, strict=True):
            m = m * count + phase
        return sums[(n, m * share + oc % share, *(place for _, place in split))]

    shape = (x.shape[0], share * group, *(d.window.out for d in dims))
    return compute(shape, element, channels_last=True)


def _transposed(x: Tensor, w: Tensor, dims: Sequence[TransposedWindow], group: int) -> Compute:
    """Each output gathers the inputs whose window covers it."""
    if group < 1 or x.shape[1] % group:
        raise fail(f"{x.shape[1]} channels do not split into {group} groups")
    inputs, outputs, rank = x.shape[1] // group, w.shape[1], len(dims)

    def element(n: Expr, oc: Expr, *axes: Expr) -> Expr:
        out, ic, kernel = axes[:rank], axes[rank], axes[rank + 1 :]
        c = group_channel(oc, ic, group, inputs, outputs)
        within = oc if group == 1 else index_const(0) if outputs == 1 else oc % outputs
        reads = [d.read(o, k) for d, o, k in zip(dims, out, kernel, strict=True)]
        loaded: Expr = x[(n, c, *(r.position for r in reads))]
        for read in reversed(reads):
            if read.valid is not None:
                loaded = select(read.valid, loaded, 0)
        return loaded * w[(c, within, *kernel)]

    shape = (x.shape[0], outputs * group, *(d.out for d in dims))
    over = [inputs, *(d.kernel for d in dims)]
    return compute(shape, element, reduce=ScalarOp.ADD, over=over, channels_last=True)


@op("DeformConv")
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A convolution whose sampling points are moved by `offset` and weighted by `mask`; between
    elements it interpolates linearly. https://onnx.ai/onnx/operators/onnx__DeformConv.html
    """
    require_spatial("DeformConv", x.shape)
    dims = conv_windows(x, w, kernel_shape, strides, dilations, pads)
    inputs, outputs, rank = w.shape[1], w.shape[0], len(dims)
    check_groups(x.shape[1], inputs, outputs, group)
    sampled = _sampled(x, offset, mask, dims, offset_group)

    def element(n: Expr, oc: Expr, *axes: Expr) -> Expr:
        out, ic, kernel = axes[:rank], axes[rank], axes[rank + 1 :]
        c = group_channel(oc, ic, group, inputs, outputs // group)
        return sampled[(n, c, *kernel, *out)] * w[(oc, ic, *kernel)]

    shape = (x.shape[0], outputs, *(d.out for d in dims))
    return add_bias(
        compute(shape, element, reduce=ScalarOp.ADD, over=[inputs, *(d.kernel for d in dims)]), b
    )


def _sampled(
    x: Tensor, offset: Tensor, mask: Tensor | None, dims: Sequence[Window], offset_group: int
) -> Compute:
    """x at the moved points: (N, C, kernel..., out...)."""
    kernel, out = [d.kernel for d in dims], [d.out for d in dims]
    points, rank = prod(kernel), len(dims)
    if offset_group < 1 or x.shape[1] % offset_group:
        raise fail(f"{x.shape[1]} channels do not split into {offset_group} offset groups")
    _check_shape("offset", offset, (x.shape[0], offset_group * points * rank, *out))
    if mask is not None:
        _check_shape("mask", mask, (x.shape[0], offset_group * points, *out))
    share = x.shape[1] // offset_group

    def element(n: Expr, c: Expr, *axes: Expr) -> Expr:
        k, o = axes[:rank], axes[rank:]
        point: Expr = c // share * points
        step = points
        for position, extent in zip(k, kernel, strict=True):
            step //= extent
            point = point + position * step
        moved = [offset[(n, point * rank + d, *o)] for d in range(rank)]
        value = corners(x, (n, c), [d.at(i, j) for d, i, j in zip(dims, o, k, strict=True)], moved)
        if mask is not None:
            value = value * cast(x.dtype.compute, mask[(n, point, *o)])
        return cast(x.dtype, value)

    return compute((*x.shape[:2], *kernel, *out), element)


def _check_shape(name: str, t: Tensor, wanted: tuple[int, ...]) -> None:
    if t.shape != wanted:
        raise fail(f"{name} has shape {t.shape}, not {wanted}")
