"""Tile operations and steps of reductions on random shapes and strides, against NumPy.

Elements are small whole numbers, so every order of a sum gives the same bits; what must not be read
is NaN.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_harness import compile_kernel, elementwise
from runtime_samples import run_python
from tilewright_kernels.cpu import machine

pytestmark = pytest.mark.avx2

Array = np.ndarray[Any, Any]
DTYPES: dict[str, Any] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
kinds = st.sampled_from([*DTYPES])
tiles = st.sampled_from([(1, 1), (1, 2), (3, 2), (4, 1), (5, 3), (machine.tile_rows(2), 2)])
seeds = st.integers(0, 1 << 16)


def width(kind: str, vectors: int) -> int:
    return vectors * machine.lanes(8 * DTYPES[kind].itemsize)


def whole(seed: int, kind: str, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(DTYPES[kind])


def spaced(values: Array, gap: int) -> Array:
    """The values with NaN between them, along every dimension but the first."""
    shape = [values.shape[0], *(n * gap for n in values.shape[1:])]
    out = np.full(shape, np.nan, values.dtype)
    out[(slice(None), *[slice(None, None, gap)] * (values.ndim - 1))] = values
    return out


@given(kind=kinds, tile=tiles, depth=st.integers(0, 40), apart=st.integers(1, 3), seed=seeds)
def test_products(kind: str, tile: tuple[int, int], depth: int, apart: int, seed: int) -> None:
    """`matmul`, `matmul_rows` and `matmul_prefetch` of rows whose elements lie apart."""
    (rows, vectors), n = tile, width(kind, tile[1])
    a, b, c = (whole(seed + k, kind, *s) for k, s in enumerate([(rows, depth), (depth, n), tile]))
    c = np.resize(c, (rows, n))
    body = f"""
    a, b, wide = {kind}(args, 0), {kind}(args, 1), {kind}(args, 2)
    c, row, step, k = {kind}(args, 3), integer(args, 4), integer(args, 5), integer(args, 6)
    start = load({rows}, {vectors}, c, {n})
    store(matmul(start, a, row, step, b, k), {kind}(args, 7), {n})
    store(matmul_rows(start, a, row, step, wide, {n + 3}, k), {kind}(args, 8), {n})
    store(matmul_prefetch(start, a, row, step, b, k, b, 1), {kind}(args, 9), {n})
    """
    names = "tile.load tile.store matmul.matmul matmul.matmul_rows matmul.matmul_prefetch"
    kernel = compile_kernel(body, f"{names} pointers.integer pointers.{kind}")
    wide = np.full((depth, n + 3), np.nan, b.dtype)
    wide[:, :n] = b
    results = [np.full((rows, n), np.nan, a.dtype) for _ in range(3)]
    kernel(spaced(a, apart), b, wide, c, depth * apart, apart, depth, *results)
    for got in results:
        np.testing.assert_array_equal(got, c + a @ b)


@given(kind=kinds, tile=tiles, depth=st.integers(0, 40), gap=st.integers(0, 5), seed=seeds)
def test_panel_products(kind: str, tile: tuple[int, int], depth: int, gap: int, seed: int) -> None:
    (rows, vectors), n = tile, width(kind, tile[1])
    a, b = whole(seed, kind, rows, depth), whole(seed + 1, kind, depth, n)
    out = np.full((rows, n + gap), np.nan, a.dtype)
    body = f"""
    a, b, c = {kind}(args, 0), {kind}(args, 1), {kind}(args, 2)
    k, between, row = integer(args, 3), integer(args, 4), integer(args, 5)
    panel_product({rows}, {vectors}, c, between, a, row, 1, b, k)
    """
    imports = f"panels.panel_product pointers.integer pointers.{kind}"
    left = np.full((rows, depth + gap), np.nan, a.dtype)
    left[:, :depth] = a
    compile_kernel(body, imports)(left, b, out, depth, n + gap, depth + gap)
    np.testing.assert_array_equal(out[:, :n], a @ b)
    assert np.isnan(out[:, n:]).all()


OFTEN = settings(max_examples=120)
MARGIN = 24  # pixels around an image that must not count
windows = st.tuples(
    st.integers(-20, 20),  # the first pixel
    st.integers(0, 4),  # between neighbours
    st.integers(1, 15),  # pixels of a line
    st.booleans(),  # whether the line is inside the image
)


def pixels_of(window: tuple[int, int, int, bool], rows: int, x: Array) -> tuple[Array, Array]:
    """Each row's pixel, zeros outside, and which of them are inside."""
    first, step, columns, line = window
    at = first + np.arange(rows) * step
    inside = (at >= 0) & (at < columns) & line
    return np.where(inside[:, None], x[np.clip(at, 0, columns - 1)], 0), inside


