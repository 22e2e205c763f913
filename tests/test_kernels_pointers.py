"""Pointers of every type, halves, booleans, scratch on the stack."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kernels_harness import compile_kernel, elementwise
from tilewright_kernels.cpu import machine

TYPES: dict[str, Any] = {
    **{f"i{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"u{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
HALVES: dict[str, Any] = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("kind", TYPES)
def test_copies(kind: str) -> None:
    x = (np.random.default_rng(0).random(37) * 200 - 100).astype(np.int8).astype(TYPES[kind])
    y = np.zeros_like(x)
    elementwise("x0[i]", "", kind, kind)(y, x, x.size)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", TYPES)
def test_stack_arrays_are_separate_and_aligned(kind: str) -> None:
    body = f"""
    x, y, n = {kind}(args, 0), {kind}(args, 1), integer(args, 2)
    for k in range(3):
        a, b = stack_{kind}(50), stack_{kind}(50)
        for i in range(n):
            a[i] = x[i]
            b[n - 1 - i] = x[i]
        for i in range(n):
            y[i] = a[i]
            y[n + i] = b[i]
    i64(args, 3)[0] = address(a) | address(b)
    """
    names = f"{kind} stack_{kind} integer i64 address".split()
    imports = " ".join(f"pointers.{name}" for name in dict.fromkeys(names))
    x = np.arange(50).astype(TYPES[kind])
    y, place = np.zeros(100, x.dtype), np.zeros(1, np.int64)
    compile_kernel(body, imports)(x, y, 50, place)
    np.testing.assert_array_equal(y, np.concatenate([x, x[::-1]]))
    assert place[0] % 64 == 0


def test_offset_counts_elements() -> None:
    x, y = np.arange(8, dtype=np.float64), np.zeros(2)
    body = """
    p = f64(args, 0)
    q = offset(p, 3)
    f64(args, 1)[0] = q[1]
    f64(args, 1)[1] = address(q) - address(p)
    """
    compile_kernel(body, "pointers.f64 pointers.offset pointers.address")(x, y)
    np.testing.assert_array_equal(y, [4, 24])


def test_booleans() -> None:
    x, y = np.array([0, 1, 2, 255], np.uint8), np.full(4, 77, np.uint8)
    body = """
    x, y = b8(args, 0), b8(args, 1)
    for i in range(4):
        store_b8(y, i, not load_b8(x, i))
    """
    compile_kernel(body, "pointers.b8 pointers.load_b8 pointers.store_b8")(x, y)
    np.testing.assert_array_equal(y, [1, 0, 0, 0])


@pytest.mark.parametrize("kind", HALVES)
def test_every_half_is_loaded_exactly(kind: str) -> None:
    x = np.arange(2**16, dtype=np.uint16)
    y = np.zeros(2**16, np.float32)
    body = f"""
    x, y = {kind}(args, 0), f32(args, 1)
    for i in range(65536):
        y[i] = load_{kind}(x, i)
    """
    compile_kernel(body, f"pointers.{kind} pointers.f32 pointers.load_{kind}")(x, y)
    np.testing.assert_array_equal(y, x.view(HALVES[kind]).astype(np.float32))


@pytest.mark.parametrize("kind", HALVES)
def test_halves_are_rounded_to_even(kind: str) -> None:
    patterns = np.arange(0, 2**32, 8191, dtype=np.uint64).astype(np.uint32)
    middles = np.arange(0x8000, 2**32, 2**12, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([patterns, middles, middles - 1, middles + 1]).view(np.float32)
    y = np.zeros(x.shape, np.uint16)
    body = f"""
    x, y = f32(args, 0), {kind}(args, 1)
    for i in range(integer(args, 2)):
        store_{kind}(y, i, x[i])
    """
    imports = f"pointers.{kind} pointers.f32 pointers.integer pointers.store_{kind}"
    compile_kernel(body, imports)(x, y, x.size)
    with np.errstate(all="ignore"):
        expected = x.astype(HALVES[kind])
    np.testing.assert_array_equal(
        y.view(HALVES[kind]).astype(np.float32), expected.astype(np.float32)
    )


@pytest.mark.skipif(machine.vector_bytes() < 32, reason="needs registers that tell vectors apart")
def test_loops_over_several_pointers_are_vectorised() -> None:
    kinds = "f32 f32 f32 f32"
    kernel = elementwise("x0[i] * x1[i] + x2[i] * x3[i]", "", kinds, "f32")
    assert re.search(r"vmulps\s.*%[yz]mm", kernel.assembly)
