"""What is shown of a model: its graph, its kernels, its memory, and where kernels came from."""

from __future__ import annotations

from tilewright.explore.flow import Flow, Step, flow
from tilewright.explore.graph_picture import can_fold, cost_of, graph_picture, tasks
from tilewright.explore.memory_picture import live, memory_picture, spans
from tilewright.explore.pages import (
    Block,
    Choice,
    Page,
    Part,
    Picture,
    Table,
    Text,
    amount,
    nbytes,
    time,
)
from tilewright.explore.roofline import WIDTH, point, points_of, roofline
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.model import CompiledModel

MOST_WHOLE = 1500  # steps of a graph that is drawn without folding as well
MOST_SIGNATURES = 20
WIDE = 1000.0  # a picture that many screens are too narrow for
HINT = (
    "No signature has been seen, so there are no kernels yet. Call the model, or "
    "model.warmup({...}) with shapes; model.profile({...}) adds times to what is shown."
)


def model_page(model: CompiledModel) -> Page:
    """The call that was made last; others are named."""
    paths = model.paths()
    values = Table(
        ("", "name", "type"),
        tuple(
            (kind, spec.name, str(spec).removeprefix(f"{spec.name}: "))
            for kind, specs in (("input", model.inputs), ("output", model.outputs))
            for spec in specs
        ),
        texts=3,
    )
    if not paths:
        return Page(f"model {model.graph.name}", (HINT,), (Part("values", (values,)),))
    found, limits = flow(model, paths[0]), model.known_ceilings()
    facts = [
        f"{len([s for s in found.steps if s.kernel is not None])} kernels for "
        f"({found.signature}), the signature used last of {len(paths)}"
    ]
    if not found.is_complete:
        facts.append("It was not run to its end yet: what follows depends on values.")
    parts = [
        Part("graph", _graph(found, limits)),
        Part("kernels", _kernels(found, limits)),
        Part("memory", _memory(found)),
        Part("cache", _cache(model)),
        Part("values", (values,)),
    ]
    return Page(f"model {model.graph.name}", tuple(facts), tuple(parts))


def _graph(found: Flow, limits: Ceilings | None) -> tuple[Block, ...]:
    measured = any(s.seconds is not None for s in found.steps)
    what = "measured time" if measured else "least time" if limits else "operations and bytes"
    words = Text(
        f"A box is a kernel with its operators; its colour and the bar below are its {what}. "
        "Lines are buffers; point at anything for more."
    )
    if not found.steps:
        return (Text("Nothing is computed."),)
    if not can_fold(found):
        return words, _picture(found, limits, False)
    if len(found.steps) > MOST_WHOLE:
        return words, _picture(found, limits, True)
    both = _picture(found, limits, True), _picture(found, limits, False)
    return words, Choice(("layers that repeat once", "every kernel"), both)


def _picture(found: Flow, limits: Ceilings | None, folds: bool) -> Picture:
    svg, width, _ = graph_picture(found, limits, folds)
    return Picture(svg, width, can_zoom=True)


def _kernels(found: Flow, limits: Ceilings | None) -> tuple[Block, ...]:
    steps = found.steps
    costs = [cost_of(s, limits) for s in steps]
    largest = max(costs, default=0.0) or 1.0
    table = Table(
        (
            "kernel",
            "computes",
            "time",
            "share",
            "FLOP",
            "bytes",
            "of peak",
            "of bandwidth",
            "runs as",
        ),
        tuple(_row(s, limits) for s in steps),
        texts=2,
        bars=tuple(c / largest for c in costs),
    )
    blocks: list[Block] = [table]
    measured = [s.kernel.measured for s in steps if s.seconds is not None]
    if measured:
        profiled = roofline(points_of([m.step for m in measured]), measured[0].ceilings)
        blocks.append(Picture(profiled, WIDTH, title="below the limits of the machine"))
    elif limits is not None and any(s.kernel is not None for s in steps):
        points = [
            point(s.name, s.kernel.graph, s.kernel.cost, None)
            for s in steps
            if s.kernel is not None
        ]
        blocks.append(Picture(roofline(points, limits), WIDTH, title="what is possible at most"))
    return tuple(blocks)


def _row(s: Step, limits: Ceilings | None) -> tuple[str, ...]:
    if s.kernel is None:
        return s.name, " · ".join(s.operators), "", "", "", "", "", "", "host"
    cost, found = s.kernel.cost, s.kernel.measured
    amounts = amount(cost.flops).rstrip() if cost.flops else "0", nbytes(cost.bytes)
    if found is None:
        least = f"≥ {time(limits.seconds(cost.flops, cost.bytes))}" if limits else ""
        return s.name, s.kernel.graph, least, "", *amounts, "", "", tasks(s.kernel)
    shares = f"{found.step.peak:.0%}", f"{found.step.bandwidth:.0%}"
    spent = time(found.step.seconds), f"{found.share:.1%}"
    return s.name, s.kernel.graph, *spent, *amounts, *shares, tasks(s.kernel)


def _memory(found: Flow) -> tuple[Block, ...]:
    weights = sum(s.weights for s in found.steps)
    blocks: list[Block] = [
        Text(
            f"Intermediate results share one piece of memory for each stage; constants are "
            f"{nbytes(weights)} as kernels read them, inputs and outputs have memory of their own."
        )
    ]
    for stage, size in enumerate(found.arenas):
        kernels = len(found.kernels(stage))
        lying = spans(found, stage)
        if not lying:
            continue
        svg, width = memory_picture(found, stage)
        needed = max(live(lying, kernels), default=0)
        instead = f"{nbytes(size)} for {len(lying)} buffers, {nbytes(needed)} needed at once"
        title = f"stage {stage}" if len(found.arenas) > 1 else ""
        blocks.append(Picture(svg, width, instead, width > WIDE, title))
    if len(blocks) == 1:
        blocks.append(Text("No kernel passes anything on through this memory."))
    return tuple(blocks)


def _cache(model: CompiledModel) -> tuple[Block, ...]:
    info, stats = model.cache_info(), model.kernel_stats()
    rows = [
        ("signatures", f"{info.signatures:,}"),
        ("stages", f"{info.stages:,}"),
        ("stages dropped for want of memory", f"{info.dropped:,}"),
        ("bytes held", nbytes(info.nbytes)),
    ]
    if stats is not None:
        rows += [
            ("kernels from memory", f"{stats.memory:,}"),
            ("kernels from disk", f"{stats.disk:,}"),
            ("kernels compiled", f"{stats.compiled:,}"),
            ("spent on kernels not in memory", time(stats.seconds)),
        ]
    seen = [
        (", ".join(f"{i.dtype.numpy}{list(i.shape)}" for i in path[0].stage.inputs),)
        for path in model.paths()
    ]
    table = Table(("signatures, used last first",), tuple(seen[:MOST_SIGNATURES]))
    return Table(("", ""), tuple(rows), texts=1), table
