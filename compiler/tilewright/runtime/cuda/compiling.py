"""Kernel text to machine code: numba-cuda's front end, libNVVM to PTX, nvJitLink to a cubin.

No driver and no device is needed. Importing this module imports numba-cuda.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cuda.bindings import nvjitlink
from numba.core.compiler_lock import global_compiler_lock
from numba.cuda.cudadrv import nvvm

from tilewright.errors import CompileError
from tilewright.runtime.cuda.frontend import nvvm_modules
from tilewright.runtime.cuda.kernel import CompiledKernel, KernelSource, Usage

# fma=0: what a kernel does not fuse itself is rounded operation by operation.
NVVM_OPTIONS = {"opt": 3, "ftz": 0, "prec_div": 1, "prec_sqrt": 1, "fma": 0}
LINKER_OPTIONS = ("-O3", "-verbose")
ENVIRONMENT = re.compile(r"^\.common \.global .*_ZN08NumbaEnv.*\n", re.MULTILINE)

_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Times:
    """Seconds of each stage of a compilation."""

    front_end: float
    ptx: float
    link: float


def compile_kernel(source: KernelSource, symbol: str) -> CompiledKernel:
    """The machine code of a kernel, its entry called `symbol`.

    Raises CompileError, which shows the text, for whatever is wrong with it.
    """
    return compile_and_time(source, symbol)[0]


def compile_and_time(source: KernelSource, symbol: str) -> tuple[CompiledKernel, Times]:
    """As `compile_kernel`, with the seconds of each stage."""
    marks = [time.perf_counter()]
    try:
        with global_compiler_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            modules = nvvm_modules(source, symbol)
            marks.append(time.perf_counter())
            ptx = _ptx(modules, source.architecture)
        marks.append(time.perf_counter())
        cubin, log = link(ptx, source.architecture)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        message = f"a generated kernel did not compile for {source.architecture}: {reason}"
        raise CompileError(f"{message}\n\n{source.text}") from error
    marks.append(time.perf_counter())
    times = Times(*(b - a for a, b in pairwise(marks)))
    return CompiledKernel(symbol, cubin, ptx, usage_of(log)), times


def _ptx(modules: Sequence[str], architecture: str) -> str:
    unit = nvvm.CompilationUnit(NVVM_OPTIONS | {"arch": architecture.replace("sm_", "compute_")})
    try:
        for module in modules:
            unit.add_module(nvvm.llvm_replace(module).encode())
        unit.verify()
        unit.lazy_add_module(nvvm.LibDevice().get())  # after the check, which it does not pass
        code: bytes = unit.compile()
    except Exception as error:
        raise RuntimeError(f"{error}: {unit.get_log()}") from error
    return ENVIRONMENT.sub("", code.decode().strip("\0").strip() + "\n")


def link(ptx: str, architecture: str) -> tuple[bytes, str]:
    """The cubin of a PTX text, and what the assembler says about it."""
    options = [f"-arch={architecture}", *LINKER_OPTIONS]
    handle = nvjitlink.create(len(options), options)
    try:
        data = ptx.encode()
        try:
            nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel.ptx")
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError as error:
            log = _log(nvjitlink.get_error_log_size, nvjitlink.get_error_log, handle)
            raise RuntimeError(f"{error}: {log}") from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        log = _log(nvjitlink.get_info_log_size, nvjitlink.get_info_log, handle)
        return bytes(cubin), log
    finally:
        nvjitlink.destroy(handle)


def _log(size: Callable[[int], int], read: Callable[[int, bytearray], None], handle: int) -> str:
    text = bytearray(size(handle))
    read(handle, text)
    return text.decode(errors="replace").strip("\0")


def usage_of(log: str) -> Usage:
    """What the assembler's log says that the kernel takes."""
    spills, registers, shared = (p.search(log) for p in (_SPILLS, _REGISTERS, _SHARED))
    if spills is None or registers is None:
        raise RuntimeError(f"the assembler's log says nothing of registers:\n{log}")
    frame, stores, loads = map(int, spills.groups())
    return Usage(int(registers[1]), stores + loads, int(shared[1]) if shared else 0, frame)
