"""The command `tilewright`.

tilewright bench MODEL ... --against onnxruntime
tilewright bench --gemm
tilewright compile MODEL ... --target cuda --arch sm_80 sm_90a
tilewright doctor
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tilewright.driver import TARGETS
from tilewright.errors import InputError, TilewrightError
from tilewright.explore import doctor, gemm, many, precompile
from tilewright.explore.compare import Comparison, Request, check_model
from tilewright.explore.gemm import ODD_SIZES
from tilewright.explore.many import Row, Rows, as_data
from tilewright.explore.picture import picture
from tilewright.explore.process import LOADERS
from tilewright.explore.screen import Screen, open_screen, progress
from tilewright.options import Options, available_cores
from tilewright.runtime.cuda.offline import check_architecture
from tilewright.runtime.cuda.toolchain import find_toolchain

RIGHT, WRONG, FAILED = 0, 1, 2
EXIT_CODES = "exit codes: 0 all outputs agree, 1 some do not, 2 something could not be compared"
COMPILE_CODES = (
    "exit codes: 0 all is compiled, 1 random data did not lead through some model, 2 some model "
    "could not be compiled"
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="tilewright", description="Looks at compiled models.")
    commands = top.add_subparsers(dest="command", required=True)
    bench = commands.add_parser(
        "bench",
        help="compare with another engine",
        description="Compares models with another engine, or matrix products with NumPy.",
        epilog=EXIT_CODES,
    )
    add = bench.add_argument
    add("models", nargs="*", metavar="MODEL", help="ONNX files")
    add("--gemm", action="store_true", help="matrix products against NumPy instead of models")
    others = [name for name in LOADERS if name != "tilewright"]
    add("--against", default="onnxruntime", choices=others, help="the other engine")
    cores = [available_cores()]
    add("--threads", type=_positive, nargs="+", default=cores, metavar="N", help="of each engine")
    add("--seconds", type=_seconds, default=4.0, help="time for both together, first calls apart")
    add("--shape", type=_shapes, action="append", default=[], metavar="NAME=1x3x224x224[,...]")
    add("--dim", type=_dims, action="append", default=[], metavar="NAME=N[,N]", help="else 1")
    add("--input", metavar="FILE.npz", help="arrays by the names of inputs; others are random")
    add("--below", type=_positive, default=2, help="random integers are less (2)")
    add("--tolerance", type=float, default=1e-3, help="largest error that counts as right (1e-3)")
    add("--limit", type=_seconds, default=600.0, help="seconds that an engine may take to answer")
    add("--memory", action="store_true", help="also measure new processes, kernels being cached")
    add("--sizes", type=_sizes, default=ODD_SIZES, metavar="N,N", help="of --gemm, each dimension")
    add("--all", action="store_true", help="every product of --gemm, not only the slowest")
    add("--json", type=_file(".json"), metavar="FILE.json", help="all figures; - prints them")
    add("--picture", type=_file(".svg"), metavar="FILE.svg", help="ratios of models as bars")
    add_compile(commands)
    look = commands.add_parser(
        "doctor",
        help="what this machine offers, what is missing and how to get it",
        description="Shows what compiled models can use here, and what is missing for CUDA.",
    )
    look.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return top


def add_compile(commands: Any) -> None:
    """The command that compiles ahead."""
    made = commands.add_parser(
        "compile",
        help="compile all kernels of models now, also for a GPU that is not here",
        description="Fills the kernel cache, so that first calls need no compiler.",
        epilog=COMPILE_CODES,
    )
    add = made.add_argument
    add("models", nargs="+", metavar="MODEL", help="ONNX files")
    add("--target", default="cpu", choices=TARGETS, help="cpu: the processor here")
    add("--arch", nargs="+", metavar="sm_90a", help="of --target cuda; else that of the GPU here")
    add("--shape", type=_shapes, action="append", default=[], metavar="NAME=1x3x224x224[,...]")
    add("--dim", type=_dims, action="append", default=[], metavar="NAME=N[,N]", help="else 1")
    add("--input", metavar="FILE.npz", help="arrays by the names of inputs; others are random")
    add("--below", type=_positive, default=2, help="random integers are less (2)")
    add("--jobs", type=_positive, default=available_cores(), metavar="N", help="processes")
    add("--json", type=_file(".json"), metavar="FILE.json", help="all figures; - prints them")


def _file(suffix: str) -> Callable[[str], str]:
    """What ends otherwise is not written to: it may be a model."""

    def named(text: str) -> str:
        if text != "-" and not text.endswith(suffix):
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {suffix}")
        return text

    return named


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


def _shape(text: str) -> list[int]:
    try:
        shape = [int(n) for n in text.split("x")] if text else []
    except ValueError:
        shape = [-1]
    if min(shape, default=0) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape like 1x3x224x224")
    return shape


def _shapes(text: str) -> tuple[str, list[list[int]]]:
    name, values = _named(text)
    return name, [_shape(value) for value in values.split(",")]


def _dims(text: str) -> tuple[str, list[int]]:
    name, values = _named(text)
    try:
        return name, [_positive(value) for value in values.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{values!r} is not a whole number") from None


def bench_models(arguments: argparse.Namespace, screen: Screen) -> int:
    """Models on two engines."""
    wanted = wanted_cases(arguments)
    told = len(wanted) > 1 and arguments.json != "-"

    def done(row: Row) -> None:
        if told:
            screen.line(many.line(row))

    with progress(len(wanted)) as begin:
        found = many.run(wanted, arguments.tolerance, begin, done)
    if len(wanted) == 1 and found.rows[0].found is None:
        raise TilewrightError(found.rows[0].reason)
    report(found, arguments, screen)
    return verdict(found)


def wanted_cases(arguments: argparse.Namespace) -> list[tuple[Request, str]]:
    """What is to be compared."""
    for model in arguments.models:
        check_model(model)
    base = Request(
        "",
        arguments.against,
        1,
        arguments.seconds,
        arguments.limit,
        arrays=arguments.input,
        below=arguments.below,
        memory=arguments.memory,
    )
    shapes, dims = dict(arguments.shape), dict(arguments.dim)
    return many.cases(arguments.models, arguments.threads, shapes, dims, base)


def verdict(found: Rows) -> int:
    """The exit code."""
    if any(row.found is None for row in found.rows):
        return FAILED
    return RIGHT if all(row.right for row in found.rows) else WRONG


def report(found: Rows, arguments: argparse.Namespace, screen: Screen) -> None:
    """Tables, JSON and picture, as wanted."""
    if arguments.json != "-":
        match found.rows:
            case (Row(found=Comparison() as comparison, right=right),):
                show(comparison, right, screen)
            case _:
                many.show(found, screen)
        many.show_starts(found, screen)
    write_json(found, arguments.json)
    if arguments.picture:
        Path(arguments.picture).write_text(picture(found), encoding="utf-8")


def write_json(found: Any, path: str | None) -> None:
    """Into a file, or to the output."""
    if path is not None:
        data = as_data(found)
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
    found = []
    with progress(len(arguments.threads) * gemm.count(arguments.sizes)) as begin:
        for threads in arguments.threads:
            found.append(gemm.bench(arguments.sizes, threads, arguments.limit, begin))
    if arguments.json != "-":
        for products in found:
            gemm.show(products, screen, arguments.all)
    write_json(found, arguments.json)
    return RIGHT if all(products.right for products in found) else WRONG


def compile_models(arguments: argparse.Namespace, screen: Screen) -> int:
    """Fills the kernel cache."""
    options = dataclasses.replace(
        Options.from_environment(), compile_workers=arguments.jobs if arguments.jobs > 1 else 0
    )
    architectures = wanted_architectures(arguments)
    for model in arguments.models:
        check_model(model)
    base = Request("", "", 1, arrays=arguments.input, below=arguments.below)
    shapes, dims = dict(arguments.shape), dict(arguments.dim)
    wanted = many.cases(arguments.models, [1], shapes, dims, base)
    told = arguments.json != "-"

    def done(row: precompile.Compiled) -> None:
        if told:
            screen.line(precompile.line(row))

    with progress(len(wanted) * len(architectures)) as begin:
        rows = precompile.run(wanted, architectures, options, begin, done)
    if told:
        precompile.show(rows, screen)
    write_json(precompile.as_data(rows), arguments.json)
    if any(row.reason for row in rows):
        return FAILED
    return WRONG if any(row.unplanned for row in rows) else RIGHT


def wanted_architectures(arguments: argparse.Namespace) -> list[str]:
    """What to compile for; an error before anything is compiled if that cannot be."""
    if arguments.target == precompile.CPU:
        if arguments.arch:
            raise InputError("--arch is of --target cuda")
        return [precompile.CPU]
    if not arguments.arch:
        gpus = find_toolchain().gpus
        if not gpus:
            raise InputError("there is no GPU here: say for which with --arch, as in --arch sm_90a")
        return [gpus[0].architecture]
    for architecture in arguments.arch:
        check_architecture(architecture)
    return list(dict.fromkeys(arguments.arch))


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
    if arguments.command == "compile":
        return compile_models(arguments, open_screen())
    if bool(arguments.models) == arguments.gemm:
        raise InputError("give a model, or --gemm")
    bench = bench_gemm if arguments.gemm else bench_models
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
