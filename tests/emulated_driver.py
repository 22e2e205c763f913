"""The functions of the CUDA driver that this package calls, on an emulated device.

Parameters of launches are read as the driver reads them: by an array of addresses of each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver as bindings

from emulated_device import EmulatedDevice, Mark
from ptx import Program
from ptx.tensor_maps import BYTES, TensorMap
from tilewright.runtime.cuda.kernel import CompiledKernel
from tilewright.runtime.cuda.tensor_maps import PROTOTYPE


class Status(Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_VALUE = 1


OK = (Status.CUDA_SUCCESS,)
WORD = 8


def parameters(places: int, kernel: Program) -> list[int | bytes]:
    """The values of a kernel's parameters, whose addresses stand one after the other."""
    count = len(kernel.parameters)
    where = (ctypes.c_uint64 * count).from_address(places)
    return [
        ctypes.c_int64.from_address(where[k]).value
        if v.size == WORD
        else ctypes.string_at(where[k], v.size)
        for k, v in enumerate(kernel.parameters)
    ]


def _encode_tiled(
    place: int, kind: int, rank: int, address: int, extents: Any, strides: Any, box: Any, *rest: Any
) -> int:
    """What the driver does when it is asked to describe a tensor; this one knows halves."""
    steps, interleave, swizzle, _, fill = rest
    assert place % 64 == 0 and kind in (6, 9) and (interleave, fill) == (0, 0)
    assert [steps[k] for k in range(rank)] == [1] * rank
    made = TensorMap(
        *(address, 2, swizzle, tuple(extents[k] for k in range(rank))),
        *(tuple(strides[k] for k in range(rank - 1)), tuple(box[k] for k in range(rank))),
    )
    if made.problem():
        return int(Status.CUDA_ERROR_INVALID_VALUE.value)
    ctypes.memmove(place, made.encode(), BYTES)
    return 0


encode_tiled = PROTOTYPE(_encode_tiled)


