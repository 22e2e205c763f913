"""Boxes of a tensor that hardware copies to shared memory, and barriers that count what arrives.

They need sm_90a. A tensor is described by 128 bytes that the driver encodes: a parameter of the
kernel. `copy_boxN(target, j, barriers, i, tensor, x, y ...)` starts the copy of the box of N axes
that begins at (x, y ...), neighbours first; what lies beyond the tensor is zeros. Rows of 128 bytes
lie from target[j] on, whose address is a multiple of 1024; pieces of 16 bytes are exchanged within
each eight rows (PTX ISA, "Swizzling modes": 128 bytes). A barrier is an element of an array of
uint64. It is passed when `barrier_expect` has come and as many bytes as it said have arrived; then
it is ready for the next time, and `barrier_wait` of 0, 1, 0, 1 ... waits for one after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from tilewright_kernels.cuda.intrinsics import (
    I32,
    I64,
    intrinsic,
    meaning,
    ptx,
    shared_address,
)
from tilewright_kernels.cuda.pointers import align_shared

LINE, PIECE, GROUP = 128, 16, 8  # bytes of a row and of what is exchanged, rows that it is among


def swizzled(byte: Any) -> Any:
    """Where a byte lies that without exchanges would lie at `byte`."""
    return byte ^ byte // LINE % GROUP * PIECE


def _on_barrier(text: str) -> Any:
    """An instruction on a barrier and a number of 32 bits."""

    @intrinsic
    def function(typing: Any, barriers: Any, i: Any, number: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            operands = [shared_address(builder, *values[:2]), builder.trunc(values[2], I32)]
            ptx(builder, text, [], operands, memory=True)
            return context.get_dummy_value()

        return types.void(barriers, types.int64, types.int64), emit

    return function


# barrier_init(barriers, i, n): it takes n calls of `barrier_expect` to pass it.
barrier_init = _on_barrier("mbarrier.init.shared::cta.b64 [$0], $1;")
# barrier_expect(barriers, i, n): n bytes will arrive.
barrier_expect = _on_barrier("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;")


@intrinsic
def barriers_ready(typing: Any) -> Any:
    """The hardware that copies knows of barriers that this thread made."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        ptx(builder, "fence.mbarrier_init.release.cluster;", [], [], memory=True)
        ptx(builder, "fence.proxy.async.shared::cta;", [], [], memory=True)
        return context.get_dummy_value()

    return types.void(), emit


TRY = """{
.reg .pred passed;
mbarrier.try_wait.parity.shared::cta.b64 passed, [$1], $2;
selp.b32 $0, 1, 0, passed;
}"""


@intrinsic
def barrier_wait(typing: Any, barriers: Any, i: Any, parity: Any) -> Any:
    """The barrier was passed, the even times or the odd ones; what arrived there can be read."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        operands = [shared_address(builder, *values[:2]), builder.trunc(values[2], I32)]
        again, after = (builder.append_basic_block(name) for name in ("again", "passed"))
        builder.branch(again)
        builder.position_at_end(again)
        (passed,) = ptx(builder, TRY, [I32], operands, memory=True)
        builder.cbranch(builder.icmp_unsigned("!=", passed, I32(0)), after, again)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(barriers, types.int64, types.int64), emit


def _box_meaning(target: Any, j: int, tensor: Any, box: tuple[int, ...], at: Any) -> None:
    """`tensor` is an array, `box` and `at` are in the order of its axes; no barrier counts."""
    part = np.zeros(box, tensor.dtype)
    inside = tuple(slice(max(-a, 0), max(n - a, 0)) for a, n in zip(at, tensor.shape, strict=True))
    there = tuple(slice(max(a, 0), max(a + b, 0)) for a, b in zip(at, box, strict=True))
    part[inside] = tensor[there]
    size = part.itemsize
    place = swizzled(np.arange(part.size) * size) // size
    target[j + place] = part.reshape(-1)


def _copy_box(builder: Any, values: Any) -> None:
    align_shared(builder, LINE * GROUP)
    target, barrier = (shared_address(builder, *values[k : k + 2]) for k in (0, 2))
    tensor, at = builder.ptrtoint(values[4], I64), [builder.trunc(v, I32) for v in values[5:]]
    place = ", ".join(f"${k + 3}" for k in range(len(at)))
    head = f"cp.async.bulk.tensor.{len(at)}d.shared::cluster.global.tile"
    text = f"{head}.mbarrier::complete_tx::bytes [$0], [$1, {{{place}}}], [$2];"
    ptx(builder, text, [], [target, tensor, barrier, *at], memory=True)


def _boxes(pointers: tuple[Any, Any, Any], rank: int) -> Any:
    target, barriers, tensor = pointers

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _copy_box(builder, values)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(target, i64, barriers, i64, tensor, *[i64] * rank), emit


@meaning(_box_meaning)
@intrinsic
def copy_box2(typing: Any, t: Any, j: Any, b: Any, i: Any, m: Any, x: Any, y: Any) -> Any:
    return _boxes((t, b, m), 2)


@meaning(_box_meaning)
@intrinsic
def copy_box3(typing: Any, t: Any, j: Any, b: Any, i: Any, m: Any, x: Any, y: Any, z: Any) -> Any:
    return _boxes((t, b, m), 3)


@meaning(_box_meaning)
@intrinsic
def copy_box4(
    typing: Any, t: Any, j: Any, b: Any, i: Any, m: Any, x: Any, y: Any, z: Any, u: Any
) -> Any:
    return _boxes((t, b, m), 4)


@meaning(_box_meaning)
@intrinsic
def copy_box5(
    typing: Any, t: Any, j: Any, b: Any, i: Any, m: Any, x: Any, y: Any, z: Any, u: Any, v: Any
) -> Any:
    return _boxes((t, b, m), 5)
