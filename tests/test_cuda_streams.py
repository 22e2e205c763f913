"""Kernels on a GPU that memory limits: every schedule means what the plain loops mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import Program, programs
from tilewright.dtypes import DType
from tilewright.fusion import grid_sums
from tilewright.fusion.grid_sums import split_for_grid
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.results import copy_results
from tilewright.fusion.settle import settle
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import Kernel
from tilewright.loops.verify import verify
from tilewright.ops.tensor import Constant, Placeholder, Tensor
from tilewright.schedule import cuda
from tilewright.schedule.cuda import choose_cuda_schedule

Array = np.ndarray[Any, Any]


def lowered(
    inputs: Sequence[Placeholder], outputs: Sequence[Tensor]
) -> tuple[list[Lowered], dict[str, Constant]]:
    """The kernels of some outputs as a plan on a GPU has them, and what is known by then."""
    kept = [t for t in legalize(outputs) if not isinstance(t, (Placeholder, Constant))]
    program = split_for_grid(copy_results(inline(inputs, kept)))
    settled = settle(program, PackedWeights())
    return [lower(g, program) for g in form_groups(program)], settled


@contextmanager
def small_machine() -> Iterator[None]:
    """As if few threads and short rows kept the machine busy, so that small shapes are treated as
    large ones."""
    small = {"SPREAD": 4, "MANY": 1 << 12, "SHORT": 3, "WAVE": 16, "SIDE": 8, "MIN_SIDE": 2}
    small |= {"MIN_TILE": 4, "MIN_ROW": 6, "STEPS": 2, "TEAM_THREADS": 64, "ROW_THREADS": (32, 64)}
    parts = {"PART": 8, "DEEP": 2, "LINE": 4, "WHOLE": 2, "BLOCKS": 16}
    with patch.multiple(cuda, **small), patch.multiple(grid_sums, **parts):
        yield


def run(n: Lowered, kernel: Kernel, arrays: dict[str, Array]) -> dict[str, Array]:
    """What a kernel writes, by the names of its tensors."""
    env, made = {}, {}
    for b, t in zip(kernel.params, n.tensors, strict=True):
        if b.name in kernel.outputs:
            made[t.name] = env[b.name] = poisoned(t.shape, t.dtype)
        else:
            env[b.name] = t.value if isinstance(t, Constant) else arrays[t.name]
    interpret(kernel, env)
    return made


def same(n: Lowered, kernel: Kernel, arrays: dict[str, Array]) -> None:
    """The scheduled kernel gives what the plain loops give; their results are added."""
    plain, ours = run(n, n.kernel, arrays), run(n, kernel, arrays)
    for name, wanted in plain.items():
        np.testing.assert_allclose(ours[name], wanted, rtol=2e-5, atol=2e-5, err_msg=str(kernel))
    arrays.update(plain)


@settings(max_examples=60)
@given(programs(4), st.booleans())
def test_random_programs(program: Program, small: bool) -> None:
    arrays = dict(program.arrays)
    with small_machine() if small else patch.multiple(cuda, SPREAD=cuda.SPREAD):
        kernels, settled = lowered(program.inputs, program.outputs)
        arrays |= {name: c.value for name, c in settled.items()}
        for n in kernels:
            same(n, verify(choose_cuda_schedule(n)), arrays)


assert pytest and DType
