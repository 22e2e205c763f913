"""Every rule keeps the meaning of a graph, and says what it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import event, given, settings
from onnx import TensorProto

from graph_samples import evaluate, feeds, graphs, info
from tilewright.dtypes import DType
from tilewright.graph.ir import Array, Attribute, Graph, Node
from tilewright.graph.reference import run_reference
from tilewright.graph.rewrite import SimplifyLog
from tilewright.graph.rules import holds_exactly, simplify
from tilewright.graph.upgrade import OPSET

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7


def node(op_type: str, inputs: str, outputs: str, **attributes: Attribute) -> Node:
    """A node from names separated by blanks, "_" being an omitted one."""
    split = [tuple("" if n == "_" else n for n in text.split()) for text in (inputs, outputs)]
    return Node(outputs, op_type, "", split[0], split[1], attributes)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def graph(*nodes: Node, x: Array = X, outputs: str = "y", **constants: Array) -> Graph:
    results = tuple(dataclasses.replace(info(n, X), shape=None) for n in outputs.split())
    return Graph("test", (info("x", x),), results, constants, nodes, OPSET)


def op_types(g: Graph) -> list[str]:
    return [n.op_type for n in g.nodes]


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_simplified_graphs_mean_the_same(g: Graph) -> None:
    log = SimplifyLog()
    after = simplify(g, log)
    for rule in {rule for rule, _ in log.applied}:
        event(rule)
    for want, got in zip(evaluate(g, feeds()), evaluate(after, feeds()), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(1, abs(want).max()))


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_what_is_simple_is_left_alone(g: Graph) -> None:
    once = simplify(g)
    log = SimplifyLog()
    assert simplify(once, log) is once
    assert log.applied == []
    assert {o.name for o in once.outputs} <= once.defined_names()


def test_identity_between_nodes_and_at_the_output_goes() -> None:
    g = graph(node("Neg", "x", "a"), node("Identity", "a", "b"), node("Identity", "b", "y"))
    assert [n.outputs for n in simplify(g).nodes] == [("y",)]


def test_an_output_that_is_an_input_keeps_its_identity() -> None:
    g = graph(node("Identity", "x", "y"))
    assert simplify(g) is g


def test_two_outputs_of_one_value_keep_an_identity() -> None:
    g = graph(
        node("Neg", "x", "a"),
        node("Identity", "a", "y"),
        node("Identity", "a", "z"),
        outputs="y z",
    )
    assert sorted(op_types(simplify(g))) == ["Identity", "Neg"]


def test_dropout_goes_unless_it_trains_or_its_mask_is_read() -> None:
    assert op_types(simplify(graph(node("Neg", "x", "a"), node("Dropout", "a", "y")))) == ["Neg"]
    trains = graph(node("Dropout", "x _ t", "y"), t=np.array(True))
    assert op_types(simplify(trains)) == ["Dropout"]
    masked = graph(node("Dropout", "x", "y m"), outputs="y m")
    assert simplify(masked) is masked


def test_transposes_merge_and_cancel() -> None:
    there, back = {"perm": (1, 2, 0)}, {"perm": (2, 0, 1)}
    g = graph(
        node("Neg", "x", "a"),
        node("Transpose", "a", "b", **there),
        node("Transpose", "b", "y", **back),
    )
    assert op_types(simplify(g)) == ["Neg"]
    g = graph(node("Transpose", "x", "b", **there), node("Transpose", "b", "y", **there))
    (left,) = simplify(g).nodes
    assert left.attributes["perm"] == back["perm"]


def test_a_reshape_that_copies_an_extent_stays_after_another() -> None:
    g = graph(
        node("Reshape", "x s", "a"),
        node("Reshape", "a t", "y"),
        s=np.array([6, 4]),
        t=np.array([0, -1]),
    )
    assert simplify(g) is g
    free = dataclasses.replace(g, constants={**g.constants, "t": np.array([12, -1])})
    assert [n.inputs for n in simplify(free).nodes] == [("x", "t")]


def test_casts_that_lose_nothing_merge() -> None:
    wide, whole = {"to": int(TensorProto.DOUBLE)}, {"to": int(TensorProto.INT32)}
    g = graph(node("Cast", "x", "a", **wide), node("Cast", "a", "y", **whole))
    assert [n.inputs for n in simplify(g).nodes] == [("x",)]
    g = graph(node("Cast", "x", "a", **whole), node("Cast", "a", "y", **wide))
    assert simplify(g) is g


@pytest.mark.parametrize("source", [DType.BOOL, DType.U8, DType.I16, DType.F16, DType.BF16])
@pytest.mark.parametrize("target", [DType.I8, DType.U16, DType.I32, DType.F16, DType.F32])
def test_exactness_of_casts(source: DType, target: DType) -> None:
    codes = np.arange(2 if source is DType.BOOL else 2**source.bits)
    values = codes.astype(f"u{source.itemsize}").view(source.numpy)
    with np.errstate(all="ignore"):
        there_and_back = values.astype(target.numpy).astype(source.numpy)
    survived = np.array_equal(there_and_back.view("u1"), values.view("u1"))
    if holds_exactly(source, target) and not source.is_float:
        assert survived
    if holds_exactly(source, target) and source.is_float:
        finite = ~np.isnan(values.astype(np.float32))
        assert (there_and_back[finite] == values[finite]).all()


def test_unused_nodes_constants_and_outputs_go() -> None:
    g = graph(
        node("Neg", "x", "y"),
        node("Add", "x c", "unread"),
        c=floats(1),
    )
    after = simplify(g)
    assert op_types(after) == ["Neg"]
    assert not after.constants
    pooled = graph(
        node("MaxPool", "x", "y indices", kernel_shape=(2,)),
    )
    assert simplify(pooled).nodes[0].outputs == ("y",)


def test_equal_nodes_are_computed_once_but_random_ones_are_not() -> None:
    g = graph(
        node("Add", "x c", "a"),
        node("Add", "x d", "b"),
        node("Mul", "a b", "y"),
        c=floats(1),
        d=floats(1),
    )
    assert op_types(simplify(g)) == ["Add", "Mul"]
    g = graph(
        node("RandomNormalLike", "x", "a"),
        node("RandomNormalLike", "x", "b"),
        node("Mul", "a b", "y"),
    )
    assert simplify(g) is g


def test_the_order_of_operands_counts() -> None:
    g = graph(node("Sub", "x c", "a"), node("Sub", "c x", "b"), node("Mul", "a b", "y"), c=X + 1)
    assert simplify(g) is g


@pytest.mark.parametrize("read", ["a", "i"])
def test_a_convolution_read_twice_absorbs_nothing(read: str) -> None:
    x = np.ones((1, 2, 3, 3), np.float32)
    s, w = floats(3), np.ones((2, 2, 1, 1), np.float32)
    conv, copy = node("Conv", "x w", "a"), node("Identity", "a", "i")
    g = graph(conv, copy, node("Mul", f"{read} s", "b"), node("Add", "b i", "y"), x=x, w=w, s=s)
    assert op_types(simplify(g)) == ["Conv", "Mul", "Add"]


def test_a_convolution_that_is_an_output_absorbs_nothing() -> None:
    x = np.ones((1, 2, 3, 3), np.float32)
    g = graph(
        node("Conv", "x w", "a"),
        node("Mul", "a s", "y"),
        x=x,
        outputs="y a",
        w=np.ones((2, 2, 1, 1), np.float32),
        s=floats(3),
    )
    assert simplify(g) is g


def by_group(convolution: Node, x: Array, values: Mapping[str, Array], groups: int) -> Array:
    """A grouped ConvTranspose from ungrouped ones: the reference is wrong about groups."""
    weight, *bias = (values[name] for name in convolution.inputs[1:])
    parts = [
        np.split(a, groups, axis) for a, axis in [(x, 1), (weight, 0), *((b, 0) for b in bias)]
    ]
    one = node("ConvTranspose", "x w b" if bias else "x w", "y")
    results = [run_reference(one, OPSET, list(group))[0] for group in zip(*parts, strict=True)]
    return np.concatenate(results, 1)


def test_grouped_transposed_convolution_absorbs_normalization() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 3, 3)).astype(np.float32)
    g = graph(
        node("ConvTranspose", "x w", "a", group=2),
        node("BatchNormalization", "a s b m v", "y"),
        x=x,
        w=rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
        s=floats(1, 2, 3, 4, 5, 6),
        b=floats(5, 6, 7, 8, 9, 1),
        m=floats(3, 1, 4, 2, 7, 5),
        v=floats(1, 3, 2, 5, 4, 8),
    )
    (after,) = (simplified := simplify(g)).nodes
    plain = by_group(g.nodes[0], x, g.constants, 2)
    (want,) = run_reference(g.nodes[1], OPSET, [plain, *(g.constants[n] for n in "sbmv")])
    got = by_group(after, x, simplified.constants, 2)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_weights_that_would_overflow_are_left_alone() -> None:
    x = np.ones((1, 1, 1, 1), np.float16)
    g = graph(
        node("Conv", "x w", "a"),
        node("Mul", "a s", "y"),
        x=x,
        w=np.full((1, 1, 1, 1), 6e4, np.float16),
        s=np.array([10], np.float16),
    )
    assert simplify(g) is g


@pytest.mark.parametrize(
    ("op_type", "inputs", "reason"),
    [
        ("ConstantOfShape", "huge", "too many to keep"),
        ("Expand", "one grown", "too many to keep"),
        ("Div", "huge zero", "divides an integer by zero"),
        ("RandomNormalLike", "one", "not determined"),
        ("DequantizeLinear", "q one", "stay quantised"),
        ("NonZero", "one", "not known beforehand"),
    ],
)
def test_what_is_not_folded_has_a_reason(op_type: str, inputs: str, reason: str) -> None:
    g = graph(
        node(op_type, inputs, "y"),
        huge=np.array([1 << 20, 1 << 20]),
        grown=np.array([1 << 17]),
        zero=np.array([0, 1]),
        one=floats(1),
        q=np.array([1], np.int8),
    )
    log = SimplifyLog()
    assert op_types(simplify(g, log)) == [op_type]
    assert reason in log.unfolded[f"'y' ({op_type})"]


def test_folding_works_inside_branches() -> None:
    inside = Graph(
        "then",
        (),
        (dataclasses.replace(info("r", X), shape=None),),
        {"two": floats(2)},
        (node("Mul", "two c", "p"), node("Mul", "p x", "r")),
        OPSET,
    )
    g = graph(
        node("If", "flag", "y", then_branch=inside, else_branch=inside),
        c=floats(3),
    )
    g = dataclasses.replace(g, inputs=(*g.inputs, info("flag", np.array(True))))
    (left,) = simplify(g).nodes
    assert [[n.op_type for n in s.nodes] for s in left.subgraphs()] == [["Mul"], ["Mul"]]
