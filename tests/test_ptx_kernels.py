"""The emulator of PTX on real kernels, and on the same kernels with a fault planted in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ptx import Memory, Module, errors, launch
from ptx_runs import SAMPLES


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("batch", [32, 100, 8192])
def test_results(name: str, batch: int) -> None:
    """However many blocks run together, and whole in spite of memory that was never written."""
    sample = SAMPLES[name]
    found, statistics = sample.run(batch=batch)
    with np.errstate(invalid="ignore"):
        wanted = sample.wanted(*sample.arrays)
    np.testing.assert_allclose(found, wanted, rtol=sample.tolerance, atol=sample.tolerance)
    assert statistics.thread_instructions > statistics.instructions


@dataclass(frozen=True)
class Fault:
    """An edit of a kernel's text or launch, the error, and what it must say."""

    name: str
    sample: str
    error: type[errors.PtxError]
    says: str
    old: str = ""
    new: str = ""
    occurrence: int = 0
    changes: dict[str, Any] = field(default_factory=dict)


def edited(text: str, old: str, new: str, occurrence: int) -> str:
    """The text with one occurrence replaced; -1 is the last one."""
    pieces = text.split(old)
    assert len(pieces) > 1, f"no {old!r} in the kernel"
    at = occurrence % (len(pieces) - 1) + 1
    return old.join(pieces[:at]) + new + old.join(pieces[at:])


