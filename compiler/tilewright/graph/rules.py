"""Laws of ONNX's operators that hold for every shape, each a small function.

The first line of a rule's docstring is its law. A rule looks at one node and the few around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from tilewright.dtypes import DType, from_numpy, from_onnx
from tilewright.graph.affine import (
    convolution_absorbs_constant,
    convolution_absorbs_normalization,
    gemm_absorbs_normalization,
)
from tilewright.graph.fold import constant_folding
from tilewright.graph.ir import Array, Attribute, Graph, Node
from tilewright.graph.prune import prune, share_equal_nodes
from tilewright.graph.quantized import QUANTIZED_RULES
from tilewright.graph.rewrite import (
    MAX_SWEEPS,
    Replacement,
    Rule,
    SimplifyLog,
    View,
    renamed_captures,
    rewrite,
)


def simplify(graph: Graph, log: SimplifyLog | None = None) -> Graph:
    """The graph with every rule applied as often as it can be; the same object if none applies.

    Means the same up to the rounding of weights that absorb their neighbours.
    """
    log = SimplifyLog() if log is None else log
    for rules in (QUANTIZED_RULES, RULES):
        graph = _until_stable(graph, rules, log)
    return graph


def _until_stable(graph: Graph, rules: tuple[Rule, ...], log: SimplifyLog) -> Graph:
    for _ in range(MAX_SWEEPS):
        after = prune(share_equal_nodes(rewrite(graph, rules, log), log), log)
        if after is graph:
            break
        graph = after
    return graph


def identity(node: Node, view: View) -> Replacement | None:
    """Identity(x) = x."""
    if node.op_type != "Identity" or node.domain:
        return None
    return _same(node, node.inputs[0])


def dropout_at_inference(node: Node, view: View) -> Replacement | None:
    """Dropout(x) = x unless it is training, if nobody reads the mask."""
    if node.op_type != "Dropout" or node.domain or any(view.uses[m] for m in node.outputs[1:]):
        return None
    training = node.inputs[2] if len(node.inputs) > 2 else ""
    mode = view.constant(training) if training else np.False_
    return None if mode is None or mode.any() else _same(node, node.inputs[0])


def cast_to_own_type(node: Node, view: View) -> Replacement | None:
    """Cast(x, t) = x where x has type t."""
    if node.op_type != "Cast" or node.domain:
        return None
    own = dtype_of(node.inputs[0], view)
    return _same(node, node.inputs[0]) if own and own.onnx == node.attributes["to"] else None


def cast_of_cast(node: Node, view: View) -> Replacement | None:
    """Cast(Cast(x, t), u) = Cast(x, u) where t holds every value of x's type exactly."""
    inner = view.producer(node.inputs[0], "Cast") if node.op_type == "Cast" else None
    if inner is None or node.domain:
        return None
    first, middle = dtype_of(inner.inputs[0], view), dtype_of(node.inputs[0], view)
    if first is None or middle is None or not holds_exactly(first, middle):
        return None
    return _instead(node, inputs=inner.inputs)


def transpose_to_same_order(node: Node, view: View) -> Replacement | None:
    """Transpose(x, (0, 1, 2, ...)) = x."""
    perm = _perm(node)
    return _same(node, node.inputs[0]) if perm and perm == tuple(range(len(perm))) else None


def transpose_of_transpose(node: Node, view: View) -> Replacement | None:
    """Transpose(Transpose(x, p), q) = Transpose(x, p[q])."""
    inner = view.producer(node.inputs[0], "Transpose") if node.op_type == "Transpose" else None
    if inner is None or node.domain:
        return None
    outer_perm, inner_perm = _perm(node), _perm(inner)
    if outer_perm is None and inner_perm is None:
        return _same(node, inner.inputs[0])
    rank = len(outer_perm or inner_perm or ())
    p, q = inner_perm or _reverse(rank), outer_perm or _reverse(rank)
    return _instead(node, inputs=inner.inputs, attributes={"perm": tuple(p[i] for i in q)})