@OFTEN
@given(kind=kinds, tile=tiles, depth=st.integers(1, 20), window=windows, seed=seeds)
def test_matmul_window(
    kind: str, tile: tuple[int, int], depth: int, window: tuple[int, int, int, bool], seed: int
) -> None:
    (rows, vectors), n = tile, width(kind, tile[1])
    first, step, columns, line = window
    x, b = whole(seed, kind, columns, depth), whole(seed + 1, kind, depth, n)
    y = np.full((rows, n), np.nan, x.dtype)
    body = f"""
    x, inside, first = offset({kind}(args, 0), integer(args, 7)), integer(args, 3), integer(args, 4)
    acc = full_{kind}({rows}, {vectors}, to_{kind}(1.0))
    acc = matmul_window(acc, x, inside == 1, first, integer(args, 5), integer(args, 6),
                        integer(args, 8), 1, {kind}(args, 1), integer(args, 8))
    store(acc, {kind}(args, 2), {n})
    """
    names = f"columns.full_{kind} casts.to_{kind} tile.store window.matmul_window"
    kernel = compile_kernel(body, f"{names} pointers.{kind} pointers.integer pointers.offset")
    kernel(in_margin(x), b, y, int(line), first, step, columns, MARGIN * depth, depth)
    np.testing.assert_array_equal(y, 1 + pixels_of(window, rows, x)[0] @ b)


def in_margin(x: Array) -> Array:
    """The pixels, with NaN around them."""
    return np.pad(x, ((MARGIN, MARGIN), (0, 0)), constant_values=np.nan)


STEPS = {
    "add_product": lambda old, x, w: old + x * w,
    "add": lambda old, x, w: old + x,
    "maximum": lambda old, x, w: np.maximum(old, x),
    "minimum": lambda old, x, w: np.minimum(old, x),
}


