"""Several models, shapes and numbers of threads on two engines: rows, means, tables and JSON."""

from __future__ import annotations

import dataclasses
import itertools
import math
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx

from tilewright.errors import InputError, TilewrightError
from tilewright.explore.compare import Comparison, EngineResult, Request, compare
from tilewright.explore.gemm import Products
from tilewright.explore.screen import Screen
from tilewright.options import available_cores
from tilewright.runtime.ceilings import cpu_name

PACKAGES = ("tilewright", "numba", "llvmlite", "numpy", "onnx", "onnxruntime")
Shape = Sequence[int]


@dataclass(frozen=True)
class Row:
    """One model with one set of shapes and one number of threads; `reason` where nothing came."""

    model: str
    case: str
    threads: int
    right: bool
    found: Comparison | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.model} {self.case}".strip()


@dataclass(frozen=True)
class Rows:
    """All of them, on which machine and with which versions."""

    against: str
    machine: Mapping[str, str | int]
    rows: tuple[Row, ...]

    @property
    def means(self) -> dict[int, float]:
        """The geometric mean of the ratios, by the number of threads."""
        ratios: dict[int, list[float]] = {}
        for row in self.rows:
            if row.found is not None:
                ratios.setdefault(row.threads, []).append(row.found.ratio)
        return {threads: statistics.geometric_mean(all_) for threads, all_ in ratios.items()}


def machine() -> dict[str, str | int]:
    """What a figure depends on."""
    found: dict[str, str | int] = {"processor": cpu_name(), "cores": available_cores()}
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cases(
    models: Sequence[str],
    threads: Sequence[int],
    shapes: Mapping[str, Sequence[Shape]],
    dims: Mapping[str, Sequence[int]],
    base: Request,
) -> list[tuple[Request, str]]:
    """Every model with every combination of what was given, and what tells its cases apart.

    Of several models each takes what it has; InputError for a name that none has.
    """
    if len(models) == 1 or not (shapes or dims):
        known = {model: {*shapes, *dims} for model in models}  # the engine will tell
    else:
        known = {model: _names(model) for model in models}
    for name in (*shapes, *dims):
        if not any(name in names for names in known.values()):
            raise InputError(f"no model has an input or a dimension {name!r}")
    found = []
    for model, count in itertools.product(models, threads):
        sizes = [_chosen(values, known[model]) for values in (shapes, dims)]
        for shape, dim in itertools.product(*map(_combinations, sizes)):
            request = dataclasses.replace(base, model=model, threads=count, shapes=shape, dims=dim)
            several = {n for given in sizes for n, values in given.items() if len(values) > 1}
            found.append((request, _label({**shape, **dim}, several)))
    return found


def _chosen(given: Mapping[str, Sequence[Any]], known: set[str]) -> dict[str, Sequence[Any]]:
    return {name: values for name, values in given.items() if name in known}


def _combinations(given: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*given.values()):
        yield dict(zip(given, values, strict=True))


def _label(given: Mapping[str, Any], several: set[str]) -> str:
    def text(value: Any) -> str:
        return str(value) if isinstance(value, int) else "x".join(map(str, value))

    return " ".join(f"{name}={text(given[name])}" for name in given if name in several)


def _names(path: str) -> set[str]:
    """Inputs of a model, and their symbolic dimensions."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:
        raise InputError(f"{path} is not an ONNX model: {error}") from error
    dims = [d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim]
    return {i.name for i in graph.input} | {d for d in dims if d}


def run(
    wanted: Sequence[tuple[Request, str]],
    tolerance: float,
    begin: Callable[[str], None],
    done: Callable[[Row], None],
) -> Rows:
    """Compares each; one that fails is a row with the reason."""
    rows = []
    for request, case in wanted:
        model = Path(request.model).stem
        begin(f"{model} {case}, threads: {request.threads}")
        row = Row(model, case, request.threads, False)
        try:
            # Figures are published: they say nothing of where the files lie.
            found = dataclasses.replace(compare(request), model=Path(request.model).name)
            right = found.error <= tolerance
            rows.append(dataclasses.replace(row, found=found, right=right))
        except TilewrightError as error:
            rows.append(dataclasses.replace(row, reason=str(error)))
        done(rows[-1])
    return Rows(wanted[0][0].against, machine(), tuple(rows))


def as_data(found: Any) -> Any:
    """As JSON has it; what it has no number for (an infinite error) is null."""
    match found:
        case dict():
            return {str(k): as_data(v) for k, v in found.items()}
        case list() | tuple():
            return [as_data(v) for v in found]
        case float() if not math.isfinite(found):
            return None
        case Rows():
            return as_data({**dataclasses.asdict(found), "means": found.means})
        case Products():
            return as_data({**dataclasses.asdict(found), "right": found.right})
    return found


# -- tables


def line(row: Row) -> str:
    """What is told as soon as it is known."""
    what = f"{row.name}, threads: {row.threads}"
    if row.found is None:
        return f"FAILED {what}: {row.reason}"
    verdict = "" if row.right else f", WRONG by {row.found.error:.1e}"
    return f"{what}: {row.found.ratio:.2f}{verdict}"


def show(found: Rows, screen: Screen) -> None:
    """One table for all, the means below it, and what failed."""
    screen.heading(f"tilewright beside {found.against} on {found.machine['processor']}")
    columns = ["model", "case", "threads", "ms", f"{found.against} ms", "ratio", "error", ""]
    there = [(row, row.found) for row in found.rows if row.found is not None]
    screen.table(columns, [_cells(row, f) for row, f in there])
    for threads, mean in found.means.items():
        slower = [r.name for r, f in there if r.threads == threads and f.ratio < 1]
        below = f"; below 1: {', '.join(slower)}" if slower else ""
        screen.line(f"threads: {threads}: {mean:.2f} times as fast (geometric mean){below}")
    for row in found.rows:
        if row.found is None:
            screen.line(line(row))


def _cells(row: Row, found: Comparison) -> list[str]:
    times = [f"{e.median * 1e3:.4g}" for e in found.engines]
    verdict = "right" if row.right else "WRONG"
    names = [row.model, row.case, str(row.threads)]
    return [*names, *times, f"{found.ratio:.2f}", f"{found.error:.1e}", verdict]


def show_starts(found: Rows, screen: Screen) -> None:
    """What a new process needs, where that was measured."""
    rows = [
        [row.model, row.case, str(row.threads), *cells]
        for row in found.rows
        if row.found is not None and (cells := _starts(row.found.engines))
    ]
    if rows:
        screen.heading("A new process when kernels are cached: seconds to an answer, peak memory")
        columns = ["model", "case", "threads", "s", f"{found.against} s", "MB"]
        screen.table([*columns, f"{found.against} MB"], rows)


def _starts(engines: Sequence[EngineResult]) -> list[str]:
    starts = [e.again for e in engines if e.again is not None]
    seconds = [f"{s.load + s.first:.2f}" for s in starts]
    return seconds + [f"{s.peak_bytes / 1e6:,.0f}" for s in starts]
