"""Puts measured figures into the README, between the comments that mark their place.

python benchmarks/report.py [README.md]

Reads what others have written: docs/performance.json and docs/gemm.json (`make bench`),
docs/cuda_sass.json (`make sass`) and, where a GPU has been measured, docs/gpu.json
(`make bench-gpu`).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_parts import tables
from gpu_parts.tables import table

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: {} -->\n", "<!-- end of figures -->\n"
ENGINE = {"onnxruntime": "ONNX Runtime"}
Figures = Mapping[str, Any]


def by_model(found: Figures) -> dict[str, dict[int, Figures]]:
    """Comparisons by model and threads; in the order of the files."""
    models: dict[str, dict[int, Figures]] = {}
    for row in found["rows"]:
        if row["found"] is not None:
            name = f"{row['model']} {row['case']}".strip()
            models.setdefault(name, {})[row["threads"]] = row["found"]
    return models


def machine(found: Figures) -> str:
    """One sentence on where figures come from."""
    at, other = found["machine"], found["against"]
    return (
        f"Measured on {at['processor']}, Python {at['python']}, Numba {at['numba']}, "
        f"{ENGINE.get(other, other)} {at.get(other, '')}.\n"
    )


def performance(found: Figures) -> str:
    """Milliseconds and ratios of all models."""
    threads = sorted({row["threads"] for row in found["rows"]})
    other = ENGINE.get(found["against"], found["against"])
    titles = ["model"]
    for t in threads:
        plural = "thread" if t == 1 else "threads"
        titles += [f"{t} {plural}: ms", f"{other} ms", "ratio"]
    rows = [
        [name, *(cell for t in threads for cell in times(measured.get(t)))]
        for name, measured in by_model(found).items()
    ]
    means = [cell for t in threads for cell in ("", "", f"**{found['means'][str(t)]:.2f}**")]
    worst = max(m["error"] for given in by_model(found).values() for m in given.values())
    note = f"The largest error of any output is {worst:.0e} of that output's largest value. "
    return table(titles, [*rows, ["**geometric mean**", *means]]) + "\n" + note + machine(found)


def times(measured: Figures | None) -> list[str]:
    """Our milliseconds, the other's, and how often we are as fast."""
    if measured is None:
        return ["", "", ""]
    ours, other = (e["median"] * 1e3 for e in measured["engines"])
    return [f"{ours:.3g}", f"{other:.3g}", f"{measured['ratio']:.2f}"]


def starts(found: Figures) -> str:
    """Memory and time of new processes when kernels are cached, with the fewest threads."""
    other = ENGINE.get(found["against"], found["against"])
    titles = ["model", "MB at most", f"{other} MB", "s to the first answer", f"{other} s"]
    rows = []
    for name, measured in by_model(found).items():
        again = [e["again"] for e in measured[min(measured)]["engines"]]
        if all(again):
            memory = [f"{a['peak_bytes'] / 1e6:,.0f}" for a in again]
            rows.append([name, *memory, *(f"{a['load'] + a['first']:.2f}" for a in again)])
    return table(titles, rows)


def products(found: Sequence[Figures]) -> str:
    """Products of matrices: those of models, and what is left of all odd sizes."""
    titles = ["rows x depth x columns", "of", "threads", "GFLOP/s", "NumPy's", "ratio", "of peak"]
    rows = [
        [
            f"{p['rows']}x{p['depth']}x{p['columns']}",
            p["label"],
            str(run["threads"]),
            f"{p['flops_rate'] / 1e9:,.0f}",
            f"{p['numpy_flops_rate'] / 1e9:,.0f}",
            f"{p['ratio']:.2f}",
            f"{p['peak']:.0%}",
        ]
        for run in found
        for p in run["products"]
        if p["label"] != "odd"
    ]
    return table(titles, rows) + "\n" + "".join(spread(run) for run in found)


def spread(run: Figures) -> str:
    """One sentence on the products of odd sizes: those from 10 MFLOP, where time is arithmetic."""
    odd = [p for p in run["products"] if p["label"] == "odd"]
    large = [p["ratio"] for p in odd if 2 * p["rows"] * p["depth"] * p["columns"] >= 1e7]
    if not large:
        return ""
    mean, least = statistics.geometric_mean(large), min(large)
    return (
        f"All {len(odd)} products of odd sizes are right; of the {len(large)} from 10 MFLOP, with "
        f"{run['threads']} thread{'s'[: run['threads'] > 1]}, the ratio is {mean:.2f} "
        f"(geometric mean) and at least {least:.2f}.\n"
    )


def machine_code(found: Figures) -> str:
    """Kernels of all models and what became of them, for the newest architecture; one sentence on
    each of the others."""
    newest, *others = sorted({r["architecture"] for r in found["rows"]}, reverse=True)
    titles = ["model", "launches", "kernels", "s", "registers", "spilled bytes", "on tensor cores"]
    rows = [
        [f"{r['model']} {r['case']}".strip(), str(r["steps"]), str(r["distinct"])]
        + [f"{r['seconds']:.1f}"]
        + [str(r["machine"][k]) for k in ("registers", "spill_bytes", "tensor_cores")]
        for r in found["rows"]
        if r["architecture"] == newest
    ]
    tools = ", ".join(f"{name} {version}" for name, version in found["toolchain"].items())
    said = "".join(f"{_totals(found, a)}\n" for a in (newest, *others))
    return f"{table(titles, rows)}\n{said}Compiled by {tools}.\n"


def _totals(found: Figures, architecture: str) -> str:
    rows = [r for r in found["rows"] if r["architecture"] == architecture]
    kernels = sum(r["distinct"] for r in rows)
    spilling = sum(r["machine"]["spilling"] for r in rows)
    return (
        f"For {architecture}: {kernels:,} kernels of {len(rows)} model{'s'[: len(rows) > 1]} "
        f"in {sum(r['seconds'] for r in rows):,.0f} s, {spilling or 'none'} of which "
        f"spill{'s' if spilling == 1 else ''} registers."
    )


def sections(folder: Path) -> Iterator[tuple[str, str]]:
    """Names of places in the README, and what belongs there."""
    found = _read(folder / "performance.json")
    yield "performance", performance(found)
    yield "starts", starts(found)
    yield "products", products(_read(folder / "gemm.json"))
    yield "machine code", machine_code(_read(folder / "cuda_sass.json"))
    if (measured := folder / "gpu.json").exists():
        yield "gpu", "\n".join(tables.sections(_read(measured)["runs"][-1]))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def filled(text: str, folder: Path) -> str:
    """The page with the figures of today in their places."""
    for name, content in sections(folder):
        before, begin, rest = text.partition(BEGIN.format(name))
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise SystemExit(f"there is no place for figures: {name}")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def main(words: Sequence[str]) -> None:
    """The command."""
    page = Path(words[0]) if words else ROOT / "README.md"
    text = filled(page.read_text(encoding="utf-8"), ROOT / "docs")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
