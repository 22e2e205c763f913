"""Fourier transforms and what goes with them. Lengths are known when shapes are, so a transform is
a contraction with a constant matrix of cosines and sines, and windows are constants.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tilewright.dtypes import DType, from_onnx
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Expr
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import fail, normalize_axis, reshape_to, view
from tilewright.ops.registry import host_op, op
from tilewright.ops.tensor import Constant, Tensor, compute, constant, known, known_ints

LARGEST = 2048 * 2048  # samples times frequencies up to which a product with a matrix will do

Array = np.ndarray


@dataclass(frozen=True)
class Transform:
    """A discrete Fourier transform of `samples` along `axis`, checked."""

    axis: int
    samples: int
    parts: int  # 1: the operand is real; 2: it is complex
    inverse: bool
    onesided: bool

    @property
    def real_result(self) -> bool:
        return self.inverse and self.onesided

    @property
    def outputs(self) -> int:
        """How many frequencies (or, of an inverse transform, samples) the result has."""
        half = self.onesided and not self.inverse
        return self.samples // 2 + 1 if half else self.samples


def _transform(
    shape: Sequence[int], length: int | None, axis: int | None, inverse: int, onesided: int
) -> Transform:
    """The transform of an operand of this shape."""
    given = -2 if axis is None else axis
    at = normalize_axis(given, len(shape))
    if len(shape) < 2 or at == len(shape) - 1 or shape[-1] not in (1, 2):
        raise fail(f"shape {tuple(shape)} cannot be transformed along axis {given}")
    if onesided and shape[-1] == (1 if inverse else 2):
        raise fail("a onesided transform has real numbers on one side, complex ones on the other")
    extent = 2 * (shape[at] - 1) if inverse and onesided else shape[at]
    n = extent if length is None else length
    if n < 1:
        raise fail(f"a transform of {n} samples")
    return Transform(at, n, shape[-1], bool(inverse), bool(onesided))


@op("DFT")
def dft(
    x: Tensor,
    dft_length: Tensor | None = None,
    axis: Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The discrete Fourier transform along one axis of x, whose last dimension holds the parts.

    Left to the host are long transforms, and the inverse one of complex numbers: its matrix would
    have four times the elements of a real one, and what cancels would leave more noise.
    """
    length = known_ints(dft_length)[0] if dft_length is not None else None
    given = known_ints(axis)[0] if axis is not None else None
    t = _transform(x.shape, length, given, inverse, onesided)
    used = min(t.samples, x.shape[t.axis])
    if t.inverse and not t.onesided:
        raise UnsupportedError("an inverse transform of complex numbers")
    _require_moderate(t, used, x.dtype)
    return _from_last(_transformed(_to_last(x, t.axis, used), _basis(t, used)), t.axis)


def _require_moderate(t: Transform, used: int, dtype: DType) -> None:
    """Anything but a moderate transform of floats is left to the host's fast transform."""
    if used * t.parts * t.outputs > LARGEST or not dtype.is_float:
        raise UnsupportedError(f"a transform of {t.samples} {dtype.name} samples")


@host_op("DFT")
def dft_on_host(
    x: Array,
    dft_length: Array | None = None,
    axis: Array | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Array:
    """The same, by NumPy's fast transform."""
    length = None if dft_length is None else int(dft_length.reshape(()))
    given = None if axis is None else int(axis.reshape(()))
    return _fast(x, _transform(x.shape, length, given, inverse, onesided))


def _fast(x: Array, t: Transform) -> Array:
    values = x[..., 0] if t.parts == 1 else x[..., 0] + 1j * x[..., 1]
    if t.real_result:
        return np.fft.irfft(values, t.samples, t.axis)[..., None].astype(x.dtype)
    change = np.fft.rfft if t.onesided else np.fft.ifft if t.inverse else np.fft.fft
    spectrum = change(values, t.samples, t.axis)
    return np.stack([spectrum.real, spectrum.imag], axis=-1).astype(x.dtype)


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


@lru_cache(maxsize=8)
def _basis(t: Transform, used: int) -> Array:
    """[sample, part of it, frequency, part of it]: what each part of a sample adds to the
    result."""
    n = t.samples
    steps = np.outer(np.arange(used), np.arange(t.outputs)) % n
    angle = (2 if t.inverse else -2) * np.pi / n * steps
    cos, sin = np.cos(angle), np.sin(angle)
    table = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 3, 1)[:, : t.parts]
    if t.inverse:
        table = table / n
    return _mirrored(table[..., :1], n) if t.real_result else table


