"""What the emulator refuses; each message names the instruction, the thread and the address."""

from __future__ import annotations


class PtxError(Exception):
    """A kernel that the PTX ISA gives no meaning, or one that it leaves undefined."""


class SyntaxFault(PtxError):
    """Text that is not PTX."""


class Unsupported(PtxError):
    """PTX that the emulator does not know."""


class LaunchFault(PtxError):
    """Parameters, threads or shared memory that no device takes."""


class OutOfBounds(PtxError):
    """An access outside of what was allocated."""


class Misaligned(PtxError):
    """An access whose address is no multiple of its size."""


class Uninitialised(PtxError):
    """A read of bytes that nobody has written."""


class NotWaitedFor(PtxError):
    """An access to what an asynchronous copy has not been waited for."""


class SharedRace(PtxError):
    """Warps of a block use the same shared memory, and no barrier orders them."""


class GlobalRace(PtxError):
    """Blocks of one launch use the same global memory, and one of them writes."""


class Deadlock(PtxError):
    """A barrier in shared memory that nobody can pass any more."""


class Unfenced(PtxError):
    """Hardware that works by itself was not told of what threads did."""


class BarrierDivergence(PtxError):
    """A barrier that not all threads of a block reach together."""


class InactiveLanes(PtxError):
    """An instruction of a whole warp that some of its lanes do not execute."""


class Trapped(PtxError):
    """The kernel executed `trap`."""
