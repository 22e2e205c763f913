"""Which stream a call's work goes into: the caller's, whatever library it comes from."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tilewright.errors import InputError
from tilewright.runtime.cuda.arrays import DeviceArray
from tilewright.runtime.cuda.device import LEGACY_STREAM

ATTRIBUTES = ("cuda_stream", "ptr", "handle")  # of PyTorch's streams, CuPy's, Numba's


def stream_handle(stream: Any) -> int:
    """The driver's number of a stream: an int, or an object of PyTorch, CuPy, Numba, cuda.core."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream or LEGACY_STREAM
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1]) or LEGACY_STREAM
    for name in ATTRIBUTES:
        if hasattr(stream, name):
            number = getattr(stream, name)
            return int(getattr(number, "value", number) or 0) or LEGACY_STREAM
    raise InputError(
        f"stream must be a number or a stream of PyTorch, CuPy or Numba, not {stream!r}"
    )


def library(value: Any) -> str:
    """The package that an object's class comes from."""
    return type(value).__module__.partition(".")[0]


def stream_behind(values: Iterable[Any]) -> int:
    """The stream that arrays on a device are used on, where the caller named none.

    PyTorch's or CuPy's current one for their arrays, that of the interface for others, otherwise
    the legacy default stream, which is also what these libraries use at first.
    """
    values = list(values)
    origins = {library(v): v for v in reversed(values)}
    if "torch" in origins and "torch" in sys.modules:
        cuda = sys.modules["torch"].cuda
        return stream_handle(cuda.current_stream(getattr(origins["torch"], "device", None)))
    if "cupy" in origins and "cupy" in sys.modules:
        return stream_handle(sys.modules["cupy"].cuda.get_current_stream())
    for value in values:
        if isinstance(value, DeviceArray):
            return value.stream
        interface = getattr(value, "__cuda_array_interface__", {})
        if interface.get("stream") is not None:
            return stream_handle(interface["stream"])
    return LEGACY_STREAM
