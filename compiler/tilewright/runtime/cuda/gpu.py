"""A GPU of this machine, through the driver. Importing this module imports its bindings."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import groupby
from typing import Any

import numpy as np
from cuda.bindings import driver

from tilewright.errors import DeviceError
from tilewright.loops.ir import TensorMap
from tilewright.runtime.cuda.cupy_arrays import CupyArrays
from tilewright.runtime.cuda.device import DeviceMemory, Launches, Library, LibraryStep, Step
from tilewright.runtime.cuda.kernel import CompiledKernel
from tilewright.runtime.cuda.launches import (
    DirectLaunches,
    GraphLaunches,
    LaunchesInTurn,
    LibraryLaunch,
    call,
)
from tilewright.runtime.cuda.pool import MemoryPool
from tilewright.runtime.cuda.tensor_maps import Encode, encoder
from tilewright.runtime.cuda.toolchain import DRIVER, TO_RUN, find_toolchain

STATIC_SHARED_BYTES = 48 << 10  # a kernel that takes more must ask for it


@cache
def first_gpu() -> GpuDevice:
    """The first GPU of this process: one object, however many models run on it."""
    return GpuDevice()


class GpuDevice:
    """A GPU. Memory comes from CuPy's pool where CuPy is installed, else from one of our own."""

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.gpu = find_toolchain().require(TO_RUN, "run models").gpus[index]
        call(driver.cuInit, 0)
        self._device = call(driver.cuDeviceGet, index)
        self._context = call(driver.cuDevicePrimaryCtxRetain, self._device)
        self._enter()
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._own_stream = int(call(driver.cuStreamCreate, flags))
        self._current = threading.local()
        self._functions: dict[str, Any] = {}
        self._pool = MemoryPool(self._allocate, self._free)
        self.cupy = CupyArrays.find()

    @property
    def name(self) -> str:
        return self.gpu.name

    @property
    def multiprocessors(self) -> int:
        return self.gpu.multiprocessors

    @property
    def architecture(self) -> str:
        return self.gpu.architecture

    @property
    def driver(self) -> str:
        return find_toolchain().part(DRIVER).version

    @cached_property
    def library(self) -> Library | None:
        self._enter()
        return self.cupy.cublas() if self.cupy is not None else None

    def _enter(self) -> None:
        """Makes the context that of the calling thread, which may be a new one."""
        call(driver.cuCtxSetCurrent, self._context)

    # -- streams

    @property
    def stream(self) -> int:
        return getattr(self._current, "stream", self._own_stream)

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        before = self.stream
        self._enter()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def mark(self) -> Any:
        event = call(driver.cuEventCreate, driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        made = _Mark(event)
        call(driver.cuEventRecord, event, self.stream)
        return made

    def wait(self, mark: Any) -> None:
        call(driver.cuStreamWaitEvent, self.stream, mark.event, 0)

    def is_reached(self, mark: Any) -> bool:
        self._enter()
        (status,) = driver.cuEventQuery(mark.event)
        return bool(status == driver.CUresult.CUDA_SUCCESS)

    def finish(self, mark: Any = None) -> None:
        self._enter()
        if mark is None:
            call(driver.cuStreamSynchronize, self.stream)
        else:
            call(driver.cuEventSynchronize, mark.event)

    # -- memory

    def allocate(self, nbytes: int) -> DeviceMemory:
        self._enter()
        if self.cupy is not None:
            return self.cupy.allocate(nbytes, self.stream)
        return self._pool.take(nbytes, self.stream)

    def _allocate(self, nbytes: int) -> int:
        return int(call(driver.cuMemAlloc, nbytes))

    def _free(self, address: int) -> None:
        call(driver.cuCtxSynchronize)
        call(driver.cuMemFree, address)

    def device_of(self, address: int) -> int | None:
        ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        status, value = driver.cuPointerGetAttribute(ordinal, address)
        return int(value) if status == driver.CUresult.CUDA_SUCCESS else None

    def write(self, address: int, array: np.ndarray) -> None:
        if not array.nbytes:
            return
        data = np.ascontiguousarray(array)
        call(driver.cuMemcpyHtoDAsync, address, data.ctypes.data, data.nbytes, self.stream)
        call(driver.cuStreamSynchronize, self.stream)  # the caller may have pinned the array

    def read(self, address: int, array: np.ndarray) -> None:
        if not array.nbytes:
            return
        self._enter()
        call(driver.cuMemcpyDtoHAsync, array.ctypes.data, address, array.nbytes, self.stream)
        call(driver.cuStreamSynchronize, self.stream)

    def move(self, to: int, source: int, nbytes: int) -> None:
        if nbytes:
            call(driver.cuMemcpyDtoDAsync, to, source, nbytes, self.stream)

    def clear(self, address: int, nbytes: int) -> None:
        call(driver.cuMemsetD8Async, address, 0, nbytes, self.stream)

    # -- kernels

    @cached_property
    def _encode(self) -> Encode:
        return encoder()

    def tensor_map(self, tensor: TensorMap, address: int) -> np.ndarray:
        return self._encode(tensor, address)

    def load(self, kernel: CompiledKernel) -> Any:
        """Each kernel is loaded once."""
        if kernel.entry not in self._functions:
            self._enter()
            module = call(driver.cuModuleLoadData, kernel.cubin)
            function = call(driver.cuModuleGetFunction, module, kernel.entry.encode())
            self._functions[kernel.entry] = function
        return self._functions[kernel.entry]

    def launches(self, steps: Sequence[Step | LibraryStep]) -> Launches:
        """One CUDA graph, if there is more than one kernel and the driver makes one; several with
        the products of a library between them."""
        parts: list[tuple[Launches, int]] = []
        for of_library, some in groupby(steps, lambda s: isinstance(s, LibraryStep)):
            if of_library:
                parts += [(LibraryLaunch(s, self), 1) for s in some if isinstance(s, LibraryStep)]
            else:
                kernels = [s for s in some if isinstance(s, Step)]
                parts.append((self._kernels(kernels), len(kernels)))
        return parts[0][0] if len(parts) == 1 else LaunchesInTurn(parts)

    def _kernels(self, steps: Sequence[Step]) -> Launches:
        self._enter()
        for step in steps:
            if step.shared_bytes > STATIC_SHARED_BYTES:
                limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                call(driver.cuFuncSetAttribute, step.function, limit, step.shared_bytes)
        if len(steps) < 2:
            return DirectLaunches(steps, self, "a graph of one kernel saves nothing")
        try:
            return GraphLaunches(steps, self)
        except DeviceError as error:
            return DirectLaunches(steps, self, str(error))


class _Mark:
    """An event, destroyed with the last reference."""

    def __init__(self, event: Any) -> None:
        self.event = event
        weakref.finalize(self, driver.cuEventDestroy, event).atexit = False
