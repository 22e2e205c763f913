"""`tilewright run`: a model on random or given inputs, its outputs shown and saved."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import InputError
from tilewright.explore.commands.base import (
    RIGHT,
    Command,
    add_inputs,
    add_json,
    add_model,
    is_quiet,
    open_model,
    positive,
    wanted,
    write_json,
)
from tilewright.explore.feeds import feeds_of
from tilewright.explore.process import flat
from tilewright.explore.saved import FORMATS, check_output, save
from tilewright.explore.screen import Screen

FIRST = 4  # elements that are shown


def _add(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_inputs(parser)
    add = parser.add_argument
    add("--output", metavar="FILE.npz|FOLDER", help=f"where outputs go; in a folder {FORMATS}")
    add("--format", choices=FORMATS, default="npy", help="of files in a folder (npy)")
    add("--save-inputs", metavar="FILE.npz", help="the inputs, to run them again with --input")
    add("--repeat", type=positive, default=1, metavar="N", help="calls after the first, for times")
    add_json(parser)


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    if arguments.output:
        check_output(arguments.output)
    if arguments.save_inputs and not arguments.save_inputs.endswith(".npz"):
        raise InputError("--save-inputs takes the name of an .npz file")
    start = time.perf_counter()
    model = open_model(arguments)
    load = time.perf_counter() - start
    feeds = feeds_of(model, wanted(arguments))
    first, outputs = _timed(model, feeds)
    times = [_timed(model, feeds)[0] for _ in range(arguments.repeat)]
    arrays = flat(outputs)
    if arguments.save_inputs:
        save(arguments.save_inputs, feeds, "npz")
    if arguments.output:
        save(arguments.output, arrays, arguments.format)
    data = {
        "model": arguments.model,
        "seconds": {"load": load, "first": first, "median": statistics.median(times)},
        "inputs": {n: _described(a) for n, a in feeds.items()},
        "outputs": {n: _described(a) for n, a in arrays.items()},
    }
    if not is_quiet(arguments):
        _show(data, screen)
        if arguments.output:
            screen.line(f"saved in {arguments.output}")
    write_json(data, arguments.json)
    return RIGHT


def _timed(model: Any, feeds: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    start = time.perf_counter()
    outputs = model.run(feeds)
    return time.perf_counter() - start, outputs


def _described(a: np.ndarray) -> dict[str, Any]:
    """An array in a few words: its type, and what its elements are like."""
    told: dict[str, Any] = {"dtype": str(a.dtype), "shape": list(a.shape)}
    if (a.size and a.dtype.kind in "fiub") or a.dtype.name in ("bfloat16",):
        wide = a.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        if finite.size:
            told |= {"min": finite.min(), "max": finite.max(), "mean": finite.mean()}
        if finite.size < wide.size:
            told["not finite"] = int(wide.size - finite.size)
        told["first"] = [repr(float(v)) for v in wide.ravel()[:FIRST]]
    elif a.size:
        told["first"] = [str(v) for v in a.ravel()[:FIRST]]
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in told.items()}


def _show(data: Mapping[str, Any], screen: Screen) -> None:
    seconds = data["seconds"]
    screen.heading(Path(data["model"]).name)
    screen.line(
        f"loaded in {seconds['load'] * 1e3:,.0f} ms, first call {seconds['first'] * 1e3:,.1f} ms, "
        f"then {seconds['median'] * 1e3:,.4g} ms"
    )
    for kind in ("inputs", "outputs"):
        rows = [
            [
                name,
                f"{d['dtype']}[{', '.join(map(str, d['shape']))}]",
                *(f"{d[k]:.4g}" if k in d else "" for k in ("min", "max", "mean")),
                str(d.get("not finite", "")),
                " ".join(_short(v) for v in d.get("first", ())),
            ]
            for name, d in data[kind].items()
        ]
        titles = [kind, "type", "min", "max", "mean", "not finite", "first elements"]
        screen.table(titles, rows)


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text[:16]


RUN = Command(
    "run",
    "run a model once and show its outputs",
    _add,
    _run,
    "Runs a model on random inputs, or on those of files, and shows or saves its outputs.",
)
