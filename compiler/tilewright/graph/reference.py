"""One node evaluated by ONNX's reference implementation: slow, but the meaning of the operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ValueInfoProto, helper

from tilewright.errors import ExecutionError
from tilewright.graph.export import IR_VERSION, node_proto
from tilewright.graph.ir import Node

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator


def run_reference(
    node: Node,
    opset: int,
    inputs: Sequence[Any],
    domains: Mapping[str, int] | None = None,
    captured: Mapping[str, Any] | None = None,
) -> list[Any]:
    """The outputs of `node`, in their order; omitted ones are None.

    An input is an array, a list for a sequence, or None for an omitted one. `captured` are the
    values of enclosing graphs that nested graphs read. Raises ExecutionError with the node's label.
    """
    feeds = dict(captured or {})
    feeds.update((n, v) for n, v in zip(node.inputs, inputs, strict=False) if n and v is not None)
    try:
        found = _session(node, opset, domains or {}, feeds).run(None, feeds)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ExecutionError(f"ONNX's reference fails on node {node.label}: {reason}") from error
    named = iter(found)
    return [_array(next(named)) if name else None for name in node.outputs]


def _session(
    node: Node, opset: int, domains: Mapping[str, int], feeds: Mapping[str, Any]
) -> ReferenceEvaluator:
    proto = node_proto(node)
    for position, name in enumerate(proto.input):
        if name not in feeds:
            proto.input[position] = ""
    graph = helper.make_graph(
        [proto],
        "node",
        [ValueInfoProto(name=name) for name in feeds],
        [ValueInfoProto(name=name) for name in node.outputs if name],
    )
    from onnx.reference import ReferenceEvaluator  # rarely needed, and slow to import

    versions = {"": opset, **domains}
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    return ReferenceEvaluator(model)


def _array(value: Any) -> Any:
    """Scalars that the reference returns as such become arrays of rank 0."""
    return np.asarray(value) if isinstance(value, np.generic | int | float) else value
