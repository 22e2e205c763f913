"""What the tests of CUDA kernels share: the reason to skip them, compilation, SASS by instruction.

No test needs a driver or a GPU: kernels are compiled to machine code, which is looked at, and run
on the first GPU if there is one, otherwise by the emulator of PTX in `ptx`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest

from ptx import Memory, Module, Program, launch
from ptx.tensor_maps import of_loops
from tilewright.codegen.cuda import Map
from tilewright.dtypes import DType
from tilewright.runtime.cuda.device import WORD, Step
from tilewright.runtime.cuda.kernel import CompiledKernel, KernelSource
from tilewright.runtime.cuda.toolchain import DISASSEMBLER, TO_COMPILE, TO_RUN, find_toolchain

Array = np.ndarray[Any, Any]
ARCHITECTURES = ("sm_80", "sm_90a")
LIBRARY = "tilewright_kernels.cuda"
THREADS = "block, sync, thread"
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")

toolchain = cache(find_toolchain)


def missing(names: Sequence[str]) -> str:
    """Why these parts cannot be used; empty if they can."""
    parts = [toolchain().part(name) for name in names]
    return "; ".join(f"{p.name}: {p.problem}" for p in parts if not p.is_there)


needs_compiler = pytest.mark.skipif(bool(missing(TO_COMPILE)), reason=missing(TO_COMPILE))
needs_sass = pytest.mark.skipif(
    bool(missing([*TO_COMPILE, DISASSEMBLER])), reason=missing([*TO_COMPILE, DISASSEMBLER])
)


def text_of(imports: dict[str, str], body: str) -> str:
    """A kernel's text; `imports` are names by module of the library."""
    head = [f"from {LIBRARY}.{module} import {names}" for module, names in imports.items()]
    lines = [f"    {line}" if line else "" for line in body.strip("\n").splitlines()]
    return "\n".join([*head, "", "", body_head(body), *lines]) + "\n"


def body_head(body: str) -> str:
    """`def kernel(...)` with the parameters that the body uses."""
    names = set(re.findall(r"\b(?:[pn]\d+|errors)\b", body))
    ordered = sorted(names - {"errors"}, key=lambda n: (n[0] != "p", int(n[1:])))
    return f"def kernel({', '.join([*ordered, *(names & {'errors'})])}):"


def source_of(
    imports: dict[str, str],
    body: str,
    pointers: Sequence[DType],
    architecture: str = "sm_80",
    threads: int = 128,
) -> KernelSource:
    """A kernel of this body; its numbers and checks are found in the text."""
    text = text_of(imports, body)
    numbers = len(set(re.findall(r"\bn\d+\b", body)))
    return KernelSource(text, tuple(pointers), numbers, threads, architecture, "errors" in body)


def compiled(source: KernelSource) -> CompiledKernel:
    from tilewright.runtime.cuda.compiling import compile_kernel

    return compile_kernel(source, "kernel")


def instructions(kernel: CompiledKernel) -> Counter[str]:
    """How often each instruction, with its modifiers, stands in the machine code."""
    return Counter(INSTRUCTION.findall(kernel.sass()))


def uses(found: Counter[str], wanted: str) -> bool:
    """Whether an instruction has all the parts of `wanted`, such as LDG.128.

    Some have another letter on newer machines (RED, REDG).
    """
    head, *parts = wanted.split(".")
    names = [name.split(".") for name in found]
    return any(name[0] in (head, head + "G") and set(parts) <= set(name) for name in names)


runs = needs_compiler


def execute(
    source: KernelSource,
    arrays: Sequence[Array],
    numbers: Sequence[int] = (),
    blocks: int = 1,
    shared: int = 0,
    maps: Sequence[Map] = (),
) -> list[Array]:
    """The arrays after a run of the kernel, then the code of a failed check if it makes some."""
    codes = [np.zeros(1, np.int64)] if source.checks else []
    device = toolchain().gpus[0].architecture if toolchain().has(TO_RUN) else None
    kernel = compiled(replace(source, architecture=device or source.architecture))
    function = run if device else emulate
    return function(
        kernel, [*arrays, *codes], numbers, len(codes), (blocks, source.threads, shared), maps
    )


@lru_cache(64)
def program(ptx: str) -> Program:
    """What the emulator runs."""
    return Module(ptx).kernel()


def emulate(
    kernel: CompiledKernel,
    arrays: Sequence[Array],
    numbers: Sequence[int],
    last: int,
    grid: tuple[int, int, int],
    maps: Sequence[Map],
) -> list[Array]:
    """As `run`, by the emulator, which raises an error for whatever PTX does not define."""
    memory = Memory()
    places = [memory.put(a) for a in arrays]
    count = len(places) - last
    blocks, threads, shared = grid
    described = [of_loops(m.tensor, places[m.pointer]).encode() for m in maps]
    parameters: list[int | bytes] = [*places[:count], *numbers, *places[count:], *described]
    launch(program(kernel.ptx), memory, blocks, threads, parameters, shared)
    return [memory.get(p, a.shape, a.dtype) for p, a in zip(places, arrays, strict=True)]


def run(
    kernel: CompiledKernel,
    arrays: Sequence[Array],
    numbers: Sequence[int],
    last: int,
    grid: tuple[int, int, int],
    maps: Sequence[Map],
) -> list[Array]:
    """The arrays after a run on the first GPU; the `last` ones are parameters after the numbers,
    and then come the `maps`."""
    from cuda.bindings import driver

    from tilewright.runtime.cuda.tensor_maps import encoder

    def call(function: Any, *arguments: Any) -> Any:
        status, *values = function(*arguments)
        assert status == driver.CUresult.CUDA_SUCCESS, f"{function.__name__}: {status}"
        return values[0] if values else None

    call(driver.cuInit, 0)
    context = call(driver.cuDevicePrimaryCtxRetain, call(driver.cuDeviceGet, 0))
    call(driver.cuCtxSetCurrent, context)
    module = call(driver.cuModuleLoadData, kernel.cubin)
    function = call(driver.cuModuleGetFunction, module, kernel.entry.encode())
    places = [call(driver.cuMemAlloc, a.nbytes) for a in arrays]
    for place, a in zip(places, arrays, strict=True):
        call(driver.cuMemcpyHtoD, place, np.ascontiguousarray(a).ctypes.data, a.nbytes)
    count = len(places) - last
    values = [int(v) for v in (*places[:count], *numbers, *places[count:])]
    described = [encoder()(m.tensor, int(places[m.pointer])) for m in maps]
    words = np.concatenate([np.array(values, np.int64), *described])
    blocks, threads, shared = grid
    step = Step(function, blocks, threads, shared, words, len(maps))
    addresses = words.ctypes.data + WORD * np.array(step.places, np.uint64)
    limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    call(driver.cuFuncSetAttribute, function, limit, shared)
    stream = driver.CUstream(0)
    call(
        driver.cuLaunchKernel,
        *(function, blocks, 1, 1, threads, 1, 1, shared, stream, addresses.ctypes.data, 0),
    )
    call(driver.cuCtxSynchronize)
    found = [np.empty_like(a) for a in arrays]
    for place, a in zip(places, found, strict=True):
        call(driver.cuMemcpyDtoH, a.ctypes.data, place, a.nbytes)
        call(driver.cuMemFree, place)
    call(driver.cuModuleUnload, module)
    return found
