"""Every level of a kernel can be asked for: its loops on the way, and the code below its source."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from onnx import ModelProto, parser

import tilewright as tw
from cuda_harness import needs_compiler
from emulated_device import EmulatedDevice, compile_for
from graph_samples import feeds, graphs
from runtime_samples import run_python
from tilewright.errors import DeviceError
from tilewright.graph.export import to_model
from tilewright.graph.ir import Graph
from tilewright.loops.show import show
from tilewright.runtime import plan as plan_module
from tilewright.runtime.cuda.toolchain import disassembler_path
from tilewright.runtime.levels import AS_LOWERED, Levels
from tilewright.schedule.heuristics import TileLimits

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
LAYERS = """g (float[n,64] x, float[64,48] a, float[48,48] b, float[48,48] c) => (float[n,48] y) {
  p = MatMul(x, a)
  q = Relu(p)
  r = MatMul(q, b)
  s = MatMul(r, c)
  y = Softmax(s)
}"""
"""Two of the products are kernels of one structure whose axes have other names."""


def model(text: str) -> ModelProto:
    return parser.parse_model(HEADER + text)


def layers(n: int) -> dict[str, np.ndarray]:
    shapes = {"x": (n, 64), "a": (64, 48), "b": (48, 48), "c": (48, 48)}
    random = np.random.default_rng(0)
    return {k: random.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def compiled_layers(n: int = 70) -> tw.CompiledModel:
    compiled = tw.compile(model(LAYERS), threads=1)
    compiled.run(layers(n))
    return compiled


def check_steps(kernel: Levels) -> None:
    """The steps are those of the schedule, and lead from the lowered loops to the scheduled."""
    names = [name for name, _ in kernel.steps]
    assert names == [AS_LOWERED, *map(str, kernel.kernel.schedule)]
    assert kernel.steps[0][1] == show(kernel.lowered)
    assert kernel.steps[-1][1] == show(kernel.kernel)
    assert kernel.steps is kernel.steps


def test_steps_lead_from_lowered_loops_to_scheduled_ones() -> None:
    kernels = compiled_layers().kernels
    for kernel in kernels:
        check_steps(kernel)
        assert kernel.steps[-1][1] == kernel.loops
        assert len(kernel.steps) == 1 + len(kernel.schedule) > 1
        texts = [text for _, text in kernel.steps]
        assert all(a != b for a, b in pairwise(texts))
    assert len({k.source for k in kernels}) < len(kernels)  # some share a structure


@given(graphs())
@settings(max_examples=15)
def test_schedules_of_any_graph_can_be_replayed(graph: Graph) -> None:
    compiled = tw.compile(to_model(graph), threads=1)
    names = {i.name for i in graph.inputs}
    compiled.run({n: a for n, a in feeds().items() if n in names})
    for kernel in compiled.kernels:
        check_steps(kernel)


def test_steps_of_a_product(golden: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    limits = TileLimits({1: 14, 2: 12}, {32: 16, 64: 8})
    monkeypatch.setattr(plan_module, "tile_limits", lambda: limits)
    kernel = next(k for k in compiled_layers().kernels if "Relu" in k.graph)
    text = "\n".join(f"-- {name}\n{text}" for name, text in kernel.steps) + "\n"
    golden(re.sub(r"\b([tr])\d+", r"\1", text))  # tensors are counted in a whole process


def test_levels_below_the_source() -> None:
    kernel = compiled_layers().kernels[0]
    assert kernel.llvm is kernel.llvm and "define" in kernel.llvm and "kernel" in kernel.llvm
    assert kernel.assembly is kernel.assembly and "kernel:" in kernel.assembly
    again = compiled_layers().kernels[0]
    assert (again.llvm, again.assembly, again.steps) == (kernel.llvm, kernel.assembly, kernel.steps)


def test_levels_are_no_part_of_a_kernel() -> None:
    """What was asked of a kernel changes neither its equality nor how it prints."""
    one, other = compiled_layers().kernels[0], compiled_layers().kernels[0]
    before = repr(one)
    assert one.llvm and one.steps
    assert one == other and repr(one) == before


@needs_compiler
def test_levels_of_a_kernel_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_for(EmulatedDevice(), model(LAYERS))
    compiled.run(layers(6))
    kernels: list[Any] = compiled.kernels
    assert kernels
    for kernel in kernels:
        check_steps(kernel)
        assert ".visible .entry" in kernel.ptx
    monkeypatch.setattr("tilewright.runtime.cuda.kernel.disassembler_path", lambda: None)
    with pytest.raises(DeviceError, match="pip install nvidia-cuda-nvdisasm"):
        _ = kernels[0].sass


@needs_compiler
def test_machine_code_of_a_kernel_for_a_gpu() -> None:
    if disassembler_path() is None:
        pytest.skip("nvdisasm is not there")
    compiled = compile_for(EmulatedDevice(), model(LAYERS))
    compiled.run(layers(6))
    kernel: Any = compiled.kernels[0]
    assert "EXIT" in kernel.sass and kernel.sass is kernel.sass


WARM = """
import sys, numpy as np, tilewright as tw
from onnx import parser
compiled = tw.compile(parser.parse_model({text!r}), threads=1)
compiled.run({{"x": np.ones(4, np.float32)}})
kernel = compiled.kernels[0]
kernel.steps
print("numba" in sys.modules, end=" ")
kernel.llvm
print("numba" in sys.modules)
"""


def test_only_levels_below_the_source_import_numba(tmp_path: Any) -> None:
    code = WARM.format(text=HEADER + "g (float[4] x) => (float[4] y) { y = Relu(x) }")
    run_python(code, TILEWRIGHT_CACHE_DIR=str(tmp_path))
    assert run_python(code, TILEWRIGHT_CACHE_DIR=str(tmp_path)).split() == ["False", "True"]
