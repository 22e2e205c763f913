"""Memory, lanes, reductions and matrices by their PTX, against their meaning in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuda_harness import THREADS, execute, runs, source_of
from tilewright.dtypes import DType
from tilewright.runtime.cuda.toolchain import TO_COMPILE, find_toolchain

if not find_toolchain().has(TO_COMPILE):
    pytest.skip("there is no numba-cuda to compile with", allow_module_level=True)

from tilewright_kernels.cuda import halves, memory, mma, reduce, threads

Array = np.ndarray[Any, Any]
F32, F64, I32, I64, U16, U32 = DType.F32, DType.F64, DType.I32, DType.I64, DType.U16, DType.U32
NATIVE = [t for t in DType if t.is_native]


def random(dtype: DType, count: int, seed: int = 0) -> Array:
    """Bits of any kind, but no NaN among floats."""
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        return (rng.standard_normal(count) * 4).astype(dtype.numpy)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, count).astype(bool)
    info = np.iinfo(dtype.numpy)
    return rng.integers(info.min, info.max, count, dtype.numpy, endpoint=True)


@runs
@pytest.mark.parametrize("dtype", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_copies(dtype: DType, size: int) -> None:
    count = size // dtype.itemsize
    if not count:
        pytest.skip("less than an element")
    kind = "u8" if dtype is DType.BOOL else dtype.name.lower()
    body = f"""
a = stack_{kind}({count})
i = thread() * {count}
copy_vector(a, 0, p0, i, {count})
copy_vector(p1, i, a, 0, {count})
"""
    imports = {"threads": THREADS, "pointers": f"stack_{kind}", "memory": "copy_vector"}
    x = random(dtype, 128 * count)
    found = execute(source_of(imports, body, [dtype] * 2), [x, np.zeros_like(x)])[1]
    assert found.tobytes() == x.tobytes()


@runs
@pytest.mark.parametrize("kind, dtype", [("f16", DType.F16), ("bf16", DType.BF16)])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_halves(kind: str, dtype: DType, count: int) -> None:
    body = f"""
a = stack_f32({count})
i = thread() * {count}
load_vector_{kind}(a, 0, p0, i, {count})
for k in range({count}):
    p1[i + k] = a[k]
    a[k] = a[k] * a[k]
store_vector_{kind}(p2, i, a, 0, {count})
for k in range({count}):
    store_{kind}(p3, i + k, load_{kind}(p0, i + k) * load_{kind}(p0, i + k))
"""
    names = f"load_vector_{kind}, store_vector_{kind}"
    pointers = f"stack_f32, load_{kind}, store_{kind}"
    imports = {"threads": THREADS, "pointers": pointers, "memory": names}
    x = random(dtype, 128 * count)
    x[:4] = [np.inf, -np.inf, 3e4, 1e-6]
    arrays = [x, np.zeros(len(x), np.float32), np.zeros_like(x), np.zeros_like(x)]
    _, wide, squares, again = execute(source_of(imports, body, [dtype, F32, dtype, dtype]), arrays)
    np.testing.assert_array_equal(wide, x.astype(np.float32))
    with np.errstate(over="ignore"):
        exact = (wide * wide).astype(dtype.numpy)
    assert squares.tobytes() == exact.tobytes() == again.tobytes()


@runs
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_pairs(kind: str) -> None:
    body = f"i = thread()\nw = pack_{kind}(p0[i], p1[i])\np2[i] = w\na, b = unpack_{kind}(w)\n"
    body += "p0[i] = a\np1[i] = b"
    x, y = random(F32, 128), random(F32, 128, 1)
    x[0] = np.nan
    imports = {"threads": THREADS, "halves": f"pack_{kind}, unpack_{kind}"}
    source = source_of(imports, body, [F32, F32, U32])
    low, high, words = execute(source, [x, y, np.zeros(128, np.uint32)])
    pack, unpack = getattr(halves, f"pack_{kind}"), getattr(halves, f"unpack_{kind}")
    np.testing.assert_array_equal(words[1:], pack.meaning(x, y)[1:])
    np.testing.assert_array_equal((low, high), unpack.meaning(words))
    assert np.isnan(low[0])


@runs
def test_tf32() -> None:
    x = np.concatenate([random(F32, 120), np.array([np.inf, -np.inf, 0, -0.0], np.float32)])
    x = np.resize(np.concatenate([x, (1 + np.arange(4) * 2.0**-11).astype(np.float32)]), 128)
    imports = {"threads": THREADS, "halves": "to_tf32"}
    source = source_of(imports, "p1[thread()] = to_tf32(p0[thread()])", [F32, U32])
    found = execute(source, [x, np.zeros(128, np.uint32)])[1]
    np.testing.assert_array_equal(found, halves.to_tf32.meaning(x))


@runs
@pytest.mark.parametrize("mode", ["xor", "down", "up", "from"])
@pytest.mark.parametrize("dtype", [F32, F64, I32, I64, DType.I8, U16], ids=lambda t: t.name)
@pytest.mark.parametrize("selector", [1, 5, 31])
def test_shuffles(mode: str, dtype: DType, selector: int) -> None:
    body = f"i = thread()\np1[i] = shuffle_{mode}(p0[i], {selector})"
    imports = {"threads": f"thread, shuffle_{mode}"}
    x = random(dtype, 64)
    found = execute(source_of(imports, body, [dtype] * 2, threads=64), [x, np.zeros_like(x)])[1]
    meaning = getattr(threads, f"shuffle_{mode}").meaning
    wanted = [meaning(half, selector) for half in x.reshape(2, 32)]
    np.testing.assert_array_equal(found, np.concatenate(wanted))


VERBS = ["add", "multiply", "maximum", "minimum"]


@runs
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [F32, F64, I32, U32, I64], ids=lambda t: t.name)
@pytest.mark.parametrize("lanes", [1, 4, 32])
def test_results_of_lanes(verb: str, dtype: DType, lanes: int) -> None:
    body = f"i = thread()\np1[i] = warp_{verb}(p0[i], {lanes})"
    imports = {"threads": "thread", "reduce": f"warp_{verb}"}
    x = random(dtype, 64)
    found = execute(source_of(imports, body, [dtype] * 2, threads=64), [x, np.zeros_like(x)])[1]
    with np.errstate(over="ignore"):
        wanted = getattr(reduce, f"warp_{verb}").meaning(x, lanes)
    assert found.tobytes() == wanted.tobytes()
    group = found.reshape(-1, lanes)
    assert (group == group[:, :1]).all()


@runs
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [F32, I64], ids=lambda t: t.name)
@pytest.mark.parametrize("size", [32, 96, 256])
def test_results_of_blocks(verb: str, dtype: DType, size: int) -> None:
    kind = dtype.name.lower()
    body = f"""
