"""Tilewright compiles ONNX models into kernels for the shapes that they are called with.

model = tilewright.compile("model.onnx")
outputs = model.run({"x": array})
"""

from __future__ import annotations

from tilewright.driver import compile, support
from tilewright.errors import (
    CompileError,
    DeviceError,
    ExecutionError,
    InputError,
    ModelError,
    OperatorError,
    TilewrightError,
    UnsupportedError,
)
from tilewright.graph.support import SupportReport
from tilewright.options import Options
from tilewright.runtime.model import CompiledModel
from tilewright.runtime.profile import Profile, StepProfile
from tilewright.runtime.report import Report

__all__ = [
    "CompileError",
    "CompiledModel",
    "DeviceError",
    "ExecutionError",
    "InputError",
    "ModelError",
    "OperatorError",
    "Options",
    "Profile",
    "Report",
    "StepProfile",
    "SupportReport",
    "TilewrightError",
    "UnsupportedError",
    "compile",
    "support",
]
