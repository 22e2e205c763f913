"""Fourier transforms and what goes with them. Lengths are known when shapes are, so a transform is a
contraction with a constant matrix of cosines and sines, and windows are constants.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.dtypes import DType, from_onnx
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Expr
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, elementwise, fail, normalize_axis, reshape_to, view
from tilewright.ops.registry import op
from tilewright.ops.tensor import Constant, Tensor, compute, constant, known, known_ints

LARGEST = 2048 * 2048  # samples times frequencies up to which a product with a matrix will do

Array = np.ndarray


@op("DFT")
def dft(
    x: Tensor,
    dft_length: Tensor | None = None,
    axis: Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The discrete Fourier transform along one axis of x, whose last dimension holds the parts."""
    given = known_ints(axis)[0] if axis is not None else -2
    at = normalize_axis(given, x.rank)
    if x.rank < 2 or at == x.rank - 1 or x.shape[-1] not in (1, 2):
        raise fail(f"shape {x.shape} cannot be transformed along axis {given}")
    n = (
        known_ints(dft_length)[0]
        if dft_length is not None
        else _length(x.shape[at], inverse, onesided)
    )
    if onesided and x.shape[-1] == (1 if inverse else 2):
        raise fail("a onesided transform has real numbers on one side, complex ones on the other")
    used = min(n, x.shape[at])
    _require_moderate(n, used * x.shape[-1], x.dtype)
    basis = _basis(n, used, x.shape[-1], bool(inverse), bool(onesided))
    return _from_last(_transformed(_to_last(x, at, used), basis), at)


def _require_moderate(n: int, samples: int, dtype: DType) -> None:
    """Anything but a moderate transform of floats is left to NumPy's fast transform."""
    if n < 1 or samples * n > LARGEST or not dtype.is_float:
        raise UnsupportedError(f"a transform of {n} {dtype.name} samples")


def _length(extent: int, inverse: int, onesided: int) -> int:
    return 2 * (extent - 1) if inverse and onesided else extent


def _to_last(x: Tensor, axis: int, used: int) -> Tensor:
    """x with `used` elements of the axis, which is moved to stand before the parts."""
    kept = [k for k in range(x.rank - 1) if k != axis]
    if axis == x.rank - 2 and used == x.shape[axis]:
        return x

    def index(*i: Expr) -> list[Expr]:
        at = dict(zip([*kept, axis, x.rank - 1], i, strict=True))
        return [at[k] for k in range(x.rank)]

    return view(x, [*(x.shape[k] for k in kept), used, x.shape[-1]], index)


def _from_last(y: Tensor, axis: int) -> Tensor:
    """y with the dimension before the parts moved to the axis."""
    if axis == y.rank - 2:
        return y
    order = list(range(y.rank - 2))
    order.insert(axis, y.rank - 2)
    order.append(y.rank - 1)
    place = [order.index(k) for k in range(y.rank)]
    return view(y, [y.shape[k] for k in order], lambda *i: [i[p] for p in place])


def _basis(n: int, used: int, parts: int, inverse: bool, onesided: bool) -> Array:
    """[sample, part of it, frequency, part of it]: what each part of a sample adds to the result."""
    real_result = inverse and onesided
    outputs = n // 2 + 1 if onesided and not inverse else n
    steps = np.outer(np.arange(used), np.arange(outputs)) % n
    angle = (2 if inverse else -2) * np.pi / n * steps
    cos, sin = np.cos(angle), np.sin(angle)
    table = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 3, 1)[:, :parts]
    if inverse:
        table = table / n
    if real_result:
        table = _mirrored(table[..., :1], n)
    return table