s = shared_{kind}(0)
i = block() * {size} + thread()
once = block_{verb}(p0[i], s, 0, {size})
p1[i] = once
p2[i] = block_{verb}(p0[i] + once, s, 0, {size})
"""
    imports = {"threads": THREADS, "reduce": f"block_{verb}", "pointers": f"shared_{kind}"}
    x = random(dtype, 3 * size) % 7
    source = source_of(imports, body, [dtype] * 3, threads=size)
    arrays = [x, np.zeros_like(x), np.zeros_like(x)]
    room = -(-size // 32 * dtype.itemsize // 16) * 16
    _, once, twice = execute(source, arrays, blocks=3, shared=room)
    meaning = getattr(reduce, f"block_{verb}").meaning
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(3):
            part = slice(k * size, (k + 1) * size)
            first = meaning(x[part], size)
            np.testing.assert_array_equal(once[part], first)
            np.testing.assert_array_equal(twice[part], meaning(x[part] + first, size))


@runs
@pytest.mark.parametrize("verb", ["maximum", "minimum"])
def test_extremes_of_nan(verb: str) -> None:
    body = f"s = shared_f32(0)\ni = thread()\np1[i] = block_{verb}(p0[i], s, 0, 64)"
    imports = {"threads": THREADS, "reduce": f"block_{verb}", "pointers": "shared_f32"}
    x = random(F32, 64)
    x[45] = np.nan
    found = execute(
        source_of(imports, body, [F32, F32], threads=64), [x, np.zeros_like(x)], shared=64
    )
    assert np.isnan(found[1]).all()


@runs
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("filled", [False, True])
def test_asynchronous_copies(count: int, filled: bool) -> None:
    call = f"copy_async(s, t * {count}, p0, t * {count}, {count})"
    if filled:
        call = f"copy_async_filled(s, t * {count}, p0, t * {count}, {count}, t % {count + 1})"
    body = f"""
s = shared_f32(0)
t = thread()
{call}
async_commit()
async_wait(0)
sync()
for k in range({count}):
    p1[t * {count} + k] = s[(127 - t) * {count} + k]
"""
    names = "async_commit, async_wait, copy_async, copy_async_filled"
    imports = {"threads": THREADS, "pointers": "shared_f32", "memory": names}
    x = random(F32, 128 * count)
    source = source_of(imports, body, [F32, F32])
    found = execute(source, [x, np.zeros_like(x)], shared=512 * count)[1]
    wanted = np.full_like(x, np.nan)
    for t in range(128):
        if filled:
            place = t * count
            memory.copy_async_filled.meaning(wanted, place, x, place, count, t % (count + 1))
        else:
            memory.copy_async.meaning(wanted, t * count, x, t * count, count)
    np.testing.assert_array_equal(found, wanted.reshape(128, count)[::-1].ravel())


@runs
@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32", "i8_i8", "u8_u8", "u8_i8", "i8_u8"])
def test_products(kind: str) -> None:
    floating = kind in ("f16", "bf16", "tf32")
    name, dtype = ("f32", F32) if floating else ("i32", I32)
    body = f"""
