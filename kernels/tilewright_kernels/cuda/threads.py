"""Which thread this is, meeting points, and values from other lanes of a warp.

Every number of a thread, block or lane is an int64, or an int32 from the functions that end in
`32`: narrow ones halve the registers of an index, but Numba's operators widen them again unless
each result is wrapped in `to_i32`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from tilewright_kernels.cuda.intrinsics import I32, I64, VOID, intrinsic, meaning, ptx

LANES = 32
EVERY_LANE = "0xffffffff"


def register(builder: Any, name: str) -> Any:
    """One of the special registers, as LLVM spells it: `tid.x`."""
    signature = ir.FunctionType(I32, [])
    name = f"llvm.nvvm.read.ptx.sreg.{name}"
    return builder.call(builder.module.declare_intrinsic(name, fnty=signature), [])


def _number(name: str, wide: bool) -> Any:
    @intrinsic
    def function(typing: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = register(builder, name)
            return builder.zext(value, I64) if wide else value

        return (types.int64 if wide else types.int32)(), emit

    return function


thread, thread32 = _number("tid.x", True), _number("tid.x", False)
threads, threads32 = _number("ntid.x", True), _number("ntid.x", False)
block, block32 = _number("ctaid.x", True), _number("ctaid.x", False)
blocks, blocks32 = _number("nctaid.x", True), _number("nctaid.x", False)
lane, lane32 = _number("laneid", True), _number("laneid", False)


def barrier(builder: Any) -> None:
    name = "llvm.nvvm.barrier0"
    function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(VOID, []))
    builder.call(function, [])


@intrinsic
def sync(typing: Any) -> Any:
    """All threads of the block have come here, and see what the others stored before."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        barrier(builder)
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def sync_warp(typing: Any) -> Any:
    """As `sync`, among the threads of a warp."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        ptx(builder, f"bar.warp.sync {EVERY_LANE};", [], [], memory=True, together=True)
        return context.get_dummy_value()

    return types.void(), emit


def shuffled(builder: Any, value: Any, mode: str, selector: Any, clamp: int) -> Any:
    """`value` of another lane: of each 32 bits of it, or of it widened to 32 bits."""
    word = _as_integer(builder, value)
    if word.type.width == 64:
        low = builder.trunc(word, I32)
        high = builder.trunc(builder.lshr(word, ir.Constant(I64, 32)), I32)
        pair = (_exchange(builder, part, mode, selector, clamp) for part in (low, high))
        low, high = (builder.zext(part, I64) for part in pair)
        word = builder.or_(low, builder.shl(high, ir.Constant(I64, 32)))
    elif word.type.width == 32:
        word = _exchange(builder, word, mode, selector, clamp)
    else:
        wide = _exchange(builder, builder.zext(word, I32), mode, selector, clamp)
        word = builder.trunc(wide, word.type)
    return builder.bitcast(word, value.type)


def _as_integer(builder: Any, value: Any) -> Any:
    widths = {"float": 32, "double": 64}
    width = widths.get(str(value.type))
    return builder.bitcast(value, ir.IntType(width)) if width else value


def _exchange(builder: Any, word: Any, mode: str, selector: Any, clamp: int) -> Any:
    text = f"shfl.sync.{mode}.b32 $0, $1, $2, {clamp}, {EVERY_LANE};"
    return ptx(builder, text, [I32], [word, selector], together=True)[0]


def _shuffle(mode: str, clamp: int, python: Any) -> Any:
    @intrinsic
    def function(typing: Any, value: Any, selector: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            narrow = builder.trunc(values[1], I32)
            return shuffled(builder, values[0], mode, narrow, clamp)

        value = types.unliteral(value)
        return value(value, types.int64), emit

    def mean(values: Any, selector: Any) -> Any:
        lanes = np.arange(LANES)
        source = python(lanes, selector)
        return values[np.where((source >= 0) & (source < LANES), source, lanes)]

    return meaning(mean)(function)


# The value of lane (own XOR selector), (own + selector), (own - selector), and (selector); where
# there is no such lane the own value. All lanes take part.
shuffle_xor = _shuffle("bfly", 31, lambda lanes, selector: lanes ^ selector)
shuffle_down = _shuffle("down", 31, lambda lanes, selector: lanes + selector)
shuffle_up = _shuffle("up", 0, lambda lanes, selector: lanes - selector)
shuffle_from = _shuffle("idx", 31, lambda lanes, selector: np.zeros_like(lanes) + selector % LANES)
