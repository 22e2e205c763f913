"""Tensors that read what a pass has made of the tensors before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tilewright.loops.ir import Accumulate, Expr, Load, Node, Stmt, Store, rewrite
from tilewright.ops.tensor import Compute, Nest, NestOutput, Tensor


def renewed(t: Tensor, done: dict[str, Tensor]) -> Tensor:
    """t reading what its sources have become."""
    if isinstance(t, Compute):
        body: Expr = _reading(t.body, done)  # type: ignore[assignment]
        return t if body is t.body else replace(t, body=body)
    if isinstance(t, NestOutput):
        _renew_nest(t.nest[0], done)
        return done[t.name]
    return t


def _renew_nest(nest: Nest, done: dict[str, Tensor]) -> None:
    """Put all results of the nest into `done`, as those of a nest that reads what is there."""
    if nest.outputs[0].name in done:
        return
    if _reading(nest.body, done) is nest.body:
        done.update({o.name: o for o in nest.outputs})
        return
    outputs = tuple(replace(o, nest=[]) for o in nest.outputs)
    done.update({o.name: o for o in outputs})
    body: Stmt = _reading(nest.body, done)  # type: ignore[assignment]
    made = replace(nest, body=body, outputs=outputs)
    for o in outputs:
        o.nest.append(made)


def _reading(n: Node, done: Mapping[str, Tensor]) -> Node:
    def rule(n: Node) -> Node | None:
        if not isinstance(n, (Load, Store, Accumulate)):
            return None
        now = done.get(n.buffer.name, n.buffer)
        return None if now is n.buffer else replace(n, buffer=now)

    return rewrite(n, rule)
