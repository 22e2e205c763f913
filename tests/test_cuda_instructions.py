"""Each function of the CUDA library becomes the instruction that it is there for, with no spill."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cuda_harness import ARCHITECTURES, compiled, instructions, needs_sass, source_of, uses
from tilewright.dtypes import DType

F32, F64, F16, BF16 = DType.F32, DType.F64, DType.F16, DType.BF16
I8, I32, I64, U8, U16, U32 = DType.I8, DType.I32, DType.I64, DType.U8, DType.U16, DType.U32
ALL_INTEGERS = (DType.I8, DType.I16, I32, I64, U8, U16, U32, DType.U64)

AT = "i = (block() * 128 + thread())"
THREADS = {"threads": "block, lane, sync, thread"}


@dataclass(frozen=True)
class Case:
    """A kernel and the instructions that it must have."""

    name: str
    body: str
    pointers: tuple[DType, ...]
    imports: dict[str, str]
    wanted: tuple[str, ...]


def copies() -> list[Case]:
    """128 and 64 bits of every element type through a thread's own array."""
    cases = []
    for dtype, suffix in [(F32, "f32"), (F64, "f64")] + [
        (t, t.name.lower()) for t in (*ALL_INTEGERS, F16, BF16)
    ]:
        for size in (16, 8):
            count = size // dtype.itemsize
            body = f"""
a = stack_{suffix}({count})
{AT} * {count}
copy_vector(a, 0, p0, i, {count})
copy_vector(p1, i, a, 0, {count})
"""
            imports = THREADS | {"pointers": f"stack_{suffix}", "memory": "copy_vector"}
            wanted = (f"LDG.{size * 8}", f"STG.{size * 8}")
            cases.append(Case(f"copy_{suffix}_{size}", body, (dtype, dtype), imports, wanted))
    return cases


def halves() -> list[Case]:
    cases = []
    for kind, dtype in (("f16", F16), ("bf16", BF16)):
        body = f"""
a = stack_f32(8)
{AT} * 8
load_vector_{kind}(a, 0, p0, i, 8)
for k in range(8):
    a[k] = a[k] * a[k]
store_vector_{kind}(p1, i, a, 0, 8)
"""
        names = f"load_vector_{kind}, store_vector_{kind}"
        imports = THREADS | {"pointers": "stack_f32", "memory": names}
        packed = "F2FP.BF16.PACK_AB" if kind == "bf16" else "F2FP.PACK_AB"
        wanted = ("LDG.128", "STG.128", packed)
        cases.append(Case(f"halves_{kind}", body, (dtype, dtype), imports, wanted))
    return cases


def shuffles() -> list[Case]:
    modes = {"xor": "SHFL.BFLY", "down": "SHFL.DOWN", "up": "SHFL.UP", "from": "SHFL.IDX"}
    return [
        Case(
            f"shuffle_{mode}_{dtype.name}",
            f"{AT}\np1[i] = shuffle_{mode}(p0[i], 5)",
            (dtype, dtype),
            {"threads": f"block, thread, shuffle_{mode}"},
            (wanted,),
        )
        for mode, wanted in modes.items()
        for dtype in (F32, F64, I32, I64, U8)
    ]


def products() -> list[Case]:
    kinds = {
        "f16": ("f32", F32, "HMMA.16816.F32"),
        "bf16": ("f32", F32, "HMMA.16816.F32.BF16"),
        "tf32": ("f32", F32, "HMMA.1688.F32.TF32"),
        "i8_i8": ("i32", I32, "IMMA.16832.S8"),
        "u8_u8": ("i32", I32, "IMMA.16832.U8"),
        "u8_i8": ("i32", I32, "IMMA.16832.U8.S8"),
        "i8_u8": ("i32", I32, "IMMA.16832.S8.U8"),
    }
    cases = []
    for kind, (sums, dtype, wanted) in kinds.items():
        body = f"""
{AT}
a = stack_u32(8)
b = stack_u32(4)
c = stack_{sums}(16)
for k in range(8):
    a[k] = p0[i * 8 + k]
for k in range(4):
    b[k] = p1[i * 4 + k]
for k in range(16):
    c[k] = p2[i * 16 + k]
for m in range(2):
    for n in range(2):
        mma_{kind}(c, m * 8 + n * 4, a, m * 4, b, n * 2)
for k in range(16):
    p2[i * 16 + k] = c[k]
"""
        imports = THREADS | {"pointers": f"stack_u32, stack_{sums}", "mma": f"mma_{kind}"}
        cases.append(Case(f"mma_{kind}", body, (U32, U32, dtype), imports, (wanted,)))
    return cases


