"""What is shown of a kernel: every level of it, what it costs, and what limits it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from tilewright.errors import DeviceError
from tilewright.explore.graph_picture import tasks
from tilewright.explore.highlight import GAS, LLVM, LOOPS, PTX, PYTHON, SASS
from tilewright.explore.pages import (
    Block,
    Choice,
    Code,
    Page,
    Part,
    Picture,
    Table,
    Text,
    amount,
    nbytes,
    time,
)
from tilewright.explore.roofline import WIDTH, point, roofline
from tilewright.options import Options
from tilewright.runtime.ceilings import Ceilings, known_ceilings
from tilewright.runtime.levels import CudaLevels, Levels

FOLDED = 120  # lines from which on a source is folded


def kernel_page(kernel: Any, below: bool = True) -> Page:
    """All levels; those `below` the source compile it once more, which takes a moment."""
    limits = _limits(kernel)
    parts = [
        Part("source", (Code(kernel.source, PYTHON),)),
        Part("loops", _loops(kernel)),
        Part("cost", _cost(kernel, limits)),
    ]
    if below:
        parts += [Part(name, (block,), is_deep=True) for name, block in _below(kernel)]
    facts = [f"computes {kernel.graph} in {tasks(kernel)}"]
    if kernel.nodes:
        facts.append(f"nodes: {', '.join(kernel.nodes)}")
    facts.append(f"reads {', '.join(kernel.reads)}; writes {', '.join(kernel.writes)}")
    return Page(kernel.name, tuple(facts), tuple(parts))


def _limits(kernel: Any) -> Ceilings | None:
    """Of the machine that a profile measured, or of this one if they are known."""
    if kernel.measured is not None:
        return kernel.measured.ceilings  # type: ignore[no-any-return]
    return None if _is_cuda(kernel) else known_ceilings(Options.from_environment())


def _loops(kernel: Levels) -> tuple[Block, ...]:
    """The loops after each directive, the lines that it made marked."""
    blocks, before = list[Block](), ""
    for k, (directive, text) in enumerate(kernel.steps):
        marked = changed_lines(before, text) if k else frozenset[int]()
        same = " (the text is the same)" if text == before else ""
        title = directive + same if k else f"{directive}, {len(kernel.steps) - 1} directives follow"
        blocks.append(Code(text, LOOPS, title, marked))
        before = text
    rows = tuple((str(k), directive) for k, (directive, _) in enumerate(kernel.steps))
    names = tuple(number for number, _ in rows)
    schedule = Table(("", "schedule"), rows, texts=2)
    return schedule, Choice(names, tuple(blocks), chosen=len(blocks) - 1)


def changed_lines(before: str, after: str) -> frozenset[int]:
    """The lines of `after` that `before` does not have at their place."""
    old, new = before.splitlines(), after.splitlines()
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    same = {k for b in blocks for k in range(b.b, b.b + b.size)}
    return frozenset(range(len(new))) - same


def _cost(kernel: Any, limits: Ceilings | None) -> tuple[Block, ...]:
    cost, found = kernel.cost, kernel.measured
    rows = [
        ("operations", f"{amount(cost.flops)}FLOP"),
        ("bytes that must move", nbytes(cost.bytes)),
    ]
    if cost.bytes:
        rows.append(("operations per byte", f"{cost.flops / cost.bytes:.3g}"))
    if found is not None:
        s = found.step
        rows += [
            (
                "measured",
                f"{time(s.seconds)} in {s.calls} calls" if s.calls > 1 else time(s.seconds),
            ),
            ("share of all steps", f"{found.share:.1%}"),
            ("of what multiply-adds reach", f"{s.peak:.0%}"),
            ("of the bandwidth", f"{s.bandwidth:.0%}"),
            ("bound by", s.bound),
        ]
    if limits is not None:
        rows.append(("at least", time(limits.seconds(cost.flops, cost.bytes))))
    rows += [(name, value) for name, value in _usage(kernel)]
    table = Table(("", ""), tuple(rows), texts=2)
    if limits is None:
        return table, Text("What the machine can do is not known yet: profile a call of the model.")
    seconds = found.step.seconds / max(found.step.calls, 1) if found is not None else None
    svg = roofline([point(kernel.name, kernel.graph, cost, seconds)], limits)
    return table, Picture(svg, WIDTH)


def _is_cuda(kernel: object) -> bool:
    return isinstance(kernel, CudaLevels)


def _usage(kernel: Any) -> list[tuple[str, str]]:
    if not _is_cuda(kernel):
        return [("tasks", str(kernel.tasks))]
    usage = kernel.compiled.usage
    return [
        ("blocks", f"{kernel.blocks:,} of {kernel.threads} threads"),
        ("shared bytes of a block", f"{kernel.shared_bytes + usage.shared_bytes:,}"),
        ("registers of a thread", str(usage.registers)),
        ("spilled bytes of a thread", str(usage.spill_bytes)),
    ]


def _below(kernel: Any) -> list[tuple[str, Block]]:
    levels: list[tuple[str, str, Callable[[], str]]]
    if _is_cuda(kernel):
        levels = [("PTX", PTX, lambda: kernel.ptx), ("SASS", SASS, lambda: kernel.sass)]
    else:
        levels = [
            ("LLVM IR", LLVM, lambda: kernel.llvm),
            ("assembly", GAS, lambda: kernel.assembly),
        ]
    return [(name, _level(name, language, level)) for name, language, level in levels]


def _level(name: str, language: str, level: Callable[[], str]) -> Block:
    try:
        text = level()
    except DeviceError as error:  # no disassembler: the other levels are there all the same
        return Text(str(error))
    return Code(text, language, name, is_folded=len(text.splitlines()) > FOLDED)
