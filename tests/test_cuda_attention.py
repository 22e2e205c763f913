"""Attention on blocks of threads: against NumPy in float64, by the interpreter and as PTX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_cases import MASKS, Case, attention_of, groups, run_ptx, without_barrier
from cuda_harness import (
    ARCHITECTURES,
    compiled,
    instructions,
    needs_compiler,
    needs_sass,
    uses,
)
from interpreted import Array, run_lowered
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.errors import VerifyError
from tilewright.loops.ir import Const, For, walk
from tilewright.loops.verify import verify
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.attend import FEW_ROWS
from tilewright.schedule.attention_keys import AttentionKeys
from tilewright.schedule.attention_mma import AttentionMma
from tilewright.schedule.attention_tiles import AttentionTile
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.directives import Directive, schedule

ON_FMA = (AttentionTile, AttentionKeys)
TILES: tuple[Directive, ...] = (
    AttentionTile(8, 8, 4, 32),
    AttentionTile(16, 4, 4, 32),
    AttentionTile(8, 16, 8, 64),
    AttentionKeys(2, 32, 2),
    AttentionKeys(8, 64, 1),
)


def close(got: Array, want: Array, dtype: Any) -> None:
    loose = 2e-5 if dtype is np.float32 else 2e-2
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=loose, atol=loose)


cases = st.builds(
    Case,
    heads=st.just(2),
    shared=st.sampled_from([1, 2]),
    rows=st.sampled_from([1, 2, 9]),
    keys=st.sampled_from([2, 3, 8, 11]),
    depth=st.sampled_from([3, 4, 8, 10]),
    columns=st.sampled_from([2, 4, 12, 13]),
    mask=st.sampled_from(MASKS),
    dtype=st.sampled_from([np.float32, np.float32, np.float16, ml_dtypes.bfloat16]),
    batch=st.sampled_from([1, 2]),
)


@settings(max_examples=12, deadline=None)
@given(cases, st.sampled_from(TILES))
def test_loops(case: Case, tile: Directive) -> None:
    model, y, lowered, want = groups(case)
    arrays = dict(model.arrays)
    assert sum(n.group.nest is not None for n in lowered) == 1
    for n in lowered:
        kernel = n.kernel if n.group.nest is None else schedule(n.kernel, [tile])
        run_lowered(n, verify(kernel), arrays)
    close(arrays[y.name], want, case.dtype)


REAL = [
    Case(rows=70, keys=75, depth=64, columns=64, mask="causal"),
    Case(rows=33, keys=21, depth=40, columns=36, mask="cleaned", shared=2),
    Case(rows=17, keys=70, depth=128, columns=96, mask="where", heads=1),
    Case(rows=19, keys=35, depth=32, columns=32, dtype=np.float16, mask="add"),
    Case(rows=1, keys=600, depth=64, columns=64, mask="where", batch=2),
    Case(rows=3, keys=70, depth=80, columns=50, mask="where", dtype=ml_dtypes.bfloat16),
]


@needs_compiler
@pytest.mark.parametrize("case", REAL, ids=str)
def test_machine_code(case: Case) -> None:
    model, y, lowered, want = groups(case)
    arrays = dict(model.arrays)
    for n in lowered:
        kernel = choose_cuda_schedule(n)
        if n.group.nest is not None:
            halves = case.dtype is not np.float32 and case.rows > FEW_ROWS
            assert isinstance(kernel.schedule[0], AttentionMma if halves else ON_FMA)
        run_ptx(n, kernel, arrays)
    close(arrays[y.name], want, case.dtype)


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("case", "registers"),
    [
        (Case(heads=32, rows=512, keys=512, depth=64, columns=64), 168),
        (Case(heads=32, rows=512, keys=512, depth=128, columns=128), 208),
        (Case(heads=32, rows=1, keys=4096, depth=128, columns=128), 128),
    ],
)
def test_instructions(case: Case, registers: int, architecture: str) -> None:
    (n,) = (n for n in groups(case)[2] if n.group.nest is not None)
    e = emit_cuda(choose_cuda_schedule(n))
    source = KernelSource(e.text, e.pointers, len(e.numbers), e.threads, architecture, False)
    kernel = compiled(source)
    assert kernel.usage.spill_bytes == 0 and kernel.usage.local_bytes == 0
    assert kernel.usage.registers <= registers
    found = instructions(kernel)
    wide = sum(count for name, count in found.items() if name.startswith("LDS.128"))
    reads = sum(count for name, count in found.items() if name.startswith("LDS"))
    assert not uses(found, "HMMA")
    assert reads - wide <= 40 and any(name.startswith("LDG.E.") for name in found)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_barrier_is_needed(tile: Directive) -> None:
    kernel = schedule(attention_of(Case(rows=9, keys=70)), [tile])  # several steps of each tile
    barriers = 3 if isinstance(tile, AttentionTile) else 1
    for which in range(barriers):
        with pytest.raises(VerifyError, match="without a barrier"):
            verify(without_barrier(kernel, which))


def test_heads_that_share_all_keys_are_rows() -> None:
    kernel = attention_of(Case(heads=6, shared=6, rows=1, keys=9, depth=8, columns=8))
    assert [p.dtype for p in kernel.params] == [DType.F32] * 4
    chosen: Sequence[object] = kernel_schedule(Case(heads=6, shared=6, rows=1, keys=9))
    assert isinstance(chosen[0], AttentionTile)


def kernel_schedule(case: Case) -> Sequence[object]:
    (n,) = (n for n in groups(case)[2] if n.group.nest is not None)
    return choose_cuda_schedule(n).schedule


def test_keys_that_no_row_needs_are_left_out() -> None:
    masked, free = (attention_of(Case(rows=16, keys=40, mask=m)) for m in ("causal", "where"))
    for kernel, limited in ((masked, True), (free, False)):
        tiled = schedule(kernel, [AttentionTile(8, 8, 4, 32)])
        loop = next(n for n in walk(tiled.body) if isinstance(n, For) and n.axis == "tile")
        assert isinstance(loop.extent, Const) != limited
    (found,) = (p for p in masked.params if p.dtype is DType.I64)
    assert found.values == (25, 40)