t = thread()
a = stack_u32(4)
b = stack_u32(2)
c = stack_{name}(4)
for k in range(4):
    a[k] = p0[t * 4 + k]
    c[k] = p2[t * 4 + k]
for k in range(2):
    b[k] = p1[t * 2 + k]
mma_{kind}(c, 0, a, 0, b, 0)
for k in range(4):
    p2[t * 4 + k] = c[k]
"""
    imports = {"threads": THREADS, "pointers": f"stack_u32, stack_{name}", "mma": f"mma_{kind}"}
    words = [fragment(kind, 32 * n, n) for n in (4, 2)]
    sums = random(dtype, 128) if floating else random(dtype, 128) // 1000
    source = source_of(imports, body, [U32, U32, dtype], threads=32)
    found = execute(source, [*words, sums])[2].reshape(32, 4)
    wanted = sums.reshape(32, 4).copy()
    meaning = getattr(mma, f"mma_{kind}").meaning
    meaning(wanted, 0, words[0].reshape(32, 4), 0, words[1].reshape(32, 2), 0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 if floating else 0)


def fragment(kind: str, count: int, seed: int) -> Array:
    """Words of a fragment, of moderate numbers."""
    if kind == "tf32":
        return np.asarray(halves.to_tf32.meaning(random(F32, count, seed)))
    if kind in ("f16", "bf16"):
        dtype = DType.F16 if kind == "f16" else DType.BF16
        return random(dtype, 2 * count, seed).view(np.uint32)
    return random(U32, count, seed)


@runs
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(count: int, transposed: bool) -> None:
    name = f"load_matrix{count}{'_transposed' if transposed else ''}"
    body = f"""
s = shared_u16(0)
t = thread()
copy_vector(s, t * 8, p0, t * 8, 8)
sync()
a = stack_u32({count})
{name}(a, 0, s, t * 8)
for k in range({count}):
    p1[t * {count} + k] = a[k]
"""
    imports = {"threads": THREADS, "pointers": "shared_u16, stack_u32", "mma": name}
    imports |= {"memory": "copy_vector"}
    x = random(U16, 256)
    source = source_of(imports, body, [U16, U32], threads=32)
    found = execute(source, [x, np.zeros(32 * count, np.uint32)], shared=512)[1]
    wanted = np.zeros((32, count), np.uint32)
    getattr(mma, name).meaning(wanted, 0, x.reshape(32, 8))
    np.testing.assert_array_equal(found.reshape(32, count), wanted)


def test_the_meaning_of_a_product_is_a_product() -> None:
    """Fragments packed from matrices give the matrices' product."""
    rng = np.random.default_rng(0)
    left = rng.integers(-128, 127, (16, 32)).astype(np.int8)
    right = rng.integers(-128, 127, (32, 8)).astype(np.int8)
    a = left[mma.left_indices(4)].reshape(32, 16).view(np.uint32)
    b = np.ascontiguousarray(right[mma.right_indices(4)]).reshape(32, 8).view(np.uint32)
    c = np.zeros((32, 4), np.int32)
    mma.mma_i8_i8.meaning(c, 0, np.ascontiguousarray(a), 0, b, 0)
    total = np.zeros((16, 8), np.int32)
    total[mma.sum_indices()] = c
    np.testing.assert_array_equal(total, left.astype(np.int32) @ right.astype(np.int32))


@runs
@pytest.mark.parametrize("name", ["atomic_add", "atomic_maximum", "atomic_minimum"])
@pytest.mark.parametrize("dtype", [I32, U32, I64, DType.U64], ids=lambda t: t.name)
def test_updates_by_many(name: str, dtype: DType) -> None:
    body = f"i = thread()\n{name}(p1, i % 3, p0[i])"
    x = random(dtype, 128)
    start = np.zeros(3, dtype.numpy)
    imports = {"threads": "thread", "pointers": name}
    found = execute(source_of(imports, body, [dtype] * 2), [x, start])[1]
    function = {"atomic_add": np.add, "atomic_maximum": np.maximum, "atomic_minimum": np.minimum}
    with np.errstate(over="ignore"):
        wanted = [function[name].reduce(x[k::3], initial=0, dtype=dtype.numpy) for k in range(3)]
    np.testing.assert_array_equal(found, wanted)


@runs
@pytest.mark.parametrize("dtype", [F32, F64], ids=lambda t: t.name)
def test_sums_by_many(dtype: DType) -> None:
    x = random(dtype, 128)
    imports = {"threads": "thread", "pointers": "atomic_add"}
    source = source_of(imports, "atomic_add(p1, 0, p0[thread()])", [dtype] * 2)
    found = execute(source, [x, np.zeros(1, dtype.numpy)])[1]
    np.testing.assert_allclose(found[0], x.sum(dtype=np.float64), rtol=1e-4)
