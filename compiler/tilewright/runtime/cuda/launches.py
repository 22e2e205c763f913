"""The kernels of a plan as one CUDA graph, or as launches one by one.

Importing this module imports the driver's bindings.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from cuda.bindings import driver

from tilewright.errors import DeviceError
from tilewright.runtime.cuda.device import Device, Step

WORD = 8
MILLI = 1e-3


def call(function: Any, *arguments: Any) -> Any:
    """The value of a driver call; DeviceError with its name and that of the error."""
    status, *values = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"{function.__name__} failed: {getattr(status, 'name', status)}")
    return values[0] if values else None


class DirectLaunches:
    """Each kernel is launched by a call of the driver, with parameters that lie ready for it."""

    def __init__(self, steps: Sequence[Step], device: Device, reason: str) -> None:
        self.how = f"one by one: {reason}"
        self._device = device
        self._packed = [_Packed(step) for step in steps]

    def update(self, changed: Sequence[int]) -> None:
        """Nothing to do: a launch reads the parameters where they are."""

    def start(self) -> None:
        stream = self._device.stream
        for packed in self._packed:
            packed.launch(stream)

    def timed(self) -> list[float]:
        return timed(self._packed, self._device)


class GraphLaunches:
    """A graph of the kernels, in a row; parameters are updated in the instantiated graph.

    What the driver does with an update is for later launches, not for those under way.
    """

    def __init__(self, steps: Sequence[Step], device: Device) -> None:
        self.how = f"as one CUDA graph of {len(steps)} kernels"
        self._device = device
        self._packed = [_Packed(step) for step in steps]
        graph = call(driver.cuGraphCreate, 0)
        try:
            self._nodes = self._add(graph)
            self._executable = call(driver.cuGraphInstantiate, graph, 0)
        finally:
            self._graph = graph  # nodes are its own
            weakref.finalize(self, driver.cuGraphDestroy, graph).atexit = False
        weakref.finalize(self, driver.cuGraphExecDestroy, self._executable).atexit = False

    def _add(self, graph: Any) -> list[Any]:
        nodes: list[Any] = []
        for packed in self._packed:
            before = nodes[-1:]
            node = call(driver.cuGraphAddKernelNode, graph, before, len(before), packed.node)
            nodes.append(node)
        return nodes

    def update(self, changed: Sequence[int]) -> None:
        for k in changed:
            call(
                driver.cuGraphExecKernelNodeSetParams,
                *(self._executable, self._nodes[k], self._packed[k].node),
            )

    def start(self) -> None:
        call(driver.cuGraphLaunch, self._executable, self._device.stream)

    def timed(self) -> list[float]:
        return timed(self._packed, self._device)


class _Packed:
    """A launch with everything in the form that the driver reads."""

    def __init__(self, step: Step) -> None:
        self._step = step
        words = step.parameters
        self._places = words.ctypes.data + WORD * np.arange(len(words), dtype=np.uint64)
        grid, block = (step.blocks, 1, 1), (step.threads, 1, 1)
        self._before = (step.function, *grid, *block, step.shared_bytes)
        self.node = driver.CUDA_KERNEL_NODE_PARAMS()
        self.node.func, self.node.sharedMemBytes = step.function, step.shared_bytes
        self.node.gridDimX, self.node.gridDimY, self.node.gridDimZ = grid
        self.node.blockDimX, self.node.blockDimY, self.node.blockDimZ = block
        self.node.kernelParams = self._after = self._places.ctypes.data

    def launch(self, stream: int) -> None:
        call(driver.cuLaunchKernel, *self._before, stream, self._after, 0)


def timed(packed: Sequence[_Packed], device: Device) -> list[float]:
    """Launches the kernels between events; the seconds from each to the next."""
    flags = driver.CUevent_flags.CU_EVENT_DEFAULT
    events = [call(driver.cuEventCreate, flags) for _ in range(len(packed) + 1)]
    try:
        call(driver.cuEventRecord, events[0], device.stream)
        for one, event in zip(packed, events[1:], strict=True):
            one.launch(device.stream)
            call(driver.cuEventRecord, event, device.stream)
        call(driver.cuEventSynchronize, events[-1])
        pairs = pairwise(events)
        return [MILLI * float(call(driver.cuEventElapsedTime, a, b)) for a, b in pairs]
    finally:
        for event in events:
            call(driver.cuEventDestroy, event)
