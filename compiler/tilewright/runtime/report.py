"""What `CompiledModel.explain()` returns: how a model runs, and why so."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tilewright.fusion.decide import Refusal
from tilewright.graph.stages import Finish, HostStep, NeedValue
from tilewright.ops.tensor import Placeholder
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.crossings import Crossing
from tilewright.runtime.display import Displayed
from tilewright.runtime.revisions import GENERATED
from tilewright.runtime.segments import Segment
from tilewright.runtime.session import Session


class Explanation(Displayed):
    """What can be explained: `str()` is for people, `to_dict()` and `to_json()` for programs."""

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(self.to_dict())


@dataclass(frozen=True)
class KernelReport(Explanation):
    """One kernel of a plan, in short.

    `flops` and `bytes` are those of one run, `limit` its least seconds on this machine and
    `seconds` what the last profile measured; None where that is not known. `origin` says whether
    somebody has changed the kernel.
    """

    name: str
    operators: str
    nodes: tuple[str, ...]
    schedule: tuple[str, ...]
    flops: float
    bytes: float
    limit: float | None
    seconds: float | None = None
    origin: str = GENERATED

    def __str__(self) -> str:
        name = self.name if self.origin == GENERATED else f"{self.name} ({self.origin})"
        line = f"{name}: {self.flops / 1e6:,.2f} MFLOP, {self.bytes / 1e6:,.2f} MB"
        if self.limit is not None:
            line += f", at least {self.limit * 1e6:,.1f} us"
        if self.seconds is not None:
            line += f", took {self.seconds * 1e6:,.1f} us"
        return line


@dataclass(frozen=True)
class StageReport:
    """One stage: `inputs` are dtypes and shapes, `then` is what ends it and `reason` why.

    `refusals` tell of each value why it is not computed inside another or does not share a kernel
    with it; `decisions` are these and others as sentences.
    """

    graph: str
    inputs: tuple[str, ...]
    nodes: int
    kernels: tuple[KernelReport, ...]
    decisions: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    then: str
    reason: str
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Report(Explanation):
    """How a model runs for the signatures seen.

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

    def __str__(self) -> str:
        lines = [f"model {self.model!r}: {len(self.stages)} stages compiled so far"]
        if self.rewrites:
            lines.append(f"rewritten on import: {counted(rule for rule, _ in self.rewrites)}")
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
        *(f"  - {d}" for d in repeated(stage.decisions)),
    ]
    ending = f"  then {stage.then}" + (f": {stage.reason}" if stage.reason else "")
    return [*lines, ending] if stage.then != "done" else lines


def repeated(lines: Iterable[str]) -> list[str]:
    """Each line once, with how often it came."""
    return [f"{line} ({n} times)" if n > 1 else line for line, n in _counts(lines).items()]


def counted(words: Iterable[str]) -> str:
    """Each word once, with how often it came."""
    return ", ".join(f"{w} x{n}" if n > 1 else w for w, n in _counts(words).items())


def _counts(words: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def report_stages(
    sessions: Iterable[Session], limits: Ceilings | None, seconds: Mapping[int, float]
) -> tuple[StageReport, ...]:
    """Every stage made so far, outer graphs first; least times if the machine is known, and
    measured ones by the identity of kernels."""
    return tuple(_report(s.graph.name, g, limits, seconds) for s in sessions for g in s.segments())


def _report(
    graph: str, segment: Segment, limits: Ceilings | None, seconds: Mapping[int, float]
) -> StageReport:
    stage, runner = segment.stage, segment.runner
    then, reason = ending(segment)
    decisions = tuple(runner.decisions) if runner else ()
    return StageReport(
        graph,
        tuple(map(_declare, stage.inputs)),
        len(set(stage.labels.values())) if runner else 0,
        tuple(kernel_report(k, limits, seconds.get(id(k))) for k in runner.kernels)
        if runner
        else (),
        tuple(map(str, decisions)),
        tuple(d for d in decisions if isinstance(d, Refusal)),
        then,
        reason,
        segment.seconds,
        segment.nbytes,
    )


def ending(segment: Segment) -> tuple[str, str]:
    """What ends a stage, and why."""
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


def kernel_report(
    kernel: Any, limits: Ceilings | None, seconds: float | None = None
) -> KernelReport:
    """A kernel's name, what it does, and how long that takes at least on this machine."""
    cost = kernel.cost
    limit = limits.seconds(cost.flops, cost.bytes) if limits else None
    return KernelReport(
        kernel.name,
        kernel.graph,
        tuple(kernel.nodes),
        tuple(kernel.schedule),
        cost.flops,
        cost.bytes,
        limit,
        seconds,
        getattr(kernel, "origin", GENERATED),
    )


def kernels_of(sessions: Iterable[Session]) -> list[Any]:
    """The distinct kernels of all stages, in order of first use."""
    runners = (g.runner for s in sessions for g in s.segments() if g.runner is not None)
    found: dict[int, Any] = {id(k): k for r in runners for k in r.kernels}
    return list(found.values())