def matrices() -> list[Case]:
    cases = []
    for count in (1, 2, 4):
        for suffix, mode in (("", "M88"), ("_transposed", "MT88")):
            name = f"load_matrix{count}{suffix}"
            body = f"""
s = shared_u16(0)
t = thread()
copy_vector(s, t * 8, p0, t * 8, 8)
sync()
a = stack_u32({count})
{name}(a, 0, s, lane() * 8)
for k in range({count}):
    p1[t * {count} + k] = a[k]
"""
            imports = {"threads": "lane, sync, thread", "mma": name, "memory": "copy_vector"}
            imports |= {"pointers": "shared_u16, stack_u32"}
            modifier = f".{count}" if count > 1 else ""
            wanted = (f"LDSM.16.{mode}{modifier}", "STS.128", "BAR")
            cases.append(Case(name, body, (U16, U32), imports, wanted))
    return cases


def async_copies() -> list[Case]:
    cases = []
    for size in (4, 8, 16):
        count = size // 4
        for fill in (False, True):
            call = f"copy_async_filled(s, t * {count}, p0, t * {count}, {count}, min(n0, {count}))"
            call = call if fill else f"copy_async(s, t * {count}, p0, t * {count} + n0, {count})"
            body = f"""
s = shared_f32(0)
t = thread()
{call}
async_commit()
async_wait(0)
sync()
p1[t] = s[127 - t]
"""
            memory = "async_commit, async_wait, copy_async, copy_async_filled"
            imports = THREADS | {"pointers": "shared_f32", "memory": memory}
            wanted = ("LDGSTS" + (f".{size * 8}" if size > 4 else ""), "LDGDEPBAR", "DEPBAR")
            cases.append(Case(f"async_{size}_{fill}", body, (F32, F32), imports, wanted))
    return cases


def others() -> list[Case]:
    constant = f"{AT} * 4\na = stack_f32(4)\ncopy_constant(a, 0, p0, i, 4)\n"
    constant += "copy_vector(p1, i, a, 0, 4)\np1[i] = load_constant(p0, i + n0)"
    reduce = f"s = shared_f32(0)\n{AT}\np1[i] = block_add(p0[i], s, 0, 128)"
    checked = f"{AT}\np1[i] = p0[checked_index(p2[i], n0, errors, 7)]"
    memory = {"memory": "copy_vector, copy_constant, load_constant", "pointers": "stack_f32"}
    ops = {"pointers": "atomic_add, atomic_maximum"}
    pair = {"reduce": "block_add", "pointers": "shared_f32"}
    tf32 = f"{AT}\np1[i] = to_tf32(p0[i])"
    dynamic = "p1[block()] = warp_maximum(p0[thread()], 32)"
    return [
        Case("constant", constant, (F32, F32), THREADS | memory, ("LDG.128.CONSTANT",)),
        Case("block_add", reduce, (F32, F32), THREADS | pair, ("SHFL.BFLY", "STS", "LDS", "BAR")),
        Case("warp_max", dynamic, (F32, F32), THREADS | {"reduce": "warp_maximum"}, ("FMNMX.NAN",)),
        Case("tf32", tf32, (F32, U32), THREADS | {"halves": "to_tf32"}, ("LOP3.LUT",)),
        Case("add_f32", "atomic_add(p0, n0, p1[n0])", (F32, F32), ops, ("RED.ADD.F32",)),
        Case("add_f64", "atomic_add(p0, n0, p1[n0])", (F64, F64), ops, ("RED.ADD.F64",)),
        Case("add_i64", "atomic_add(p0, n0, p1[n0])", (I64, I64), ops, ("RED.ADD.64",)),
        Case("max_i32", "atomic_maximum(p0, n0, p1[n0])", (I32, I32), ops, ("RED.MAX.S32",)),
        Case(
            "index", checked, (F32, F32, I64), THREADS | {"checks": "checked_index"}, ("RED.MAX",)
        ),
    ]


CASES = [
    *copies(),
    *halves(),
    *shuffles(),
    *products(),
    *matrices(),
    *async_copies(),
    *others(),
]


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_instructions(case: Case, architecture: str) -> None:
    kernel = compiled(source_of(case.imports, case.body, case.pointers, architecture))
    assert (kernel.usage.spill_bytes, kernel.usage.local_bytes) == (0, 0)
    found = instructions(kernel)
    for wanted in case.wanted:
        assert uses(found, wanted), f"no {wanted} in {dict(found)}"
