"""Products of few rows with one packed panel: of floats, and of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels_harness import compile_kernel
from tilewright_kernels.cpu import machine
from tilewright_kernels.cpu.bytes import GROUP
from tilewright_kernels.cpu.panels import parts

pytestmark = pytest.mark.avx2

SHAPES = [(1, 1), (1, 4), (2, 3), (4, 4), (5, 4), (7, 2), (8, 4), (17, 3)]
DEPTHS = [0, 1, 2, 3, 8, 13, 70]
IMPORTS = "pointers.integer panels.panel_product bytes.byte_product"


@pytest.mark.parametrize(("kind", "dtype"), [("f32", np.float32), ("f64", np.float64)])
@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_floats(rows: int, vectors: int, kind: str, dtype: Any) -> None:
    body = f"""
    a, b, c = {kind}(args, 0), {kind}(args, 1), {kind}(args, 2)
    row, step, k = integer(args, 3), integer(args, 4), integer(args, 5)
    panel_product({rows}, {vectors}, c, integer(args, 6), a, row, step, b, k)
    """
    kernel = compile_kernel(body, f"{IMPORTS} pointers.{kind}")
    n = vectors * machine.lanes(8 * np.dtype(dtype).itemsize)
    for depth in DEPTHS:
        random = np.random.default_rng(depth)
        a, b = random.normal(0, 1, (rows, depth)), random.normal(0, 1, (depth, n))
        left, right = a.astype(dtype), b.astype(dtype)
        for given, strides in ((left, (depth, 1)), (np.ascontiguousarray(left.T), (1, rows))):
            out = np.full((rows, n + 3), np.nan, dtype)
            kernel(given, right, out, *strides, depth, n + 3)
            exact = left.astype(np.float64) @ right.astype(np.float64)
            bound = (depth + 1) * 8 * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(out[:, :n], exact, rtol=0, atol=bound)
            assert np.isnan(out[:, n:]).all()


@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_bytes(rows: int, vectors: int) -> None:
    body = f"""
    a, b, c = u8(args, 0), i8(args, 1), i32(args, 2)
    row, out = integer(args, 3), integer(args, 5)
    byte_product({rows}, {vectors}, c, out, a, row, b, integer(args, 4))
    """
    kernel = compile_kernel(body, f"{IMPORTS} pointers.u8 pointers.i8 pointers.i32")
    n = vectors * machine.lanes(32)
    for groups in DEPTHS:
        random, depth = np.random.default_rng(groups), groups * GROUP
        a = random.integers(0, 256, (rows, depth + 5), np.uint8)
        b = random.integers(-128, 128, (groups, n, GROUP), np.int8)
        a[0, :depth], b[:, 0] = 255, -128  # the largest sums
        out = np.full((rows, n + 3), 77, np.int32)
        kernel(a, b, out, depth + 5, groups, n + 3)
        columns = b.transpose(1, 0, 2).reshape(n, depth).astype(np.int64)
        np.testing.assert_array_equal(out[:, :n], a[:, :depth].astype(np.int64) @ columns.T)
        assert (out[:, n:] == 77).all()


@pytest.mark.parametrize("rows", range(1, 20))
@pytest.mark.parametrize("vectors", range(1, 10))
def test_parts_fit_the_registers(rows: int, vectors: int) -> None:
    part = parts(rows, vectors)
    sums = part.rows * part.vectors * part.chains
    assert 1 <= part.rows <= rows and 1 <= part.vectors <= vectors
    assert sums + part.vectors * (part.rows > 1) + 1 <= machine.vector_registers()
