"""Typed pointers from the argument table, loads and stores of halves and booleans, stack arrays.

A kernel's `args` is the address of a table of int64. `f32(args, 3)` is its element 3 as a pointer
to float32, indexed natively (`p[i]`), so that LLVM sees plain memory accesses and vectorises them.
Halves and booleans lie in memory as uint16 and uint8 and are read with a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from tilewright_kernels.cpu import halves
from tilewright_kernels.cpu.intrinsics import intrinsic, literal_intrinsic, pointer_to
from tilewright_kernels.cpu.values import I8, I64

STACK_ALIGNMENT = 64


def _table_entry(builder: Any, args: Any, index: Any) -> Any:
    return builder.load(builder.gep(builder.inttoptr(args, I64.as_pointer()), [index]))


@intrinsic
def integer(typing: Any, args: Any, index: Any) -> Any:
    """Element `index` of the argument table."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _table_entry(builder, *values)

    return types.int64(types.int64, types.int64), emit


def _distinct(builder: Any, address: Any) -> Any:
    """The address as a pointer that LLVM knows to alias no other one, as if it came from malloc.

    True of a kernel's buffers. A call says it where no argument of a function can; it costs a
    nanosecond a task, and loops that read some buffers and write others vectorise without checks.
    The empty assembly lets the pointer escape: LLVM would drop stores that nobody else can see.
    """
    module, name = builder.module, "distinct_buffer"
    function = module.globals.get(name)
    if function is None:
        pointer = I8.as_pointer()
        function = ir.Function(module, ir.FunctionType(pointer, [I64]), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        function.attributes.add("nounwind")
        function.return_value.add_attribute("noalias")
        body = ir.IRBuilder(function.append_basic_block())
        body.ret(body.inttoptr(function.args[0], pointer))
    found = builder.call(function, [address])
    escape = ir.FunctionType(ir.VoidType(), [found.type])
    builder.asm(escape, "", "r", [found], side_effect=True)
    return found


def _pointer_argument(dtype: Any) -> Any:
    pointer = pointer_to(dtype)

    @intrinsic
    def argument(typing: Any, args: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            found = _distinct(builder, _table_entry(builder, *values))
            return builder.bitcast(found, context.get_value_type(pointer))

        return pointer(types.int64, types.int64), emit

    return argument


f32, f64 = _pointer_argument(types.float32), _pointer_argument(types.float64)
i8, i16 = _pointer_argument(types.int8), _pointer_argument(types.int16)
i32, i64 = _pointer_argument(types.int32), _pointer_argument(types.int64)
u8, u16 = _pointer_argument(types.uint8), _pointer_argument(types.uint16)
u32, u64 = _pointer_argument(types.uint32), _pointer_argument(types.uint64)
b8, f16, bf16 = u8, u16, u16


def _stack_array(dtype: Any) -> Any:
    pointer = pointer_to(dtype)

    @literal_intrinsic
    def array(typing: Any, size: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            # In the entry block: elsewhere every pass of a loop would take more of the stack.
            with builder.goto_entry_block():
                memory = builder.alloca(ir.ArrayType(context.get_data_type(dtype), count))
            memory.align = STACK_ALIGNMENT
            return builder.bitcast(memory, context.get_value_type(pointer))

        count = size.literal_value
        return pointer(size), emit

    return array


stack_f32, stack_f64 = _stack_array(types.float32), _stack_array(types.float64)
stack_i8, stack_i16 = _stack_array(types.int8), _stack_array(types.int16)
stack_i32, stack_i64 = _stack_array(types.int32), _stack_array(types.int64)
stack_u8, stack_u16 = _stack_array(types.uint8), _stack_array(types.uint16)
stack_u32, stack_u64 = _stack_array(types.uint32), _stack_array(types.uint64)
stack_b8, stack_f16, stack_bf16 = stack_u8, stack_u16, stack_u16


@intrinsic
def offset(typing: Any, pointer: Any, count: Any) -> Any:
    """The pointer, `count` elements further."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.gep(values[0], [values[1]])

    return pointer(pointer, types.int64), emit


@intrinsic
def alone(typing: Any, value: Any) -> Any:
    """The value, an int64; a loop that asks for it takes one iteration at a time.

    LLVM would make a vector of indices and gather what they point to, which takes longer than
    loads one by one.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        same = ir.FunctionType(I64, [I64])
        return builder.asm(same, "", "=r,0", values, side_effect=False)

    return types.int64(types.int64), emit


@intrinsic
def address(typing: Any, pointer: Any) -> Any:
    """The address in bytes."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.ptrtoint(values[0], I64)

    return types.int64(pointer), emit


@intrinsic
def load_b8(typing: Any, pointer: Any, index: Any) -> Any:
    """Whether byte `index` differs from zero."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte = builder.load(builder.gep(values[0], [values[1]]))
        return builder.icmp_unsigned("!=", byte, I8(0))

    return types.boolean(pointer, types.int64), emit


@intrinsic
def store_b8(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Byte `index` becomes 1 or 0."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte = builder.zext(values[2], I8)
        builder.store(byte, builder.gep(values[0], [values[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.boolean), emit


def _half_load(decode: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def load(typing: Any, pointer: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return decode(builder, builder.load(builder.gep(values[0], [values[1]])))

        return types.float32(pointer, types.int64), emit

    return load


def _half_store(encode: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def store(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            bits = encode(builder, values[2])
            builder.store(bits, builder.gep(values[0], [values[1]]))
            return context.get_dummy_value()

        return types.void(pointer, types.int64, types.float32), emit

    return store


load_f16, store_f16 = _half_load(halves.decode_f16), _half_store(halves.encode_f16)
load_bf16, store_bf16 = _half_load(halves.decode_bf16), _half_store(halves.encode_bf16)
