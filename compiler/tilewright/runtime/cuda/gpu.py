"""The first GPU of this machine, through the driver. Importing this module imports its bindings."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cuda.bindings import driver

from tilewright.errors import DeviceError
from tilewright.runtime.cuda.device import Step
from tilewright.runtime.cuda.kernel import CompiledKernel
from tilewright.runtime.cuda.toolchain import TO_RUN, find_toolchain

STATIC_SHARED_BYTES = 48 << 10  # a kernel that takes more must ask for it
WORD = 8


def call(function: Any, *arguments: Any) -> Any:
    """The value of a driver call; DeviceError with its name and that of the error."""
    status, *values = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"{function.__name__} failed: {getattr(status, 'name', status)}")
    return values[0] if values else None


class GpuMemory:
    """Memory of the device, freed with the last reference."""

    def __init__(self, nbytes: int) -> None:
        place = call(driver.cuMemAlloc, nbytes)
        self.address = int(place)
        weakref.finalize(self, driver.cuMemFree, place)


class GpuDevice:
    """The first GPU. All its work goes through one stream."""

    def __init__(self) -> None:
        self.gpu = find_toolchain().require(TO_RUN, "run models").gpus[0]
        call(driver.cuInit, 0)
        self._device = call(driver.cuDeviceGet, 0)
        self._context = call(driver.cuDevicePrimaryCtxRetain, self._device)
        self._enter()
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = call(driver.cuStreamCreate, flags)
        self._functions: dict[str, Any] = {}

    @property
    def architecture(self) -> str:
        return self.gpu.architecture

    def _enter(self) -> None:
        """Makes the context that of the calling thread, which may be a new one."""
        call(driver.cuCtxSetCurrent, self._context)

    def allocate(self, nbytes: int) -> GpuMemory:
        self._enter()
        return GpuMemory(nbytes)

    def write(self, address: int, array: np.ndarray) -> None:
        if not array.nbytes:
            return
        self._enter()
        data = np.ascontiguousarray(array)
        call(driver.cuMemcpyHtoDAsync, address, data.ctypes.data, data.nbytes, self._stream)
        call(driver.cuStreamSynchronize, self._stream)  # `data` may go

    def read(self, address: int, array: np.ndarray) -> None:
        if not array.nbytes:
            return
        self._enter()
        call(driver.cuMemcpyDtoHAsync, array.ctypes.data, address, array.nbytes, self._stream)
        call(driver.cuStreamSynchronize, self._stream)

    def load(self, kernel: CompiledKernel) -> Any:
        """Each kernel is loaded once."""
        if kernel.entry not in self._functions:
            self._enter()
            module = call(driver.cuModuleLoadData, kernel.cubin)
            function = call(driver.cuModuleGetFunction, module, kernel.entry.encode())
            self._functions[kernel.entry] = function
        return self._functions[kernel.entry]

    def sequence(self, steps: Sequence[Step]) -> Callable[[], None]:
        """The kernels as one CUDA graph: the addresses in their parameters never change."""
        self._enter()
        for step in steps:
            if step.shared_bytes > STATIC_SHARED_BYTES:
                limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                call(driver.cuFuncSetAttribute, step.function, limit, step.shared_bytes)
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(driver.cuStreamBeginCapture, self._stream, mode)
        for step in steps:
            self._launch(step)
        graph = call(driver.cuStreamEndCapture, self._stream)
        executable = call(driver.cuGraphInstantiate, graph, 0)
        call(driver.cuGraphDestroy, graph)

        def start() -> None:
            self._enter()
            call(driver.cuGraphLaunch, executable, self._stream)

        weakref.finalize(start, driver.cuGraphExecDestroy, executable)
        return start

    def _launch(self, step: Step) -> None:
        parameters = step.parameters
        places = parameters.ctypes.data + WORD * np.arange(len(parameters), dtype=np.uint64)
        grid, block = (step.blocks, 1, 1), (step.threads, 1, 1)
        packed = places.ctypes.data
        shared, stream = step.shared_bytes, self._stream
        call(driver.cuLaunchKernel, step.function, *grid, *block, shared, stream, packed, 0)
