"""Sleeping until another thread changes a word: Linux's futex, as intrinsics.

A word is the lower half of a 64-bit word of a pool, which little-endian machines keep at its
address. Where there is no futex, FUTEX is False and neither function does anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WORD = ir.IntType(64)
NUMBERS = {"x86_64": 202, "aarch64": 98}  # of the system call, by processor
WAIT, WAKE = 128, 129  # of threads of this process only

NUMBER = NUMBERS.get(llvm.get_process_triple().partition("-")[0], 0)
FUTEX = sys.platform == "linux" and sys.byteorder == "little" and NUMBER > 0


def _intrinsic(define: Callable[..., Any]) -> Any:
    """`intrinsic`, without the types of the definition: uses pass one parameter less."""
    return intrinsic(define)


def _system_call(builder: Any, base: Any, index: Any, operation: int, value: Any) -> None:
    """futex(address of the word, operation, value), without a time limit."""
    if not FUTEX:
        return
    kind = ir.FunctionType(WORD, [WORD], var_arg=True)
    known = builder.module.globals.get("syscall")
    function = known or ir.Function(builder.module, kind, "syscall")
    address = builder.add(base, builder.mul(index, WORD(8)))
    nothing = WORD(0)
    arguments = [WORD(NUMBER), address, WORD(operation), value, nothing, nothing, nothing]
    builder.call(function, arguments)


@_intrinsic
def sleep_on(typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Sleeps until the word at `index` is woken; not at all if it is not `value` any more.

    It may also return for no reason, so the caller looks again at what it waits for.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        base, index, value = values
        _system_call(builder, base, index, WAIT, builder.and_(value, WORD((1 << 32) - 1)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@_intrinsic
def wake(typing: Any, base: Any, index: Any, most: Any) -> Any:
    """Wakes up to `most` threads that sleep on the word at `index`."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _system_call(builder, values[0], values[1], WAKE, values[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit
