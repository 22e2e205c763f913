"""`tilewright bench`: models beside other engines, products of matrices beside NumPy."""

from __future__ import annotations

import argparse
from pathlib import Path

from tilewright.errors import InputError, TilewrightError
from tilewright.explore import gemm, many
from tilewright.explore.commands.base import (
    FAILED,
    RIGHT,
    WRONG,
    Command,
    add_inputs,
    add_json,
    default_threads,
    file,
    is_quiet,
    positive,
    seconds,
    sizes,
    write_json,
)
from tilewright.explore.compare import Comparison, Request, check_model
from tilewright.explore.gemm import ODD_SIZES
from tilewright.explore.many import Row, Rows, as_data
from tilewright.explore.picture import picture
from tilewright.explore.process import LOADERS
from tilewright.explore.screen import Screen, progress

OTHERS = tuple(name for name in LOADERS if name != "tilewright")


def _add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="ONNX files")
    add("--gemm", action="store_true", help="matrix products against NumPy instead of models")
    against = f"the other engines, of {', '.join(OTHERS)}"
    add("--against", default=["onnxruntime"], type=_engines, metavar="ENGINE[,...]", help=against)
    add("--threads", type=positive, nargs="+", default=default_threads(), metavar="N")
    add("--seconds", type=seconds, default=4.0, help="time for both together, first calls apart")
    add_inputs(parser, several=True)
    add("--tolerance", type=float, default=1e-3, help="largest error that counts as right (1e-3)")
    add("--limit", type=seconds, default=600.0, help="seconds that an engine may take to answer")
    add("--memory", action="store_true", help="also measure new processes, kernels being cached")
    add("--sizes", type=sizes, default=ODD_SIZES, metavar="N,N", help="of --gemm, each dimension")
    add("--all", action="store_true", help="every product of --gemm, not only the slowest")
    add_json(parser)
    add("--picture", type=file(".svg"), metavar="FILE.svg", help="ratios of models as bars")


def _engines(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in OTHERS:
            there = ", ".join(OTHERS)
            raise argparse.ArgumentTypeError(f"there is no engine {name!r}, but {there}")
    return names


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    if bool(arguments.models) == arguments.gemm:
        raise InputError("give a model, or --gemm")
    if arguments.gemm:
        return bench_gemm(arguments, screen)
    return bench_models(arguments, screen)


def bench_models(arguments: argparse.Namespace, screen: Screen) -> int:
    """Models on ours and each of the other engines; the exit code is the worst of them."""
    if len(arguments.against) > 1 and arguments.picture:
        raise InputError("--picture shows one engine: give one --against")
    found = [_bench_against(name, arguments, screen) for name in arguments.against]
    for rows in found:
        _report(rows, arguments, screen)
    write_json(as_data(found[0] if len(found) == 1 else found), arguments.json)
    return max(map(_verdict, found))


def _bench_against(engine: str, arguments: argparse.Namespace, screen: Screen) -> Rows:
    wanted = _cases(engine, arguments)
    told = len(wanted) > 1 and not is_quiet(arguments)

    def done(row: Row) -> None:
        if told:
            screen.line(many.line(row))

    with progress(len(wanted)) as begin:
        found = many.run(wanted, arguments.tolerance, begin, done)
    if len(wanted) == 1 and found.rows[0].found is None:
        raise TilewrightError(found.rows[0].reason)
    return found


def _cases(engine: str, arguments: argparse.Namespace) -> list[tuple[Request, str]]:
    """What is to be compared."""
    for model in arguments.models:
        check_model(model)
    base = Request(
        model="",
        against=engine,
        seconds=arguments.seconds,
        limit=arguments.limit,
        arrays=arguments.input,
        below=arguments.below,
        seed=arguments.seed,
        memory=arguments.memory,
    )
    shapes, dims = dict(arguments.shape), dict(arguments.dim)
    return many.cases(arguments.models, arguments.threads, shapes, dims, base)


def _verdict(found: Rows) -> int:
    """The exit code."""
    if any(row.found is None for row in found.rows):
        return FAILED
    return RIGHT if all(row.right for row in found.rows) else WRONG


def _report(found: Rows, arguments: argparse.Namespace, screen: Screen) -> None:
    """Tables and picture, as wanted."""
    if not is_quiet(arguments):
        match found.rows:
            case (Row(found=Comparison() as comparison, right=right),):
                _show(comparison, right, screen)
            case _:
                many.show(found, screen)
        many.show_starts(found, screen)
    if arguments.picture:
        Path(arguments.picture).write_text(picture(found), encoding="utf-8")


def _show(found: Comparison, right: bool, screen: Screen) -> None:
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
    if not is_quiet(arguments):
        for products in found:
            gemm.show(products, screen, arguments.all)
    write_json(as_data(found), arguments.json)
    return RIGHT if all(products.right for products in found) else WRONG


BENCH = Command(
    "bench",
    "compare with other engines",
    _add,
    _run,
    "Compares models with other engines, or matrix products with NumPy. Each engine has a process "
    "of its own; they take turns. A ratio above 1 means that tilewright is faster.",
    "exit codes: 0 all outputs agree, 1 some do not, 2 something could not be compared",
)
