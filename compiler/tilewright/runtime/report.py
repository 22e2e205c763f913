"""What `CompiledModel.explain()` returns: how a model runs, and why so."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tilewright.graph.stages import Finish, HostStep, NeedValue
from tilewright.ops.tensor import Placeholder
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.crossings import Crossing
from tilewright.runtime.segments import Segment
from tilewright.runtime.session import Session


@dataclass(frozen=True)
class StageReport:
    """One stage: `inputs` are dtypes and shapes, `then` is what ends it and `reason` why."""

    graph: str
    inputs: tuple[str, ...]
    nodes: int
    kernels: tuple[str, ...]
    decisions: tuple[str, ...]
    then: str
    reason: str
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Report:
    """How a model runs for the signatures seen: `str()` for people, `to_json()` for programs.

    `rewrites` are (rule, node) of the import, `kept` the nodes it might have folded and why not;
    `crossings` is what calls have copied between the host and a GPU, and why.
    """

    model: str
    rewrites: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    stages: tuple[StageReport, ...]
    crossings: tuple[Crossing, ...] = ()

    @property
    def fallbacks(self) -> tuple[StageReport, ...]:
        """Stages that end in a node run by ONNX's reference implementation."""
        return tuple(s for s in self.stages if s.then.startswith("reference"))

    def to_json(self) -> str:
        """The whole report."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        lines = [f"model {self.model!r}: {len(self.stages)} stages compiled so far"]
        if self.rewrites:
            lines.append(f"rewritten on import: {_counted(rule for rule, _ in self.rewrites)}")
        for number, stage in enumerate(self.stages):
            lines.extend(_stage_lines(number, stage))
        if self.crossings:
            total = sum(c.nbytes * c.times for c in self.crossings)
            lines.append(f"copied between host and device so far, {total:,} bytes in all:")
            lines.extend(f"  {c}" for c in self.crossings)
        return "\n".join(lines)


def _stage_lines(number: int, stage: StageReport) -> list[str]:
    took = f"{stage.seconds * 1000:.0f} ms to make, {stage.nbytes / 1e6:.1f} MB"
    lines = [
        f"stage {number} of {stage.graph!r} for ({', '.join(stage.inputs)})",
        f"  {stage.nodes} nodes in {len(stage.kernels)} kernels; {took}",
        *(f"    {k}" for k in stage.kernels),
        *(f"  - {d}" for d in stage.decisions),
    ]
    ending = f"  then {stage.then}" + (f": {stage.reason}" if stage.reason else "")
    return [*lines, ending] if stage.then != "done" else lines


def _counted(words: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{w} x{c}" if c > 1 else w for w, c in counts.items())


def report_stages(sessions: Iterable[Session], limits: Ceilings | None) -> tuple[StageReport, ...]:
    """Every stage made so far, outer graphs first; least times if the machine is known."""
    return tuple(_report(s.graph.name, g, limits) for s in sessions for g in s.segments())


def _report(graph: str, segment: Segment, limits: Ceilings | None) -> StageReport:
    stage, runner = segment.stage, segment.runner
    then, reason = _ending(segment)
    return StageReport(
        graph,
        tuple(map(_declare, stage.inputs)),
        len(set(stage.labels.values())) if runner else 0,
        tuple(_kernel_line(k, limits) for k in runner.kernels) if runner else (),
        tuple(runner.decisions) if runner else (),
        then,
        reason,
        segment.seconds,
        segment.nbytes,
    )


def _ending(segment: Segment) -> tuple[str, str]:
    match segment.stage.cut:
        case Finish():
            return "done", ""
        case NeedValue(reason=reason):
            return "specialised on a value", reason
        case HostStep(node=node, kind="reference", reason=reason):
            return f"reference {node.label}", reason
        case HostStep(node=node, kind=kind, reason=reason):
            return f"{kind} {node.label}", reason


def _declare(value: Placeholder) -> str:
    return f"{value.dtype.numpy}[{', '.join(map(str, value.shape))}]"


def _kernel_line(kernel: Any, limits: Ceilings | None) -> str:
    """A kernel's name, what it does, and how long that takes at least on this machine."""
    name, cost = str(getattr(kernel, "name", kernel)), getattr(kernel, "cost", None)
    if cost is None:
        return name
    line = f"{name}: {cost.flops / 1e6:,.2f} MFLOP, {cost.bytes / 1e6:,.2f} MB"
    if limits is None:
        return line
    return f"{line}, at least {limits.seconds(cost.flops, cost.bytes) * 1e6:,.1f} us"


def kernels_of(sessions: Iterable[Session]) -> list[Any]:
    """The distinct kernels of all stages, in order of first use."""
    runners = (g.runner for s in sessions for g in s.segments() if g.runner is not None)
    found: dict[int, Any] = {id(k): k for r in runners for k in r.kernels}
    return list(found.values())
