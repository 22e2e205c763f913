"""All parts, in the order of their worth where time is short."""

from __future__ import annotations

from gpu_parts import (
    agreement,
    attention,
    ceilings,
    conv,
    hardware,
    matmul,
    memory,
    models,
    overhead,
    tiles,
)
from gpu_parts.bench import gpu_bench as bench
from gpu_parts.bench import require_gpu as require
from gpu_parts.part import Part

__all__ = ["PARTS", "bench", "require"]

LIST = (
    Part("ceilings", "what the device can do at most", ceilings.cases, ceilings.run),
    Part("tests", "the tests that want a GPU", hardware.files, hardware.run, 580),
    Part("matmul", "products of matrices", matmul.cases, matmul.run),
    Part("tiles", "products of halves by each tile", tiles.cases, tiles.run),
    Part("memory", "kernels that memory limits", memory.cases, memory.run),
    Part("attention", "attention", attention.cases, attention.run),
    Part("conv", "convolutions", conv.cases, conv.run),
    Part("overhead", "what calls cost", overhead.cases, overhead.run),
    Part("models", "models beside PyTorch", models.cases, models.run, 400),
    Part("agreement", "models beside the processor", agreement.cases, agreement.run, 300),
    Part("nodes", "ONNX's cases for operators", hardware.nodes, hardware.run, 580),
)
PARTS = {part.name: part for part in LIST}
