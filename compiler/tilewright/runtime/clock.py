"""Steps of a plan that read the clock, compiled like kernels. Importing this imports Numba."""

from __future__ import annotations

import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tilewright.runtime.layout import RECORD_WORDS
from tilewright.runtime.native import call, load, store


def _intrinsic(define: Any) -> Any:
    """`intrinsic`, without the types of the definition: uses pass one parameter less."""
    return intrinsic(define)


@_intrinsic
def read_clock(typing: Any, place: Any) -> Any:
    """Writes the time of CLOCK_MONOTONIC, a timespec, to an address."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(number, [number, pointer])
        known = builder.module.globals.get("clock_gettime")
        function = known or ir.Function(builder.module, kind, "clock_gettime")
        where = builder.inttoptr(values[0], pointer)
        builder.call(function, [number(time.CLOCK_MONOTONIC), where])
        return context.get_dummy_value()

    return types.void(types.int64), emit


def stamp(task: int, place: int) -> None:
    """A kernel whose argument table is the timespec that it writes."""
    read_clock(place)


@_intrinsic
def thread(typing: Any) -> Any:
    """What `threading.get_ident` calls this thread."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        known = builder.module.globals.get("pthread_self")
        function = known or ir.Function(builder.module, ir.FunctionType(word, []), "pthread_self")
        return builder.call(function, [])

    return types.int64(), emit


def watched(task: int, block: int) -> None:
    """A kernel that runs a task of another one and records it.

    `block` is [kernel, its arguments, records]; a task's record has RECORD_WORDS words: the
    timespecs of its begin and its end, and the thread.
    """
    record = load(block, 2) + 8 * RECORD_WORDS * task
    read_clock(record)
    call(load(block, 0), task, load(block, 1))
    read_clock(record + 16)
    store(record, 4, thread())
