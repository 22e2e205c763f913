"""What this machine offers to compiled models, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tilewright.explore.screen import Screen
from tilewright.options import Options, available_cores
from tilewright.runtime.cuda.cupy_arrays import CupyArrays
from tilewright.runtime.cuda.toolchain import (
    DISASSEMBLER,
    TO_COMPILE,
    TO_RUN,
    Toolchain,
    find_toolchain,
)
from tilewright.runtime.futex import FUTEX
from tilewright.runtime.store import default_folder
from tilewright_kernels.cpu.machine import machine

PACKAGES = ("tilewright", "numba", "llvmlite", "numpy", "onnx", "ml_dtypes")
CPU_DESCRIPTION = Path("/proc/cpuinfo")
AHEAD = "tilewright compile MODEL --target cuda --arch sm_90a"
VECTOR_FEATURES = ("avx", "amx", "fma", "f16c", "neon", "sve")  # how those for vectors begin


@dataclass(frozen=True)
class Diagnosis:
    """What was found, by section; of CUDA also what is missing, by part."""

    processor: dict[str, str]
    executor: dict[str, str]
    cache: dict[str, str]
    versions: dict[str, str]
    cuda: dict[str, str]
    missing: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(options: Options | None = None) -> Diagnosis:
    """Looks at this machine; compiles nothing."""
    settings = options or Options.from_environment()
    toolchain = find_toolchain()
    return Diagnosis(
        _processor(),
        _executor(settings),
        _cache(settings),
        {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        _cuda(toolchain, settings),
        _missing(toolchain),
    )


def _processor() -> dict[str, str]:
    found = machine()
    return {
        "model": _model_name() or found.name,
        "architecture": f"{platform.machine()}, for LLVM {found.name}",
        "features": ", ".join(f for f in sorted(found.features) if f.startswith(VECTOR_FEATURES)),
        "vectors": f"{found.vector_bytes * 8} bits, {found.vector_registers} registers",
        "cores": f"{available_cores()} usable of {os.cpu_count() or 1}",
    }


def _model_name() -> str:
    """What the system calls the processor; empty where it does not say."""
    with suppress(OSError):
        for line in CPU_DESCRIPTION.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor()


def _executor(options: Options) -> dict[str, str]:
    chosen = options.threads
    threads = f"{chosen} (chosen)" if chosen else f"{available_cores()} (every usable core)"
    helpers = "wait in native code on a futex" if FUTEX else "wait on locks of Python"
    return {"threads": threads, "helpers": helpers}


def _cache(options: Options) -> dict[str, str]:
    folder = options.cache_dir or default_folder()
    if folder is None:
        return {"folder": "none: there is no home directory, so nothing is kept"}
    count, size = _contents(folder)
    limit = f"{options.cache_bytes / 2**20:,.0f} MiB at most"
    return {"folder": str(folder), "content": f"{count} files, {size / 2**20:,.1f} MiB; {limit}"}


def _contents(folder: Path) -> tuple[int, int]:
    """(files, bytes) below a folder that other processes may be changing."""
    count = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += Path(place, name).stat().st_size
                count += 1
    return count, size


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "in a source folder" if package in sys.modules else "not installed"


def _cuda(toolchain: Toolchain, options: Options) -> dict[str, str]:
    parts = [p for p in toolchain.parts if p.is_there]
    found = {p.name: p.version for p in parts}
    for name, package in (("toolkit", "cuda-toolkit"), ("cupy", "cupy-cuda13x")):
        with suppress(PackageNotFoundError):
            found[name] = version(package)
    found["cublas"] = _cublas(toolchain)
    for number, gpu in enumerate(toolchain.gpus):
        major, minor = gpu.capability
        memory = f"{gpu.memory_bytes / 2**30:.1f} GiB"
        facts = f"compute capability {major}.{minor}, {gpu.multiprocessors} multiprocessors"
        found[f"device {number}"] = f"{gpu.name}, {facts}, {memory}"
    usable, compiles = toolchain.has(TO_RUN), toolchain.has(TO_COMPILE)
    return {
        "usable": "yes" if usable else "no, see what is missing",
        "compiles": f"yes, also for other GPUs: {AHEAD}" if compiles else "no, see what is missing",
        "float32": "products on tensor cores, as TF32" if options.tf32 else "exact, on FMA units",
    } | found


def _cublas(toolchain: Toolchain) -> str:
    """The library that tuning may choose for products: it comes with CuPy's."""
    if not toolchain.has(TO_RUN):
        return "not asked for: no GPU can be used"
    cupy = CupyArrays.find()
    library = cupy.cublas() if cupy else None
    return f"{library.version}, by CuPy" if library else "CuPy does not find it"


def _missing(toolchain: Toolchain) -> dict[str, str]:
    parts = map(toolchain.part, (*TO_RUN, DISASSEMBLER))
    return {p.name: f"{p.problem}. {p.remedy}." for p in parts if not p.is_there}


TITLES = {
    "processor": "Processor",
    "executor": "Executor",
    "cache": "Kernel cache",
    "versions": "Versions",
    "cuda": "CUDA",
    "missing": "Missing for CUDA",
}


def show(found: Diagnosis, screen: Screen) -> None:
    """The diagnosis as a table for each section."""
    sections: Mapping[str, Mapping[str, str]] = found.as_dict()
    for name, title in TITLES.items():
        if sections[name]:
            screen.heading(title)
            screen.table(["what", "found"], [list(row) for row in sections[name].items()])