class Driver:
    """Stands for `cuda.bindings.driver`; handles are numbers."""

    CUresult = Status
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2, CU_EVENT_DEFAULT=0)
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUDA_KERNEL_NODE_PARAMS = SimpleNamespace
    CUtensorMapDataType = bindings.CUtensorMapDataType
    CUtensorMapInterleave = bindings.CUtensorMapInterleave
    CUtensorMapSwizzle = bindings.CUtensorMapSwizzle
    CUtensorMapL2promotion = bindings.CUtensorMapL2promotion
    CUtensorMapFloatOOBfill = bindings.CUtensorMapFloatOOBfill

    def __init__(self, has_graphs: bool = True, room: int = 1 << 30) -> None:
        self.device = EmulatedDevice()
        self.has_graphs, self.room = has_graphs, room
        self.kernels: dict[str, CompiledKernel] = {}
        self.held: dict[int, Any] = {}  # memory, by address
        self.live: dict[str, int] = {}  # objects that are not destroyed, by kind
        self.calls: list[str] = []
        self._graphs: dict[int, list[Any]] = {}
        self._next = 5000

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("cu") and not name.startswith("cuda"):
            super().__getattribute__("calls").append(name)
        return found

    def _made(self, kind: str) -> int:
        self._next += 1
        self.live[kind] = self.live.get(kind, 0) + 1
        return self._next

    # Context, streams, events.

    def cuInit(self, flags: int) -> Any:
        return OK

    def cuDeviceGet(self, index: int) -> Any:
        return *OK, index

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return *OK, 77

    def cuCtxSetCurrent(self, context: int) -> Any:
        assert context == 77
        return OK

    def cuCtxSynchronize(self) -> Any:
        self.device.finish_all()
        return OK

    def cuStreamCreate(self, flags: int) -> Any:
        return *OK, self._made("stream")

    def cuStreamSynchronize(self, stream: int) -> Any:
        with self.device.on(stream):
            self.device.finish()
        return OK

    def cuStreamWaitEvent(self, stream: int, event: Any, flags: int) -> Any:
        with self.device.on(stream):
            self.device.wait(event.mark)
        return OK

    def cuEventCreate(self, flags: int) -> Any:
        self._made("event")
        return *OK, SimpleNamespace(mark=None, timed=flags == 0)

    def cuEventRecord(self, event: Any, stream: int) -> Any:
        with self.device.on(stream):
            event.mark = self.device.mark()
        return OK

    def cuEventQuery(self, event: Any) -> Any:
        return OK if self.device.is_reached(event.mark) else (Status.CUDA_ERROR_INVALID_VALUE,)

    def cuEventSynchronize(self, event: Any) -> Any:
        self.device.finish(event.mark)
        return OK

    def cuEventElapsedTime(self, first: Any, last: Any) -> Any:
        assert first.timed and last.timed
        marks: list[Mark] = [first.mark, last.mark]
        return *OK, float(marks[1].count - marks[0].count)

    def cuEventDestroy(self, event: Any) -> Any:
        self.live["event"] -= 1
        return OK

    # Memory.

    def cuMemAlloc(self, nbytes: int) -> Any:
        if sum(self.device.allocations.values()) + nbytes > self.room:
            return Status.CUDA_ERROR_OUT_OF_MEMORY, 0
        memory = self.device.allocate(nbytes)
        self.held[memory.address] = memory
        return *OK, memory.address

    def cuMemFree(self, address: int) -> Any:
        del self.held[address]
        return OK

    def cuPointerGetAttribute(self, attribute: int, address: int) -> Any:
        owner = self.device.device_of(address)
        return (*OK, owner) if owner is not None else (Status.CUDA_ERROR_INVALID_VALUE, 0)

    def cuMemcpyHtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> Any:
        data = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(source))
        with self.device.on(stream):
            self.device.later(lambda: self.device.memory.write(to, data))  # not before
        return OK

    def cuMemcpyDtoHAsync(self, to: int, source: int, nbytes: int, stream: int) -> Any:
        target = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(to))

        def work() -> None:
            assert self.device.memory.is_written(source, nbytes)
            target[:] = self.device.memory.get(source, (nbytes,), np.uint8)

        with self.device.on(stream):
            self.device.later(work)
        return OK

    def cuMemcpyDtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> Any:
        with self.device.on(stream):
            self.device.move(to, source, nbytes)
        return OK

    def cuMemsetD8Async(self, address: int, value: int, nbytes: int, stream: int) -> Any:
        assert value == 0
        with self.device.on(stream):
            self.device.clear(address, nbytes)
        return OK

    # Kernels.

    def cuGetProcAddress(self, name: bytes, version: int, flags: int) -> Any:
        assert (name, flags) == (b"cuTensorMapEncodeTiled", 0) and version <= 13000
        return *OK, ctypes.cast(encode_tiled, ctypes.c_void_p).value, 0

    def cuModuleLoadData(self, cubin: bytes) -> Any:
        return *OK, cubin

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> Any:
        kernel = self.kernels[name.decode()]
        assert kernel.cubin == module
        return *OK, kernel

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> Any:
        return OK

    def _launch(
        self, function: Any, blocks: int, threads: int, shared: int, places: int, stream: int
    ) -> None:
        from emulated_device import program
        from tilewright.runtime.cuda.device import Step

        words = parameters(places, program(function.ptx))
        step = Step(function, blocks, threads, shared, np.zeros(0, np.int64))
        with self.device.on(stream):
            self.device.later(lambda: self.device.launch(step, words))

    def cuLaunchKernel(self, function: Any, *rest: Any) -> Any:
        gx, gy, gz, bx, by, bz, shared, stream, places, extra = rest
        assert (gy, gz, by, bz, extra) == (1, 1, 1, 1, 0)
        self._launch(function, gx, bx, shared, places, stream)
        return OK

    # Graphs: parameters are copied when a node is made, instantiated or updated.

    def cuGraphCreate(self, flags: int) -> Any:
        made = self._made("graph")
        self._graphs[made] = []
        return *OK, made

    def cuGraphAddKernelNode(self, graph: int, before: Sequence[int], count: int, node: Any) -> Any:
        nodes = self._graphs[graph]
        assert list(before) == ([len(nodes) - 1] if nodes else []) and count == len(before)
        nodes.append(self._frozen(node))
        return *OK, len(nodes) - 1

    def _frozen(self, node: Any) -> Any:
        from emulated_device import program
        from tilewright.runtime.cuda.device import Step

        assert (node.gridDimY, node.gridDimZ, node.blockDimY, node.blockDimZ) == (1, 1, 1, 1)
        words = parameters(node.kernelParams, program(node.func.ptx))
        none = np.zeros(0, np.int64)
        grid = (node.gridDimX, node.blockDimX, node.sharedMemBytes)
        return Step(node.func, *grid, none), words

    def cuGraphInstantiate(self, graph: int, flags: int) -> Any:
        if not self.has_graphs:
            return Status.CUDA_ERROR_INVALID_VALUE, 0
        made = self._made("executable")
        self._graphs[made] = list(self._graphs[graph])
        return *OK, made

    def cuGraphExecKernelNodeSetParams(self, executable: int, node: int, params: Any) -> Any:
        self._graphs[executable][node] = self._frozen(params)
        return OK

    def cuGraphLaunch(self, executable: int, stream: int) -> Any:
        steps = list(self._graphs[executable])
        with self.device.on(stream):
            for step, words in steps:
                self.device.later(lambda s=step, w=words: self.device.launch(s, w))  # type: ignore[misc]
        return OK

    def cuGraphDestroy(self, graph: int) -> Any:
        self.live["graph"] -= 1
        return OK

    def cuGraphExecDestroy(self, executable: int) -> Any:
        self.live["executable"] -= 1
        return OK
