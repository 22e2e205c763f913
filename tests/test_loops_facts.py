"""What guards say about indices: views that meet padding, sides of a select that never run."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tilewright
from tilewright.loops.affine import linear
from tilewright.loops.facts import bounds, contradictory, learn, unlearn
from tilewright.loops.ir import Apply, Expr, Var, index_const
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import select
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import compute


def compare(op: ScalarOp, a: Expr, b: int) -> Expr:
    return Apply(op, (a, index_const(b)))


def both(a: Expr, b: Expr) -> Expr:
    return Apply(ScalarOp.AND, (a, b))


RANGES = {"i": (0.0, 5.0), "j": (0.0, 6.0)}
ROW, COLUMN = Var("i"), Var("j")


def test_two_guarded_dimensions_merged_into_one_index() -> None:
    """0 <= i - 1 < 4 and 0 <= j - 1 < 5 bound (i - 1) * 5 + (j - 1) by 0 and 19."""
    guard = both(
        both(compare(ScalarOp.GE, ROW, 1), compare(ScalarOp.LT, ROW, 5)),
        both(compare(ScalarOp.GE, COLUMN, 1), compare(ScalarOp.LT, COLUMN, 6)),
    )
    assert bounds(ROW * 5 + COLUMN - 6, RANGES, learn(guard, RANGES, {})) == (0.0, 19.0)


@pytest.mark.parametrize("condition", [compare(ScalarOp.GE, ROW, 6), compare(ScalarOp.LT, ROW, 0)])
def test_a_guard_that_never_holds_is_a_contradiction(condition: Expr) -> None:
    assert contradictory(learn(condition, RANGES, {}))
    assert not contradictory(unlearn(condition, RANGES, {}))


def test_two_guards_that_exclude_each_other_are_a_contradiction() -> None:
    facts = learn(compare(ScalarOp.LT, ROW, 2), RANGES, {})
    assert facts[linear(ROW, RANGES)] == (0.0, 1.0)
    assert contradictory(learn(compare(ScalarOp.GE, ROW, 3), RANGES, facts))


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("divisor", [2, 4])
@pytest.mark.parametrize("least, most", [(0, 3), (2, 5), (3, 3), (6, 7)])
def test_remainders_of_split_loops(factor: int, divisor: int, least: int, most: int) -> None:
    """What k * (x % d) + r says of k * x + r holds for each x and r, and is as narrow as can be."""
    ranges = {"x": (0.0, 15.0), "r": (0.0, factor - 1.0)}
    x, r = Var("x"), Var("r")
    remainder = Apply(ScalarOp.MOD, (x, index_const(divisor))) * factor + r
    guard = both(compare(ScalarOp.GE, remainder, least), compare(ScalarOp.LT, remainder, most + 1))
    values = [
        factor * a + b
        for a in range(16)
        for b in range(factor)
        if least <= factor * (a % divisor) + b <= most
    ]
    facts = learn(guard, ranges, {})
    low, high = bounds(x * factor + r, ranges, facts)
    if values:
        assert (low, high) == (min(values), max(values))
    else:
        assert contradictory(facts)


PADDED = {
    "pad": helper.make_node("Pad", ["a", "p"], ["y"]),
    "conv": helper.make_node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1]),
    "max_pool": helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "transposed": helper.make_node(
        "ConvTranspose", ["a", "t"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]
    ),
}


CONSTANTS = {
    "s": np.array([1, 3, 4, 5]),
    "p": np.array([0, 0, 1, 1, 0, 0, 2, 0]),
    "w": np.linspace(-1, 1, 54, dtype=np.float32).reshape(2, 3, 3, 3),
    "t": np.linspace(-1, 1, 54, dtype=np.float32).reshape(3, 2, 3, 3),
    "one": np.array([1]),
    "last": np.array([-1]),
    "before": np.array([-1000]),
}


def agree(nodes: list[NodeProto], **shapes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    got = tilewright.compile(model)(**feeds)
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(got, np.asarray(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", PADDED)
def test_a_reshape_feeds_a_padded_window(case: str) -> None:
    agree([helper.make_node("Reshape", ["x", "s"], ["a"]), PADDED[case]], x=(1, 4, 15))


def test_one_place_of_a_reversed_concatenation() -> None:
    """The side of the select for the first operand never runs, and reads outside of it."""
    one = (1, 1, 50)
    agree(
        [
            helper.make_node("Concat", ["a", "b"], ["e"], axis=1),
            helper.make_node("Slice", ["e", "last", "before", "one", "last"], ["f"]),
            helper.make_node("Split", ["f"], ["g", "h"], axis=1, num_outputs=2),
            helper.make_node("Mul", ["g", "c"], ["y"]),
        ],
        a=one,
        b=one,
        c=one,
    )


def test_loops_that_share_an_axis_have_extents_of_their_own() -> None:
    """The parts of a concatenation are copied by one loop each; the last part is the narrowest."""
    parts = {"a": (90, 20), "b": (90, 16), "c": (90, 1), "d": (90, 7), "e": (90, 1)}
    agree([helper.make_node("Concat", list(parts), ["y"], axis=1)], **parts)


def test_a_guard_keeps_bad_data_from_being_reported() -> None:
    """i / j where j is not 0: the side that is not taken is not evaluated."""

    def element(i: Expr, j: Expr) -> Expr:
        return select(compare(ScalarOp.GT, j, 0), Apply(ScalarOp.DIV, (i, j)), -1)

    rows, columns = np.indices((4, 3))
    want = np.where(columns > 0, rows // np.maximum(columns, 1), -1)
    np.testing.assert_array_equal(evaluate(compute((4, 3), element), {}), want)