def _mirrored(table: Array, n: int) -> Array:
    """The basis for a real result, whose other half of the spectrum is the conjugate of the first."""
    half = table[: n // 2 + 1]
    twice = np.full(len(half), 2.0)
    twice[0] = 1.0
    if n % 2 == 0 and len(half) == n // 2 + 1:
        twice[-1] = 1.0
    result = np.zeros_like(table)
    result[: len(half)] = half * twice[:, None, None, None]
    return result


def _transformed(x: Tensor, basis: Array) -> Tensor:
    """x [..., samples, parts] times the basis: [..., frequencies, parts].

    Summed in float64: a sum over all samples is less accurate than the few sums of a fast transform.
    """
    samples, parts, outputs, kinds = basis.shape
    matrix = constant(basis.reshape(samples * parts, outputs * kinds), DType.F64)
    wide = elementwise(lambda v: cast(DType.F64, v), x)
    rows = reshape_to(wide, (*x.shape[:-2], samples * parts))

    def element(*axes: Expr) -> Expr:
        return rows[(*axes[:-2], axes[-1])] * matrix[axes[-1], axes[-2]]

    shape = (*rows.shape[:-1], matrix.shape[1])
    product = compute(shape, element, reduce=ScalarOp.ADD, over=[samples * parts])
    narrow = elementwise(lambda v: cast(x.dtype, v), product)
    return reshape_to(narrow, (*rows.shape[:-1], outputs, kinds))


@op("STFT")
def stft(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """The Fourier transforms of windows that slide over a signal (batch, length, parts)."""
    if signal.rank != 3 or signal.shape[-1] not in (1, 2):
        raise fail(f"a signal of shape {signal.shape}, not (batch, length, 1 or 2)")
    batch, length, parts = signal.shape
    default = window.shape[0] if window is not None else length
    n = known_ints(frame_length)[0] if frame_length is not None else default
    step = known_ints(frame_step)[0]
    if n < 1 or n > length or step < 1 or (window is not None and window.shape != (n,)):
        raise fail(f"frames of {n} samples every {step} in a signal of {length}")
    if onesided and parts == 2:
        raise fail("a onesided transform needs a real signal")
    _require_moderate(n, n * parts, signal.dtype)
    basis = _basis(n, n, parts, False, bool(onesided))
    outputs = basis.shape[2] * 2
    plain = constant(basis.reshape(n, parts, outputs), signal.dtype)
    matrix = plain if window is None else _windowed(plain, window)
    frames = (length - n) // step + 1

    def real(b: Expr, f: Expr, j: Expr, k: Expr) -> Expr:
        return signal[b, f * step + k, 0] * matrix[k, 0, j]

    def both(b: Expr, f: Expr, j: Expr, k: Expr, p: Expr) -> Expr:
        return signal[b, f * step + k, p] * matrix[k, p, j]

    over = [n] if parts == 1 else [n, parts]
    shape = (batch, frames, outputs)
    product = compute(shape, real if parts == 1 else both, reduce=ScalarOp.ADD, over=over)
    return reshape_to(product, (batch, frames, outputs // 2, 2))


def _windowed(matrix: Constant, window: Tensor) -> Tensor:
    if isinstance(window, Constant):
        return constant(matrix.value * window.value[:, None, None], matrix.dtype)
    return compute(matrix.shape, lambda k, p, j: matrix[k, p, j] * window[k])


def _cosines(*weights: float) -> Callable[[Array], Array]:
    """The sum of weights[k] * cos(2 pi k t)."""
    return lambda t: np.sum([w * np.cos(2 * np.pi * k * t) for k, w in enumerate(weights)], axis=0)


_HANN = _cosines(0.5, -0.5)
_HAMMING = _cosines(25 / 46, -21 / 46)
_BLACKMAN = _cosines(0.42, -0.5, 0.08)


def _window(
    size: Tensor, shape: Callable[[Array], Array], periodic: int, output_datatype: int
) -> Constant:
    """A window function at `size` points: of one period, or with equal ends."""
    n = known_ints(size)[0]
    if n < 0:
        raise fail(f"a window of {n} points")
    period = n if periodic else n - 1
    return constant(shape(np.arange(n) / max(period, 1)), from_onnx(output_datatype))


@op("HannWindow")
def hann_window(
    size: Tensor, *, output_datatype: int = DType.F32.onnx, periodic: int = 1
) -> Tensor:
    return _window(size, _HANN, periodic, output_datatype)


@op("HammingWindow")
def hamming_window(
    size: Tensor, *, output_datatype: int = DType.F32.onnx, periodic: int = 1
) -> Tensor:
    return _window(size, _HAMMING, periodic, output_datatype)


@op("BlackmanWindow")
def blackman_window(
    size: Tensor, *, output_datatype: int = DType.F32.onnx, periodic: int = 1
) -> Tensor:
    return _window(size, _BLACKMAN, periodic, output_datatype)


@op("MelWeightMatrix")
def mel_weight_matrix(
    num_mel_bins: Tensor,
    dft_length: Tensor,
    sample_rate: Tensor,
    lower_edge_hertz: Tensor,
    upper_edge_hertz: Tensor,
    *,
    output_datatype: int = DType.F32.onnx,
) -> Tensor:
    """[frequency, mel bin]: triangles that overlap, equally wide on the mel scale."""
    bins, n, rate = (known_ints(t)[0] for t in (num_mel_bins, dft_length, sample_rate))
    edges = [float(known(t).reshape(())) for t in (lower_edge_hertz, upper_edge_hertz)]
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in edges)
    if bins < 1 or n < 1 or rate < 1:
        raise fail(f"{bins} bins for {n} samples at {rate} hertz")
    mel = low + np.arange(bins + 2) * (high - low) / (bins + 2)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    corners = ((n + 1) * hertz // rate).astype(np.int64)
    if corners.min() < 0 or corners[:-1].max() > n // 2:
        raise fail(f"the edges {edges} are not in a spectrum of {rate} hertz")
    columns = [_triangle(n // 2 + 1, corners[k : k + 3]) for k in range(bins)]
    return constant(np.stack(columns, axis=1), from_onnx(output_datatype))


def _triangle(count: int, corners: Sequence[int]) -> Array:
    """A weight that rises from the first corner to one at the second and falls to the third."""
    left, peak, right = (int(c) for c in corners)
    at = np.arange(count)
    rising = (at - left) / (peak - left) if peak > left else (at == peak).astype(np.float64)
    falling = (right - at) / (right - peak) if right > peak else np.zeros(count)
    return np.where((at >= left) & (at <= peak), rising, 0.0) + np.where(
        (at > peak) & (at < right), falling, 0.0
    )
