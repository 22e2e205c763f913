"""Every error a user can meet, in one place; each message says what was expected and what to do."""

from __future__ import annotations

from pathlib import Path


class TilewrightError(Exception):
    """Base of all errors that this package raises on purpose."""


class ModelError(TilewrightError):
    """The model file is malformed, unsafe or inconsistent."""


class UnsupportedError(TilewrightError, NotImplementedError):
    """The model is valid ONNX, but asks for something this compiler cannot do."""


class InputError(TilewrightError, ValueError):
    """What the caller passed does not fit the model: name, dtype, rank, shape or count."""


class OperatorError(TilewrightError, ValueError):
    """A node cannot be applied to its operands; the message names the node and their shapes."""


class ExecutionError(TilewrightError, RuntimeError):
    """A kernel met bad data: an index out of range or an integer division by zero."""


class ScheduleError(TilewrightError):
    """A directive is not legal for this kernel; the message says why."""


class VerifyError(TilewrightError):
    """A loop nest breaks an invariant: always a bug in this compiler, never in the model."""


class CompileError(TilewrightError):
    """A kernel did not compile: a bug in this compiler, never in the model, unless a user has
    changed the kernel; then the message begins with the line, where it is known."""


class EditRefused(TilewrightError):
    """A changed kernel does not compute what the generated one does; nothing was changed.

    `buffer` and `index` say where the first difference is, `wanted` and `got` are its sides as
    text; they are empty where the message says it all. `file` is the file of the change, if any.
    """

    buffer: str = ""
    index: tuple[int, ...] = ()
    wanted: str = ""
    got: str = ""
    file: Path | None = None


class DeviceError(TilewrightError, RuntimeError):
    """The target cannot be used here; the message names the part that is missing and its remedy."""
