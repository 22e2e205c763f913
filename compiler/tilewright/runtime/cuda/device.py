"""What a plan needs of a GPU: memory, transfers, streams, launches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tilewright.loops.ir import TensorMap
from tilewright.runtime.cuda.kernel import CompiledKernel
from tilewright.schedule.library import Gemm

LEGACY_STREAM = 1  # the stream that waits for all others but those that opted out
WORD = 8  # bytes of a parameter
MAP_WORDS = 16  # of a parameter that describes a tensor
MAP_BYTES = MAP_WORDS * WORD
VECTOR_BYTES = 16  # kernels read and write this much at once: arrays begin at a multiple


class DeviceMemory(Protocol):
    """Memory of a device; it is free again when nobody holds this any more.

    What is freed may be given out again to the stream that was current when it was allocated, and
    to others once that stream has come so far.
    """

    @property
    def address(self) -> int:
        """Of its first byte, aligned to 256."""


@dataclass(frozen=True)
class Step:
    """One launch: `parameters` are 8 bytes each, in the kernel's order, but for the last `maps`
    ones, which are 128 bytes each; they may be changed."""

    function: Any
    blocks: int
    threads: int
    shared_bytes: int
    parameters: np.ndarray
    maps: int = 0

    @property
    def places(self) -> list[int]:
        """The first word of each parameter."""
        plain = len(self.parameters) - MAP_WORDS * self.maps
        return [*range(plain), *range(plain, len(self.parameters), MAP_WORDS)]


@dataclass(frozen=True)
class LibraryStep:
    """One product by a library; `parameters` are the addresses of its matrices, as `gemm` numbers
    them."""

    gemm: Gemm
    parameters: np.ndarray


class Library(Protocol):
    """What computes products of matrices beside our kernels."""

    @property
    def version(self) -> str:
        """The library's own."""

    def gemm(self, gemm: Gemm, words: list[int], stream: int) -> None:
        """Puts a product into a stream; DeviceError if it cannot be had."""


class Launches(Protocol):
    """Kernels that run one after the other, each time they are started."""

    @property
    def how(self) -> str:
        """How they are started, and why so."""

    def update(self, changed: Sequence[int]) -> None:
        """Later starts use the parameters as they are now; `changed` are the steps' numbers."""

    def start(self) -> None:
        """Starts the kernels in the current stream."""

    def timed(self) -> list[float]:
        """As `start`; waits for the end, and returns the seconds that each kernel took."""


class Device(Protocol):
    """One GPU.

    Work is put into the current stream of the calling thread and done in that order. Between
    streams there is an order only where one waits for a mark of the other.
    """

    @property
    def index(self) -> int:
        """Its number among the devices of this process."""

    @property
    def name(self) -> str:
        """What the maker calls it."""

    @property
    def multiprocessors(self) -> int:
        """How many blocks of threads run at once at least."""

    @property
    def architecture(self) -> str:
        """What kernels are compiled for: sm_90a."""

    @property
    def library(self) -> Library | None:
        """What may compute products in place of kernels, if it is there."""

    @property
    def driver(self) -> str:
        """The version of what runs it."""

    @property
    def stream(self) -> int:
        """The current stream of this thread; one of the device's own where none was entered."""

    def on(self, stream: int) -> AbstractContextManager[object]:
        """While entered, the stream is this thread's current one."""

    def mark(self) -> Any:
        """A place in the current stream: behind all work that it has so far."""

    def wait(self, mark: Any) -> None:
        """Work that the current stream gets from now on begins when the mark is reached."""

    def is_reached(self, mark: Any) -> bool:
        """Whether all work before the mark is done; does not wait."""

    def finish(self, mark: Any = None) -> None:
        """Returns when the mark is reached, or all work in the current stream is done."""

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Memory with arbitrary contents, for work in the current stream."""

    def device_of(self, address: int) -> int | None:
        """The number of the device whose memory holds the address, if one does."""

    def write(self, address: int, array: np.ndarray) -> None:
        """The elements of an array in C order, to the device; the array may change afterwards."""

    def read(self, address: int, array: np.ndarray) -> None:
        """The elements of a C-contiguous array, from the device, once work before is done."""

    def move(self, to: int, source: int, nbytes: int) -> None:
        """Bytes from one place on the device to another."""

    def clear(self, address: int, nbytes: int) -> None:
        """Sets bytes to zero."""

    def tensor_map(self, tensor: TensorMap, address: int) -> np.ndarray:
        """The words that describe a tensor, whose buffer is at the address, to the hardware."""

    def load(self, kernel: CompiledKernel) -> Any:
        """The kernel, ready to be launched."""

    def launches(self, steps: Sequence[Step | LibraryStep]) -> Launches:
        """These kernels as something to start."""
