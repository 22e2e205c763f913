"""What is shown of an answer: of `explain()` on a model, a kernel or nodes, and of an edit."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.explore.pages import Block, Page, Part, Table, Text, amount, nbytes, time
from tilewright.fusion.decide import Refusal
from tilewright.runtime.explain import KernelExplanation, NodeExplanation, PairExplanation
from tilewright.runtime.report import Explanation, KernelReport, Report, StageReport, repeated
from tilewright.runtime.verdict import Verdict

REFUSALS = ("value", "", "other", "why", "times")


def verdict_page(verdict: Verdict) -> Page:
    """What was checked and measured of an edit."""
    title = f"{verdict.kernel} {verdict.change}: {verdict.speedup:.2f} times as fast"
    return Page(title, (), (Part("verdict", (Table(("", ""), verdict.rows, texts=2),)),))


def answer_page(answer: Explanation) -> Page:
    """An explanation as tables."""
    match answer:
        case Report():
            return _report(answer)
        case KernelExplanation():
            return _kernel(answer)
        case NodeExplanation():
            facts = (*answer.rewrites, *(f"kernel {k} of stage {s}" for s, k in answer.kernels))
            parts = _parts(("refusals", _refusals(answer.refusals)))
            return Page(f"node {answer.node} {answer.status}", facts, parts)
        case PairExplanation():
            first, *_ = str(answer).splitlines()
            return Page(first, (), _parts(("refusals", _refusals(answer.refusals))))
    return Page(type(answer).__name__, tuple(str(answer).splitlines()))


def _parts(*found: tuple[str, Sequence[Block]]) -> tuple[Part, ...]:
    return tuple(Part(name, tuple(blocks)) for name, blocks in found if blocks)


def _report(report: Report) -> Page:
    head = str(report).splitlines()[:2] if report.rewrites else str(report).splitlines()[:1]
    stages = [(f"stage {n}", _stage(s)) for n, s in enumerate(report.stages)]
    crossings = [Text("\n".join(map(str, report.crossings)))] if report.crossings else []
    title, *facts = head
    return Page(title, tuple(facts), _parts(*stages, ("copies", crossings)))


def _stage(stage: StageReport) -> list[Block]:
    took = f"{stage.nodes} nodes in {len(stage.kernels)} kernels, made in {time(stage.seconds)}"
    ending = f", then {stage.then}: {stage.reason}" if stage.then != "done" else ""
    blocks: list[Block] = [Text(f"for ({', '.join(stage.inputs)}): {took}{ending}")]
    if stage.kernels:
        blocks.append(_kernels(stage.kernels))
    refused = set(map(str, stage.refusals))
    others = [d for d in stage.decisions if d not in refused]
    if others:
        blocks.append(Text("\n".join(repeated(others))))
    return [*blocks, *_refusals(stage.refusals)]


def _kernels(kernels: Sequence[KernelReport]) -> Table:
    longest = max((k.seconds or 0.0 for k in kernels), default=0.0)
    rows = tuple(
        (
            k.name,
            k.operators,
            time(k.seconds) if k.seconds else "",
            time(k.limit) if k.limit else "",
            f"{amount(k.flops)}FLOP",
            nbytes(k.bytes),
        )
        for k in kernels
    )
    bars = tuple((k.seconds or 0.0) / longest for k in kernels) if longest else ()
    return Table(("kernel", "computes", "took", "at least", "work", "memory"), rows, 2, bars)


def _refusals(refusals: Sequence[Refusal]) -> list[Block]:
    counts: dict[tuple[str, ...], int] = {}
    for r in refusals:
        key = (r.value, r.how, r.other, r.why)
        counts[key] = counts.get(key, 0) + 1
    if not counts:
        return []
    return [Table(REFUSALS, tuple((*key, str(n)) for key, n in counts.items()), texts=4)]


def _kernel(k: KernelExplanation) -> Page:
    title, *facts = str(k).splitlines()[:3]
    tried = tuple((f"{n + 1}", a) for n, a in enumerate(k.attempts)) or (("", "as lowered"),)
    origin = f"came from {k.came_from}" if k.came_from != "compiled" else "was compiled"
    missed = f"It {origin}{': ' + k.miss if k.miss else ''}."
    work = str(k.kernel).partition(": ")[2]
    return Page(
        title,
        tuple(f.strip() for f in facts),
        _parts(
            ("why this schedule", [Table(("", "tried, or remarked"), tried, texts=2)]),
            ("cache and limits", [Text(f"{missed}\nIts work: {work}; {k.bound}.")]),
            ("what is apart", _refusals(k.refusals)),
        ),
    )
