"""Tilewright compiles ONNX models into kernels for the shapes that they are called with.

model = tilewright.compile("model.onnx")
outputs = model.run({"x": array})
"""

from __future__ import annotations

import importlib
from typing import Any

from tilewright.driver import compile, support
from tilewright.errors import (
    CompileError,
    DeviceError,
    EditRefused,
    ExecutionError,
    InputError,
    ModelError,
    OperatorError,
    ScheduleError,
    TilewrightError,
    UnsupportedError,
)
from tilewright.graph.support import SupportReport
from tilewright.options import Options
from tilewright.runtime.model import CompiledModel
from tilewright.runtime.profile import Profile, StepProfile
from tilewright.runtime.report import Report
from tilewright.runtime.verdict import Verdict

__all__ = [
    "CompileError",
    "CompiledModel",
    "DeviceError",
    "EditRefused",
    "ExecutionError",
    "InputError",
    "ModelError",
    "OperatorError",
    "Options",
    "Profile",
    "Report",
    "ScheduleError",
    "StepProfile",
    "SupportReport",
    "TilewrightError",
    "UnsupportedError",
    "Verdict",
    "compile",
    "support",
]


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext tilewright` does: the shell has `%%kernel`."""
    # By its name: the library does not depend on what looks at it, and that needs IPython.
    importlib.import_module("tilewright.explore.magic").register(shell)
