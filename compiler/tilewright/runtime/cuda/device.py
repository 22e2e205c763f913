"""What a plan needs of a GPU: memory, transfers, launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tilewright.runtime.cuda.kernel import CompiledKernel


class DeviceMemory(Protocol):
    """Memory of a device; it is free again when nobody holds this any more."""

    @property
    def address(self) -> int:
        """Of its first byte, aligned to 256."""


@dataclass(frozen=True)
class Step:
    """One launch: `parameters` are 8 bytes each, in the kernel's order."""

    function: Any
    blocks: int
    threads: int
    shared_bytes: int
    parameters: np.ndarray


class Device(Protocol):
    """One GPU. Work is done in the order in which it is asked for."""

    @property
    def architecture(self) -> str:
        """What kernels are compiled for: sm_90a."""

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Memory with arbitrary contents."""

    def write(self, address: int, array: np.ndarray) -> None:
        """The elements of an array in C order, to the device."""

    def read(self, address: int, array: np.ndarray) -> None:
        """The elements of an array in C order, from the device, once all work is done."""

    def load(self, kernel: CompiledKernel) -> Any:
        """The kernel, ready to be launched."""

    def sequence(self, steps: Sequence[Step]) -> Callable[[], None]:
        """What starts these kernels, one after the other, each time it is called."""
