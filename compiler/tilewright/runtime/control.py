"""Control flow on the host: If, Loop and Scan run their graphs by calling a session of each.

https://onnx.ai/onnx/operators/onnx__Loop.html, ...__Scan.html, ...__If.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.errors import ExecutionError, OperatorError
from tilewright.graph.apply import HostFunction, own
from tilewright.graph.ir import Graph, Node, ValueInfo
from tilewright.graph.remote import RemoteArray, on_host

Body = Callable[[Sequence[Any]], list[Any]]
"""A graph as a function of its inputs and of what it captures."""


def control_function(node: Node, captured: int, body: Callable[[Graph], Body]) -> HostFunction:
    """The node as a function of its operands followed by `captured` values of enclosing graphs."""
    run = {"If": _if, "Loop": _loop, "Scan": _scan}[node.op_type](node, body)

    def function(values: Sequence[Any]) -> list[Any]:
        count = len(values) - captured
        return own(run(list(values[:count]), list(values[count:])), values, views=False)

    return function


_Run = Callable[[list[Any], list[Any]], list[Any]]


def _graph(node: Node, name: str) -> Graph:
    graph = node.attributes.get(name)
    if not isinstance(graph, Graph):
        raise OperatorError(f"node {node.label} has no graph {name!r}")
    return graph


def _if(node: Node, body: Callable[[Graph], Body]) -> _Run:
    branches = {True: body(_graph(node, "then_branch")), False: body(_graph(node, "else_branch"))}

    def run(operands: list[Any], captured: list[Any]) -> list[Any]:
        return branches[_truth(node, operands[0])](captured)

    return run


def _truth(node: Node, value: Any) -> bool:
    array = np.asarray(on_host(value, "a condition", f"node {node.label} decides on the host"))
    if array.size != 1:
        raise ExecutionError(f"node {node.label}: the condition has {array.size} elements, not one")
    return bool(array.item())


def _loop(node: Node, body: Callable[[Graph], Body]) -> _Run:
    graph = _graph(node, "body")
    call = body(graph)

    def run(operands: list[Any], captured: list[Any]) -> list[Any]:
        trips, condition, *state = (*operands, None, None)[: max(len(operands), 2)]
        limit = None if trips is None else _trips(node, trips)
        going = condition is None or _truth(node, condition)
        stacks: list[list[Any]] = [[] for _ in graph.outputs[1 + len(state) :]]
        step = 0
        while going and (limit is None or step < limit):
            inputs = [np.array(step, np.int64), np.array(going), *state]
            again, *results = call([*inputs, *captured])
            going = _truth(node, again)
            for stack, value in zip(stacks, results[len(state) :], strict=True):
                stack.append(value)
            state = results[: len(state)]
            step += 1
        infos = graph.outputs[1 + len(state) :]
        return [*state, *(_stacked(node, s, i) for s, i in zip(stacks, infos, strict=True))]

    return run


def _trips(node: Node, value: Any) -> int:
    reason = f"node {node.label} counts on the host"
    return int(np.asarray(on_host(value, "a number of trips", reason)).item())


def _stacked(node: Node, items: list[Any], info: ValueInfo, axis: int = 0) -> Any:
    """The items along a new axis; with no items, what the body declares, with extent 0."""
    if not items:
        shape = [d if isinstance(d, int) else 0 for d in info.shape or ()]
        return np.zeros(
            (*shape[:axis], 0, *shape[axis:]), info.dtype.numpy if info.dtype else np.float32
        )
    if len({i.shape for i in items}) > 1:
        shapes = sorted({i.shape for i in items})
        raise ExecutionError(
            f"node {node.label}: scan output {info.name!r} has several shapes: {shapes}"
        )
    if axis == 0 and all(isinstance(i, RemoteArray) for i in items):
        return items[0].stacked(items[1:])
    reason = f"node {node.label} puts what its steps return together on the host"
    return np.stack([on_host(i, f"value {info.name!r}", reason) for i in items], axis)


def _scan(node: Node, body: Callable[[Graph], Body]) -> _Run:
    graph = _graph(node, "body")
    call = body(graph)
    scanned = _integer(node, "num_scan_inputs")
    carried = len(graph.inputs) - scanned
    infos = graph.outputs[carried:]
    axes = _list(node, "scan_input_axes", scanned)
    reverse = _list(node, "scan_input_directions", scanned)
    out_axes = _list(node, "scan_output_axes", len(infos))
    out_reverse = _list(node, "scan_output_directions", len(infos))

    def run(operands: list[Any], captured: list[Any]) -> list[Any]:
        state, sequences = operands[:carried], operands[carried:]
        slices = [_slices(node, *s) for s in zip(sequences, axes, reverse, strict=True)]
        if len({len(s) for s in slices}) > 1:
            raise ExecutionError(
                f"node {node.label}: scan inputs of lengths {[len(s) for s in slices]}"
            )
        stacks: list[list[Any]] = [[] for _ in infos]
        for items in zip(*slices, strict=True):
            results = call([*state, *items, *captured])
            state = results[:carried]
            for stack, value in zip(stacks, results[carried:], strict=True):
                stack.append(value)
        outputs = []
        for stack, info, axis, backward in zip(stacks, infos, out_axes, out_reverse, strict=True):
            rank = (stack[0].ndim if stack else len(info.shape or ())) + 1
            outputs.append(_stacked(node, stack[::-1] if backward else stack, info, axis % rank))
        return [*state, *outputs]

    return run


def _slices(node: Node, array: Any, axis: int, backward: int) -> list[Any]:
    """The slices of an array along the axis, in scan order, each as an array of its own."""
    if not -array.ndim <= axis < array.ndim:
        raise ExecutionError(
            f"node {node.label}: scan axis {axis} of an array of rank {array.ndim}"
        )
    slices: list[Any]
    if isinstance(array, RemoteArray) and axis % array.ndim == 0:
        slices = list(array.rows())
    else:
        array = on_host(array, "a sequence", f"node {node.label} takes it apart on the host")
        front = np.moveaxis(array, axis, 0)
        slices = [front[i, ...].copy("C") for i in range(len(front))]
    return slices[::-1] if backward else slices


def _integer(node: Node, name: str) -> int:
    value = node.attributes.get(name)
    if not isinstance(value, int):
        raise OperatorError(f"node {node.label} has no integer {name!r}")
    return value


def _list(node: Node, name: str, count: int) -> list[int]:
    """A list attribute with one integer for each of `count` items; zeros by default."""
    value = node.attributes.get(name, (0,) * count)
    if not isinstance(value, tuple) or len(value) != count:
        raise OperatorError(f"node {node.label}: {name!r} must have {count} items, one for each")
    return [v for v in value if isinstance(v, int)]
