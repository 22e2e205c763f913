"""The command `tilewright`.

tilewright bench MODEL --against onnxruntime
tilewright bench --gemm
tilewright doctor
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from tilewright.errors import InputError, TilewrightError
from tilewright.explore import doctor, gemm
from tilewright.explore.compare import Comparison, Request, check_model, compare
from tilewright.explore.engines import LOADERS
from tilewright.explore.gemm import ODD_SIZES
from tilewright.explore.screen import Screen, open_screen
from tilewright.options import available_cores

RIGHT, WRONG, FAILED = 0, 1, 2
EXIT_CODES = "exit codes: 0 the outputs agree, 1 they do not, 2 nothing could be compared"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="tilewright", description="Looks at compiled models.")
    commands = top.add_subparsers(dest="command", required=True)
    bench = commands.add_parser(
        "bench",
        help="compare with another engine",
        description="Compares a model with another engine, or matrix products with NumPy.",
        epilog=EXIT_CODES,
    )
    add = bench.add_argument
    add("model", nargs="?", help="an ONNX file")
    add("--gemm", action="store_true", help="matrix products against NumPy instead of a model")
    others = [name for name in LOADERS if name != "tilewright"]
    add("--against", default="onnxruntime", choices=others, help="the other engine")
    add("--threads", type=_positive, default=available_cores(), help="of each engine")
    add("--seconds", type=_seconds, default=4.0, help="time for both together, first calls apart")
    add("--shape", type=_shape, action="append", default=[], metavar="NAME=1x3x224x224")
    add("--dim", type=_dim, action="append", default=[], metavar="NAME=N", help="1 unless given")
    add("--input", metavar="FILE.npz", help="arrays by the names of inputs; others are random")
    add("--below", type=_positive, default=2, help="random integers are less (2)")
    add("--tolerance", type=float, default=1e-3, help="largest error that counts as right (1e-3)")
    add("--limit", type=_seconds, default=600.0, help="seconds that an engine may take to answer")
    add("--sizes", type=_sizes, default=ODD_SIZES, metavar="N,N", help="of --gemm, each dimension")
    add("--all", action="store_true", help="every product of --gemm, not only the slowest")
    add("--json", action="store_true", help="print JSON instead of tables")
    look = commands.add_parser(
        "doctor",
        help="what this machine offers, what is missing and how to get it",
        description="Shows what compiled models can use here, and what is missing for CUDA.",
    )
    look.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return top


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(n) for n in text.split(",") if n)


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _shape(text: str) -> tuple[str, list[int]]:
    name, value = _named(text)
    try:
        shape = [int(n) for n in value.split("x")] if value else []
    except ValueError:
        shape = [-1]
    if min(shape, default=0) < 0:
        raise argparse.ArgumentTypeError(f"{value!r} is not a shape like 1x3x224x224")
    return name, shape


def _dim(text: str) -> tuple[str, int]:
    name, value = _named(text)
    try:
        return name, _positive(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number") from None


def bench_model(arguments: argparse.Namespace, screen: Screen) -> int:
    """One model on two engines."""
    check_model(arguments.model)
    found = compare(
        Request(
            arguments.model,
            arguments.against,
            arguments.threads,
            arguments.seconds,
            arguments.limit,
            dict(arguments.shape),
            dict(arguments.dim),
            arguments.input,
            arguments.below,
        )
    )
    right = found.error <= arguments.tolerance
    if arguments.json:
        print(as_json(found, right))
    else:
        show(found, right, screen)
    return RIGHT if right else WRONG


def as_json(found: Comparison | gemm.Products, right: bool) -> str:
    """Everything; what JSON has no number for (an infinite error) is null."""

    def plain(value: Any) -> Any:
        match value:
            case dict():
                return {k: plain(v) for k, v in value.items()}
            case list() | tuple():
                return [plain(v) for v in value]
            case float() if not math.isfinite(value):
                return None
        return value

    return json.dumps(plain(dataclasses.asdict(found) | {"right": right}), allow_nan=False)


def show(found: Comparison, right: bool, screen: Screen) -> None:
    """The comparison as a table."""
    given = ", ".join(f"{name}: {kind}" for name, kind in found.inputs.items())
    screen.heading(f"{found.model} with {found.threads} threads")
    screen.line(f"inputs: {given or 'none'}")
    columns = ["engine", "load s", "first call ms", "median ms", "least ms", "calls", "peak MB"]
    rows = [
        [
            e.engine,
            f"{e.load:.2f}",
            f"{e.first * 1e3:,.1f}",
            f"{e.median * 1e3:.4g}",
            f"{e.least * 1e3:.4g}",
            str(e.calls),
            f"{e.peak_bytes / 1e6:,.0f}",
        ]
        for e in found.engines
    ]
    screen.table(columns, rows)
    screen.line(
        f"{'right' if right else 'WRONG'}, largest error {found.error:.1e}; "
        f"{found.ratio:.2f} times as fast as {found.engines[1].engine} "
        f"(median of {found.turns} turns)"
    )


def bench_gemm(arguments: argparse.Namespace, screen: Screen) -> int:
    """Products of matrices against NumPy."""
    found = gemm.bench(arguments.sizes, arguments.threads, arguments.limit)
    if arguments.json:
        print(as_json(found, found.right))
    else:
        gemm.show(found, screen, arguments.all)
    return RIGHT if found.right else WRONG


def show_doctor(arguments: argparse.Namespace, screen: Screen) -> int:
    """What is here; that something is missing is no failure."""
    found = doctor.diagnose()
    if arguments.json:
        print(json.dumps(found.as_dict()))
    else:
        doctor.show(found, screen)
    return RIGHT


def run(arguments: argparse.Namespace) -> int:
    """What the command line asks for."""
    if arguments.command == "doctor":
        return show_doctor(arguments, open_screen())
    if bool(arguments.model) == arguments.gemm:
        raise InputError("give a model, or --gemm")
    bench = bench_gemm if arguments.gemm else bench_model
    return bench(arguments, open_screen())


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    arguments = parser().parse_args(words)
    try:
        return run(arguments)
    except TilewrightError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
