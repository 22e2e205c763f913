"""Products with a short side: numbers, what they ask of memory, and the instructions that they do
it with."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from cuda_harness import ARCHITECTURES, instructions, needs_compiler, needs_sass, uses
from cuda_kernels import compiled, lowered
from cuda_products import DTYPES, LAYOUTS, Case, agree, name_of, ran
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.loops.verify import verify
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.thin_tiles import ThinTile

SECTOR = 32
MOST_REGISTERS = 128  # of a thread: at least two blocks of 256 fit into a multiprocessor

cases = st.builds(
    Case,
    st.integers(1, 7),
    st.one_of(st.integers(16, 90), st.sampled_from([64, 256, 512])),
    st.one_of(st.integers(128, 200), st.sampled_from([128, 160, 256])),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["nothing", "bias", "residual"]),
    st.sampled_from([0, 0, 2]),
)


@needs_compiler
@settings(max_examples=25, deadline=None)
@given(cases)
def test_few_rows(case: Case) -> None:
    done, found, _ = ran(case)
    agree(case, found)
    event(f"{done[0].kernel.schedule}"[:9])
    for run in done:
        assert run.statistics.traffic is not None


@needs_compiler
@settings(max_examples=15, deadline=None)
@given(
    st.integers(128, 300),
    st.integers(16, 130),
    st.integers(1, 15),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["nothing", "bias", "residual"]),
    st.booleans(),
)
def test_few_columns(
    rows: int, depth: int, columns: int, dtype: DType, layout: str, after: str, settled: bool
) -> None:
    case = Case(rows, depth, columns, dtype, layout, after, settled=settled)
    agree(case, ran(case)[1])


EVEN = [
    Case(rows, 512, 256, dtype, layout, "residual")
    for rows in (1, 4, 7)
    for dtype in DTYPES[:2]
    for layout in LAYOUTS
]


@needs_compiler
@pytest.mark.parametrize("case", EVEN, ids=name_of)
def test_each_sector_of_the_weights_is_read_once(case: Case) -> None:
    done, found, names = ran(case)
    agree(case, found)
    (run,) = done
    assert isinstance(run.kernel.schedule[-1], ThinTile)
    assert run.statistics.traffic is not None
    weights = run.statistics.traffic.of_global[run.places[names["0 w"]]]
    nbytes = case.depth * case.columns * case.dtype.itemsize
    assert weights.asked == weights.needed == nbytes // SECTOR
    assert weights.count == nbytes // (16 * 32), "requests of 128 bits"
    assert run.share(names["0 x"]) == 1.0, "sectors of no use"
    assert run.statistics.traffic.of_shared.share == 1.0, "bank conflicts"


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", EVEN, ids=name_of)
def test_instructions(case: Case, architecture: str) -> None:
    inputs = case.tensors
    (n,), _ = lowered(inputs, [case.build(*inputs)])
    made = compiled(emit_cuda(verify(choose_cuda_schedule(n))), architecture)
    found = instructions(made)
    assert made.usage.spill_bytes == 0 and made.usage.local_bytes == 0
    assert made.usage.registers <= MOST_REGISTERS
    assert uses(found, "LDG.128")
