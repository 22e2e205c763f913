"""Kernel texts become plain objects; what cannot be one is refused with its text."""

from __future__ import annotations

import ctypes
import linecache
import re

import numpy as np
import pytest

from runtime_samples import COUNT, NOTHING, SCALE, run_python
from tilewright.errors import CompileError
from tilewright.runtime.loader import LOADER, undefined_symbols
from tilewright.runtime.objects import compile_kernel, kernel_assembly, kernel_ir
from tilewright.runtime.store import StoredObject

EXPONENTIAL = """\
from math import exp
from runtime_intrinsics import argument, floats


def kernel(task, args):
    x = floats(argument(args, 0))
    x[0] = exp(x[0])
"""

HELPER = """\
from numba import njit
from runtime_intrinsics import put


@njit
def twice(value):
    return value + value


def kernel(task, args):
    put(args, task, twice(task))
"""

LIMITS = """\
from runtime_intrinsics import argument, floats


def kernel(task, args):
    x = floats(argument(args, 0))
    best = x[0]
    for i in range(4):
        best = max(best, x[i])
    for i in range(4):
        x[i] = x[i] - best
"""

STEPS = """\
from runtime_intrinsics import argument, floats
from tilewright_kernels.cpu.unroll import unrolled


def kernel(task, args):
    x = floats(argument(args, 0))
    for round in range(task):
        for i in range(3):
            for j in range(5):
                x[i] = x[i] / x[3 + j]
                unrolled()
"""

FOREIGN = """\
from numba import types

getpid = types.ExternalFunction("getpid", types.int32())


def kernel(task, args):
    getpid()
"""

REFUSED = {
    "syntax": ("def kernel(task,", "SyntaxError"),
    "no kernel": ("x = 1\n", "KeyError"),
    "unknown name": ("def kernel(task, args):\n    q()\n", "not defined"),
    "unknown import": ("from nowhere_at_all import x\n", "ModuleNotFoundError"),
    "raise": ("def kernel(task, args):\n    raise ValueError('no')\n", "kernel"),
    "range step": (
        "def kernel(task, args):\n    for i in range(0, 9, task):\n        pass\n",
        "may raise an exception",
    ),
    "allocation": (
        "import numpy as np\ndef kernel(task, args):\n    np.zeros(task)\n",
        "may raise an exception",
    ),
    "foreign symbol": (
        FOREIGN,
        "getpid",
    ),
}


def load(text: str, symbol: str) -> ctypes._CFunctionType:
    data = compile_kernel(text, symbol)
    [address] = LOADER.load([StoredObject(data, symbol, undefined_symbols(data))])
    return ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(address)


def test_kernel_computes() -> None:
    x = np.arange(100, dtype=np.float32)
    y = np.full(100, np.nan, dtype=np.float32)
    args = np.array([x.ctypes.data, y.ctypes.data, 50], dtype=np.int64)
    kernel = load(SCALE, "test_objects_scale")
    kernel(0, args.ctypes.data)
    kernel(1, args.ctypes.data)
    np.testing.assert_array_equal(y, x * x + x)


def test_compiled_helper_functions_are_linked_in() -> None:
    words = np.zeros(8, dtype=np.int64)
    load(HELPER, "test_objects_helper")(6, words.ctypes.data)
    assert words[6] == 12


def test_infinities_keep_their_meaning() -> None:
    x = np.array([-np.inf, 3, -np.inf, 1], dtype=np.float32)
    args = np.array([x.ctypes.data], dtype=np.int64)
    load(LIMITS, "test_objects_limits")(0, args.ctypes.data)
    np.testing.assert_array_equal(x, np.array([-np.inf, 0, -np.inf, -2], dtype=np.float32))
    assert not re.search(r"\b(fast|nnan|ninf|arcp|afn)\b", kernel_ir(LIMITS))


def test_exactly_one_symbol_is_exported() -> None:
    exported = re.findall(r"\.globl\s+(\S+)", kernel_assembly(COUNT))
    assert exported == ["kernel"]
    assert undefined_symbols(compile_kernel(NOTHING, "nothing")) == ()


def test_libm_is_the_only_thing_a_kernel_needs() -> None:
    assert undefined_symbols(compile_kernel(EXPONENTIAL, "exponential")) == ("expf",)


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_the_reason_and_shows_the_text(case: str) -> None:
    text, reason = REFUSED[case]
    with pytest.raises(CompileError, match=reason) as refusal:
        compile_kernel(text, "refused")
    assert text in str(refusal.value)


def test_text_is_found_by_tracebacks() -> None:
    compile_kernel(NOTHING, "test_objects_lines")
    assert linecache.getline("<tilewright test_objects_lines>", 2) == "    pass\n"


@pytest.mark.parametrize(
    ("cpu", "register", "absent"),
    [("sapphirerapids", "zmm", "xmm31"), ("haswell", "ymm", "zmm"), ("x86-64", "xmm", "ymm")],
)
def test_loops_use_the_widest_vectors_of_the_target(cpu: str, register: str, absent: str) -> None:
    code = (
        "from runtime_samples import SCALE\n"
        "from tilewright.runtime.objects import kernel_assembly\n"
        "print(kernel_assembly(SCALE))\n"
    )
    assembly = run_python(code, NUMBA_CPU_NAME=cpu)
    assert register in assembly
    assert absent not in assembly


def test_loader_refuses_an_object_whose_symbols_are_missing() -> None:
    data = compile_kernel(NOTHING, "test_objects_missing")
    item = StoredObject(data, "test_objects_missing", ("expf", "no_such_function_anywhere"))
    with pytest.raises(CompileError, match="no_such_function_anywhere"):
        LOADER.load([item])


def test_loader_refuses_an_object_without_its_own_symbol() -> None:
    data = compile_kernel(NOTHING, "test_objects_one_name")
    with pytest.raises(CompileError, match="does not export"):
        LOADER.load([StoredObject(data, "test_objects_other_name")])


def test_undefined_symbols_wants_an_elf_object() -> None:
    with pytest.raises(CompileError, match="ELF"):
        undefined_symbols(b"MZ and so on")


def test_only_marked_loops_are_written_out() -> None:
    plain = "\n".join(line for line in STEPS.splitlines() if "unrolled()" not in line)
    assert kernel_ir(plain).count("fdiv") == 1
    assert kernel_ir(STEPS).count("fdiv") == 5
