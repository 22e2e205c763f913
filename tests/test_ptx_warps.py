"""The emulator of PTX where threads meet: lanes, addresses, branches, functions, matrices."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ptx import errors
from ptx_harness import apply, run

U32 = 0xFFFFFFFF
SHUFFLES = {
    ("up", 0): lambda lane: np.where(lane >= 3, lane - 3, lane),
    ("down", 31): lambda lane: np.where(lane + 3 <= 31, lane + 3, lane),
    ("bfly", 31): lambda lane: lane ^ 3,
    ("idx", 31): lambda lane: lane * 0 + 3,
    ("down", 0x1807): lambda lane: np.where(lane % 8 + 3 < 8, lane + 3, lane),
    ("up", 0x1800): lambda lane: np.where(lane % 8 >= 3, lane - 3, lane),
    ("idx", 0x1807): lambda lane: lane // 8 * 8 + 3,
}


@pytest.mark.parametrize("mode, c", SHUFFLES)
def test_shuffles(mode: str, c: int) -> None:
    """Whole warps and segments of 8 lanes; outside of them a lane keeps its own value."""
    text = f"shfl.sync.{mode}.b32 d |%p1, x, 3, {c}, 0xffffffff; @!%p1 add.u32 d, d, 100;"
    lane = np.arange(64) % 32
    found = apply(text, "u32 u32", [np.arange(64)])
    source = SHUFFLES[mode, c](lane)
    stays = (source == lane) & ~((mode == "idx") & (lane % (8 if c > 31 else 32) == 3))
    np.testing.assert_array_equal(found, np.arange(64) - lane + source + 100 * stays)


APART = """
mov.u32 %r0, 0; and.b32 %r2, %t, 1; setp.eq.u32 %p1, %r2, 1; @%p1 bra far;
back: {meeting}
mad.wide.u32 %o, %t, 4, %q0; st.global.u32 [%o], %r1; ret;
far: add.u32 %r0, %r0, 1; and.b32 %r2, %t, 3; setp.eq.u32 %p1, %r2, 3; @%p1 bra farther; bra back;
farther: {other} add.u32 %r0, %r0, 1; bra back;
"""
SUM = "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff; mad.lo.u32 %r1, %r1, 10, %r0;"


def test_lanes_whose_path_lies_further_down_are_waited_for() -> None:
    found = run(APART.format(meeting=SUM, other=""), [np.zeros(64, np.uint32)], 64)[0][0]
    np.testing.assert_array_equal(found, np.tile([10, 1, 20, 2], 16))
    meeting = f"bar.warp.sync 0xffffffff; bar.sync 0; {SUM}"
    other, statistics = run(APART.format(meeting=meeting, other=""), [np.zeros(64, np.uint32)], 64)
    np.testing.assert_array_equal(other[0], found)
    assert statistics.barriers == 1


@pytest.mark.parametrize("other", [SUM, "ret;", "bar.warp.sync 0xffffffff;"])
def test_lanes_that_never_come(other: str) -> None:
    with pytest.raises(errors.InactiveLanes, match="do not take part"):
        run(APART.format(meeting=SUM, other=other), [np.zeros(64, np.uint32)], 64)


def test_votes() -> None:
    body = """
setp.lt.u32 %p1, %t, 40; vote.sync.ballot.b32 %r0, %p1, 0xffffffff;
vote.sync.any.pred %p2, %p1, 0xffffffff; vote.sync.all.pred %p3, %p1, 0xffffffff;
selp.u32 %r1, 1, 0, %p2; selp.u32 %r2, 1, 0, %p3; activemask.b32 %r3;
mad.wide.u32 %o, %t, 16, %q0; st.global.v4.u32 [%o], {%r0, %r1, %r2, %r3};
"""
    found = run(body, [np.zeros((96, 4), np.uint32)], 96)[0][0]
    assert found[[0, 32, 64]].tolist() == [[U32, 1, 1, U32], [255, 1, 0, U32], [0, 0, 0, U32]]


@pytest.mark.parametrize("op, wanted", [("add", 45), ("min", 0), ("max", 9), ("xor", 1)])
def test_updates(op: str, wanted: int) -> None:
    """Each thread's update happens once, and it finds what the one before has left."""
    kind = "b32" if op == "xor" else "u32"
    body = f"""
rem.u32 %r1, %t, 10; setp.lt.u32 %p1, %t, 10;
@%p1 atom.global.{op}.{kind} %r2, [%q0], %r1;
@%p1 red.global.add.u32 [%q0+4], 1;
"""
    found = run(body, [np.zeros(2, np.uint32)], 32)[0][0]
    assert found.tolist() == [wanted, 10]


