"""`%%kernel model k3`: the cell's text takes the place of a kernel of a compiled model.

Without text, or with `--show`, the next cell is filled with what runs now.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any, NoReturn

from IPython.core.error import UsageError
from IPython.display import display

from tilewright.errors import TilewrightError
from tilewright.runtime.model import CompiledModel

NAME = "kernel"


class _Parser(argparse.ArgumentParser):
    """One that does not end the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage()}")


def _parser() -> _Parser:
    parser = _Parser(prog=f"%%{NAME}", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("model", help="a compiled model")
    add("kernel", help="its name as far as the first underscore, or its number in model.kernels")
    add("--show", action="store_true", help="fill the next cell with what runs now")
    add("--schedule", action="store_true", help="the cell holds directives, one to a line")
    add("--feeds", help="inputs of the model to check and measure it on")
    add("--pin", action="store_true", help="keep it for later sessions")
    add("--every-shape", action="store_true", help="with --pin: for other shapes too")
    add("--reset", action="store_true", help="take back what was changed before")
    return parser


class KernelMagic:
    """The magic of one shell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def __call__(self, line: str, cell: str | None = None) -> Any:
        """Runs the cell; what is wrong is a UsageError, so that no traceback hides it."""
        try:
            return self._run(line, cell or "")
        except TilewrightError as error:
            raise UsageError(str(error)) from error

    def _run(self, line: str, cell: str) -> Any:
        wanted = _parser().parse_args(shlex.split(line))
        kernel = find(self._value(wanted.model), wanted.kernel)
        if wanted.reset:
            kernel.reset()
        changes = bool(cell.strip()) and not wanted.show
        if changes:
            feeds = self._value(wanted.feeds) if wanted.feeds else None
            change = kernel.reschedule if wanted.schedule else kernel.edit
            show: Any = display
            show(change(cell, feeds))
        if wanted.pin:
            kernel.pin(wanted.every_shape)
        elif wanted.every_shape:
            raise UsageError("--every-shape is of --pin")
        if wanted.show or not (changes or wanted.pin or wanted.reset):
            self._shell.set_next_input(shown(line, kernel, wanted.schedule))
        return None

    def _value(self, name: str) -> Any:
        try:
            return self._shell.user_ns[name]
        except KeyError:
            raise UsageError(f"there is no variable {name!r}") from None


def find(model: Any, name: str) -> Any:
    """The kernel of that name or number; a UsageError names those that there are."""
    if not isinstance(model, CompiledModel):
        raise UsageError(f"a compiled model is wanted, not a {type(model).__name__}")
    kernels = model.kernels
    if name.isdigit():
        found = kernels[int(name) : int(name) + 1]
    else:
        found = [k for k in kernels if name in (k.name, k.name.partition("_")[0])]
    if len(found) == 1:
        return found[0]
    many = "several plans have it: say which by its number" if found else "there is no such kernel"
    names = "\n".join(f"  {number}  {k.name}" for number, k in enumerate(kernels))
    raise UsageError(f"{name}: {many}\n{names or '  none: call the model first'}")


def shown(line: str, kernel: Any, schedule: bool) -> str:
    """A cell that changes nothing as it is."""
    words = " ".join(w for w in shlex.split(line) if w not in ("--show", "--reset", "--pin"))
    body = "\n".join(kernel.schedule) + "\n" if schedule else kernel.source
    return f"%%{NAME} {words}\n{body}"


def register(shell: Any) -> None:
    """The shell has the magic."""
    shell.register_magic_function(KernelMagic(shell), "line_cell", NAME)
