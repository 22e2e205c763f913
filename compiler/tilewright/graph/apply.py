"""Applies a node: to tensors by the expression that defines it, or to arrays on the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np

from tilewright.errors import ExecutionError, OperatorError, TilewrightError, UnsupportedError
from tilewright.graph.fold import RANDOM
from tilewright.graph.ir import Graph, Node
from tilewright.graph.reference import run_reference
from tilewright.graph.remote import RemoteArray
from tilewright.graph.stages import HostValue, Value, is_known
from tilewright.ops import registry
from tilewright.ops.tensor import Compute, NeedsValue, NestOutput, Tensor, sources, stamp

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
Kind = Literal["compiled", "host", "reference", "control"]
HostFunction = Callable[[Sequence[Any]], list[Any]]

_MISTAKES = (TilewrightError, ArithmeticError, LookupError, TypeError, ValueError)
"""What an operator raises for operands and attributes that it does not fit."""


def is_control(node: Node) -> bool:
    """Whether the node runs graphs of its own."""
    return node.domain == "" and node.op_type in CONTROL_FLOW


def is_random(node: Node) -> bool:
    """Whether the node's results may differ from run to run."""
    return (node.domain, node.op_type) in RANDOM


def kind_of(node: Node) -> Kind:
    """How the node is run if nothing about its operands speaks against it."""
    if is_control(node):
        return "control"
    if registry.find(node.domain, node.op_type) is not None:
        return "compiled"
    return "host" if registry.find_host(node.domain, node.op_type) is not None else "reference"


def apply_expression(
    node: Node, definition: registry.Operator, operands: Sequence[Value | None]
) -> tuple[Tensor | None, ...]:
    """The results of the expression that defines the node's operator.

    Passes NeedsValue and UnsupportedError on; whatever else is wrong becomes an OperatorError that
    names the node, its operands and what is wrong with them.
    """
    try:
        made = definition(*operands, **_arguments(node, definition))
    except (NeedsValue, UnsupportedError):
        raise
    except _MISTAKES as error:
        raise OperatorError(
            f"node {node.label} cannot be applied to {describe(operands)}: {error}"
        ) from error
    results = (made,) if isinstance(made, Tensor) else tuple(made)
    stamp(results, (o for o in operands if isinstance(o, Tensor)), node.op_type, node.label)
    return results


def host_function(node: Node, graph: Graph) -> HostFunction:
    """The node as a function of arrays, lists and None: its host operator, or ONNX's reference."""
    definition = registry.find_host(node.domain, node.op_type)

    def reference(operands: Sequence[Any]) -> list[Any]:
        return run_reference(node, graph.opset, operands, graph.domains)

    if definition is None:
        return lambda operands: own(reference(operands), operands)
    arguments = _arguments(node, definition)

    def host(operands: Sequence[Any]) -> list[Any]:
        try:
            made = definition(*operands, **arguments)
        except UnsupportedError:
            made = tuple(reference(operands))
        except _MISTAKES as error:
            raise ExecutionError(f"node {node.label} fails: {error}") from error
        return own(made if isinstance(made, tuple) else (made,), operands)

    return host


def own(results: Sequence[Any], operands: Sequence[Any], views: bool = True) -> list[Any]:
    """The results as C-contiguous arrays, each with memory of its own; lists may share elements.

    Results that may be `views` of something are copied; those of a session never are.
    """
    taken = [o for o in operands if isinstance(o, (np.ndarray, RemoteArray))]
    made = []
    for result in results:
        value = _own(result, taken, views)
        made.append(value)
        taken.append(value)
    return made


def _own(value: Any, taken: Sequence[Any], views: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return [_own(v, (), views) for v in value]
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, RemoteArray):
        return value.copy() if any(value is other for other in taken) else value
    array = np.asarray(value, order="C")
    if array.dtype.kind in "US":
        return array.astype(object)
    if views and array.base is not None:
        array = array.copy()
    for other in taken:
        if array is other:
            array = array.copy()
            break
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _arguments(node: Node, definition: Callable[..., Any]) -> dict[str, Any]:
    extra = {"outputs": len(node.outputs)} if _counts_outputs(definition) else {}
    return {**node.attributes, **extra}


@cache
def _counts_outputs(definition: Callable[..., Any]) -> bool:
    return "outputs" in inspect.signature(definition).parameters


def describe(operands: Sequence[Value | None]) -> str:
    """Dtypes and shapes of operands, for messages."""
    return f"({', '.join(map(_describe, operands))})"


def _describe(operand: Value | None) -> str:
    match operand:
        case None:
            return "omitted"
        case HostValue():
            return "None" if is_known(operand) and operand.content is None else "a sequence"
        case _:
            return f"{operand.dtype.name}[{', '.join(map(str, operand.shape))}]"


def identity_key(node: Node, operands: Sequence[Value | None]) -> Hashable:
    """Equal for two nodes that are the same function of the same operands."""
    attributes = tuple((k, _hashable(node.attributes[k])) for k in sorted(node.attributes))
    return node.domain, node.op_type, len(node.outputs), attributes, tuple(map(id, operands))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        small = value.nbytes <= 4096 and value.dtype != object
        return (value.dtype, value.shape, value.tobytes()) if small else id(value)
    return id(value) if isinstance(value, Graph) else (type(value), value)


def cone(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The tensors and all that they are computed from, each once, results first."""
    seen: set[str] = set()
    waiting = list(tensors)
    while waiting:
        t = waiting.pop()
        if t.name not in seen:
            seen.add(t.name)
            yield t
            waiting.extend(sources(t))


def points(tensors: Sequence[Tensor], limit: int) -> int:
    """How many elements and terms of sums it takes to compute the tensors, counted up to `limit`.

    A hand-written nest is as much as anything: more than the limit.
    """
    total = 0
    for t in cone(tensors):
        if isinstance(t, Compute):
            total += t.size * (prod(e for _, e in t.reduction.axes) if t.reduction else 1)
        elif isinstance(t, NestOutput):
            return limit + 1
        if total > limit:
            break
    return total
