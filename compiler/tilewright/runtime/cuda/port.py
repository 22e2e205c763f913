"""Where arrays enter and leave a device, for one model: every copy across is made and noted here.

Streams. The work of a call goes into one stream: the one given to `run`, otherwise the current one
of the library that the first arrays on the device come from (see `streams`), otherwise one of the
device's own. Results that stay on the device are ready for whatever that stream gets later; the
call does not wait for them, unless kernels check their data. Results for the host have been waited
for. Where `stream` is not the inputs' own, they are held until it has used them, which later calls
look at; who mixes arrays of several streams in one call keeps them himself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from typing import Any

import numpy as np

from tilewright.dtypes import from_numpy
from tilewright.errors import InputError
from tilewright.graph.ir import Array
from tilewright.graph.remote import RemoteArray
from tilewright.runtime.crossings import TO_DEVICE, WITHIN, Crossings
from tilewright.runtime.cuda.arrays import DeviceArray
from tilewright.runtime.cuda.cupy_arrays import CupyArrays
from tilewright.runtime.cuda.device import VECTOR_BYTES, Device
from tilewright.runtime.cuda.imports import place_of, take
from tilewright.runtime.cuda.streams import stream_behind, stream_handle


class Port:
    """One model's way to a device; `cupy` makes its results arrays of CuPy."""

    def __init__(self, device: Device, cupy: CupyArrays | None = None) -> None:
        self.device, self.cupy = device, cupy
        self.crossings = Crossings()
        self._held: deque[tuple[Any, list[Any]]] = deque()

    @contextmanager
    def call(self, values: Sequence[Any], stream: Any) -> Iterator[bool]:
        """While entered, work goes into the call's stream; whether its results stay here."""
        remote = [v for v in values if place_of(v) is not None]
        usual = stream_behind(remote) if remote else self.device.stream
        chosen = usual if stream is None else stream_handle(stream)
        with self.device.on(chosen):
            yield bool(remote)
            if remote and chosen != usual:
                self._hold(remote)

    def _hold(self, values: list[Any]) -> None:
        """Keeps the values until the current stream has come so far."""
        for _ in range(len(self._held)):
            with suppress(IndexError):  # another thread has it
                mark, older = self._held.popleft()
                if not self.device.is_reached(mark):
                    self._held.append((mark, older))
        self._held.append((self.device.mark(), values))

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> DeviceArray:
        """An array with arbitrary elements."""
        return DeviceArray.empty(self.device, shape, dtype, self.crossings)

    def upload(self, array: Array, value: str, reason: str) -> DeviceArray:
        """A copy of an array on the host; why `value` was there is the `reason`."""
        made = self.empty(array.shape, array.dtype)
        if array.nbytes:
            self.crossings.add(TO_DEVICE, value, array.nbytes, reason)
            self.device.write(made.address, array)
        made.mark = self.device.mark()
        return made

    def read(self, name: str, value: Any) -> DeviceArray | None:
        """An input that is on the device, in place where kernels can read it; else None.

        Raises InputError for one that is on another device or cannot be used.
        """
        if type(value) is np.ndarray or place_of(value) is None:
            return None
        if isinstance(value, DeviceArray) and value.device is self.device:
            return self._again(value)
        found = take(self.device, name, value)
        _check_dtype(name, found.dtype)
        place, device = found.address, self.device
        made = DeviceArray(device, found.shape, found.dtype, place, found, self.crossings)
        if prod(found.shape) and place % VECTOR_BYTES:
            reason = f"its address is no multiple of {VECTOR_BYTES}"
            self.crossings.add(WITHIN, f"input {name!r}", made.nbytes, reason)
            return made.copy()
        return made

    def _again(self, array: DeviceArray) -> DeviceArray:
        """A result of an earlier call as the input of this one."""
        array.ready()
        return DeviceArray(
            self.device, array.shape, array.dtype, array.address, array, self.crossings
        )

    def deliver(self, name: str, value: Any, stays: bool) -> Any:
        """A result as the caller gets it: where the call's inputs are."""
        if isinstance(value, list):
            return [self.deliver(name, v, stays) for v in value]
        what = f"output {name!r}"
        if isinstance(value, RemoteArray) and not stays:
            return value.fetch(what, "the caller's inputs are on the host")
        if stays and isinstance(value, np.ndarray) and is_movable(value):
            value = self.upload(value, what, "the host computes it, the caller works on the device")
        if isinstance(value, DeviceArray) and self.cupy is not None:
            return self.cupy.wrap(value)
        return value


def is_movable(value: Any) -> bool:
    """Whether the value is an array on the host that can be on a device as well."""
    if not isinstance(value, np.ndarray) or value.dtype == object:
        return False
    return from_numpy(value.dtype).is_native


def _check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    try:
        from_numpy(dtype)
    except KeyError:
        raise InputError(f"input {name!r} has dtype {dtype}, unknown to ONNX") from None
