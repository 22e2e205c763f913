"""Rows as text: a line for each, and the tables of the README."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpu_parts.record import DONE, Row

OURS, KERNELS = "tilewright", "kernels"
Figures = Mapping[str, Any]


def headline(row: Row) -> str:
    """What a case is about, in a few words."""
    f = row.figures
    match row.part:
        case "ceilings":
            return _ceiling(row.case, f)
        case "tests" | "nodes":
            return f"{f['passed']} passed, {len(f['skipped'])} reasons to skip"
        case "memory":
            return f"{f['rate'] / 1e9:,.0f} GB/s, {f['of_copy']:.0%} of a copy"
        case "matmul" | "conv" | "attention":
            return f"{f['rate'] / 1e12:,.1f} TFLOP/s{_beside(f)}"
        case "agreement":
            return f"error {f['error']:.1e}, {f['kernels']} kernels"
        case "overhead":
            host = f"host {f['host_call'] * 1e6:.1f} us a call, {f['host_start'] * 1e6:.1f} a start"
            return f"{f['kernels']} kernels, {f['seconds'][KERNELS] * 1e6:.1f} us; {host}"
        case "models":
            return f"{f['seconds'][OURS] * 1e3:.3g} ms, {f['kernels']} kernels{_ratios(f)}"
    return str(dict(f))[:200]


def _ceiling(case: str, f: Figures) -> str:
    if case == "launch":
        return f"{f['launch'] * 1e6:.2f} us, in a graph {f['graph_kernel'] * 1e6:.2f} us"
    if case == "copy":
        return f"{f['rate'] / 1e9:,.0f} GB/s"
    return f"{f['rate'] / 1e12:,.1f} TFLOP/s"


def _beside(f: Figures) -> str:
    ratio = f.get("kernel_ratio")
    return f", {ratio:.2f} of the rival's speed" if ratio else ""


def _ratios(f: Figures) -> str:
    return "".join(f", {ratio:.2f} times as fast as {name}" for name, ratio in f["ratios"].items())


# -- the README


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all but the first column are numbers."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (titles, rule, *rows))


def sections(run: Mapping[str, Any]) -> Iterator[str]:
    """Paragraphs and tables on one run, of the parts that it has."""
    rows = [Row(**r) for r in run["rows"]]
    done: dict[str, list[Row]] = {}
    for row in rows:
        if row.status == DONE:
            done.setdefault(row.part, []).append(row)
    yield machine(run)
    ceilings = {r.case: r.figures for r in done.get("ceilings", ())}
    if ceilings:
        yield ", ".join(f"{n}: {_ceiling(n, f)}" for n, f in ceilings.items()) + ".\n"
    if models := done.get("models"):
        yield table(("model", "kernels", "ms", "torch", "torch.compile"), [*map(_model, models)])
        yield from _means(models)
    peaks = {n.removeprefix("tensor "): f["rate"] for n, f in ceilings.items() if "rate" in f}
    peaks["f32"] = peaks.get("float32", 0.0)
    for part in ("matmul", "conv", "attention"):
        if found := done.get(part):
            titles = (part, "TFLOP/s", "of the peak", "beside the fastest rival")
            yield table(titles, [_product(r, peaks) for r in found])
    if memory := done.get("memory"):
        yield table(("memory", "GB/s", "of a copy"), [*map(_memory, memory)])
    if agreement := done.get("agreement"):
        worst = max(r.figures["error"] for r in agreement)
        yield (
            f"{len(agreement)} models agree with the processor's results; the largest error of any "
            f"output is {worst:.0e} of that output's largest value.\n"
        )


def machine(run: Mapping[str, Any]) -> str:
    """One sentence on where figures come from."""
    at = run["machine"]
    versions = at["versions"]
    told = [f"{name} {versions[name]}" for name in ("torch", "numba-cuda") if name in versions]
    return f"Measured on {at['gpu']}, driver {at.get('driver', '?')}, {', '.join(told)}.\n"


def _model(row: Row) -> list[str]:
    f = row.figures
    ratios = [f["ratios"].get(name) for name in ("torch", "torch.compile")]
    cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return [row.case, str(f["kernels"]), f"{f['seconds'][OURS] * 1e3:.3g}", *cells]


def _means(models: Sequence[Row]) -> Iterator[str]:
    for name in ("torch", "torch.compile"):
        ratios = [r.figures["ratios"][name] for r in models if name in r.figures["ratios"]]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            yield f"{mean:.2f} times as fast as {name} (geometric mean of {len(ratios)}).\n"


def _product(row: Row, peaks: Mapping[str, float]) -> list[str]:
    f, peak = row.figures, peaks.get(row.case.rpartition(" ")[2])
    share = f"{f['rate'] / peak:.0%}" if peak else ""
    ratio = f"{f['kernel_ratio']:.2f}" if "kernel_ratio" in f else ""
    return [row.case, f"{f['rate'] / 1e12:,.1f}", share, ratio]


def _memory(row: Row) -> list[str]:
    return [row.case, f"{row.figures['rate'] / 1e9:,.0f}", f"{row.figures['of_copy']:.0%}"]
