"""Brings a model to the one version of ONNX's operators that the rest of the compiler knows."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, helper, shape_inference, version_converter

from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.payload import all_nodes, graphs_of

OPSET = 28
"""The version of ONNX's operators that operators are defined for here."""


def normalise_domains(model: ModelProto) -> None:
    """Every domain is imported once, and ONNX's own is always written ""."""
    versions: dict[str, int] = {} if len(model.opset_import) else {"": 1}
    for entry in model.opset_import:
        domain = _domain(entry.domain)
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"the model imports two versions of the operators of {domain!r}")
    versions.setdefault("", OPSET)
    del model.opset_import[:]
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)
    for node in all_nodes(model):
        if node.domain:
            node.domain = _domain(node.domain)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def upgrade(model: ModelProto) -> ModelProto:
    """The model with the same meaning in terms of `OPSET`; ModelError says why there is none."""
    version = next((o.version for o in model.opset_import if o.domain == ""), OPSET)
    if version == OPSET:
        return model
    if version > OPSET:
        raise ModelError(
            f"the model uses version {version} of ONNX's operators; "
            f"the newest known here is {OPSET}"
        )
    if version == 8 and any(n.op_type == "Scan" for n in all_nodes(model)):
        raise UnsupportedError("Scan of opset 8 has a batch axis: export with opset 9 or newer")
    if version < 7 and any(n.op_type == "PRelu" for n in all_nodes(model)):
        model = _with_broadcast_slopes(model)
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"the model uses version {version} of ONNX's operators and cannot be brought to "
            f"version {OPSET}: {reason}"
        ) from None


def _with_broadcast_slopes(model: ModelProto) -> ModelProto:
    """The model with PRelu's slopes shaped to broadcast along axis 1, as before opset 7."""
    typed = shape_inference.infer_shapes(model)
    for graph in graphs_of(typed):
        ranks = _ranks(graph)
        nodes: list[NodeProto] = []
        for number, node in enumerate(graph.node):
            rank = ranks.get(node.input[0]) if node.op_type == "PRelu" else None
            if rank is not None and rank > 2 and ranks.get(node.input[1]) == 1:
                name = f"{node.input[1]}/broadcast_{number}"
                axes = list(range(1, rank - 1))
                nodes.append(helper.make_node("Unsqueeze", [node.input[1]], [name], axes=axes))
                node.input[1] = name
            nodes.append(node)
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return typed


def _ranks(graph: GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values}
    return {**ranks, **{t.name: len(t.dims) for t in graph.initializer}}
