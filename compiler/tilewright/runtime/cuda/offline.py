"""Plans for a GPU that is not here: an architecture to compile for, and a device that runs nothing.

What is compiled lies in the same folder, under the same keys, as on a machine that has the GPU:
machine code depends on the architecture and the toolchain, not on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from tilewright.errors import DeviceError
from tilewright.loops.ir import TensorMap
from tilewright.runtime.cuda.device import MAP_WORDS, LibraryStep, Step
from tilewright.runtime.cuda.kernel import CompiledKernel
from tilewright.runtime.cuda.toolchain import (
    TO_COMPILE,
    architecture_of,
    capability_of,
    find_toolchain,
)

STREAM = 2  # any that is not one of the driver's own


def check_architecture(architecture: str) -> None:
    """DeviceError unless kernels for it can be compiled here, and a GPU would look for them."""
    major, minor, _ = capability_of(architecture)
    usual = architecture_of((major, minor))
    if architecture != usual:
        raise DeviceError(
            f"no GPU looks for kernels for {architecture}: those of compute capability "
            f"{major}.{minor} use {usual}"
        )
    find_toolchain().require(TO_COMPILE, "compile kernels")


@dataclass(frozen=True)
class OfflineMemory:
    """A range of addresses with nothing behind it."""

    address: int


class OfflineLaunches:
    """Kernels that nothing can start."""

    def __init__(self, architecture: str, count: int) -> None:
        self.how = f"nowhere: {count} kernels for {architecture}, which is not here"
        self._architecture = architecture

    def update(self, changed: Sequence[int]) -> None:
        """Nothing starts them, so nothing changes."""

    def start(self) -> None:
        _refuse(self._architecture)

    def timed(self) -> list[float]:
        _refuse(self._architecture)


class OfflineDevice:
    """Implements `Device` as far as plans are made on one; it cannot run them.

    Memory has addresses only. What is written is forgotten; DeviceError for what would read it.
    """

    index = 0
    multiprocessors = 1
    stream = STREAM

    def __init__(self, architecture: str) -> None:
        check_architecture(architecture)
        self.architecture = architecture
        self.name = f"{architecture}, which is not here"
        self.driver = ""
        self.library = None
        self._next = itertools.count(1)

    def on(self, stream: int) -> AbstractContextManager[object]:
        return nullcontext()

    def mark(self) -> None:
        return None

    def wait(self, mark: Any) -> None:
        """There is no work to wait for."""

    def is_reached(self, mark: Any) -> bool:
        return True

    def finish(self, mark: Any = None) -> None:
        """There is no work to wait for."""

    def allocate(self, nbytes: int) -> OfflineMemory:
        # Far apart, so that no two arrays of a plan share an address.
        return OfflineMemory(next(self._next) << 40)

    def device_of(self, address: int) -> int | None:
        return None

    def write(self, address: int, array: np.ndarray) -> None:
        """Nobody can read it."""

    def read(self, address: int, array: np.ndarray) -> None:
        _refuse(self.architecture)

    def move(self, to: int, source: int, nbytes: int) -> None:
        """Nobody can read it."""

    def clear(self, address: int, nbytes: int) -> None:
        """Nobody can read it."""

    def tensor_map(self, tensor: TensorMap, address: int) -> np.ndarray:
        return np.zeros(MAP_WORDS, np.int64)  # nobody can read it

    def load(self, kernel: CompiledKernel) -> CompiledKernel:
        return kernel

    def launches(self, steps: Sequence[Step | LibraryStep]) -> OfflineLaunches:
        return OfflineLaunches(self.architecture, len(steps))


def _refuse(architecture: str) -> NoReturn:
    raise DeviceError(f"kernels for {architecture} cannot run: they were compiled without a GPU")