@OFTEN
@given(
    kind=kinds,
    tile=tiles,
    name=st.sampled_from([*STEPS]),
    window=windows,
    missing=st.booleans(),
    seed=seeds,
)
def test_columns(
    kind: str,
    tile: tuple[int, int],
    name: str,
    window: tuple[int, int, int, bool],
    missing: bool,
    seed: int,
) -> None:
    """Steps of windows, channel by channel; a NaN in the image stays one."""
    (rows, vectors), n = tile, width(kind, tile[1])
    first, step, columns, line = window
    x, w = whole(seed, kind, columns, n), whole(seed + 1, kind, n)
    if missing:
        x[columns // 2, n // 2] = np.nan
    factor = f", {kind}(args, 1)" if name == "add_product" else ""
    body = f"""
    x = offset({kind}(args, 0), {MARGIN * n})
    acc = full_{kind}({rows}, {vectors}, to_{kind}(1.0))
    acc = {name}_columns_window(acc, x, integer(args, 3) == 1, integer(args, 4),
                                integer(args, 5), integer(args, 6), {n}{factor})
    store(acc, {kind}(args, 2), {n})
    """
    names = f"columns.full_{kind} casts.to_{kind} tile.store columns.{name}_columns_window"
    kernel = compile_kernel(body, f"{names} pointers.{kind} pointers.integer pointers.offset")
    y = np.full((rows, n), np.nan, x.dtype)
    kernel(in_margin(x), w, y, int(line), first, step, columns)
    pixels, inside = pixels_of(window, rows, x)
    ones = np.ones((rows, n), x.dtype)
    np.testing.assert_array_equal(y, np.where(inside[:, None], STEPS[name](ones, pixels, w), ones))


# --- steps of reductions


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", ["add", "multiply", "add_product"])
def test_one_step_rounds_once_or_by_operation(name: str, kind: str) -> None:
    random, dtype = np.random.default_rng(0), DTYPES[kind]
    special = np.array([0.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, 3e38])
    a, b, c = (
        np.concatenate([random.permutation(special), random.normal(0, 1, 993)]) for _ in "abc"
    )
    inputs = [v.astype(dtype) for v in (a, b, c)][: 3 if name == "add_product" else 2]
    out = np.full(1000, np.nan, dtype)
    operands = ", ".join(f"x{k}[i]" for k in range(len(inputs)))
    kernel = elementwise(
        f"{name}_{kind}({operands})",
        f"accumulate.{name}_{kind}",
        " ".join([kind] * len(inputs)),
        kind,
    )
    kernel(out, *inputs, 1000)
    with np.errstate(all="ignore"):
        x, y, *z = inputs
        if z:
            exact = x.astype(np.longdouble) + y.astype(np.longdouble) * z[0].astype(np.longdouble)
            ways = [x + y * z[0], exact.astype(dtype)]
        else:
            ways = [x + y if name == "add" else x * y]
    same = [(out == w) | (np.isnan(out) & np.isnan(w)) for w in ways]
    assert np.logical_or.reduce(same).all()


@given(
    kind=kinds, length=st.integers(0, 300), seed=seeds, special=st.sampled_from([0, np.inf, np.nan])
)
def test_reductions_by_steps(kind: str, length: int, seed: int, special: float) -> None:
    """In any order: exact for whole numbers, and what is not finite comes through."""
    x, y = whole(seed, kind, length), whole(seed + 1, kind, length)
    if special and length:
        x[length // 2], y[length // 2] = special, 1
    signs = np.sign(whole(seed + 2, kind, length) + 0.5).astype(x.dtype)
    body = f"""
    x, y, s, out = {kind}(args, 0), {kind}(args, 1), {kind}(args, 2), {kind}(args, 3)
    total, product, dot = x[0] * 0, s[0] * 0 + 1, y[0] * 0
    for i in range(integer(args, 4)):
        total = add_{kind}(total, x[i + 1])
        product = multiply_{kind}(product, s[i + 1])
        dot = add_product_{kind}(dot, x[i + 1], y[i + 1])
    out[0] = total
    out[1] = product
    out[2] = dot
    """
    names = " ".join(f"accumulate.{v}_{kind}" for v in ("add", "multiply", "add_product"))
    out = np.full(3, np.nan, x.dtype)
    led = [np.concatenate([np.ones(1, v.dtype), v]) for v in (x, y, signs)]
    kernel = compile_kernel(body, f"{names} pointers.integer pointers.{kind}")
    kernel(*led, out, length)
    np.testing.assert_array_equal(out, [x.sum(), signs.prod(), (x * y).sum()])


def test_what_is_not_finite_may_not_be_assumed_away() -> None:
    """Sums may be reordered and contracted, nothing more: masks are full of infinities."""
    names = [f"{v}_{kind}" for v in ("add", "multiply", "add_product") for kind in DTYPES]
    for name in names:
        kind, more = name[-3:], ", x0[i]" if "product" in name else ""
        kernel = elementwise(
            f"{name}(x0[i], x1[i]{more})", f"accumulate.{name}", f"{kind} {kind}", kind
        )
        text = str(kernel.numba._library.get_llvm_str())
        assert not re.search(r"\b(nnan|ninf|fast|afn|arcp)\b", text), name


OUTSIDE = """
import ctypes, mmap
import numpy as np
from kernels_harness import compile_kernel

page, rows = mmap.PAGESIZE, 5
memory = mmap.mmap(-1, 3 * page)
start = np.frombuffer(memory, np.uint8).ctypes.data
protect = ctypes.CDLL(None, use_errno=True).mprotect
for at in (start, start + 2 * page):
    assert protect(ctypes.c_void_p(at), page, 0) == 0, "no pages without access"
pixel = 64
columns = page // 4 // pixel
y = np.zeros((rows, 64), np.float32)
w = np.zeros((pixel, 64), np.float32)
for body, imports in KERNELS:
    kernel = compile_kernel(body, imports)
    for first in (-9, -2, columns - 2, columns + 7):
        kernel(start + page, w, y, first, columns)
print("read nothing")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs pages without access")
def test_windows_read_nothing_outside() -> None:
    """An image between two pages that no one may touch."""
    common = "tile.store columns.full_f32 casts.to_f32 pointers.f32 pointers.integer"
    head = "acc = full_f32(5, 1, to_f32(0.0))\nx, w = f32(args, 0), f32(args, 1)\n"
    place = "acc, x, True, integer(args, 3), 1, integer(args, 4), 64"
    calls = {f"{v}_columns_window": ", w" if "product" in v else "" for v in STEPS}
    kernels = [(f"{c}({place}{w})", f"columns.{c}") for c, w in calls.items()]
    kernels.append((f"matmul_window({place}, 1, w, 64)", "window.matmul_window"))
    store = "\nstore(acc, f32(args, 2), 64)"
    texts = [(f"{head}acc = {call}{store}", f"{common} {name}") for call, name in kernels]
    assert run_python(f"KERNELS = {texts!r}\n{OUTSIDE}") == "read nothing\n"


def test_alone_is_the_index_itself() -> None:
    x = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 500, np.int64, endpoint=True)
    x[:3] = -(2**63), 2**63 - 1, 0
    y = np.zeros_like(x)
    elementwise("alone(x0[i])", "pointers.alone", "i64", "i64")(y, x, 500)
    np.testing.assert_array_equal(y, x)