def _mirrored(table: Array, n: int) -> Array:
    """The basis for a real result, whose other half of the spectrum is the conjugate of the
    first."""
    half = table[: n // 2 + 1]
    twice = np.full(len(half), 2.0)
    twice[0] = 1.0
    if n % 2 == 0 and len(half) == n // 2 + 1:
        twice[-1] = 1.0
    result = np.zeros_like(table)
    result[: len(half)] = half * twice[:, None, None, None]
    return result


def _transformed(x: Tensor, basis: Array) -> Tensor:
    """x [..., samples, parts] times the basis: [..., frequencies, parts]."""
    samples, parts, outputs, kinds = basis.shape
    matrix = constant(basis.reshape(samples * parts, outputs * kinds), x.dtype)
    rows = reshape_to(x, (*x.shape[:-2], samples * parts))

    def element(*axes: Expr) -> Expr:
        return rows[(*axes[:-2], axes[-1])] * matrix[axes[-1], axes[-2]]

    shape = (*rows.shape[:-1], matrix.shape[1])
    product = compute(shape, element, reduce=ScalarOp.ADD, over=[samples * parts])
    return reshape_to(product, (*rows.shape[:-1], outputs, kinds))


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
    given = known_ints(frame_length)[0] if frame_length is not None else None
    step = known_ints(frame_step)[0]
    t = _framed(signal.shape, step, None if window is None else window.shape, given, onesided)
    _require_moderate(t, t.samples, signal.dtype)
    outputs = 2 * t.outputs
    basis = _basis(t, t.samples).reshape(t.samples, t.parts, outputs)
    plain = constant(basis, signal.dtype)
    matrix = plain if window is None else _windowed(plain, window)
    frames = (signal.shape[1] - t.samples) // step + 1

    def element(b: Expr, f: Expr, j: Expr, k: Expr, *part: Expr) -> Expr:
        p = part[0] if part else 0
        return signal[b, f * step + k, p] * matrix[k, p, j]

    over = [t.samples] if t.parts == 1 else [t.samples, t.parts]
    shape = (signal.shape[0], frames, outputs)
    product = compute(shape, element, reduce=ScalarOp.ADD, over=over)
    return reshape_to(product, (*shape[:2], t.outputs, 2))


def _framed(
    shape: Sequence[int],
    step: int,
    window: Sequence[int] | None,
    length: int | None,
    onesided: int,
) -> Transform:
    """The transform of each frame: along axis 2 of (batch, frame, sample, part)."""
    if len(shape) != 3 or shape[2] not in (1, 2):
        raise fail(f"a signal of shape {tuple(shape)}, not (batch, length, 1 or 2)")
    default = window[0] if window else shape[1]
    n = default if length is None else length
    if not 1 <= n <= shape[1] or step < 1 or (window is not None and tuple(window) != (n,)):
        raise fail(f"frames of {n} samples every {step} in a signal of {shape[1]}")
    return _transform((shape[0], 1, n, shape[2]), n, 2, 0, onesided)


@host_op("STFT")
def stft_on_host(
    signal: Array,
    frame_step: Array,
    window: Array | None = None,
    frame_length: Array | None = None,
    *,
    onesided: int = 1,
) -> Array:
    """The same, by NumPy's fast transform."""
    given = None if frame_length is None else int(frame_length.reshape(()))
    step = int(frame_step.reshape(()))
    extent = None if window is None else window.shape
    t = _framed(signal.shape, step, extent, given, onesided)
    slid = np.lib.stride_tricks.sliding_window_view(signal, t.samples, axis=1)[:, ::step]
    frames = slid.swapaxes(2, 3)
    return _fast(frames if window is None else frames * window[:, None], t)


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