def reshape_of_reshape(node: Node, view: View) -> Replacement | None:
    """Reshape(Reshape(x, s), t) = Reshape(x, t) where t copies no extent of its operand."""
    if node.op_type != "Reshape" or node.domain:
        return None
    inner = view.producer(node.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    target = view.constant(node.inputs[1])
    if inner is None or target is None:
        return None
    copies = (target == 0).any() and not node.attributes.get("allowzero", 0)
    return None if copies else _instead(node, inputs=(inner.inputs[0], node.inputs[1]))


def if_of_constant(node: Node, view: View) -> Replacement | None:
    """If(True, a, b) = a, If(False, a, b) = b."""
    condition = view.constant(node.inputs[0]) if node.op_type == "If" else None
    if condition is None or node.domain or condition.size != 1:
        return None
    branch = node.attributes["then_branch" if condition.any() else "else_branch"]
    if not isinstance(branch, Graph):
        return None
    names = {name: view.fresh(name) for name in sorted(branch.defined_names())}
    nodes = tuple(_renamed(inner, names) for inner in branch.nodes)
    constants = {names[k]: v for k, v in branch.constants.items()}
    results = (names.get(o.name, o.name) for o in branch.outputs)
    pairs = zip(node.outputs, results, strict=True)
    return _with_aliases(nodes, constants, {old: new for old, new in pairs if old})


def _with_aliases(
    nodes: tuple[Node, ...], constants: dict[str, Array], aliases: dict[str, str]
) -> Replacement:
    """A replacement whose results keep their names by way of Identity, which other rules remove."""
    copies = tuple(Node("", "Identity", "", (new,), (old,)) for old, new in aliases.items())
    return Replacement((*nodes, *copies), constants)


def _renamed(node: Node, names: dict[str, str]) -> Node:
    """The node with new names for the values of the graph that it leaves."""
    attributes: dict[str, Attribute] = {
        key: renamed_captures(value, names) if isinstance(value, Graph) else value
        for key, value in node.attributes.items()
    }
    inputs = tuple(names.get(n, n) for n in node.inputs)
    outputs = tuple(names.get(n, n) for n in node.outputs)
    return dataclasses.replace(node, inputs=inputs, outputs=outputs, attributes=attributes)


RULES: tuple[Rule, ...] = (
    identity,
    dropout_at_inference,
    cast_to_own_type,
    cast_of_cast,
    transpose_to_same_order,
    transpose_of_transpose,
    reshape_of_reshape,
    if_of_constant,
    convolution_absorbs_normalization,
    convolution_absorbs_constant,
    gemm_absorbs_normalization,
    constant_folding,
)
"""Every local rule, in the order in which they are tried on a node."""


def _same(node: Node, value: str) -> Replacement:
    return Replacement(aliases={node.outputs[0]: value})


def _instead(
    node: Node, inputs: tuple[str, ...], attributes: Mapping[str, Attribute] | None = None
) -> Replacement:
    changed = node.attributes if attributes is None else attributes
    return Replacement((dataclasses.replace(node, inputs=inputs, attributes=changed),))


def _perm(node: Node) -> tuple[int, ...] | None:
    if node.op_type != "Transpose" or node.domain:
        return None
    perm = node.attributes.get("perm")
    return tuple(i for i in perm if isinstance(i, int)) if isinstance(perm, tuple) else None


def _reverse(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))[::-1]


_INTEGER_RESULT = ("Shape", "Size", "NonZero", "ArgMax", "ArgMin")
_TRUTH_RESULT = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or")


def dtype_of(name: str, view: View) -> DType | None:
    """The type of a value where the nodes next to it tell."""
    constant = view.constant(name)
    if constant is not None:
        return from_numpy(constant.dtype)
    node = view.producers.get(name)
    if node is None:
        return next((i.dtype for i in view.graph.inputs if i.name == name), None)
    if node.domain:
        return None
    to = node.attributes.get("to")
    if node.op_type == "Cast" and isinstance(to, int):
        return from_onnx(to)
    if node.op_type in _INTEGER_RESULT:
        return DType.I64
    return DType.BOOL if node.op_type in _TRUTH_RESULT else None


_MANTISSA = {DType.F64: 53, DType.F32: 24, DType.F16: 11, DType.BF16: 8}
_WIDER = {
    DType.F16: (DType.F32, DType.F64),
    DType.BF16: (DType.F32, DType.F64),
    DType.F32: (DType.F64,),
}


def holds_exactly(source: DType, target: DType) -> bool:
    """Whether casting to `target` and back to `source` changes no value."""
    if source is target:
        return True
    if target.kind not in "iuf" or source.kind not in "iubf":
        return False
    if source.is_float:
        return target in _WIDER.get(source, ())
    bits = 1 if source is DType.BOOL else source.bits - (source.kind == "i")
    if target.is_float:
        return bits <= _MANTISSA.get(target, 0)
    signed_to_unsigned = source.kind == "i" and target.kind == "u"
    return not signed_to_unsigned and bits <= target.bits - (target.kind == "i")
