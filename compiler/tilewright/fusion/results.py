"""The results of a model have C order without gaps: what is stored otherwise is copied for the
caller."""

from __future__ import annotations

from dataclasses import replace

from tilewright.fusion.contraction import find_contraction
from tilewright.fusion.inline import Program
from tilewright.fusion.renew import renewed
from tilewright.ops.tensor import Compute, Tensor, compute, sources


def copy_results(program: Program) -> Program:
    """The program with its results in C order, and everything else reading what it read before."""
    names = {t.name for t in program.outputs if isinstance(t, Compute) and t.strides is not None}
    if not names:
        return program
    done: dict[str, Tensor] = {}
    order: list[Tensor] = []
    for t in program.order:
        current = renewed(t, done)
        if t.name in names and isinstance(current, Compute):
            current = replace(current, name=f"{t.name}_stored")
        done[t.name] = current
        _move_notes(program, t, current)
        order.append(current)
    results = {n: _in_order(n, done[n]) for n in names}
    program.order = [*order, *results.values()]
    program.outputs = tuple(results.get(t.name, done[t.name]) for t in program.outputs)
    program.consumers = {t.name: [] for t in program.order}
    for t in program.order:
        for s in sources(t):
            program.consumers[s.name].append(t)
    return program


def _in_order(name: str, stored: Tensor) -> Compute:
    return replace(compute(stored.shape, lambda *i: stored[i]), name=name, op="Copy")


def _move_notes(program: Program, old: Tensor, new: Tensor) -> None:
    """What is known about a tensor, once it has become another one."""
    if new.name != old.name and old.name in program.checked:
        program.checked[new.name] = program.checked.pop(old.name)
    if program.contractions.pop(old.name, None) is not None and isinstance(new, Compute):
        found = find_contraction(new)
        assert found is not None, "reads other tensors in the same way"
        program.contractions[new.name] = found
