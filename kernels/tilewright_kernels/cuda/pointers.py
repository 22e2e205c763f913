"""Pointers: a thread's own arrays, shared memory, halves and booleans, atomic updates.

Kernels get raw pointers and index them natively (`p[i]`). Halves and booleans lie in memory as
uint16 and uint8 and are read with a function. Arrays of a thread (`stack_f32(8)`) become registers
where every index is a constant once the loops are unrolled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from tilewright_kernels.cpu import pointers as cpu
from tilewright_kernels.cuda import halves
from tilewright_kernels.cuda.intrinsics import (
    I8,
    SHARED,
    element,
    global_address,
    intrinsic,
    literal_intrinsic,
    meaning,
    pointer_to,
    ptx,
    shared,
)

ALIGNMENT = 16  # bytes of the widest access
SHARED_NAME = "tilewright_shared"

offset, address = shared(cpu.offset), shared(cpu.address)
load_b8, store_b8 = shared(cpu.load_b8), shared(cpu.store_b8)


def _stack_array(dtype: Any) -> Any:
    pointer = pointer_to(dtype)

    @literal_intrinsic
    def array(typing: Any, size: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            with builder.goto_entry_block():
                memory = builder.alloca(ir.ArrayType(context.get_data_type(dtype), count))
            memory.align = ALIGNMENT
            return builder.bitcast(memory, context.get_value_type(pointer))

        count = size.literal_value
        return pointer(size), emit

    return meaning(lambda size: np.empty(size, str(dtype)))(array)


stack_f32, stack_f64 = _stack_array(types.float32), _stack_array(types.float64)
stack_i8, stack_i16 = _stack_array(types.int8), _stack_array(types.int16)
stack_i32, stack_i64 = _stack_array(types.int32), _stack_array(types.int64)
stack_u8, stack_u16 = _stack_array(types.uint8), _stack_array(types.uint16)
stack_u32, stack_u64 = _stack_array(types.uint32), _stack_array(types.uint64)
stack_b8, stack_f16, stack_bf16 = stack_u8, stack_u16, stack_u16


def _dynamic_shared(builder: Any) -> Any:
    """The block's dynamic shared memory, whose size the launch says, as a generic pointer."""
    variable = _shared_variable(builder.module)
    return builder.addrspacecast(builder.bitcast(variable, I8.as_pointer(SHARED)), I8.as_pointer())


def align_shared(builder: Any, alignment: int) -> None:
    """The shared memory of this kernel begins at a multiple of so many bytes."""
    variable = _shared_variable(builder.module)
    variable.align = max(variable.align, alignment)


def _shared_variable(module: Any) -> Any:
    variable = module.globals.get(SHARED_NAME)
    if variable is None:
        variable = ir.GlobalVariable(module, ir.ArrayType(I8, 0), SHARED_NAME, SHARED)
        variable.linkage, variable.align = "external", ALIGNMENT
    return variable


def _shared_array(dtype: Any) -> Any:
    pointer = pointer_to(dtype)

    @intrinsic
    def array(typing: Any, at: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            start = builder.gep(_dynamic_shared(builder), values)
            return builder.bitcast(start, context.get_value_type(pointer))

        return pointer(types.int64), emit

    return meaning(lambda memory, at: memory[at:].view(str(dtype)))(array)


# The dynamic shared memory from byte `at` on; launches align its start to 16 bytes.
shared_f32, shared_f64 = _shared_array(types.float32), _shared_array(types.float64)
shared_i8, shared_i16 = _shared_array(types.int8), _shared_array(types.int16)
shared_i32, shared_i64 = _shared_array(types.int32), _shared_array(types.int64)
shared_u8, shared_u16 = _shared_array(types.uint8), _shared_array(types.uint16)
shared_u32, shared_u64 = _shared_array(types.uint32), _shared_array(types.uint64)
shared_b8, shared_f16, shared_bf16 = shared_u8, shared_u16, shared_u16


def _half_load(decode: Callable[[Any, Any], Any], python: Any) -> Any:
    @intrinsic
    def load(typing: Any, pointer: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return decode(builder, builder.load(element(builder, *values)))

        return types.float32(pointer, types.int64), emit

    return meaning(lambda pointer, index: python(pointer[index]))(load)


def _half_store(encode: Callable[[Any, Any], Any], python: Any) -> Any:
    @intrinsic
    def store(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            builder.store(encode(builder, values[2]), element(builder, *values[:2]))
            return context.get_dummy_value()

        return types.void(pointer, types.int64, types.float32), emit

    def mean(pointer: Any, index: int, value: Any) -> None:
        pointer[index] = python(value)

    return meaning(mean)(store)


load_f16 = _half_load(halves.decode_f16, halves.from_f16)
load_bf16 = _half_load(halves.decode_bf16, halves.from_bf16)
store_f16 = _half_store(halves.encode_f16, halves.as_f16)
store_bf16 = _half_store(halves.encode_bf16, halves.as_bf16)


def reduce_into(builder: Any, operation: str, kind: str, place: Any, value: Any) -> None:
    """What lies at `place`, a global address, becomes the operation of itself and `value`."""
    ptx(builder, f"red.global.{operation}.{kind} [$0], $1;", [], [place, value], memory=True)


def _kind(dtype: Any) -> str:
    """A type of 32 or 64 bits as PTX spells it."""
    if isinstance(dtype, types.Float):
        return f"f{dtype.bitwidth}"
    return f"{'s' if dtype.signed else 'u'}{dtype.bitwidth}"


def _atomic(operation: str, python: Any) -> Any:
    @intrinsic
    def function(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
        if pointer.dtype != value or value.bitwidth < 32:
            raise TypingError(f"an indivisible {operation} of {value} into {pointer.dtype}")
        kind = _kind(value)
        if (operation, kind) == ("add", "s64"):
            kind = "u64"  # the sum has the same bits, and only this exists

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = global_address(builder, *values[:2])
            reduce_into(builder, operation, kind, place, values[2])
            return context.get_dummy_value()

        return types.void(pointer, types.int64, value), emit

    def mean(pointer: Any, index: int, value: Any) -> None:
        pointer[index] = python(pointer[index], value)

    return meaning(mean)(function)


# atomic_add(p, i, value): p[i], in global memory, where other threads update it too. Of floats
# only `add` exists; its result varies with the order, and it takes denormal float32 as 0.
atomic_add = _atomic("add", lambda old, value: old + value)
atomic_maximum, atomic_minimum = _atomic("max", max), _atomic("min", min)
