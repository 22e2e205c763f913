"""Runs a few instructions of PTX: the text around them, their operands and results."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx import Memory, Module, Statistics, launch
from ptx.frame import TYPES

Array = np.ndarray[Any, Any]
HEAD = ".version 9.0\n.target sm_80\n.address_size 64\n"
REGISTERS = """
.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<20>; .reg .b64 %d<20>;
.reg .f32 %f<9>; .reg .f64 %g<9>; .reg .b32 %t; .reg .b64 %o, %q<5>;
"""
LETTER = {1: "h", 2: "h", 4: "r", 8: "d"}


def register(kind: str, k: int) -> str:
    letter = {"f32": "f", "f64": "g"}.get(kind) or LETTER[np.dtype(TYPES[kind]).itemsize]
    return f"%{letter}{k}"


def kernel_of(body: str, parameters: int, before: str = "") -> str:
    names = ", ".join(f".param .u64 a{k}" for k in range(parameters))
    return f"{HEAD}{before}.visible .entry test({names})\n{{{REGISTERS}{body}\nret;\n}}\n"


def run(
    body: str, arrays: list[Array], threads: int = 32, blocks: int = 1, before: str = ""
) -> tuple[list[Array], Statistics]:
    """The arrays after a run; their addresses are in %q0, %q1 and so on, the thread in %t."""
    load = "".join(f"ld.param.u64 %q{k}, [a{k}];\n" for k in range(len(arrays)))
    text = kernel_of(f"{load}mov.u32 %t, %tid.x;\n{body}", len(arrays), before)
    memory = Memory()
    places = [memory.put(a) for a in arrays]
    statistics = launch(Module(text).kernel(), memory, blocks, threads, places)
    pairs = zip(places, arrays, strict=True)
    return [memory.get(p, a.shape, a.dtype) for p, a in pairs], statistics


def apply(instruction: str, kinds: str, inputs: list[Array]) -> Array:
    """`instruction` with operands x, y, z and the result d; `kinds` are the types, d's first."""
    to, *sources = kinds.split()
    lines, names = [], {"d": register(to, 8)}
    for k, (kind, name) in enumerate(zip(sources, "xyzw", strict=False)):
        size = np.dtype(TYPES[kind]).itemsize
        names[name] = register(kind, k)
        lines.append(f"mad.wide.u32 %o, %t, {size}, %q{k}; ld.global.{kind} {names[name]}, [%o];")
    words = [names.get(w, w) for w in instruction.replace(",", " , ").replace(";", " ;").split()]
    size, last = np.dtype(TYPES[to]).itemsize, len(sources)
    lines.append(" ".join(words))
    lines.append(f"mad.wide.u32 %o, %t, {size}, %q{last}; st.global.{to} [%o], {names['d']};")
    count = max(len(a) for a in inputs)
    arrays = [a.astype(TYPES[k]) for a, k in zip(inputs, sources, strict=True)]
    arrays.append(np.zeros(count, TYPES[to]))
    return run("\n".join(lines), arrays, count)[0][-1]
