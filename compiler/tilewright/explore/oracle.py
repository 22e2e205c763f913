"""What other implementations make of a model, and of each of its nodes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tilewright.errors import InputError, TilewrightError
from tilewright.explore.compare import largest_error
from tilewright.explore.process import flat

Values = dict[str, Any]
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Compile = Callable[[ModelProto], Run]


def reference(model: ModelProto, feeds: Mapping[str, Any], all_values: bool) -> Values:
    """The values of the model by ONNX's reference evaluator: of outputs, or of all nodes."""
    evaluator: Any = ReferenceEvaluator(model)
    if all_values:
        return dict(evaluator.run(None, dict(feeds), intermediate=True))
    return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def onnxruntime(model: ModelProto, feeds: Mapping[str, Any], all_values: bool) -> Values:
    """The same by ONNX Runtime, with its optimisations off where every value is wanted."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise InputError("ONNX Runtime is not installed: pip install onnxruntime") from None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if all_values:
        model = with_all_outputs(model)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


ORACLES = {"reference": reference, "onnxruntime": onnxruntime}


def with_all_outputs(model: ModelProto) -> ModelProto:
    """The model with every value of its main graph among the outputs."""
    changed = ModelProto()
    changed.CopyFrom(model)
    known = {o.name for o in changed.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known:
                known.add(name)
                changed.graph.output.append(ValueInfoProto(name=name))
    return changed


@dataclass(frozen=True)
class NodeVerdict:
    """A node on the values that the oracle has for its inputs: the largest error of its outputs,
    or why it was not compared."""

    node: str
    op_type: str
    error: float | None
    reason: str = ""


def check_nodes(
    model: ModelProto, feeds: Mapping[str, Any], values: Values, compile_: Compile
) -> Iterator[NodeVerdict]:
    """Each node of the main graph by itself, in order."""
    held: Values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    constants = frozenset(held) - feeds.keys()
    held |= {**values, **feeds}
    for node in model.graph.node:
        label = node.name or ", ".join(node.output)
        error, reason = None, ""
        try:
            error = _check(model, node, held, constants, compile_)
        except (TilewrightError, _NotCompared) as failure:
            reason = str(failure)
        if node.op_type == "Constant" and error is not None:
            constants |= {*node.output}
        yield NodeVerdict(label, node.op_type, error, reason)


class _NotCompared(Exception):
    """There is nothing to hold a node against."""


def _check(
    model: ModelProto,
    node: NodeProto,
    held: Values,
    constants: frozenset[str],
    compile_: Compile,
) -> float:
    inputs = list(dict.fromkeys([*(n for n in node.input if n), *_captured(node, held)]))
    outputs = [n for n in node.output if n]
    absent = [n for n in (*inputs, *outputs) if n not in held]
    if absent:
        raise _NotCompared(f"the other side has no value {absent[0]!r}")
    if not all(isinstance(held[n], (np.ndarray, np.generic)) for n in (*inputs, *outputs)):
        raise _NotCompared("a value is no tensor")
    alone = _single(model, node, inputs, outputs, held, constants)
    found = compile_(alone)({n: np.asarray(held[n]) for n in inputs if n not in constants})
    want = {n: held[n] for n in outputs}
    return largest_error(flat(found), flat(want))


def _captured(node: NodeProto, held: Values) -> Iterator[str]:
    """Values around a node that its nested graphs read."""
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            own |= {o for n in graph.node for o in n.output}
            names = [i for n in graph.node for i in n.input] + [o.name for o in graph.output]
            yield from (n for n in names if n and n in held and n not in own)
            for inner in graph.node:
                yield from (n for n in _captured(inner, held) if n not in own)


def _single(
    model: ModelProto,
    node: NodeProto,
    inputs: list[str],
    outputs: list[str],
    held: Values,
    constants: frozenset[str],
) -> ModelProto:
    """A model of the node alone; what was constant stays so."""

    def declared(name: str) -> ValueInfoProto:
        array = np.asarray(held[name])
        code = (
            onnx.TensorProto.STRING
            if array.dtype.kind in "OUS"
            else helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        return helper.make_tensor_value_info(name, code, array.shape)

    fixed = [numpy_helper.from_array(np.asarray(held[n]), n) for n in inputs if n in constants]
    graph = helper.make_graph(
        [node],
        "node",
        [declared(n) for n in inputs if n not in constants],
        [ValueInfoProto(name=n) for n in outputs],
        fixed,
    )
    return helper.make_model(
        graph,
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
        functions=list(model.functions),
    )
