"""Products of matrices in shared memory by a warpgroup (four warps), summed in registers.

They need sm_90a, and run while the threads do other things. `wgmma_f16(sums, columns, a, i, b, j,
a_last, a_pitch, b_last, b_pitch, depth)` starts adding the product of 64 rows from a[i] on and
`columns` columns from b[j] on to the sums of 128 threads, after a `wgmma_fence`; `wgmma_commit`
closes a group of them. Until `wgmma_wait` has waited for it, nobody may touch the sums, nor write
what is read. Matrices are stretches of rows of 128 bytes, laid out as `bulk` does: a line of 64
elements that are summed to a row (`last`), or 64 lines to a row for each element that is summed,
with `pitch` bytes from the first 64 lines to the next. PTX ISA, "Asynchronous Warpgroup Level
Matrix Multiply-Accumulate Instructions".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from tilewright_kernels.cuda import halves
from tilewright_kernels.cuda.bulk import GROUP, LINE, PIECE, swizzled
from tilewright_kernels.cuda.intrinsics import (
    F32,
    I32,
    I64,
    element,
    intrinsic,
    literal_intrinsic,
    meaning,
    ptx,
    registers,
    shared_address,
)

ROWS, LANES, STEP = 64, 128, 16  # rows and threads of a warpgroup, and elements that one multiplies
EIGHT = LINE * GROUP  # bytes of the rows that pieces are exchanged among
SWIZZLE_128 = 1 << 62
THREAD = np.arange(LANES)


def sum_indices(columns: int) -> tuple[Any, Any]:
    """Row and column of each sum, [thread, place]."""
    place = np.arange(columns // 2)
    row = THREAD[:, None] // 32 * 16 + THREAD[:, None] % 32 // 4 + place // 2 % 2 * 8
    return row, place // 4 * 8 + THREAD[:, None] % 4 * 2 + place % 2


def descriptor(is_last: bool, pitch: int) -> int:
    """A matrix's description but for its address. Elements of one product lie side by side
    (`is_last`), or those of 64 lines do; then the next 64 are `pitch` bytes on."""
    leading = 1 if is_last else pitch // PIECE
    return leading << 16 | EIGHT // PIECE << 32 | SWIZZLE_128


def advance(is_last: bool) -> int:
    """Bytes from what one instruction multiplies to what the next one does."""
    return STEP * 2 if is_last else STEP * LINE


def _text(kind: str, columns: int, a_last: bool, b_last: bool, depth: int) -> str:
    count = columns // 2
    one, two = f"${2 * count}", f"${2 * count + 1}"
    order = f"{int(not a_last)}, {int(not b_last)}"
    lines = ["{", ".reg .pred add;", ".reg .b64 left, right;", "setp.eq.u32 add, 0, 0;"]
    for k in range(depth // STEP):
        lines += [f"add.s64 left, {one}, {k * advance(a_last) // PIECE};"]
        lines += [f"add.s64 right, {two}, {k * advance(b_last) // PIECE};"]
        head = f"wgmma.mma_async.sync.aligned.m64n{columns}k{STEP}.f32.{kind}.{kind}"
        lines += [f"{head} {registers(0, count)}, left, right, add, 1, 1, {order};"]
    return "\n".join([*lines, "}"])


def _through(builder: Any, text: str, pointer: Any, count: int, operands: list[Any]) -> None:
    """An instruction that changes `count` sums in place."""
    places = [element(builder, pointer, I64(k)) for k in range(count)]
    old = [builder.load(p) for p in places]
    answer = ir.LiteralStructType([F32] * count)
    names = ["=f"] * count + [str(k) for k in range(count)] + ["l"] * len(operands)
    signature = ir.FunctionType(answer, [F32] * count + [v.type for v in operands])
    code = ir.InlineAsm(signature, text, ",".join([*names, "~{memory}"]), True)
    found = builder.call(code, [*old, *operands], attrs=("convergent",))
    for k, place in enumerate(places):
        builder.store(builder.extract_value(found, k), place)


def _wgmma(kind: str) -> Any:
    @literal_intrinsic
    def function(
        typing: Any,
        sums: Any,
        columns: Any,
        a: Any,
        i: Any,
        b: Any,
        j: Any,
        a_last: Any,
        a_pitch: Any,
        b_last: Any,
        b_pitch: Any,
        depth: Any,
    ) -> Any:
        literals = [x.literal_value for x in (columns, a_last, a_pitch, b_last, b_pitch, depth)]
        width, left_last, left_pitch, right_last, right_pitch, deep = map(int, literals)
        if width % 8 or not 8 <= width <= 256 or deep % STEP:
            raise TypingError(f"a product of {width} columns and {deep} elements")

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            def described(pointer: Any, index: Any, is_last: int, pitch: int) -> Any:
                place = builder.lshr(shared_address(builder, pointer, index), I32(4))
                low = builder.zext(builder.and_(place, I32(0x3FFF)), I64)
                return builder.or_(low, I64(descriptor(bool(is_last), pitch)))

            operands = [
                described(values[2], values[3], left_last, left_pitch),
                described(values[4], values[5], right_last, right_pitch),
            ]
            text = _text(kind, width, bool(left_last), bool(right_last), deep)
            _through(builder, text, values[0], width // 2, operands)
            return context.get_dummy_value()

        i64 = types.int64
        rest = (a_last, a_pitch, b_last, b_pitch, depth)
        return types.void(sums, columns, a, i64, b, i64, *rest), emit

    def mean(sums: Any, columns: int, *rest: Any) -> None:
        """`sums` [thread, place] of a warpgroup, matrices as arrays of uint16."""
        a, i, b, j, a_last, a_pitch, b_last, b_pitch, depth = rest
        decode = {"f16": halves.from_f16, "bf16": halves.from_bf16}[kind]
        left = decode(matrix(a, i, ROWS, a_last, a_pitch, depth)).astype(np.float64)
        right = decode(matrix(b, j, columns, b_last, b_pitch, depth)).astype(np.float64)
        sums += (left @ right.T)[sum_indices(columns)]

    return meaning(mean)(function)


def matrix(memory: Any, first: int, lines: int, is_last: int, pitch: int, depth: int) -> Any:
    """[line, element of the sum] of a matrix in shared memory, as it lies there."""
    line, k = np.arange(lines)[:, None], np.arange(depth)
    if is_last:
        byte = line * LINE + k * 2
    else:
        byte = line // (LINE // 2) * pitch + k * LINE + line % (LINE // 2) * 2
    return memory[swizzled(first * 2 + byte) // 2]


wgmma_f16, wgmma_bf16 = _wgmma("f16"), _wgmma("bf16")


def _simple(text: str) -> Any:
    @intrinsic
    def function(typing: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            ptx(builder, text, [], [], memory=True, together=True)
            return context.get_dummy_value()

        return types.void(), emit

    return function


wgmma_fence = _simple("wgmma.fence.sync.aligned;")
wgmma_commit = _simple("wgmma.commit_group.sync.aligned;")


@literal_intrinsic
def wgmma_wait(typing: Any, sums: Any, columns: Any, pending: Any) -> Any:
    """At most `pending` groups are still under way."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        text = f"wgmma.wait_group.sync.aligned {pending.literal_value};"
        _through(builder, text, values[0], columns.literal_value // 2, [])
        return context.get_dummy_value()

    return types.void(sums, columns, pending), emit
