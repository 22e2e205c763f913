"""Replaces calls of functions by their bodies: those of the model, and those that ONNX defines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    TypeProto,
    inliner,
    shape_inference,
)

from tilewright.errors import ModelError
from tilewright.graph.expand import Define, Definition, Expander, Types, nested_graphs
from tilewright.graph.payload import all_nodes, graphs_of

Keep = Callable[[str, str], bool]
"""Whether the operator `(domain, op_type)` is wanted as it is; ONNX's own domain is ""."""

NODE_LIMIT = 1_000_000
"""Inlining may not make a model larger than this: functions that call each other grow fast."""


def keep_all(domain: str, op_type: str) -> bool:
    """Every operator is wanted as it is."""
    return True


def inline_model_functions(model: ModelProto) -> ModelProto:
    """The model without functions of its own: every call is replaced by the body."""
    if not model.functions:
        return model
    versions = {o.domain: o.version for o in model.opset_import}
    _check_growth(model)
    define = _model_definitions(model, versions)
    for function in model.functions:
        for entry in function.opset_import:
            if entry.domain not in versions:
                versions[entry.domain] = entry.version
                model.opset_import.append(entry)
    while True:
        expander = Expander(define, _names(model))
        expander.graph(model.graph, {})
        if not expander.changed:
            return _with_other_versions(model)


def _check_growth(model: ModelProto) -> None:
    """ModelError if inlining never ends, or ends in more nodes than anybody wants."""
    bodies = {_called(f): [_called(n) for n in _with_nested(f.node)] for f in model.functions}
    sizes: dict[_Name, int] = {}

    def size(name: _Name, callers: frozenset[_Name]) -> int:
        if name in callers:
            raise ModelError(f"function {name[1]!r} of the model calls itself")
        if name not in sizes:
            callees = Counter(bodies.get(name, ()))
            inside = callers | {name}
            sizes[name] = 1 + sum(count * size(c, inside) for c, count in callees.items())
        return sizes[name]

    if sum(size(_called(n), frozenset()) for n in _with_nested(model.graph.node)) > NODE_LIMIT:
        raise ModelError(f"inlining the model's functions gives more than {NODE_LIMIT:,} nodes")


_Name = tuple[str, str, str]


def _called(it: NodeProto | FunctionProto) -> _Name:
    return it.domain, it.name if isinstance(it, FunctionProto) else it.op_type, it.overload


def _with_nested(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in nested_graphs(node):
            yield from _with_nested(graph.node)


def _model_definitions(model: ModelProto, versions: Mapping[str, int]) -> Define:
    """The functions whose bodies are in terms of the model's own version of the operators."""
    found = {
        _called(f): Definition(f, {a.name: a for a in f.attribute_proto})
        for f in model.functions
        if all(versions.get(o.domain, o.version) == o.version for o in f.opset_import)
    }

    def define(node: NodeProto, types: Types) -> Definition | None:
        return found.get(_called(node))

    return define


def _with_other_versions(model: ModelProto) -> ModelProto:
    """The model without functions, those inlined that are in terms of another version."""
    names = {(f.domain, f.name) for f in model.functions}
    if names.isdisjoint((n.domain, n.op_type) for g in graphs_of(model) for n in g.node):
        del model.functions[:]
        return model
    try:
        return inliner.inline_local_functions(model, convert_version=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the model's functions cannot be inlined: {error}") from None


def expand_function_nodes(model: ModelProto, keep: Keep) -> ModelProto:
    """The model in which operators that are not wanted are replaced by ONNX's definition of them.

    Holds for what the definitions use in turn. An operator without a definition stays, and so does
    one whose definition depends on types that cannot be inferred.
    """
    versions = {o.domain: o.version for o in model.opset_import}
    while True:
        schemas = _expandable(model, versions, keep)
        if not schemas:
            return model
        model = shape_inference.infer_shapes(model)
        expander = Expander(_schema_definitions(schemas, versions), _names(model))
        expander.graph(model.graph, {})
        if not expander.changed:
            return model


def _expandable(
    model: ModelProto, versions: Mapping[str, int], keep: Keep
) -> dict[tuple[str, str], Any]:
    """The schemas of unwanted operators that have a definition."""
    found: dict[tuple[str, str], Any] = {}
    for domain, op_type in {(n.domain, n.op_type) for n in all_nodes(model)}:
        version = versions.get(domain, 0)
        if keep(domain, op_type) or not onnx.defs.has(op_type, version, domain):
            continue
        schema: Any = onnx.defs.get_schema(op_type, version, domain)
        if schema.has_function or schema.has_context_dependent_function:
            found[domain, op_type] = schema
    return found


def _schema_definitions(
    schemas: Mapping[tuple[str, str], Any], versions: Mapping[str, int]
) -> Define:
    """ONNX's own definitions, which may depend on the types of the operands."""

    def define(node: NodeProto, types: Types) -> Definition | None:
        schema: Any = schemas.get((node.domain, node.op_type))
        if schema is None:
            return None
        function = _schema_function(schema, node, types, versions[node.domain])
        if function is None or not function.node:
            return None
        defaults = {k: a.default_value for k, a in schema.attributes.items()}
        given = {k: a for k, a in defaults.items() if a.type != AttributeProto.UNDEFINED}
        given.update((a.name, a) for a in function.attribute_proto)
        return Definition(function, given)

    return define


def _schema_function(
    schema: Any, node: NodeProto, types: Types, version: int
) -> FunctionProto | None:
    if schema.has_function:
        found = schema.get_function_with_opset_version(version)
    elif any(name and name not in types for name in node.input):
        return None
    else:
        found = schema.get_context_dependent_function_with_opset_version(
            max(v for v in schema.context_dependent_function_opset_versions if v <= version),
            node.SerializeToString(),
            [types.get(name, TypeProto()).SerializeToString() for name in node.input],
        )
    function: FunctionProto = FunctionProto.FromString(found) if type(found) is bytes else found
    return function


def _names(model: ModelProto) -> set[str]:
    names = {name for node in all_nodes(model) for name in (*node.input, *node.output)}
    for graph in graphs_of(model):
        names.update(v.name for v in (*graph.input, *graph.output, *graph.initializer))
    return names
