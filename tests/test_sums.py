"""Reductions taken apart, summed in parts, and what maps need computed before: always the same
elements, up to the order of sums."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from interpreted import Array, Model
from tilewright.fusion.hoist import hoist
from tilewright.fusion.inline import Program, inline
from tilewright.fusion.sums import lies_across, split_sums, taken_apart
from tilewright.loops.ir import Apply, Load, walk
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.evaluate import evaluate
from tilewright.ops.normalization import group_normalization, instance_normalization
from tilewright.ops.shape import reshape
from tilewright.ops.tensor import Compute, Tensor, compute, constant

sizes = st.integers(1, 6)
MANY = settings(max_examples=40, deadline=None)
SHAPES = [(1, 2, 3, 4, 5, True), (2, 3, 1, 5, 2, True), (1, 1, 4, 3, 6, False)]


@pytest.fixture(autouse=True, scope="module")
def small_sums_are_worth_it() -> Iterator[None]:
    with (
        patch("tilewright.fusion.sums.MIN_WORK", 1),
        patch("tilewright.fusion.sums.PARTS", (2, 4)),
        patch("tilewright.fusion.hoist.MIN_SIZE", 1),
        patch("tilewright.fusion.hoist.MIN_REPEATS", 2),
        patch("tilewright.fusion.groups.MAX_ACROSS", 3),
    ):
        yield


def image(model: Model, shape: tuple[int, ...], last: bool, seed: int) -> Tensor:
    """An image in memory, its channels innermost or outermost."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, *shape)).astype(np.float32)
    if rng.random() < 0.2:
        values.flat[rng.integers(values.size)] = rng.choice([np.nan, np.inf])
    x = model.given(values)
    return compute(
        shape, lambda *i: x[i[-1], *i[:-1]], reduce=ScalarOp.ADD, over=[2], channels_last=last
    )


def rewritten(model: Model, *outputs: Tensor) -> Program:
    return hoist(split_sums(inline(model.inputs, outputs)))


def check(model: Model, y: Tensor, compiled: bool = False) -> list[Tensor]:
    """The program's tensors, each in turn, or the compiled plan, against the expression."""
    program = rewritten(model, y)
    want = evaluate(y, model.arrays)
    env: dict[str, Array] = dict(model.arrays)
    for t in program.order:
        env[t.name] = evaluate(t, env)
    scale = np.abs(want[np.isfinite(want)]).max(initial=1)
    for got in model.compiled(y) if compiled else (env[program.outputs[0].name],):
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * scale)
    return program.order


@MANY
@given(sizes, st.integers(1, 4), st.integers(1, 4), sizes, sizes, st.booleans(), st.integers(0, 99))
def test_group_norms(
    batch: int, groups: int, share: int, height: int, width: int, last: bool, seed: int
) -> None:
    model = Model()
    x = image(model, (batch, groups * share, height, width), last, seed)
    rng = np.random.default_rng(seed)
    ones = [rng.standard_normal(groups * share).astype(np.float32) for _ in range(2)]
    made = check(model, group_normalization(x, *(model.given(v) for v in ones), num_groups=groups))
    event(f"parts: {any(t.name.endswith('_parts') for t in made)}")
    event(f"before: {any('_part' in t.name and t.name[-1].isdigit() for t in made)}")


@MANY
@given(sizes, st.integers(1, 4), st.integers(1, 4), sizes, sizes, st.booleans(), st.integers(0, 99))
def test_group_norms_as_exported(
    batch: int, groups: int, share: int, height: int, width: int, last: bool, seed: int
) -> None:
    model = Model()
    shape = (batch, groups * share, height, width)
    x = image(model, shape, last, seed)
    flat = reshape(x, constant(np.array([batch, groups, -1])))
    ones = [model.given(np.full(groups, v, np.float32)) for v in (1.5, 0.5)]
    normal = reshape(instance_normalization(flat, *ones), constant(np.array(shape)))
    scale = model.given(np.random.default_rng(seed).random((groups * share, 1, 1), np.float32))
    whole = compute(shape, lambda *i: normal[i] * scale[i[1], 0, 0])
    check(model, whole)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_of_group_norms(shape: tuple[int, int, int, int, int, bool]) -> None:
    batch, groups, share, height, width, last = shape
    model = Model()
    x = image(model, (batch, groups * share, height, width), last, 1)
    ones = [model.given(np.arange(1, groups * share + 1, dtype=np.float32)) for _ in range(2)]
    check(model, group_normalization(x, *ones, num_groups=groups), compiled=True)


def test_merged_axes_are_taken_apart() -> None:
    model = Model()
    x = image(model, (1, 6, 4, 5), True, 0)
    flat = reshape(x, constant(np.array([1, 2, -1])))
    y = compute((1, 2), lambda *i: flat[i], reduce=ScalarOp.ADD, over=[60])
    program = inline(model.inputs, [y])
    total = program.outputs[0]
    assert isinstance(total, Compute) and total.reduction is not None
    apart = taken_apart(total)
    assert apart.reduction is not None
    assert [n for _, n in apart.reduction.axes] == [3, 4, 5]
    divided = (ScalarOp.FLOORDIV, ScalarOp.MOD)
    assert not any(isinstance(n, Apply) and n.op in divided for n in walk(apart.body))


def test_few_results_are_summed_in_parts_by_neighbours() -> None:
    model = Model()
    x = image(model, (1, 6, 4, 5), True, 0)
    flat = reshape(x, constant(np.array([1, 2, -1])))
    y = compute((1, 2), lambda *i: flat[i], reduce=ScalarOp.ADD, over=[60])
    parts = next(t for t in rewritten(model, y).order if t.name.endswith("_parts"))
    assert parts.shape == (4, 1, 2, 3)
    assert isinstance(parts, Compute) and lies_across(parts)


def test_scales_along_lines_are_computed_once() -> None:
    model = Model()
    x = image(model, (1, 4, 5, 8), False, 0)
    v = model.given(np.arange(1, 9, dtype=np.float32))
    y = compute(x.shape, lambda *i: x[i] * Apply(ScalarOp.SQRT, (v[i[3]],)))
    order = rewritten(model, y).order
    result = order[-1]
    assert isinstance(result, Compute)
    assert not any(isinstance(n, Apply) and n.op is ScalarOp.SQRT for n in walk(result.body))
    read = {n.buffer.name: n.buffer.shape for n in walk(result.body) if isinstance(n, Load)}
    assert (8,) in read.values()
    check(model, y)
