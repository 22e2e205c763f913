"""Kernels scheduled by hand are run, compared and measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tilewright.dtypes import DType
from tilewright.errors import InputError, ScheduleError
from tilewright.explore.workbench import Workbench
from tilewright.ops import common
from tilewright.ops.contraction import matmul
from tilewright.ops.softmax import softmax
from tilewright.ops.tensor import Constant, Placeholder, constant, placeholder
from tilewright.options import Options
from tilewright.schedule.directives import Block, Swap, Tensorize


def product(m: int, k: int, n: int) -> tuple[Placeholder, Constant]:
    x = placeholder((m, k), DType.F32)
    return x, constant(np.random.default_rng(1).standard_normal((k, n)).astype(np.float32))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    return Options(cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("pack", [False, True])
def test_schedules_of_a_product_are_right_and_shown(options: Options, pack: bool) -> None:
    x, w = product(45, 33, 64)
    bench = Workbench(matmul(x, w), [x], pack=pack, options=options)
    assert "for row0 in 45" in bench.loops
    plain, tiled = bench.run(), bench.run(Block("row1", 32), Tensorize("row1_i"))
    assert "tile" not in plain.loops and "tile" in tiled.loops
    for trial in (plain, tiled, bench.chosen()):
        assert trial.error < 1e-5 and 0 < trial.share < 1.5
        assert "GFLOP/s" in str(trial) and "def kernel(task, args)" in trial.source
    assert "fmul" in plain.llvm and ".globl" in plain.assembly
    with pytest.raises(ScheduleError):
        bench.run(Block("nothing", 4))


@given(data=st.data())
def test_blocks_and_swaps_keep_the_results(data: st.DataObject, options: Options) -> None:
    x, w = product(7, 5, 12)
    bench = Workbench(matmul(x, w), [x], options=options)
    steps = st.one_of(
        st.just(Swap("row0", "row1")),
        st.builds(Block, st.sampled_from(["row0", "row1"]), st.integers(2, 6), st.booleans()),
    )
    directives = data.draw(st.lists(steps, max_size=2))
    try:
        trial = bench.run(*directives)
    except ScheduleError:
        event("refused")
        return
    event("accepted")
    assert trial.error < 1e-5


def test_a_wrong_result_shows_in_the_error(options: Options) -> None:
    x, w = product(4, 4, 16)
    bench = Workbench(matmul(x, w), [x], options=options)
    bench._arrays[x.name] = bench._arrays[x.name] * 2
    assert bench._wanted is not None  # of the doubled elements
    bench._arrays[x.name] = bench._arrays[x.name] / 2
    assert bench.run().error > 0.1


def test_an_expression_of_several_kernels_is_refused(options: Options) -> None:
    x, w = product(8, 8, 16)
    with pytest.raises(InputError, match="2 kernels"):
        Workbench(softmax(common.elementwise(lambda v: v + 1, matmul(x, w))), [x], options=options)
