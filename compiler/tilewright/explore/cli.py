# PYTHON_ARGCOMPLETE_OK
"""The command `tilewright`: the subcommands are in `commands`, a file each."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from tilewright.errors import TilewrightError
from tilewright.explore.commands.base import FAILED, RIGHT, WRONG, Command, json_lines
from tilewright.explore.commands.bench import BENCH
from tilewright.explore.commands.compile import COMPILE
from tilewright.explore.commands.export import EXPORT
from tilewright.explore.commands.look import EXPLAIN, INSPECT, PROFILE, SUPPORT
from tilewright.explore.commands.machine import CACHE, DOCTOR, PINS
from tilewright.explore.commands.run import RUN
from tilewright.explore.commands.verify import VERIFY
from tilewright.explore.screen import open_screen

__all__ = ["FAILED", "RIGHT", "WRONG", "json_lines", "main", "open_screen", "parser"]

COMMANDS = (
    RUN,
    COMPILE,
    INSPECT,
    EXPLAIN,
    PROFILE,
    BENCH,
    VERIFY,
    SUPPORT,
    EXPORT,
    CACHE,
    PINS,
    DOCTOR,
)
SHELLS = ("bash", "zsh", "tcsh")
ENDED_BY_SIGNAL = 130
EPILOG = """\
exit codes: 0 done, 1 what was checked is wrong, 2 it could not be done (130: interrupted)

first steps:
  tilewright run model.onnx --dim batch=4      random inputs, the outputs, the time
  tilewright explain model.onnx                what was fused, what not, and why
  tilewright profile model.onnx                where the time goes
  tilewright bench model.onnx                  beside ONNX Runtime

`tilewright COMMAND --help` says more. `tilewright --completion bash` prints a script that makes
the shell complete commands and options."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tilewright",
        description="Compiles ONNX models into fused, tiled kernels, and shows what came of it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--traceback", action="store_true", help="show where an error comes from")
    top.add_argument("--version", action="version", version=_version())
    top.add_argument("--completion", choices=SHELLS, help="print the completion for a shell")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        made = commands.add_parser(
            command.name,
            help=command.help,
            description=command.description or command.help,
            epilog=command.epilog or None,
        )
        command.add(made)
        made.set_defaults(chosen=command)
    return top


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"tilewright {version('tilewright')}"
    except PackageNotFoundError:
        return "tilewright, from a folder of sources"


def _completion(top: argparse.ArgumentParser, shell: str) -> int:
    try:
        import shtab
    except ImportError:
        raise TilewrightError(
            "completion needs the package shtab: pip install 'tilewright[cli]'"
        ) from None
    print(shtab.complete(top, shell))
    return RIGHT


def _run(top: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.completion:
        return _completion(top, arguments.completion)
    if arguments.command is None:
        top.print_help()
        return FAILED
    command: Command = arguments.chosen
    return command.run(arguments, open_screen())


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    top = parser()
    arguments = top.parse_args(words)
    try:
        return _run(top, arguments)
    except TilewrightError as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ENDED_BY_SIGNAL
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RIGHT
    except Exception as error:
        if arguments.traceback:
            traceback.print_exc()
        told = f"{type(error).__name__}: {error}"
        print(f"error: {told}\n(a bug: `tilewright --traceback ...` shows where)", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
