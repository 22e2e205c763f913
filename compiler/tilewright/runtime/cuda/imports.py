"""Arrays of other libraries on the device, taken in place and checked."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.errors import InputError
from tilewright.runtime.cuda.device import Device
from tilewright.runtime.cuda.dlpack import (
    CPU,
    CUDA,
    CUDA_HOST,
    CUDA_MANAGED,
    DEVICE_NAMES,
    Imported,
    read_capsule,
)
from tilewright.runtime.cuda.streams import stream_handle

INTERFACE = "__cuda_array_interface__"


def place_of(value: Any) -> tuple[int, int | None] | None:
    """DLPack's type and number of the device that the value is on; None if it is none's."""
    if isinstance(value, (np.ndarray, np.generic, list, tuple, int, float, str, bytes)):
        return None
    if hasattr(type(value), "__dlpack_device__"):
        kind, index = value.__dlpack_device__()
        return None if int(kind) in (CPU, CUDA_HOST) else (int(kind), int(index))
    return (CUDA, None) if hasattr(value, INTERFACE) else None


def take(device: Device, name: str, value: Any) -> Imported:
    """The array behind an input whose `place_of` is not None; the current stream may use it.

    Raises InputError, which names the input, for one that is elsewhere or not in C order.
    """
    place = place_of(value)
    assert place is not None
    kind, index = place
    if kind not in (CUDA, CUDA_MANAGED):
        where = DEVICE_NAMES.get(kind, f"a device of DLPack's type {kind}")
        raise InputError(f"input {name!r} is on {where}, but the model runs on {_name(device)}")
    if index is not None and hasattr(type(value), "__dlpack__"):
        _check_device(device, name, index if kind == CUDA else device.index)
        found = _by_dlpack(device, name, value)
    else:
        found = _by_interface(device, name, value)
    _check_order(name, found)
    return found


def _name(device: Device) -> str:
    return f"CUDA device {device.index}"


def _check_device(device: Device, name: str, index: int) -> None:
    if index != device.index:
        raise InputError(
            f"input {name!r} is on CUDA device {index}, but the model runs on {_name(device)}"
        )


def _by_dlpack(device: Device, name: str, value: Any) -> Imported:
    try:
        return read_capsule(value.__dlpack__(stream=device.stream))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"input {name!r} cannot be read in place: {error}") from None


def _by_interface(device: Device, name: str, value: Any) -> Imported:
    fields = getattr(value, INTERFACE)
    if fields.get("mask") is not None:
        raise InputError(f"input {name!r} is a masked array")
    shape, dtype = tuple(fields["shape"]), np.dtype(fields["typestr"])
    address = int(fields["data"][0] or 0)
    if prod(shape):
        owner = device.device_of(address)
        if owner is None:
            raise InputError(f"input {name!r}: {address:#x} is no address on a CUDA device")
        _check_device(device, name, owner)
    strides = fields.get("strides")
    if strides is not None:
        if any(s % dtype.itemsize for s in strides):
            raise InputError(f"input {name!r} has strides that are no multiples of its elements")
        strides = tuple(s // dtype.itemsize for s in strides)
    stream = fields.get("stream")
    if stream is not None and (handle := stream_handle(stream)) != device.stream:
        with device.on(handle):
            mark = device.mark()
        device.wait(mark)
    return Imported(address, shape, strides, dtype, (CUDA, device.index), value)


def _check_order(name: str, array: Imported) -> None:
    if array.strides is not None and not is_c_order(array.shape, array.strides):
        raise InputError(
            f"input {name!r} of shape {array.shape} is not in C order, its strides are "
            f"{array.strides} elements: pass a contiguous copy (contiguous() in PyTorch, "
            f"ascontiguousarray() in CuPy)"
        )


def is_c_order(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether an array with these strides, in elements, has no gaps and the last axis fastest."""
    expected = 1
    for extent, step in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and step != expected:
            return prod(shape) == 0
        expected *= extent
    return True
