"""Answers to questions about one kernel, one node, or two nodes of a model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.errors import InputError
from tilewright.fusion.decide import Refusal
from tilewright.graph.ir import Graph
from tilewright.graph.stages import HostStep
from tilewright.graph.support import all_nodes
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.crossings import Crossing
from tilewright.runtime.report import (
    Explanation,
    KernelReport,
    ending,
    kernel_report,
    repeated,
)
from tilewright.runtime.segments import Segment

CLOSE = 3  # names that a message offers
MOST_NODES = 12  # of a kernel, in a text


@dataclass(frozen=True)
class KernelExplanation(Explanation):
    """Why a kernel holds these operators, has this schedule, was compiled, and takes its time.

    `attempts` are the directives tried, with the reason where one was refused, and remarks;
    `came_from` is disk or compiled, `miss` the field of the key that differed from the closest
    cached kernel; `refusals` are those of values that its nodes compute or read.
    """

    kernel: KernelReport
    stage: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    attempts: tuple[str, ...]
    came_from: str
    miss: str
    bound: str
    refusals: tuple[Refusal, ...]

    def __str__(self) -> str:
        k = self.kernel
        shown = list(k.nodes[:MOST_NODES])
        if len(k.nodes) > MOST_NODES:
            shown.append(f"and {len(k.nodes) - MOST_NODES} others")
        origin = f"came from {self.came_from}" if self.came_from != "compiled" else "was compiled"
        lines = [
            f"kernel {k.name} of stage {self.stage} computes {k.operators}",
            f"  nodes: {', '.join(shown) or 'none of the model'}",
            f"  reads {', '.join(self.reads) or 'nothing'}; writes {', '.join(self.writes)}",
            "why this schedule:",
            *(f"  {a}" for a in self.attempts or ("as lowered: nothing was to be gained",)),
            f"it {origin}{': ' + self.miss if self.miss else ''}",
            f"its work: {str(k).partition(': ')[2]}; {self.bound}",
        ]
        if self.refusals:
            lines.append("what it does not share or compute inside:")
            lines += [f"  {r}" for r in repeated(map(str, self.refusals))]
        return "\n".join(lines)


@dataclass(frozen=True)
class NodeExplanation(Explanation):
    """What becomes of a node of the model: `status` is a sentence, `kernels` compute it, by stage
    and name; `rewrites` are the rules that took it up on import, `refusals` those of the last of
    these stages."""

    node: str
    status: str
    kernels: tuple[tuple[int, str], ...]
    rewrites: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    crossings: tuple[Crossing, ...] = ()

    def __str__(self) -> str:
        lines = [f"node {self.node} {self.status}"]
        lines += [f"  rewritten on import: {rule}" for rule in self.rewrites]
        lines += [f"  in kernel {name} of stage {stage}" for stage, name in self.kernels]
        lines += [f"  {r}" for r in repeated(map(str, self.refusals))]
        lines += [f"  {c}" for c in self.crossings]
        return "\n".join(lines)


@dataclass(frozen=True)
class PairExplanation(Explanation):
    """Whether two nodes share a kernel, and if not, every reason that was found between them."""

    nodes: tuple[str, str]
    shared: tuple[tuple[int, str], ...]
    refusals: tuple[Refusal, ...]
    remark: str = ""

    def __str__(self) -> str:
        first, second = self.nodes
        if self.shared:
            places = ", ".join(f"{name} of stage {stage}" for stage, name in self.shared)
            return f"{first} and {second} share {places}"
        lines = [f"{first} and {second} do not share a kernel{self.remark and ': ' + self.remark}"]
        return "\n".join([*lines, *(f"  {r}" for r in repeated(map(str, self.refusals)))])


@dataclass(frozen=True)
class Explainer:
    """Answers from what was made so far."""

    graph: Graph
    rewrites: Sequence[tuple[str, str]]
    segments: Sequence[Segment]
    limits: Ceilings | None
    seconds: Mapping[int, float]
    crossings: Sequence[Crossing] = ()
    _labels: dict[str, str] = field(default_factory=dict)

    def about(self, what: Any, other: str | None) -> Explanation:
        """About a kernel (itself or its name), a node (its name, or that of a value it computes),
        or why two nodes do not share a kernel. InputError for a name that nothing has."""
        if other is not None:
            return self.pair(self.label(str(what)), self.label(other))
        kernel = self._kernel(what)
        if kernel is not None:
            return self.kernel(*kernel)
        return self.node(self.label(str(what)))

    # -- kernels

    def _kernel(self, what: Any) -> tuple[int, Any] | None:
        for stage, kernel in self._kernels():
            names = (kernel.name, kernel.name.partition("_")[0])
            if what is kernel or what in (*names, *(f"s{stage}.{n}" for n in names)):
                return stage, kernel
        return None

    def _kernels(self) -> Iterable[tuple[int, Any]]:
        for stage, segment in enumerate(self.segments):
            for kernel in segment.runner.kernels if segment.runner else ():
                yield stage, kernel

    def kernel(self, stage: int, kernel: Any) -> KernelExplanation:
        """Everything about a kernel."""
        told = kernel.story()
        short = kernel_report(kernel, self.limits, self.seconds.get(id(kernel)))
        nodes = set(kernel.nodes)
        refusals = [
            r for r in self._refusals(stage) if nodes & {*r.nodes} or nodes & {*r.other_nodes}
        ]
        return KernelExplanation(
            short,
            stage,
            kernel.reads,
            kernel.writes,
            tuple(map(str, told.attempts)),
            told.came_from or "memory",
            told.miss,
            _bound(short, self.limits),
            tuple(refusals),
        )

    def _refusals(self, stage: int | None = None) -> Iterable[Refusal]:
        chosen = self.segments if stage is None else [self.segments[stage]]
        for segment in chosen:
            for d in segment.runner.decisions if segment.runner else ():
                if isinstance(d, Refusal):
                    yield d

    # -- nodes

    def label(self, name: str) -> str:
        """The label of the node that a name means."""
        if not self._labels:
            self._labels.update(self._names())
        if name in self._labels:
            return self._labels[name]
        close = difflib.get_close_matches(name, self._labels, CLOSE, 0.4)
        hint = f"; names like it are {', '.join(map(repr, close))}" if close else ""
        raise InputError(f"no kernel, node or value is named {name!r}{hint}")

    def _names(self) -> dict[str, str]:
        """Labels of nodes by their names, those of their values, and labels themselves."""
        found = {label: label for _, label in self.rewrites}
        for label in list(found):
            found.setdefault(_quoted(label), label)
        for node in all_nodes(self.graph):
            for name in (*node.outputs, node.name, node.label):
                if name:
                    found[name] = node.label
        return found

    def node(self, label: str) -> NodeExplanation:
        """What becomes of a node."""
        kernels = tuple((s, k.name) for s, k in self._kernels() if label in k.nodes)
        stage = kernels[-1][0] if kernels else None
        refusals = [r for r in self._refusals(stage) if label in (*r.nodes, *r.other_nodes)]
        rules = tuple(rule for rule, node in self.rewrites if node == label)
        crossings = tuple(c for c in self.crossings if label in c.reason)
        status = self._status(label, bool(kernels), rules)
        return NodeExplanation(label, status, kernels, rules, tuple(refusals), crossings)

    def _status(self, label: str, compiled: bool, rules: tuple[str, ...]) -> str:
        if compiled:
            return "is compiled"
        for segment in self.segments:
            if isinstance(segment.stage.cut, HostStep) and segment.stage.cut.node.label == label:
                then, reason = ending(segment)
                kind = then.partition(" ")[0]
                how = "by ONNX's reference implementation" if kind == "reference" else "on the host"
                return f"runs {how}" + (f": {reason}" if reason else "")
        if any(n.label == label for n in all_nodes(self.graph)):
            if not self.segments:
                return "is not compiled yet: call the model, or `warmup` it"
            return (
                "needs no kernel: its value is known when the model is specialised, it only "
                "renames what is in memory, or nothing reads it"
            )
        return "is not in the graph any more: what rewrote it is below"

    # -- pairs

    def pair(self, first: str, second: str) -> PairExplanation:
        """Why two nodes do not share a kernel, if they do not."""
        both = {first, second}
        shared = tuple((s, k.name) for s, k in self._kernels() if both <= {*k.nodes})
        found = [
            r
            for r in self._refusals()
            if (first in r.nodes and second in r.other_nodes)
            or (second in r.nodes and first in r.other_nodes)
        ]
        return PairExplanation((first, second), shared, tuple(found), self._apart(both, found))

    def _apart(self, both: set[str], found: Sequence[Refusal]) -> str:
        """Why there may be no reason to show."""
        if found:
            return ""
        computed = {n for _, k in self._kernels() for n in k.nodes}
        if missing := sorted(both - computed):
            return "; ".join(f"{n} {self.node(n).status}" for n in missing)
        return "neither reads what the other computes; ask about the nodes between them"


def _bound(kernel: KernelReport, limits: Ceilings | None) -> str:
    if limits is None:
        return "the machine is not measured yet: `profile` does it"
    compute = kernel.flops / limits.flops
    memory = kernel.bytes / limits.bandwidth_for(kernel.bytes)
    bound = "multiply-adds" if compute > memory else "memory"
    text = f"{bound} would take longest"
    if kernel.seconds and kernel.limit:
        text += f", and it reaches {kernel.limit / kernel.seconds:.0%} of what the machine can do"
    return text


def _quoted(label: str) -> str:
    """The name in a label."""
    return label.rpartition(" (")[0].strip("'\"")
