"""`tilewright compile`: fills the kernel cache, also for a GPU that is not here."""

from __future__ import annotations

import argparse
import dataclasses

from tilewright.driver import TARGETS
from tilewright.errors import InputError
from tilewright.explore import many, precompile
from tilewright.explore.commands.base import (
    FAILED,
    RIGHT,
    WRONG,
    Command,
    add_inputs,
    add_json,
    is_quiet,
    positive,
    write_json,
)
from tilewright.explore.compare import Request, check_model
from tilewright.explore.screen import Screen, progress
from tilewright.options import Options, available_cores
from tilewright.runtime.cuda.offline import check_architecture
from tilewright.runtime.cuda.toolchain import find_toolchain


def _add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="ONNX files")
    add("--target", default="cpu", choices=TARGETS, help="cpu: the processor here")
    add("--arch", nargs="+", metavar="sm_90a", help="of --target cuda; else that of the GPU here")
    add("--tf32", action="store_true", help="of --target cuda: float32 on tensor cores as TF32")
    add_inputs(parser, several=True)
    add("--jobs", type=positive, default=available_cores(), metavar="N", help="processes")
    add_json(parser)


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    settings = Options.from_environment()
    options = dataclasses.replace(
        settings,
        compile_workers=arguments.jobs if arguments.jobs > 1 else 0,
        tf32=arguments.tf32 or settings.tf32,
    )
    architectures = _architectures(arguments)
    for model in arguments.models:
        check_model(model)
    base = Request(model="", arrays=arguments.input, below=arguments.below, seed=arguments.seed)
    shapes, dims = dict(arguments.shape), dict(arguments.dim)
    wanted = many.cases(arguments.models, [1], shapes, dims, base)

    def done(row: precompile.Compiled) -> None:
        if not is_quiet(arguments):
            screen.line(precompile.line(row))

    with progress(len(wanted) * len(architectures)) as begin:
        rows = precompile.run(wanted, architectures, options, begin, done)
    if not is_quiet(arguments):
        precompile.show(rows, screen)
    write_json(precompile.as_data(rows), arguments.json)
    if any(row.reason for row in rows):
        return FAILED
    return WRONG if any(row.unplanned for row in rows) else RIGHT


def _architectures(arguments: argparse.Namespace) -> list[str]:
    """What to compile for; an error before anything is compiled if that cannot be."""
    if arguments.target == precompile.CPU:
        if arguments.arch:
            raise InputError("--arch is of --target cuda")
        if arguments.tf32:
            raise InputError("--tf32 is of --target cuda")
        return [precompile.CPU]
    if not arguments.arch:
        gpus = find_toolchain().gpus
        if not gpus:
            raise InputError("there is no GPU here: say for which with --arch, as in --arch sm_90a")
        return [gpus[0].architecture]
    for architecture in arguments.arch:
        check_architecture(architecture)
    return list(dict.fromkeys(arguments.arch))


COMPILE = Command(
    "compile",
    "compile all kernels of models now, also for a GPU that is not here",
    _add,
    _run,
    "Fills the kernel cache, so that first calls need no compiler.",
    "exit codes: 0 all is compiled, 1 random data did not lead through some model, 2 some model "
    "could not be compiled",
)
