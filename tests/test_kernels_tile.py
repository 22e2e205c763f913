"""Register tiles: loads, stores, products, windows; and that they stay in registers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from kernels_harness import compile_kernel
from tilewright_kernels.cpu import machine

Array = np.ndarray[Any, Any]
DTYPES: dict[str, Any] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
SHAPES = [(1, 1), (3, 2), (5, 3), (machine.tile_rows(2), 2)]


def width(kind: str, vectors: int) -> int:
    return vectors * machine.lanes(8 * DTYPES[kind].itemsize)


def random(*shape: int, kind: str) -> Array:
    return np.random.default_rng(len(shape)).normal(0, 1, shape).astype(DTYPES[kind])


def close(result: Array, exact: Array, terms: int) -> None:
    epsilon = float(np.finfo(result.dtype).eps)
    np.testing.assert_allclose(result, exact, rtol=0, atol=(terms + 1) * 8 * epsilon)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_load_and_store(rows: int, vectors: int, kind: str) -> None:
    n = width(kind, vectors)
    x, y = random(rows, n + 3, kind=kind), np.full((rows, n + 5), 77, DTYPES[kind])
    body = f"""
    tile = load({rows}, {vectors}, {kind}(args, 0), integer(args, 2))
    store(tile, {kind}(args, 1), integer(args, 3))
    """
    compile_kernel(body, f"tile.load tile.store pointers.{kind} pointers.integer")(
        x, y, n + 3, n + 5
    )
    np.testing.assert_array_equal(y[:, :n], x[:, :n])
    assert (y[:, n:] == 77).all()


PRODUCT_IMPORTS = "tile.load tile.store pointers.integer"


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("depth", [0, 1, 2, 7, 130])
@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_matmul(rows: int, vectors: int, depth: int, kind: str) -> None:
    n = width(kind, vectors)
    a, b = random(rows, depth, kind=kind), random(depth, n, kind=kind)
    start = random(rows, n, kind=kind)
    body = f"""
    c = {kind}(args, 2)
    acc = load({rows}, {vectors}, c, {n})
    a, b, row, step = {kind}(args, 0), {kind}(args, 1), integer(args, 3), integer(args, 4)
    acc = matmul(acc, a, row, step, b, integer(args, 5))
    store(acc, c, {n})
    """
    kernel = compile_kernel(body, f"{PRODUCT_IMPORTS} matmul.matmul pointers.{kind}")
    for left, strides in ((a, (depth, 1)), (np.ascontiguousarray(a.T), (1, rows))):
        c = start.copy()
        kernel(left, b, c, *strides, depth)
        close(c, start + a.astype(np.float64) @ b, depth)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("present", [1, 2, 5])
def test_matmul_part_reads_only_its_rows(present: int, kind: str) -> None:
    rows, depth, n = 5, 9, width(kind, 2)
    a, b = random(present, depth, kind=kind), random(depth, n, kind=kind)
    poisoned = np.full((rows, depth), np.nan, a.dtype)
    poisoned[:present] = a
    c = np.empty((rows, n), a.dtype)
    body = f"""
    acc = zeros_{kind}({rows}, 2)
    acc = matmul_part(acc, {kind}(args, 0), {depth}, 1, {kind}(args, 1), {depth}, integer(args, 3))
    store(acc, {kind}(args, 2), {n})
    """
    imports = f"tile.zeros_{kind} {PRODUCT_IMPORTS} matmul.matmul_part pointers.{kind}"
    compile_kernel(body, imports)(poisoned, b, c, present)
    close(c[:present], a.astype(np.float64) @ b, depth)
    close(c[present:], np.broadcast_to(c[present - 1], c[present:].shape), depth)


def test_matmul_prefetch_is_matmul() -> None:
    depth, n = 40, width("f32", 2)
    a, b, c = (
        random(4, depth, kind="f32"),
        random(depth, n, kind="f32"),
        np.empty((4, n), np.float32),
    )
    body = f"""
    b = f32(args, 1)
    acc = matmul_prefetch(zeros_f32(4, 2), f32(args, 0), {depth}, 1, b, {depth}, offset(b, 128), 16)
    store(acc, f32(args, 2), {n})
    """
    imports = "tile.zeros_f32 tile.store matmul.matmul_prefetch pointers.f32 pointers.offset"
    compile_kernel(body, imports)(a, b, c)
    close(c, a.astype(np.float64) @ b, depth)


def window_reference(x: Array, w: Array, row: int, column: int, step: int, rows: int) -> Array:
    """A 3x3 convolution at `rows` pixels of one row, in double precision, padded with zeros."""
    margin = 64
    padded = np.pad(x.astype(np.float64), ((margin, margin), (margin, margin), (0, 0)))
    result = np.zeros((rows, w.shape[-1]))
    for kh in range(3):
        for kw in range(3):
            first = column + kw + margin
            pixels = padded[row + kh + margin, first : first + rows * step : step]
            result += pixels @ w[kh, kw].astype(np.float64)
    return result


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("step", [1, 2])
def test_window_treats_the_outside_as_zeros(step: int, kind: str) -> None:
    rows, height, columns, channels, n = 5, 4, 11, 6, width(kind, 2)
    x, w = random(height, columns, channels, kind=kind), random(3, 3, channels, n, kind=kind)
    body = f"""
    x, w, columns = {kind}(args, 0), {kind}(args, 1), integer(args, 7)
    acc = zeros_{kind}({rows}, 2)
    for r in range(3):
        row = integer(args, 3) + r
        for s in range(3):
            acc = matmul_window(
                acc, offset(x, row * columns * {channels}), 0 <= row < integer(args, 6),
                integer(args, 4) + s, integer(args, 5), columns, {channels}, 1,
                offset(w, (r * 3 + s) * {channels * n}), {channels},
            )
    store(acc, {kind}(args, 2), {n})
    """
    names = f"pointers.{kind} pointers.integer pointers.offset tile.zeros_{kind} tile.store"
    kernel = compile_kernel(body, f"{names} window.matmul_window")
    for row in (-3, -1, 0, 2, 3, 4):
        for column in (-9, -5, -1, 0, 1, 4, 7, 10, 15):
            c = np.full((rows, n), np.nan, DTYPES[kind])
            kernel(x, w, c, row, column, step, height, columns)
            close(c, window_reference(x, w, row, column, step, rows), 9 * channels)


def test_window_ignores_infinities_that_it_does_not_cover() -> None:
    x = np.full((1, 3, 1), np.inf, np.float32)
    w, c = np.ones((1, width("f32", 1)), np.float32), np.empty((4, width("f32", 1)), np.float32)
    body = f"""
    acc = zeros_f32(4, 1)
    acc = matmul_window(acc, f32(args, 0), True, -3, 2, 3, 1, 1, f32(args, 1), 1)
    store(acc, f32(args, 2), {w.size})
    """
    imports = "pointers.f32 tile.zeros_f32 tile.store window.matmul_window"
    compile_kernel(body, imports)(x, w, c)
    np.testing.assert_array_equal(c[:, 0], [0, 0, np.inf, 0])


@pytest.mark.skipif(machine.vector_bytes() < 32, reason="tile sizes for AVX2 and AVX-512")
@pytest.mark.parametrize("vectors", [1, 2, 3])
@pytest.mark.parametrize("kind", DTYPES)
def test_the_largest_tiles_do_not_spill(kind: str, vectors: int) -> None:
    rows = machine.tile_rows(vectors)
    body = f"""
    a, b, c, step = {kind}(args, 0), {kind}(args, 1), {kind}(args, 2), integer(args, 3)
    acc = zeros_{kind}({rows}, {vectors})
    for panel in range(integer(args, 4)):
        left, right = offset(a, panel * 64), offset(b, panel * {64 * width(kind, vectors)})
        acc = matmul(acc, left, step, 1, right, 64)
    store(acc, c, {width(kind, vectors)})
    """
    names = f"pointers.{kind} pointers.integer pointers.offset tile.zeros_{kind} tile.store"
    kernel = compile_kernel(body, f"{names} matmul.matmul")
    assert not re.search(r"v\w+\s+(%[yz]mm.*\(%r[sb]p\)|.*\(%r[sb]p\), %[yz]mm)", kernel.assembly)


@pytest.mark.skipif(machine.vector_bytes() < 32, reason="names of the multiplications")
@pytest.mark.parametrize(("rows", "vectors"), [(1, 1), (1, 2), (2, 2), (4, 2)])
def test_products_of_few_rows_sum_in_several_chains(rows: int, vectors: int) -> None:
    body = f"""
    a, b, c = f32(args, 0), f32(args, 1), f32(args, 2)
    acc = zeros_f32({rows}, {vectors})
    store(matmul(acc, a, integer(args, 3), 1, b, integer(args, 4)), c, {width("f32", vectors)})
    """
    names = "pointers.f32 pointers.integer tile.zeros_f32 tile.store matmul.matmul"
    sums = re.findall(r"vfmadd\w+\s.*(%[yz]mm\d+)$", compile_kernel(body, names).assembly, re.M)
    assert len(set(sums)) >= 8


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_matmul_rows_reads_b_in_place(rows: int, vectors: int, kind: str) -> None:
    depth, n, apart = 7, width(kind, vectors), width(kind, vectors) + 5
    a, b = random(rows, depth, kind=kind), random(depth, apart, kind=kind)
    c = np.full((rows, n), np.nan, a.dtype)
    body = f"""
    acc = zeros_{kind}({rows}, {vectors})
    acc = matmul_rows(acc, {kind}(args, 0), {depth}, 1, {kind}(args, 1), {apart}, {depth})
    store(acc, {kind}(args, 2), {n})
    """
    imports = f"tile.zeros_{kind} tile.store matmul.matmul_rows pointers.{kind}"
    compile_kernel(body, imports)(a, b, c)
    close(c, a.astype(np.float64) @ b[:, :n], depth)


COLUMN_STEPS: dict[str, tuple[float, Any]] = {
    "add_product": (0.0, lambda old, x, w: old + x * w),
    "add": (0.0, lambda old, x, w: old + x),
    "maximum": (-np.inf, lambda old, x, w: np.maximum(old, x)),
    "minimum": (np.inf, lambda old, x, w: np.minimum(old, x)),
}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", COLUMN_STEPS)
@pytest.mark.parametrize("first", [-3, 0, 2, 9])
@pytest.mark.parametrize("step", [1, 2])
def test_columns(first: int, step: int, name: str, kind: str) -> None:
    """Pixels of a row that lie outside leave the tile as it was; NaN among the others stays."""
    rows, pixels, n = 5, 8, width(kind, 2)
    start, function = COLUMN_STEPS[name]
    x, w = random(pixels, n, kind=kind), random(n, kind=kind)
    x[1, 3] = np.nan
    y = np.empty((rows, n), x.dtype)
    factor = f", {kind}(args, 1)" if name == "add_product" else ""
    body = (
        f"""
    x = {kind}(args, 0)
    acc = full_{kind}({rows}, 2, to_{kind}({float(start)!r}))
    acc = {name}_columns_window(acc, x, True, {first}, {step}, {pixels}, {n}{factor})
    acc = {name}_columns_window(acc, x, False, 0, 1, {pixels}, {n}{factor})
    store(acc, {kind}(args, 2), {n})
    """.replace("-inf", "-math_inf")
        .replace("(inf", "(math_inf")
        .replace("math_inf", "1e999")
    )
    imports = f"columns.full_{kind} columns.{name}_columns_window tile.store casts.to_{kind}"
    compile_kernel(body, f"{imports} pointers.{kind}")(x, w, y)
    want = np.full((rows, n), start)
    for r in range(rows):
        if 0 <= first + r * step < pixels:
            want[r] = function(want[r], x[first + r * step].astype(np.float64), w)
    np.testing.assert_allclose(y, want, rtol=1e-6)
    plain = body.replace("_window", "").replace(f"True, {first}, {step}, {pixels}, {n}", str(n))
    kept = [line for line in plain.split("\n") if "False" not in line]
    compile_kernel("\n".join(kept), f"{imports} pointers.{kind}".replace("_window", ""))(x, w, y)
    np.testing.assert_allclose(y, function(np.full((rows, n), start), x[:rows], w), rtol=1e-6)