def test_compare_and_swap() -> None:
    body = """
atom.global.cas.b32 %r1, [%q0], 0, 7; mad.wide.u32 %o, %t, 4, %q1; st.global.u32 [%o], %r1;
"""
    place, old = run(body, [np.zeros(1, np.uint32), np.zeros(32, np.uint32)])[0]
    assert place[0] == 7
    assert sorted(old.tolist()) == [0] + [7] * 31


def test_generic_addresses() -> None:
    """One instruction for three spaces, told apart by the address."""
    before = ".shared .align 16 .b8 here[256];\n.const .align 4 .u32 table[2] = {11, 22};\n"
    body = """
.local .align 8 .b8 own[8]; mov.u64 %d0, own; cvta.local.u64 %d0, %d0;
mov.u64 %d1, here; cvta.shared.u64 %d1, %d1; mul.wide.u32 %d2, %t, 4; add.s64 %d1, %d1, %d2;
mad.wide.u32 %o, %t, 4, %q0;
st.u32 [%d0+4], %t; st.u32 [%d1], 77; setp.lt.u32 %p1, %t, 10; setp.lt.u32 %p2, %t, 20;
add.s64 %d0, %d0, 4; selp.b64 %d3, %d1, %o, %p2; selp.b64 %d3, %d0, %d3, %p1;
ld.u32 %r1, [%d3]; isspacep.shared %p3, %d3; @%p3 add.u32 %r1, %r1, 1000;
mov.u64 %d4, table; ld.const.u32 %r2, [%d4+4]; add.u32 %r1, %r1, %r2;
st.global.u32 [%o], %r1;
"""
    found = run(body, [np.full(32, 500, np.uint32)], before=before)[0][0]
    assert found.tolist() == [22 + v for v in [*range(10), *[1077] * 10, *[500] * 12]]


def test_tables_of_branches() -> None:
    body = """
rem.u32 %r0, %t, 3; targets: .branchtargets one, two, three; brx.idx %r0, targets;
one: mov.u32 %r1, 10; bra.uni out; two: mov.u32 %r1, 20; bra.uni out; three: mov.u32 %r1, 30;
out: mad.wide.u32 %o, %t, 4, %q0; st.global.u32 [%o], %r1;
"""
    found = run(body, [np.zeros(32, np.uint32)])[0][0]
    assert found.tolist() == [[10, 20, 30][k % 3] for k in range(32)]


