"""Emitters for vectors of one register each: loads, stores, broadcasts, prefetches."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tilewright_kernels.cpu import machine
from tilewright_kernels.cpu.values import I8, I32, I64, call_intrinsic


def word(value: int) -> Any:
    """An int64 constant."""
    return ir.Constant(I64, value)


def load_vector(builder: Any, pointer: Any, vector: Any, index: Any) -> Any:
    """The vector that starts at element `index`; any alignment of whole elements."""
    place = builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())
    return builder.load(place, align=_element_bytes(vector))


def store_vector(builder: Any, value: Any, pointer: Any, index: Any) -> None:
    """Writes the vector from element `index` on."""
    place = builder.bitcast(builder.gep(pointer, [index]), value.type.as_pointer())
    builder.store(value, place, align=_element_bytes(value.type))


def _element_bytes(vector: Any) -> int:
    return {"i8": 1, "f16": 2, "f32": 4, "i32": 4, "f64": 8}[vector.element.intrinsic_name]


def splat(builder: Any, scalar: Any, vector: Any) -> Any:
    """The scalar in every lane."""
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, scalar, I32(0))
    lanes = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, nothing, lanes)


def prefetch(builder: Any, pointer: Any, index: Any) -> None:
    """Asks for the cache line of element `index`, into the second level."""
    byte_pointer = I8.as_pointer()
    place = builder.bitcast(builder.gep(pointer, [index]), byte_pointer)
    signature = ir.FunctionType(ir.VoidType(), [byte_pointer, I32, I32, I32])
    function = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=signature)
    read, second_level, data = I32(0), I32(2), I32(1)
    builder.call(function, [place, read, second_level, data])


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor can and twice where not."""
    name = f"llvm.fmuladd.v{a.type.count}{a.type.element.intrinsic_name}"
    return call_intrinsic(builder, name, a.type, [a, b, c])


def free_registers(builder: Any) -> None:
    """An empty piece of assembly that claims every vector register.

    What is live across it waits in memory. Without it LLVM holds the constants of the loops that
    follow a tile in registers all along, and spills the tile instead.
    """
    nothing = ir.FunctionType(ir.VoidType(), [])
    names = machine.vector_register_names()
    builder.asm(nothing, "", ",".join(f"~{{{n}}}" for n in names), [], side_effect=True)


def keep_loop_rolled(builder: Any) -> None:
    """An empty piece of assembly: LLVM leaves loops alone that call something unknown.

    Unrolling a loop whose tile fills the register file would move loads up and spill.
    """
    nothing = ir.FunctionType(ir.VoidType(), [])
    builder.asm(nothing, "", "", [], side_effect=True)
