"""Products with few results and long sums: parts that blocks share, summed in one order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from cuda_harness import needs_compiler
from cuda_kernels import emulated, lowered
from cuda_products import DTYPES, LAYOUTS, Case, agree, name_of, numbers, ran
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.fusion.grid_products import LEAST, PART, PROCESSORS, product_cuts, product_of
from tilewright.fusion.grid_sums import split_for_grid
from tilewright.fusion.inline import inline
from tilewright.loops.verify import verify
from tilewright.ops.convolution import conv
from tilewright.ops.tensor import Compute, constant, placeholder
from tilewright.schedule.block_tiles import BlockTile
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.mma_tiles import MmaTile


def blocks_of(case: Case) -> list[int]:
    """Of the kernels of a product."""
    inputs = case.tensors
    kernels, _ = lowered(inputs, [case.build(*inputs)])
    return [emit_cuda(verify(choose_cuda_schedule(n))).blocks for n in kernels]


DEEP = [
    Case(64, 16384, 64, dtype, layout, "bias") for dtype in DTYPES[:2] for layout in LAYOUTS
] + [Case(128, 3072, 768, dtype, after="bias") for dtype in DTYPES[:2]]


@pytest.mark.parametrize("case", DEEP, ids=name_of)
def test_most_of_the_machine_has_a_block(case: Case) -> None:
    first, second = blocks_of(case)
    assert first >= PROCESSORS and second >= PROCESSORS // 4


@pytest.mark.parametrize(
    "case",
    [
        Case(64, 512, 64, DType.F16),  # too short
        Case(2048, 4096, 2048, DType.F32),  # enough blocks
        Case(64, 4099, 64, DType.F32),  # no equal parts
    ],
    ids=name_of,
)
def test_others_are_summed_at_once(case: Case) -> None:
    assert len(blocks_of(case)) == 1


SMALL = st.builds(
    Case,
    st.integers(8, 24),
    st.sampled_from([4 * PART, 4 * PART + 36, 5 * PART, 6 * PART - 4]),
    st.integers(16, 24),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["nothing", "bias", "residual"]),
    st.sampled_from([0, 0, 2]),
)


@needs_compiler
@settings(max_examples=8, deadline=None)
@given(SMALL)
def test_numbers(case: Case) -> None:
    done, found, _ = ran(case)
    agree(case, found)
    event(f"{len(done)} kernels")
    if len(done) > 1:
        kind = MmaTile if case.dtype is not DType.F32 else BlockTile
        event(f"on {kind.__name__}: {isinstance(done[0].kernel.schedule[-1], kind)}")


@needs_compiler
def test_bits_repeat() -> None:
    case = Case(24, 4 * PART, 24, DType.F32, after="residual")
    (first, one, _), (_, other, _) = ran(case), ran(case)
    assert len(first) == 2
    np.testing.assert_array_equal(one, other)
    assert not any(" atomic" in run.compiled.ptx for run in first)


@needs_compiler
@pytest.mark.parametrize("steps", [[1, 1], [2, 2]], ids=str)
def test_convolutions(steps: list[int]) -> None:
    case_x, case_w = (1, 128, 5, 5), (16, 128, 3, 3)
    x, w = placeholder(case_x, DType.F32), numbers(1, case_w, DType.F32)
    y = conv(x, constant(w), pads=[1, 1, 1, 1], strides=steps)
    kernels, settled = lowered([x], [y])
    assert len(kernels) == 2
    value = numbers(0, case_x, DType.F32)
    arrays: dict[str, Any] = {x.name: value} | {n: c.value for n, c in settled.items()}
    for n in kernels:
        arrays.update(emulated(n, arrays).written)
    wide = np.pad(value.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (2, 3))
    windows = windows[:, :, :: steps[0], :: steps[1]]
    wanted = np.einsum("bchwij,ocij->bohw", windows, w)
    np.testing.assert_allclose(arrays[kernels[-1].tensors[-1].name], wanted, atol=1e-3)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 20000), st.sampled_from(DTYPES[:2]))
def test_cuts(rows: int, columns: int, depth: int, dtype: DType) -> None:
    """Parts are equal, as many as there is work for, and their sums are few."""
    inputs = Case(rows, depth, columns, dtype).tensors
    t = Case(rows, depth, columns, dtype).build(*inputs)
    assert isinstance(t, Compute)
    product = product_of(t)
    if product is None:
        return
    cuts, why = product_cuts(product)
    event(f"cut: {bool(cuts)}")
    for cut in cuts:
        assert cut.count * cut.length == cut.extent and cut.count >= LEAST[product.of_halves]
        assert cut.length >= PART and product.blocks * cut.count <= 2 * PROCESSORS
        assert f"{cut.count} parts" in why


def test_the_reason_is_told() -> None:
    for depth, told in ((4096, "parts are summed first"), (4099, "there are no equal ones")):
        case = Case(64, depth, 64, DType.F32)
        inputs = case.tensors
        program = split_for_grid(inline(inputs, [case.build(*inputs)]))
        assert any(told in str(d) for d in program.decisions), program.decisions
