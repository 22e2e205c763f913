"""The kernels of a plan as one CUDA graph, or as launches one by one.

Importing this module imports the driver's bindings.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from cuda.bindings import driver

from tilewright.errors import DeviceError
from tilewright.runtime.cuda.device import WORD, Device, Launches, LibraryStep, Step

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


class LibraryLaunch:
    """A product by the device's library, which reads the addresses when it is started."""

    def __init__(self, step: LibraryStep, device: Device) -> None:
        self.how = "by the library"
        self._step, self._device = step, device

    def update(self, changed: Sequence[int]) -> None:
        """Nothing to do."""

    def start(self) -> None:
        library = self._device.library
        assert library is not None
        words = [int(w) for w in self._step.parameters]
        library.gemm(self._step.gemm, words, self._device.stream)

    def timed(self) -> list[float]:
        return between([self.start], self._device)


class LaunchesInTurn:
    """Parts of a plan that are started in different ways, one after the other in one stream.

    Products of a library stay outside of graphs: what it takes from the driver during a capture
    (memory to work in) would belong to the graph, and new addresses would need a new one.
    """

    def __init__(self, parts: Sequence[tuple[Launches, int]]) -> None:
        self._parts = [p for p, _ in parts]
        self._ends = list(accumulate(n for _, n in parts))
        self.how = ", then ".join(p.how for p in self._parts)

    def update(self, changed: Sequence[int]) -> None:
        start = 0
        for part, end in zip(self._parts, self._ends, strict=True):
            own = [k - start for k in changed if start <= k < end]
            if own:
                part.update(own)
            start = end

    def start(self) -> None:
        for part in self._parts:
            part.start()

    def timed(self) -> list[float]:
        return [seconds for part in self._parts for seconds in part.timed()]


class _Packed:
    """A launch with everything in the form that the driver reads."""

    def __init__(self, step: Step) -> None:
        self._step = step
        words = step.parameters
        self._places = words.ctypes.data + WORD * np.array(step.places, np.uint64)
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
    """Launches the kernels one by one; the seconds of each."""
    return between([partial(p.launch, device.stream) for p in packed], device)


def between(starts: Sequence[Callable[[], None]], device: Device) -> list[float]:
    """Starts work between events; the seconds from each to the next."""
    flags = driver.CUevent_flags.CU_EVENT_DEFAULT
    events = [call(driver.cuEventCreate, flags) for _ in range(len(starts) + 1)]
    try:
        call(driver.cuEventRecord, events[0], device.stream)
        for start, event in zip(starts, events[1:], strict=True):
            start()
            call(driver.cuEventRecord, event, device.stream)
        call(driver.cuEventSynchronize, events[-1])
        pairs = pairwise(events)
        return [MILLI * float(call(driver.cuEventElapsedTime, a, b)) for a, b in pairs]
    finally:
        for event in events:
            call(driver.cuEventDestroy, event)
