"""The few intrinsics that the sample kernels of the runtime tests need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WORD = ir.IntType(64)
i64 = types.int64


def _intrinsic(define: Callable[..., Any]) -> Any:
    """`intrinsic`, without the types of the definition: uses pass one parameter less."""
    return intrinsic(define)


def _element(builder: Any, base: Any, index: Any) -> Any:
    return builder.gep(builder.inttoptr(base, WORD.as_pointer()), [index])


@_intrinsic
def argument(typing: Any, args: Any, index: Any) -> Any:
    """Element `index` of the argument table."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(_element(builder, *values))

    return i64(i64, i64), emit


@_intrinsic
def floats(typing: Any, address: Any) -> Any:
    """The address as a pointer to float32."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(i64), emit


@_intrinsic
def put(typing: Any, args: Any, index: Any, value: Any) -> Any:
    """Element `index` of the table becomes `value`."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store(values[2], _element(builder, *values[:2]))
        return context.get_dummy_value()

    return types.void(i64, i64, i64), emit


@_intrinsic
def increment(typing: Any, args: Any, index: Any) -> Any:
    """Adds 1 to element `index`, not atomically: two runs of one task would show."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _element(builder, *values)
        builder.store(builder.add(builder.load(place), WORD(1)), place)
        return context.get_dummy_value()

    return types.void(i64, i64), emit
