"""What every subcommand has: how it is told to the parser, its options for inputs, its JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tilewright
from tilewright.driver import TARGETS
from tilewright.errors import InputError
from tilewright.explore.compare import check_model
from tilewright.explore.feeds import Wanted
from tilewright.explore.screen import Screen
from tilewright.options import Options, available_cores
from tilewright.runtime.model import CompiledModel

RIGHT, WRONG, FAILED = 0, 1, 2


@dataclass(frozen=True)
class Command:
    """A subcommand: `add` gives the parser its arguments, `run` does it and gives the exit code."""

    name: str
    help: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Screen], int]
    description: str = ""
    epilog: str = ""


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, and where it runs."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file")
    parser.add_argument("--target", default="cpu", choices=TARGETS, help="cpu: the processor here")
    parser.add_argument("--threads", type=positive, metavar="N", help="all cores unless given")


def add_inputs(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """What the model is fed; `several`: shapes and sizes may be lists, each of which is a case."""
    add = parser.add_argument
    shape, dim = (
        ("NAME=1x3x224x224[,...]", "NAME=N[,N]") if several else ("NAME=1x3x224x224", "NAME=N")
    )
    add("--shape", type=shapes, action="append", default=[], metavar=shape, help="of an input")
    add("--dim", type=dims, action="append", default=[], metavar=dim, help="a symbolic one; else 1")
    text = "FILE.npz, NAME=FILE.npy or NAME=FILE.pb; inputs without one are random"
    add("--input", action="append", default=[], metavar="FILE", help=text)
    add("--below", type=positive, default=2, help="random integers are less (2)")
    add("--seed", type=int, default=0, help="of random inputs (0)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Where all figures go."""
    parser.add_argument(
        "--json", type=file(".json"), metavar="FILE.json", help="all of it; - prints it"
    )


def wanted(arguments: argparse.Namespace) -> Wanted:
    """The inputs that are asked for: one case."""
    found: dict[str, dict[str, Any]] = {"shape": {}, "dim": {}}
    for kind, chosen in found.items():
        for name, values in getattr(arguments, kind):
            if len(values) != 1:
                raise InputError(f"--{kind} {name}: give one, this command has one case")
            chosen[name] = values[0]
    return Wanted(found["shape"], found["dim"], arguments.input, arguments.below, arguments.seed)


def open_model(arguments: argparse.Namespace) -> CompiledModel:
    """The model of `add_model`, ready for calls."""
    check_model(arguments.model)
    options = Options.from_environment()
    if arguments.threads:
        options = dataclasses.replace(options, threads=arguments.threads)
    return tilewright.compile(arguments.model, target=arguments.target, options=options)


def is_quiet(arguments: argparse.Namespace) -> bool:
    """Whether the output is JSON and nothing else."""
    return bool(arguments.json == "-")


def default_threads() -> list[int]:
    """All cores."""
    return [available_cores()]


def file(suffix: str) -> Callable[[str], str]:
    """What ends otherwise is not written to: it may be a model."""

    def named(text: str) -> str:
        if text != "-" and not text.endswith(suffix):
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {suffix}")
        return text

    return named


def positive(text: str) -> int:
    """A whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def seconds(text: str) -> float:
    """A time."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def sizes(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between."""
    return tuple(positive(n) for n in text.split(",") if n)


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _shape(text: str) -> list[int]:
    try:
        shape = [int(n) for n in text.split("x")] if text else []
    except ValueError:
        shape = [-1]
    if min(shape, default=0) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape like 1x3x224x224")
    return shape


def shapes(text: str) -> tuple[str, list[list[int]]]:
    """A name and shapes."""
    name, values = _named(text)
    return name, [_shape(value) for value in values.split(",")]


def dims(text: str) -> tuple[str, list[int]]:
    """A name and sizes."""
    name, values = _named(text)
    return name, [positive(value) for value in values.split(",")]


def write_json(data: Any, path: str | None) -> None:
    """Into a file, or to the output."""
    if path is not None:
        if path == "-":
            print(json.dumps(data, allow_nan=False))
        else:
            Path(path).write_text(json_lines(data) + "\n", encoding="utf-8")


def json_lines(data: Any, margin: str = "") -> str:
    """JSON with a line to each list or object that holds no others: short, and it diffs well."""
    inner = list(data.values()) if isinstance(data, dict) else data
    if not isinstance(inner, list) or not any(isinstance(x, (list, dict)) for x in inner):
        return json.dumps(data, allow_nan=False)
    deeper = margin + " "
    names = [f"{json.dumps(k)}: " for k in data] if isinstance(data, dict) else [""] * len(inner)
    rows = [deeper + n + json_lines(x, deeper) for n, x in zip(names, inner, strict=True)]
    begin, end = "{}" if isinstance(data, dict) else "[]"
    return ",\n".join([begin + "\n" + rows[0], *rows[1:]]) + f"\n{margin}{end}"
