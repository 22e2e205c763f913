"""Compiles and runs small kernels for the tests of `tilewright_kernels`, with nothing but Numba."""

from __future__ import annotations

import ctypes
import linecache
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import cfunc, types


@dataclass(frozen=True)
class Compiled:
    """A kernel in this process, and Numba's object, which keeps its code alive."""

    numba: Any

    def __call__(self, *arguments: np.ndarray[Any, Any] | int) -> None:
        """Runs task 0 with the arrays' addresses and the integers as argument table."""
        table = np.array([a if isinstance(a, int) else a.ctypes.data for a in arguments], np.int64)
        entry = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(self.numba.address)
        entry(0, table.ctypes.data)

    @property
    def assembly(self) -> str:
        return str(self.numba._library.get_asm_str())


@cache
def compile_kernel(body: str, imports: str) -> Compiled:
    """A kernel with this body; `imports` are pairs like `math.exp_f32`, separated by blanks."""
    lines = []
    for pair in imports.split():
        module, name = pair.split(".")
        lines.append(f"from tilewright_kernels.cpu.{module} import {name}")
    text = "\n".join(lines) + "\ndef kernel(task, args):\n"
    text += textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"
    filename = f"<kernel {hash(text)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {}
    exec(compile(text, filename, "exec"), namespace)
    signature = types.void(types.int64, types.int64)
    decorate = cfunc(signature, nogil=True, error_model="numpy")
    return Compiled(decorate(namespace["kernel"]))


def elementwise(call: str, imports: str, inputs: str, output: str) -> Compiled:
    """`y[i] = call(x0[i], x1[i] ...)`: arguments are the output, the inputs and the length.

    `inputs` and `output` are the pointers' types, such as `f32 f32`.
    """
    kinds = inputs.split()
    lines = [f"x{i} = {kind}(args, {i + 1})" for i, kind in enumerate(kinds)]
    lines += [f"y = {output}(args, 0)", f"for i in range(integer(args, {len(kinds) + 1})):"]
    lines.append(f"    y[i] = {call}")
    pointers = " ".join(f"pointers.{kind}" for kind in sorted({*kinds, output}))
    return compile_kernel("\n".join(lines), f"{imports} pointers.integer {pointers}")
