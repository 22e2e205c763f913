"""What the tests of CUDA kernels share: the reason to skip them, compilation, SASS by instruction.

Nothing here needs a driver or a GPU: kernels are compiled to machine code, which is looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import pytest

from tilewright.dtypes import DType
from tilewright.runtime.cuda.kernel import CompiledKernel, KernelSource
from tilewright.runtime.cuda.toolchain import DISASSEMBLER, TO_COMPILE, find_toolchain

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


needs_emulator = pytest.mark.skip(reason="no emulator")


def execute(source, arrays, numbers=(), blocks=1, shared=0):
    raise NotImplementedError
