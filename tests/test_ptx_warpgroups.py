"""The emulator where hardware copies boxes and warpgroups multiply: layouts, and planted faults."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_harness import compiled, needs_compiler
from interpreted import Array
from ptx import Memory, Module, errors, launch
from ptx.tensor_maps import TensorMap, decode, of_loops
from ptx.warpgroups import Descriptor
from test_cuda_mma import agree, arrays_of
from test_cuda_wgmma import SMALL, lowered, source_of
from tilewright.codegen.cuda import Launch, emit_cuda
from tilewright.dtypes import DType
from tilewright.loops.ir import Kernel
from tilewright.schedule.directives import schedule
from tilewright_kernels.cuda import bulk, wgmma

SIZE = 64, 64, 512
BYTES = 16384  # of a step
EXPECT = f"mov.u32 \t%r(\\d+), {BYTES};"
TRY = "mbarrier.try_wait.parity.shared::cta.b64 passed"
ONE_WARP = """.reg .pred first; .reg .u32 lane; mov.u32 lane, %tid.x; setp.lt.u32 first, lane, 32;
setp.ge.u32 passed, lane, 32; @first """
SETTLE = "wgmma.wait_group.sync.aligned"


@cache
def sample() -> tuple[Kernel, Launch, str, Array]:
    """A product of one block with two stages of 64 x 64, its text and results."""
    found, wanted = lowered("right transposed", DType.F16, *SIZE)
    kernel = schedule(found.kernel, (SMALL,))
    e = emit_cuda(kernel)
    return kernel, e, compiled(source_of(e)).ptx, wanted


def run(
    text: str, threads: int = 128, turned: Callable[[TensorMap], TensorMap] | None = None
) -> Array:
    """The results of the sample with another text, or other descriptions of its tensors."""
    kernel, e, _, _ = sample()
    arrays, memory = arrays_of(kernel), Memory()
    places = [
        memory.empty(arrays[b.name].nbytes)
        if b.name in kernel.outputs
        else memory.put(arrays[b.name].view(np.uint16))
        for b in kernel.params
    ]
    maps = [of_loops(m.tensor, places[m.pointer]) for m in e.maps]
    described = [(turned(m) if turned else m).encode() for m in maps]
    parameters: list[int | bytes] = [*places, *e.numbers, *described]
    launch(Module(text).kernel(), memory, e.blocks, threads, parameters, e.shared_bytes)
    (at,) = (k for k, b in enumerate(kernel.params) if b.name in kernel.outputs)
    shape = kernel.params[at].shape
    return memory.get(places[at], shape, np.uint16).view(np.float16)


@needs_compiler
def test_without_faults() -> None:
    agree(run(sample()[2]), sample()[3], DType.F16)


@dataclass(frozen=True)
class Fault:
    """An edit of the kernel's text: a pattern, what comes in its place; the error."""

    name: str
    pattern: str
    new: str
    error: type[errors.PtxError]
    says: str
    which: int | None = None  # of the places; all, if it is not said
    threads: int = 128


FAULTS = [
    Fault(
        "nobody waits", f"{TRY}[^;]*;", "setp.eq.u32 passed, 0, 0;", errors.NotWaitedFor, "copied"
    ),
    Fault("one warp waits", re.escape(TRY), ONE_WARP + TRY, errors.NotWaitedFor, "not waited"),
    Fault("too many bytes", EXPECT, f"mov.u32 %r\\1, {BYTES + 16};", errors.Deadlock, "16 bytes"),
    Fault("too few bytes", EXPECT, f"mov.u32 %r\\1, {BYTES - 16};", errors.Deadlock, "-16 bytes"),
    Fault("no bytes", r"mbarrier\.arrive\.expect_tx[^;]*;", "", errors.Deadlock, "1 arrivals"),
    Fault("no copy", r"cp\.async\.bulk[^;]*;", "", errors.Deadlock, f"{BYTES // 2} bytes", 1),
    Fault("not told", r"fence\.(mbarrier|proxy)[^;]*;", "", errors.Unfenced, "no fence tells"),
    Fault("registers not told", r"wgmma\.fence[^;]*;", "", errors.Unfenced, "no wgmma.fence"),
    Fault("sums too early", f"{SETTLE} 0;", "", errors.NotWaitedFor, "adds to it"),
    Fault("overwrites", f"{SETTLE} 1;", "", errors.NotWaitedFor, "product under way reads"),
    Fault("waits for less", f"{SETTLE} 1;", f"{SETTLE} 2;", errors.NotWaitedFor, "under way reads"),
    Fault("no barrier", r"bar\.sync[^;]*;", "", errors.SharedRace, "no barrier came", 1),
    Fault("no first barrier", r"bar\.sync[^;]*;", "", errors.PtxError, "barrier", 0),
    Fault(
        *("lies elsewhere", r"\.align 1024 \.b8 tilewright_shared\[\];"),
        ".align 16 .b8 tilewright_shared[];\n.shared .align 16 .b8 before[16];",
        *(errors.Misaligned, "a box is copied to"),
    ),
    Fault("half as far", "4611686293305360384", "4611686155866406912", errors.Misaligned, "512"),
    Fault("a part of a warpgroup", "ret;", "ret;", errors.InactiveLanes, "not whole", 0, 96),
    Fault(
        "never ends its copies", re.escape(TRY), "exit; " + TRY, errors.NotWaitedFor, "has ended"
    ),
]


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_faults(fault: Fault) -> None:
    text = sample()[2]
    places = list(re.finditer(fault.pattern, text))
    assert places
    for place in reversed(places if fault.which is None else [places[fault.which]]):
        text = text[: place.start()] + place.expand(fault.new) + text[place.end() :]
    with pytest.raises(fault.error, match=re.escape(fault.says)):
        run(text, fault.threads)


