"""Loops that are written out, iteration by iteration."""

from __future__ import annotations

from typing import Any

from numba import types

from tilewright_kernels.cpu.intrinsics import intrinsic

MARK = "unrolled"
"""A comment in the IR before the branch back; the compiler makes LLVM's mark of it."""


@intrinsic
def unrolled(typing: Any) -> Any:
    """The last statement of an innermost loop of few iterations: LLVM is to write them all out.

    It does so with no other loop. They then need no count, and places in scratch are known.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.comment(MARK)
        return context.get_dummy_value()

    return types.void(), emit
