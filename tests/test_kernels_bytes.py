"""Tiles of int32 that products of bytes add to, against NumPy; exact for every byte there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels_harness import Compiled, compile_kernel
from tilewright_kernels.cpu import machine

pytestmark = pytest.mark.avx2

Array = np.ndarray[Any, Any]
QUAD = 4
BYTES = (np.uint8, np.int8)
INT32 = np.iinfo(np.int32)
PATTERNS = ("random", "least", "greatest", "corners", "traps")
patterns = st.sampled_from(PATTERNS)


def kernel(rows: int, vectors: int) -> Compiled:
    """c += A @ B for a tile of c."""
    body = f"""
    c = i32(args, 2)
    acc = load({rows}, {vectors}, c, integer(args, 5))
    acc = matmul_bytes(acc, u8(args, 0), integer(args, 3), i8(args, 1), integer(args, 4))
    store(acc, c, integer(args, 5))
    """
    pointers = "pointers.u8 pointers.i8 pointers.i32 pointers.integer"
    return compile_kernel(body, f"{pointers} tile.load tile.store byte_matmul.matmul_bytes")


def filled(dtype: Any, shape: tuple[int, int], pattern: str, seed: int) -> Array:
    """Bytes of a pattern. `traps` alternate between what sums of two products leave 16 bits with
    and what brings the sum of four back."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    rng = np.random.default_rng(seed)
    match pattern:
        case "random":
            return rng.integers(low, high, shape, dtype, endpoint=True)
        case "corners":
            return rng.choice(np.array([low, low + 1, 0, 1, high - 1, high], dtype), shape)
        case "traps":
            along = (np.arange(shape[1]) // 2 % 2).astype(bool)
            return np.broadcast_to(np.where(along, high, low).astype(dtype), shape).copy()
    return np.full(shape, low if pattern == "least" else high, dtype)


def in_panel(b: Array) -> Array:
    """[k, columns] as [k / 4, columns, 4]."""
    k, columns = b.shape
    return np.ascontiguousarray(b.reshape(k // QUAD, QUAD, columns).transpose(0, 2, 1))


def wrapped(exact: Array) -> Array:
    return exact.astype(np.uint64).astype(np.uint32).view(np.int32)


def check(a: Array, b: Array, start: Array, vectors: int, gap: int = 0) -> None:
    """The kernel reads A's bytes as unsigned and B's as signed, whatever they were; `gap` is
    between rows."""
    rows, depth = a.shape
    columns = vectors * machine.lanes(32)
    left = np.full((rows, depth + gap), 0x7F, a.dtype)
    left[:, :depth] = a
    out = np.full((rows, columns + gap), 77, np.int32)
    out[:, :columns] = start
    kernel(rows, vectors)(left, in_panel(b), out, depth + gap, depth, columns + gap)
    exact = start.astype(np.int64) + a.view(np.uint8).astype(np.int64) @ b.view(np.int8)
    np.testing.assert_array_equal(out[:, :columns], wrapped(exact))
    assert (out[:, columns:] == 77).all()


def start_of(rows: int, vectors: int, seed: int) -> Array:
    shape = (rows, vectors * machine.lanes(32))
    return np.random.default_rng(seed).integers(-(2**30), 2**30, shape, np.int32)


@given(
    rows=st.sampled_from([1, 2, 3, 5, 7, machine.tile_rows(2)]),
    vectors=st.integers(1, 2),
    quads=st.integers(0, 37),
    kinds=st.tuples(st.sampled_from(BYTES), st.sampled_from(BYTES)),
    how=st.tuples(patterns, patterns),
    gap=st.integers(0, 9),
    seed=st.integers(0, 1 << 16),
)
def test_matmul_bytes(
    rows: int,
    vectors: int,
    quads: int,
    kinds: tuple[Any, Any],
    how: tuple[str, str],
    gap: int,
    seed: int,
) -> None:
    columns = vectors * machine.lanes(32)
    a = filled(kinds[0], (rows, QUAD * quads), how[0], seed)
    b = filled(kinds[1], (columns, QUAD * quads), how[1], seed + 1).T.copy()
    check(a, b, start_of(rows, vectors, seed), vectors, gap)


@pytest.mark.parametrize("left", PATTERNS)
@pytest.mark.parametrize("right", PATTERNS)
def test_no_sum_on_the_way_saturates(left: str, right: str) -> None:
    """Two products of 255 and -128 leave 16 bits, which instructions before VNNI saturate at."""
    depth, columns = 4096, 2 * machine.lanes(32)
    a = filled(np.uint8, (3, depth), left, 0)
    b = filled(np.int8, (columns, depth), right, 1).T.copy()
    check(a, b, start_of(3, 2, 2), 2)


@pytest.mark.parametrize("start", [INT32.min, INT32.max])
@pytest.mark.parametrize("how", ["least", "greatest"])
def test_sums_wrap_around_like_int32(start: int, how: str) -> None:
    """Sums that leave 32 bits on the way and come back are right at the end."""
    rows, columns = 2, machine.lanes(32)
    a = filled(np.uint8, (rows, 2 * QUAD), "greatest", 0)
    b = filled(np.int8, (2 * QUAD, columns), how, 1)
    check(a, b, np.full((rows, columns), start, np.int32), 1)
    b[QUAD:] = -b[:QUAD] if how == "greatest" else 127
    check(a, b, np.full((rows, columns), start, np.int32), 1)


def test_every_byte_by_every_byte() -> None:
    lanes = machine.lanes(32)
    left = np.arange(256, dtype=np.uint8)
    right = np.arange(256, dtype=np.uint8).view(np.int8).reshape(-1, lanes)
    for position in range(QUAD):
        for few in right:
            a, b = np.zeros((256, QUAD), np.uint8), np.zeros((QUAD, lanes), np.int8)
            a[:, position], b[position] = left, few
            for row in range(0, 256, 8):
                check(a[row : row + 8], b, np.zeros((8, lanes), np.int32), 1)
