"""An emulator of PTX: runs what the compiler made on NumPy, and refuses what is undefined."""

from __future__ import annotations

from ptx.errors import PtxError
from ptx.machine import Statistics, launch
from ptx.memory import Memory
from ptx.program import Module, Program
from ptx.traffic import Requests, Traffic

__all__ = [
    "Memory",
    "Module",
    "Program",
    "PtxError",
    "Requests",
    "Statistics",
    "Traffic",
    "launch",
]
