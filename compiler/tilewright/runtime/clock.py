"""A step of a plan that reads the clock, compiled like a kernel. Importing it imports Numba."""

from __future__ import annotations

import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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