def test_loops_of_different_lengths() -> None:
    """Threads leave a loop one by one and meet after it."""
    body = """
mov.u32 %r0, 0; mov.u32 %r1, 0;
again: add.u32 %r1, %r1, %r0; add.u32 %r0, %r0, 1; setp.le.u32 %p1, %r0, %t; @%p1 bra again;
shfl.sync.idx.b32 %r2, %r1, 31, 31, 0xffffffff; sub.u32 %r1, %r2, %r1;
mad.wide.u32 %o, %t, 4, %q0; st.global.u32 [%o], %r1;
"""
    found, statistics = run(body, [np.zeros(32, np.uint32)])
    assert found[0].tolist() == [496 - k * (k + 1) // 2 for k in range(32)]
    assert statistics.thread_instructions == 4 * 32 + 4 * 528 + 4 * 32 + 32


def test_functions_in_functions() -> None:
    before = """
.func (.param .b32 r) twice(.param .b32 x) { .reg .b32 %a; ld.param.b32 %a, [x];
add.u32 %a, %a, %a; st.param.b32 [r], %a; ret; }
.func (.param .b32 r) fourfold(.param .b32 x) { .reg .b32 %a; .reg .pred %z; ld.param.b32 %a, [x];
{ .param .b32 in; .param .b32 out; st.param.b32 [in], %a; call (out), twice, (in);
ld.param.b32 %a, [out]; } setp.gt.u32 %z, %a, 20; st.param.b32 [r], %a; @%z ret;
{ .param .b32 in; .param .b32 out; st.param.b32 [in], %a; call (out), twice, (in);
ld.param.b32 %a, [out]; } st.param.b32 [r], %a; ret; }
"""
    body = """
{ .param .b32 in; .param .b32 out; st.param.b32 [in], %t; call.uni (out), fourfold, (in);
ld.param.b32 %r1, [out]; } mad.wide.u32 %o, %t, 4, %q0; st.global.u32 [%o], %r1;
"""
    found = run(body, [np.zeros(32, np.uint32)], before=before)[0][0]
    assert found.tolist() == [2 * k if 2 * k > 20 else 4 * k for k in range(32)]


def test_different_barriers() -> None:
    body = "setp.lt.u32 %p1, %t, 32; @%p1 bra one; bar.sync 0; bra.uni out; one: bar.sync 0; out:"
    with pytest.raises(errors.BarrierDivergence, match="waits at"):
        run(body, [np.zeros(1)], 64)


SHARED = ".shared .align 16 .b8 here[32];\n"
CONFLICTS: dict[str, tuple[type[errors.PtxError], str]] = {
    "one of several readers writes": (
        errors.GlobalRace,
        "ld.global.u32 %r1, [%q0]; setp.eq.u32 %p1, %ctaid.x, 1; @%p1 st.global.u32 [%q0], %r1;",
    ),
    "reads what others update": (
        errors.GlobalRace,
        "ld.global.u32 %r1, [%q0]; red.global.add.u32 [%q0], 1;",
    ),
    "writes what is being copied": (
        errors.NotWaitedFor,
        "mov.u32 %r0, here; cp.async.ca.shared.global [%r0], [%q0], 4; st.shared.u32 [%r0], 1;",
    ),
    "updates what nobody wrote": (errors.Uninitialised, "red.shared.add.u32 [here+4], 1;"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts(name: str) -> None:
    error, body = CONFLICTS[name]
    with pytest.raises(error):
        run(body, [np.zeros(4, np.uint32)], 1, blocks=2, before=SHARED)


def test_lanes_that_do_not_exist() -> None:
    """A block need not fill its last warp."""
    body = "mad.wide.u32 %o, %t, 4, %q0; st.global.u32 [%o], %ntid.x; bar.sync 0;"
    found, statistics = run(body, [np.zeros(40, np.uint32)], 40)
    assert (found[0] == 40).all()
    assert statistics.barriers == 1


@pytest.mark.parametrize("read, fill", [(16, 0), (8, 8), (5, 11), (0, 16)])
def test_partial_copies(read: int, fill: int) -> None:
    """What is not read is not looked at and becomes zeros."""
    before = ".extern .shared .align 16 .b8 here[];\n.shared .align 16 .b8 more[16];\n"
    body = f"""
cvt.u32.u64 %r0, %d0; mov.u32 %r0, more; mov.u32 %r1, {read};
cp.async.cg.shared.global [%r0], [%q0], 16, %r1; cp.async.wait_all;
ld.shared.v2.u64 {{%d1, %d2}}, [more]; st.global.v2.u64 [%q1], {{%d1, %d2}};
"""
    x = np.arange(1, 1 + max(read, 1), dtype=np.uint8)
    found = run(body, [x, np.zeros(16, np.uint8)], 1, before=before)[0][1]
    assert found.tolist() == [*range(1, 1 + read), *[0] * fill]


PRODUCTS = {
    "m16n8k8.row.col.f32.f16.f16.f32": (np.float16, np.float16, 8),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (ml_dtypes.bfloat16, ml_dtypes.bfloat16, 16),
    "m16n8k4.row.col.f32.tf32.tf32.f32": (np.float32, np.float32, 4),
    "m16n8k16.row.col.s32.u8.s8.s32": (np.uint8, np.int8, 16),
    "m16n8k32.row.col.s32.s8.u8.s32": (np.int8, np.uint8, 32),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    """Lane by lane as the PTX ISA's figures say where each element is."""
    left, right, depth = PRODUCTS[name]
    rng = np.random.default_rng(0)
    a, b = (
        rng.integers(-9, 9, (16, depth)).astype(left),
        rng.integers(-9, 9, (depth, 8)).astype(right),
    )
    packed, words = 4 // a.itemsize, depth * a.itemsize // 16
    lane, place = np.arange(32)[:, None], np.arange(packed)
    columns = lane % 4 * packed + place
    parts_a = [
        a[lane // 4 + 8 * (w % 2), columns + 4 * packed * (w // 2)] for w in range(2 * words)
    ]
    parts_b = [b[columns + 4 * packed * w, lane // 4] for w in range(words)]
    data = np.stack([np.ascontiguousarray(p).view(np.uint32)[:, 0] for p in parts_a + parts_b], 1)
    load = "".join(f"ld.global.u32 %r{k}, [%o+{4 * k}];" for k in range(3 * words))
    one, two = (
        "{" + ", ".join(f"%r{k}" for k in r) + "}"
        for r in (range(2 * words), range(2 * words, 3 * words))
    )
    kind = "f32" if "f32" in name else "s32"
    sums = "{%f0, %f1, %f2, %f3}" if kind == "f32" else "{%r10, %r11, %r12, %r13}"
    zero = "0f00000000" if kind == "f32" else "0"
    body = f"""
mad.wide.u32 %o, %t, {12 * words}, %q0; {load}
mma.sync.aligned.{name} {sums}, {one}, {two}, {{{zero}, {zero}, {zero}, {zero}}};
mad.wide.u32 %o, %t, 16, %q1; st.global.v4.{kind} [%o], {sums};
"""
    out = np.zeros((32, 4), np.float32 if kind == "f32" else np.int32)
    found = run(body, [data, out])[0][1]
    k = np.arange(4)
    product = a.astype(np.float64) @ b.astype(np.float64)
    wanted = product[lane // 4 + 8 * (k // 2), lane % 4 * 2 + k % 2]
    np.testing.assert_array_equal(found, wanted)