BARRIER, WAIT = "bar.sync 	0;", "cp.async.wait_group 1;"
SHFL = "shfl.sync.bfly.b32 %r3"
FIRST_STORE = "st.shared.f32 	[%rd70], %f97;"
DIVERGENT = "@%p2 bra 	$L__BB0_4;"
FAULTS = [
    Fault("no first barrier", "product", errors.SharedRace, "read of shared", BARRIER, ""),
    Fault("no last barrier", "product", errors.SharedRace, "write of shared", BARRIER, "", -1),
    Fault("no barrier of sums", "sums", errors.SharedRace, "read of shared", BARRIER, ""),
    Fault("one wait less", "pipeline", errors.NotWaitedFor, "is being copied", WAIT, "", 0),
    Fault("waits for too few", "pipeline", errors.NotWaitedFor, "shared", WAIT, WAIT[:-2] + "2;"),
    Fault(
        "commits nothing",
        "pipeline",
        errors.NotWaitedFor,
        "is being copied",
        "cp.async.commit_group;",
        "",
        -1,
    ),
    Fault("no barrier after a wait", "pipeline", errors.SharedRace, "another warp", BARRIER, ""),
    Fault(
        "odd bytes copied",
        "pipeline",
        errors.Misaligned,
        "16 bytes",
        "[%rd31], 16",
        "[%rd31+4], 16",
    ),
    Fault("odd address", "tensor", errors.Misaligned, "of global", "[%rd9]", "[%rd9+4]"),
    Fault(
        "odd shared address", "tensor", errors.Misaligned, "of shared", "[%rd3+512]", "[%rd3+520]"
    ),
    Fault("odd row", "tensor", errors.Misaligned, "shared memory at 0x8", "[%r22]", "[%r22+8]"),
    Fault("another block", "sums", errors.OutOfBounds, "block 5", changes={"blocks": 6}),
    Fault("another row", "pipeline", errors.OutOfBounds, "global", changes={"numbers": (7,)}),
    Fault(
        "too many elements", "sine", errors.OutOfBounds, "thread 22", changes={"numbers": (151,)}
    ),
    Fault("beyond shared", "sums", errors.OutOfBounds, "there are 8 bytes", changes={"shared": 8}),
    Fault("negative address", "tensor", errors.OutOfBounds, "global", "[%rd9]", "[%rd9+-16]"),
    Fault("nothing stored", "product", errors.Uninitialised, "shared", FIRST_STORE, ""),
    Fault(
        "reads its result",
        "sums",
        errors.Uninitialised,
        "global",
        "st.global.f32 	[%rd15], %f21",
        "ld.global.f32 	%f21, [%rd15]",
    ),
    Fault("an empty local array", "sine", errors.Uninitialised, "of local", "st.local.u64", "//"),
    Fault(
        "blocks overlap",
        "sums",
        errors.GlobalRace,
        "another block",
        "shl.b64 	%rd14, %rd1, 2",
        "mov.b64 	%rd14, 0",
    ),
    Fault(
        "blocks write what others read",
        "sums",
        errors.GlobalRace,
        "global",
        "[%rd15], %f21",
        "[%rd3], %f21",
    ),
    Fault("shuffle in a branch", "sums", errors.InactiveLanes, "lanes [", SHFL, f"@%p9 {SHFL}"),
    Fault(
        "product in a branch",
        "tensor",
        errors.InactiveLanes,
        "inactive",
        "mma.sync",
        "@%p1 mma.sync",
    ),
    Fault(
        "matrix in a branch",
        "tensor",
        errors.InactiveLanes,
        "inactive",
        "ldmatrix",
        "@%p1 ldmatrix",
    ),
    Fault(
        "half a warp at a barrier",
        "tensor",
        errors.BarrierDivergence,
        "elsewhere",
        BARRIER,
        f"@%p1 {BARRIER}",
    ),
    Fault(
        "one warp at a barrier",
        "sums",
        errors.BarrierDivergence,
        "thread",
        BARRIER,
        f"@%p9 {BARRIER}",
        -1,
    ),
    Fault(
        "too much shared", "sums", errors.LaunchFault, "166912 at most", changes={"shared": 1 << 18}
    ),
    Fault("too many threads", "sums", errors.LaunchFault, "96 at most", changes={"threads": 128}),
    Fault(
        "parameters missing", "sums", errors.LaunchFault, "3 parameters", changes={"numbers": (1,)}
    ),
    Fault(
        "unknown instruction",
        "sums",
        errors.Unsupported,
        "frobnicate",
        "add.rn.f32",
        "frobnicate.f32",
    ),
    Fault("undeclared register", "sums", errors.Unsupported, "%f99", "%f21, %f20", "%f21, %f99"),
    Fault("a trap", "sums", errors.Trapped, "trap", "ret;", "trap;"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name.replace(" ", "_"))
def test_faults(fault: Fault) -> None:
    sample = SAMPLES[fault.sample]
    text = sample.text
    if fault.old:
        text = edited(text, fault.old, fault.new, fault.occurrence)
    if "%p9" in fault.new:  # true for the first 32 threads, and only half of them where lanes count
        limit = 16 if fault.error is errors.InactiveLanes else 32
        text = text.replace(".reg .pred 	%p<3>;", ".reg .pred 	%p<10>;")
        text = text.replace(
            "cvt.u64.u32 	%rd5", f"setp.lt.u32 %p9, %r1, {limit};\ncvt.u64.u32 	%rd5"
        )
    with pytest.raises(fault.error) as found:
        sample.run(text, **fault.changes)
    assert fault.says in str(found.value)
    if fault.error not in (errors.LaunchFault, errors.Unsupported):
        assert "line " in str(found.value) and " thread " in str(found.value)


def test_empty_memory_is_poison() -> None:
    memory = Memory()
    assert np.isnan(memory.get(memory.empty(8), 2, np.float32)).all()
    address = memory.put(np.arange(3, dtype=np.int16))
    assert address % 256 == 0
    assert memory.get(address + 2, 2, np.int16).tolist() == [1, 2]
    with pytest.raises(ValueError, match="are not allocated"):
        memory.get(address, 4, np.int16)


def test_launches_are_ordered() -> None:
    """A second launch may write what the first one read."""
    text = SAMPLES["sums"].text
    memory = Memory()
    x = np.ones((1, 96), np.float32)
    a, b = memory.put(x), memory.empty(4)
    kernel = Module(text).kernel()
    for pair in ([a, b], [a, a], [a, b]):
        launch(kernel, memory, 1, 96, pair, 16)
    assert memory.get(b, 1, np.float32)[0] == 96 + 95
