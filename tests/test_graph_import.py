"""Models come in whole, whatever their age and form; broken ones are refused with a ModelError."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    SparseTensorProto,
    TensorProto,
    helper,
    numpy_helper,
)
from onnx.reference import ReferenceEvaluator

from graph_samples import evaluate, model_of
from tilewright.dtypes import DType
from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.ir import Array
from tilewright.graph.onnx_import import import_model
from tilewright.graph.upgrade import OPSET

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
node = helper.make_node


def sample(opset: int = OPSET) -> ModelProto:
    weight = np.arange(12 * 300, dtype=np.float32).reshape(12, 300)
    nodes = [node("Flatten", ["x"], ["flat"], "first"), node("MatMul", ["flat", "w"], ["y"])]
    return model_of(nodes, {"x": X}, ["y"], {"w": weight}, opset)


def test_path_bytes_and_message_give_the_same_graph(tmp_path: Path) -> None:
    model = sample()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    before = model.SerializeToString()
    for source in (path, str(path), path.read_bytes(), model):
        graph = import_model(source)
        assert [n.label for n in graph.nodes] == ["'first' (Flatten)", "'y' (MatMul)"]
        assert graph.opset == OPSET
        assert graph.constants["w"].flags.aligned
        assert not graph.constants["w"].flags.writeable
        np.testing.assert_array_equal(evaluate(graph, {"x": X})[0], X.reshape(2, 12) @ weight())
    assert model.SerializeToString() == before


def weight() -> Array:
    return np.arange(12 * 300, dtype=np.float32).reshape(12, 300)


ALL_TYPES = [t for t in DType if t is not DType.STRING]


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("size", [0, 3, 5000])
@pytest.mark.parametrize("form", ["raw", "fields", "constant"])
def test_every_element_type(dtype: DType, size: int, form: str) -> None:
    rng = np.random.default_rng(size)
    value = rng.integers(0, 2, size).astype(dtype.numpy)
    tensor = numpy_helper.from_array(value, "c")
    if form == "fields":
        flat = value.astype(complex if dtype.kind == "c" else float).tolist()
        tensor = helper.make_tensor("c", dtype.onnx, value.shape, flat)
    model = model_of([node("Identity", ["c"], ["y"])], {}, ["y"])
    if form == "constant":
        model.graph.node.insert(0, node("Constant", [], ["c"], value=tensor))
    else:
        model.graph.initializer.append(tensor)
    model.graph.output[0].type.tensor_type.elem_type = dtype.onnx
    graph = import_model(model.SerializeToString())
    assert graph.outputs[0].dtype is dtype
    got = graph.constants["c"]
    assert got.dtype == dtype.numpy
    assert got.tobytes() == value.tobytes()


@pytest.mark.parametrize("bits", ["U4", "I4", "F4E2M1", "U2", "I2"])
@given(st.binary(min_size=1, max_size=9))
def test_packed_elements_decode_as_onnx_does(bits: str, raw: bytes) -> None:
    dtype = DType[bits]
    count = len(raw) * 8 // dtype.bits
    tensor = TensorProto(name="c", data_type=dtype.onnx, dims=[count], raw_data=raw)
    model = model_of([node("Identity", ["c"], ["y"])], {}, ["y"])
    model.graph.initializer.append(tensor)
    got = import_model(model).constants["c"]
    assert got.tobytes() == numpy_helper.to_array(tensor).tobytes()


def test_text_survives_even_if_it_is_not_utf8() -> None:
    model = model_of([node("Identity", ["c"], ["y"])], {}, ["y"])
    tensor = TensorProto(name="c", data_type=TensorProto.STRING, dims=[2])
    tensor.string_data.extend(["grün".encode(), b"\xff\xfe"])
    model.graph.initializer.append(tensor)
    assert import_model(model).constants["c"].tolist() == ["grün", b"\xff\xfe"]


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("value_float", 1.5),
        ("value_floats", [1.5, 2.5]),
        ("value_int", 3),
        ("value_ints", [3, 4]),
        ("value_string", "a"),
        ("value_strings", ["a", "b"]),
    ],
)
def test_every_form_of_constant_node(attribute: str, value: Any) -> None:
    nodes = [node("Constant", [], ["c"], **{attribute: value}), node("Identity", ["c"], ["y"])]
    graph = import_model(model_of(nodes, {}, ["y"]))
    assert [n.op_type for n in graph.nodes] == ["Identity"]
    assert graph.constants["c"].tolist() == pytest.approx(value)


def sparse(dims: list[int], indices: Array) -> SparseTensorProto:
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "s")
    return SparseTensorProto(
        values=values, indices=numpy_helper.from_array(indices, "i"), dims=dims
    )


@pytest.mark.parametrize("indices", [np.array([1, 4]), np.array([[0, 1], [1, 1]])])
def test_sparse_tensors_are_written_out(indices: Array) -> None:
    nodes = [
        node("Constant", [], ["c"], sparse_value=sparse([2, 3], indices)),
        node("Add", ["c", "s"], ["y"]),
    ]
    model = model_of(nodes, {}, ["y"])
    model.graph.sparse_initializer.append(sparse([2, 3], indices))
    graph = import_model(model)
    for name in "cs":
        assert graph.constants[name].tolist() == [[0, 5, 0], [0, 7, 0]]


def test_sparse_tensors_are_checked() -> None:
    for dims, indices in [
        ([1 << 30, 1 << 30], np.array([[0, 0], [1, 1]])),
        ([2, 2], np.array([0, 4])),
        ([2, 2], np.array([-1, 0])),
        ([2, 2], np.array([0])),
    ]:
        model = model_of([node("Identity", ["s"], ["y"])], {}, ["y"])
        model.graph.sparse_initializer.append(sparse(dims, indices))
        with pytest.raises(ModelError):
            import_model(model)


def test_initializers_that_are_inputs_are_defaults_from_file_version_4_on() -> None:
    one = np.ones(4, np.float32)
    nodes = [node("Add", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": X, "w": one}, ["y"], {"w": one})
    graph = import_model(model)
    assert list(graph.defaults) == ["w"]
    assert [i.name for i in graph.inputs] == ["x", "w"]
    bound = graph.bind_defaults()
    assert [i.name for i in bound.inputs] == ["x"]
    assert list(bound.constants) == ["w"]
    assert graph.bind_defaults({"w"}) is graph
    old = import_model(model_of(nodes, {"x": X, "w": one}, ["y"], {"w": one}, 8, 3))
    assert [i.name for i in old.inputs] == ["x"]
    assert list(old.constants) == ["w"]


def test_declared_types_of_inputs() -> None:
    model = model_of([node("SequenceLength", ["s"], ["y"])], {}, ["y"])
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 3, None, -1, "?"])
    sequence = helper.make_sequence_type_proto(tensor)
    for name, proto in [
        ("x", tensor),
        ("s", sequence),
        ("o", helper.make_optional_type_proto(sequence)),
    ]:
        model.graph.input.append(helper.make_value_info(name, proto))
    infos = import_model(model).inputs
    assert [i.kind for i in infos] == ["tensor", "sequence", "optional"]
    for i in infos:
        assert i.dtype is DType.F32
        assert i.shape == ("batch", 3, None, None, None)


def test_old_operators_are_brought_up_to_date() -> None:
    x = X[None]
    nodes = [
        node("Upsample", ["x", "scales"], ["a"], mode="nearest"),
        node("Softmax", ["a"], ["b"], axis=1),
        node("Slice", ["b"], ["y"], axes=[1], starts=[0], ends=[1]),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    model = model_of(nodes, {"x": x}, ["y"], {"scales": scales}, opset=9)
    graph = import_model(model)
    assert "Resize" in [n.op_type for n in graph.nodes]
    (got,) = evaluate(graph, {"x": x})
    big = x.repeat(2, 2).repeat(2, 3)
    whole = np.exp(big - big.max())
    np.testing.assert_allclose(got, (whole / whole.sum())[:, :1], rtol=1e-5, atol=1e-8)


def test_slopes_of_old_prelu_run_along_axis_1() -> None:
    x = -np.ones((1, 3, 2, 2), np.float32)
    slopes = np.array([1, 2, 3], np.float32)
    model = model_of([node("PRelu", ["x", "s"], ["y"])], {"x": x}, ["y"], {"s": slopes}, opset=6)
    (got,) = evaluate(import_model(model), {"x": x})
    np.testing.assert_array_equal(got, x * slopes[:, None, None])


def test_nodes_in_any_order_come_out_sorted() -> None:
    model = sample()
    nodes = list(reversed([n.SerializeToString() for n in model.graph.node]))
    del model.graph.node[:]
    for data in nodes:
        model.graph.node.add().ParseFromString(data)
    assert [n.op_type for n in import_model(model).nodes] == ["Flatten", "MatMul"]
    model.graph.node[0].output[0] = "x2"
    model.graph.node[1].input[0] = "x2"
    model.graph.node[1].output[0] = "flat"
    model.graph.output[0].name = "x2"
    with pytest.raises(ModelError, match="each other"):
        import_model(model)


def branches(opset: int = OPSET) -> ModelProto:
    """A model with weights of its own in a branch that also reads a value around it."""
    big = numpy_helper.from_array(weight(), "w")
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    nodes = [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"], ["r"])]
    then = helper.make_graph(nodes, "then", [], [out], [big])
    constant = node("Constant", [], ["w"], value=big)
    other = helper.make_graph([constant, node("MatMul", ["flat", "w"], ["r"])], "else", [], [out])
    choice = node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    inputs = {"x": X, "c": np.array(True)}
    return model_of([node("Flatten", ["x"], ["flat"]), choice], inputs, ["y"], {}, opset)


@pytest.mark.parametrize("opset", [11, OPSET])
def test_nested_graphs_keep_their_weights_and_captures(opset: int) -> None:
    model = branches(opset)
    graph = import_model(model.SerializeToString())
    assert {s.name: sorted(s.free_names()) for s in graph.nodes[1].subgraphs()} == {
        "then": ["x"],
        "else": ["flat"],
    }
    for condition in (True, False):
        (got,) = evaluate(graph, {"x": X, "c": np.array(condition)})
        np.testing.assert_array_equal(got, X.reshape(2, 12) @ weight())


@pytest.mark.parametrize("opset", [OPSET, 13])
def test_functions_of_the_model_are_inlined(opset: int) -> None:
    body = [
        node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(2000, np.float32))),
        node("ReduceMax", ["k"], ["m"], keepdims=0),
        node("Add", ["a", "m"], ["b"]),
    ]
    imports = [helper.make_opsetid("", opset)]
    function = helper.make_function("mine", "twice", ["a"], ["b"], body, imports)
    model = model_of(
        [
            node("twice", ["x"], ["t"], domain="mine"),
            node("twice", ["t"], ["y"], domain="mine"),
        ],
        {"x": X},
        ["y"],
        opset=opset,
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(function)
    graph = import_model(model)
    assert not any(n.domain for n in graph.nodes)
    np.testing.assert_array_equal(evaluate(graph, {"x": X})[0], X + 2)


@pytest.mark.parametrize(
    "call",
    [
        node("Gelu", ["x"], ["y"], approximate="tanh"),
        node("Selu", ["x"], ["y"]),
        node("Clip", ["x", "", "m"], ["y"]),
        node("LayerNormalization", ["x", "m"], ["y"], axis=-1),
        node("Softmax", ["x"], ["y"], axis=1),
        node("ReduceLogSumExp", ["x"], ["y"]),
    ],
    ids=lambda n: n.op_type,
)
def test_operators_expand_to_onnx_definition(call: AttributeProto) -> None:
    m = np.array(2.5, np.float32)
    model = model_of([call, node("Identity", ["y"], ["z"])], {"x": X}, ["z"], {"m": m})
    graph = import_model(model, keep=lambda domain, op_type: op_type in ("Exp", "Identity"))
    assert call.op_type not in [n.op_type for n in graph.nodes]
    results: Any = ReferenceEvaluator(model).run(None, {"x": X})
    np.testing.assert_allclose(evaluate(graph, {"x": X})[0], results[0], rtol=1e-5, atol=1e-6)


def test_other_domains_survive() -> None:
    model = model_of([node("Fancy", ["x"], ["y"], domain="com.example", depth=3)], {"x": X}, ["y"])
    model.opset_import.append(helper.make_opsetid("com.example", 7))
    model.opset_import[0].version = 13
    graph = import_model(model)
    assert graph.domains == {"com.example": 7}
    assert graph.nodes[0].domain == "com.example"
    assert graph.nodes[0].attributes == {"depth": 3}


@pytest.mark.parametrize("data", [b"", b"\0", b"no model at all", b"\x08\x0a" * 50, b"\xff" * 99])
def test_what_is_no_model_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ModelError):
            import_model(source)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "missing.onnx", "a\0b"):
        with pytest.raises(ModelError, match="cannot read"):
            import_model(source)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 20_000), st.booleans())
def test_truncated_files_are_refused(at: int, nested: bool) -> None:
    data = (branches() if nested else sample()).SerializeToString()
    if at >= len(data):
        return
    with pytest.raises(ModelError):
        import_model(data[:at])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_never_end_in_another_error(data: st.DataObject) -> None:
    raw = bytearray((branches() if data.draw(st.booleans()) else sample()).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        near_an_end = st.integers(0, 400) | st.integers(len(raw) - 400, len(raw) - 1)
        raw[data.draw(near_an_end)] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModelError, UnsupportedError):
        import_model(bytes(raw))


@pytest.mark.parametrize("dims", [[1 << 40], [1 << 31, 1 << 31, 4], [-3], [7], [0, 1 << 61]])
@pytest.mark.parametrize("form", ["raw", "fields"])
def test_declared_sizes_must_match_the_data(dims: list[int], form: str) -> None:
    model = model_of([node("Identity", ["c"], ["y"])], {}, ["y"])
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=dims)
    if form == "raw":
        tensor.raw_data = bytes(8)
    else:
        tensor.float_data.extend([1, 2])
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match="'c'"):
        import_model(model)


def test_a_model_cannot_forge_a_reference_to_other_data() -> None:
    model = sample()
    forged = TensorProto(name="forged", data_type=TensorProto.FLOAT, dims=[2])
    forged.data_location = TensorProto.EXTERNAL
    forged.external_data.add(key="location", value="tilewright:0")
    model.graph.initializer.append(forged)
    with pytest.raises(ModelError, match="pass the model's path"):
        import_model(model)


def test_reasons_are_given() -> None:
    newer = sample()
    newer.opset_import[0].version = OPSET + 100
    with pytest.raises(ModelError, match=str(OPSET)):
        import_model(newer)
    unknown = sample()
    unknown.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="NoSuchOperator"):
        import_model(unknown)
    six_bits = sample()
    six_bits.graph.initializer[0].data_type = TensorProto.FLOAT6E2M3
    with pytest.raises(UnsupportedError, match="FLOAT6E2M3"):
        import_model(six_bits)
    twice = sample()
    twice.graph.node[1].output[0] = "flat"
    with pytest.raises(ModelError):
        import_model(twice)


def test_functions_of_another_version_are_converted() -> None:
    body = [node("ReduceMax", ["a"], ["m"], axes=[1]), node("Add", ["a", "m"], ["b"])]
    function = helper.make_function(
        "mine", "peak", ["a"], ["b"], body, [helper.make_opsetid("", 13)]
    )
    model = model_of([node("peak", ["x"], ["y"], domain="mine")], {"x": X}, ["y"])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(function)
    (got,) = evaluate(import_model(model), {"x": X})
    np.testing.assert_array_equal(got, X + X.max(1, keepdims=True))


def test_functions_without_end_are_refused() -> None:
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("mine", 1)]
    for calls in (["f0"], ["f1", "f1"]):
        model = model_of([node("f0", ["x"], ["y"], domain="mine")], {"x": X}, ["y"])
        model.opset_import.append(helper.make_opsetid("mine", 1))
        for level in range(40 if len(calls) == 2 else 1):
            inner = [c.replace("1", str(level + 1)) for c in calls]
            body = [node(c, [f"v{k}"], [f"v{k + 1}"], domain="mine") for k, c in enumerate(inner)]
            name, last = f"f{level}", f"v{len(inner)}"
            function = helper.make_function("mine", name, ["v0"], [last], body, imports)
            model.functions.append(function)
        with pytest.raises(ModelError):
            import_model(model)


def test_function_protos_may_nest() -> None:
    inner = helper.make_function(
        "mine", "inner", ["a"], ["b"], [node("Neg", ["a"], ["b"])], [helper.make_opsetid("", OPSET)]
    )
    call = [node("inner", ["a"], ["b"], domain="mine")]
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("mine", 1)]
    outer: FunctionProto = helper.make_function("mine", "outer", ["a"], ["b"], call, imports)
    model = model_of([node("outer", ["x"], ["y"], domain="mine")], {"x": X}, ["y"])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.extend([inner, outer])
    assert [n.op_type for n in import_model(model).nodes] == ["Neg"]
