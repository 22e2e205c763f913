"""Graphs turn back into messages that mean the same, and single nodes can be evaluated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from onnx import AttributeProto

from graph_samples import evaluate, feeds, graphs
from tilewright.dtypes import DType
from tilewright.errors import ExecutionError
from tilewright.graph.export import attribute_proto, tensor_proto, to_model, type_proto
from tilewright.graph.ir import Attribute, Graph, Node, ValueInfo
from tilewright.graph.onnx_import import import_model, type_info
from tilewright.graph.reference import run_reference
from tilewright.graph.upgrade import OPSET


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_there_and_back_is_the_same_graph(g: Graph) -> None:
    back = import_model(to_model(g))
    assert [(n.op_type, n.inputs, n.outputs) for n in back.nodes] == [
        (n.op_type, n.inputs, n.outputs) for n in g.nodes
    ]
    assert back.inputs == g.inputs
    for want, got in zip(evaluate(g, feeds()), evaluate(back, feeds()), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, "INT"),
        (1.5, "FLOAT"),
        ("a", "STRING"),
        (b"\xff", "STRING"),
        (np.ones(2), "TENSOR"),
        ((1, 2), "INTS"),
        ((1.5,), "FLOATS"),
        (("a", "b"), "STRINGS"),
        ((np.ones(2), np.ones(3)), "TENSORS"),
        (ValueInfo("", DType.F32, (2, "n")), "TYPE_PROTO"),
        ((), "INTS"),
    ],
)
def test_attributes_get_their_kind(value: Attribute, kind: str) -> None:
    proto = attribute_proto("a", value)
    assert AttributeProto.AttributeType.Name(proto.type) == kind


@pytest.mark.parametrize("kind", ["tensor", "sequence", "optional", "sparse"])
def test_types_survive(kind: str) -> None:
    info = ValueInfo("v", DType.BF16, (2, "n", None), kind)  # type: ignore[arg-type]
    assert type_info("v", type_proto(info)) == info


def test_text_survives() -> None:
    proto = tensor_proto(np.array([["a", b"\xff"]], object), "t")
    assert list(proto.string_data) == [b"a", b"\xff"]
    assert list(proto.dims) == [1, 2]


def test_the_reference_takes_sequences_texts_and_omitted_inputs() -> None:
    x = np.arange(4, dtype=np.float32)
    clip = Node("", "Clip", "", ("x", "", "m"), ("y",))
    assert run_reference(clip, OPSET, [x, None, np.float32(2)])[0].tolist() == [0, 1, 2, 2]
    length = Node("", "SequenceLength", "", ("s",), ("y",))
    assert run_reference(length, OPSET, [[x, x]])[0] == 2
    lower = Node("", "StringNormalizer", "", ("t",), ("y",), {"case_change_action": "LOWER"})
    assert run_reference(lower, OPSET, [np.array(["AB"], object)])[0].tolist() == ["ab"]
    split = Node("", "Split", "", ("x",), ("a", "", "c", "d"), {"num_outputs": 4})
    assert run_reference(split, OPSET, [x])[1] is None


def test_the_reference_runs_branches_with_captured_values() -> None:
    x = np.ones(2, np.float32)
    body = (Node("", "Neg", "", ("x",), ("r",)),)
    branch = Graph("b", (), (ValueInfo("r", DType.F32, (2,)),), {}, body, OPSET)
    choice = Node("", "If", "", ("c",), ("y",), {"then_branch": branch, "else_branch": branch})
    (y,) = run_reference(choice, OPSET, [np.array(True)], captured={"x": x})
    assert y.tolist() == [-1, -1]


def test_failures_name_the_node() -> None:
    node = Node("mine", "MatMul", "", ("a", "b"), ("y",))
    with pytest.raises(ExecutionError, match=r"'mine' \(MatMul\)"):
        run_reference(node, OPSET, [np.ones((2, 3)), np.ones((2, 3))])