@needs_compiler
def test_wrong_descriptions() -> None:
    """Of another box than the copies expect, or of memory that is not there."""
    text = sample()[2]
    with pytest.raises(errors.Deadlock):
        run(text, turned=lambda m: TensorMap(**{**vars(m), "box": (64, 56)}))
    with pytest.raises(errors.OutOfBounds):
        run(text, turned=lambda m: TensorMap(**{**vars(m), "strides": (2048,)}))
    with pytest.raises(errors.Unsupported):
        run(text, turned=lambda m: TensorMap(**{**vars(m), "swizzle": 2}))


def test_what_a_driver_refuses() -> None:
    good = TensorMap(1 << 40, 2, 3, (64, 64), (128,), (64, 64))
    assert not good.problem() and decode(good.encode()) == good
    for name, value in (
        ("address", (1 << 40) + 8),
        ("strides", (136,)),
        ("strides", (1 << 40,)),
        ("extents", (64, 0)),
        ("box", (72, 64)),
        ("box", (64, 257)),
    ):
        assert TensorMap(**{**vars(good), name: value}).problem(), name


# -- layouts, each written twice: for the library and for the emulator


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.booleans(), st.integers(0, 3))
def test_matrices_lie_where_the_library_says(
    groups: int, start: int, is_last: bool, step: int
) -> None:
    """A matrix of 64 lines to a group and 64 elements of the sum; an instruction takes 16."""
    lines, first = 64 * groups, 512 * start
    memory = np.arange(first + lines * 64).astype(np.uint16)
    whole = wgmma.matrix(memory, first, lines, is_last, 8192, 64)
    word = wgmma.descriptor(is_last, 8192)
    at = first * 2 + step * wgmma.advance(is_last)
    found = Descriptor(at, (word >> 16 & 0x3FFF) << 4, (word >> 32 & 0x3FFF) << 4)
    chunks = found.chunks(lines, not is_last)
    values = memory[chunks[..., None] // 2 + np.arange(8)]
    part = (values if is_last else values.transpose(0, 2, 1)).reshape(lines, 16)
    np.testing.assert_array_equal(part, whole[:, 16 * step : 16 * step + 16])


def test_boxes_are_matrices() -> None:
    """What is copied is what is multiplied, beyond the tensor too."""
    tensor = np.arange(1, 1 + 100 * 72).reshape(100, 72).astype(np.uint16)
    target = np.zeros(64 * 64, np.uint16)
    bulk.copy_box2.meaning(target, 0, tensor, (64, 64), (64, 32))
    wanted = np.zeros((64, 64), np.uint16)
    wanted[:36, :40] = tensor[64:, 32:]
    np.testing.assert_array_equal(wgmma.matrix(target, 0, 64, 1, 0, 64), wanted)
    np.testing.assert_array_equal(wgmma.matrix(target, 0, 64, 0, 8192, 64), wanted.T)


def test_products_mean_sums_of_products() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((n, 64)).astype(np.float16) for n in (64, 24))
    a, b = np.zeros(64 * 64, np.uint16), np.zeros(24 * 64, np.uint16)
    bulk.copy_box2.meaning(a, 0, x.view(np.uint16), (64, 64), (0, 0))
    bulk.copy_box2.meaning(b, 0, w.view(np.uint16), (24, 64), (0, 0))
    sums = np.ones((128, 12), np.float32)
    wgmma.wgmma_f16.meaning(sums, 24, a, 0, b, 0, 1, 128, 1, 128, 64)
    found = np.zeros((64, 24))
    found[wgmma.sum_indices(24)] = sums
    wanted = 1 + x.astype(np.float64) @ w.astype(np.float64).T
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)
