"""Memory that loop nests read and write."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tilewright.dtypes import DType


class Space(Enum):
    """Where a buffer lives: in memory that outlives the kernel, in a task's own scratch, in what
    the threads of a block share, or in the registers of each thread of a block (its first index is
    the thread)."""

    GLOBAL = "global"
    LOCAL = "local"
    SHARED = "shared"
    THREAD = "thread"


@dataclass(frozen=True)
class Buffer:
    """Memory for a tensor. `strides` count elements; None means C order without gaps. `values` are
    the least and greatest element, if they are known: then elements may be indices."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    space: Space = Space.GLOBAL
    values: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A buffer as hardware that copies boxes of it sees it: from element `offset` on, `extents`
    and `strides` in elements, the axis of neighbours first, and the extents of a `box`."""

    buffer: Buffer
    offset: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


def strides_of(buffer: Buffer) -> tuple[int, ...]:
    """The element strides of a buffer, C order if it names none."""
    if buffer.strides is not None:
        return buffer.strides
    out: list[int] = []
    step = 1
    for n in reversed(buffer.shape):
        out.append(step)
        step *= n
    return tuple(reversed(out))
