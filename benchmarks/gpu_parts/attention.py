"""Attention as models export it, beside PyTorch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from gpu_parts.bench import PRECISIONS, Precision, checked, error_of
from gpu_parts.part import Figures, Setting
from gpu_parts.timing import KERNELS
from tilewright.dtypes import from_numpy

if TYPE_CHECKING:
    from gpu_parts.bench import Array, Bench

# batch, heads, rows, depth, whether rows see later ones
SHAPES = {
    "bert": (32, 12, 128, 64, False),
    "vit": (32, 12, 197, 64, False),
    "gpt2": (8, 12, 1024, 64, True),
    "llama": (1, 32, 2048, 128, True),
    "long": (1, 16, 8192, 128, False),
    "diffusion": (2, 8, 4096, 40, False),
}
KINDS = ("f16", "bf16", "f32", "tf32")


def cases(setting: Setting) -> list[str]:
    return [f"{name} {kind}" for kind in KINDS for name in SHAPES]


def model(shape: tuple[int, int, int, int], precision: Precision, causal: bool) -> ModelProto:
    """Products, scale, mask, softmax, products."""
    kind = int(from_numpy(precision.dtype).onnx)
    rows, depth = shape[2:]
    scale = np.array(depth**-0.5, np.float32).astype(precision.dtype)
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scores"]),
        helper.make_node("Softmax", ["masked" if causal else "scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    constants = [
        TensorProto(name="scale", data_type=kind, dims=[], raw_data=scale.tobytes()),
    ]
    if causal:
        nodes.insert(3, helper.make_node("Where", ["sees", "scores", "nothing"], ["masked"]))
        nothing = np.array(-np.inf, np.float32).astype(precision.dtype).tobytes()
        constants.append(numpy_helper.from_array(np.tri(rows, dtype=bool), "sees"))
        constants.append(TensorProto(name="nothing", data_type=kind, dims=[], raw_data=nothing))
    inputs = [helper.make_tensor_value_info(n, kind, shape) for n in "qkv"]
    output = helper.make_tensor_value_info("y", kind, shape)
    graph = helper.make_graph(nodes, "attention", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def wanted_of(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """One head, in float64."""
    scores = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(q.shape[-1])
    if causal:
        scores[~np.tri(len(q), dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found: Array = weights / weights.sum(-1, keepdims=True) @ v.astype(np.float64)
    return found


def run(bench: Bench, case: str) -> Figures:
    name, _, kind = case.rpartition(" ")
    precision, (*extents, causal) = PRECISIONS[kind], SHAPES[name]
    batch, heads, rows, depth = (bench.setting.size(n) for n in extents)
    shape = batch, heads, rows, depth
    qkv = [bench.random(shape, precision.dtype, seed) for seed in range(3)]
    compiled = bench.compile(model(shape, precision, bool(causal)), bench.options_for(precision))
    there = [bench.put(a) for a in qkv]
    got = compiled.run(dict(zip("qkv", there)))["y"].get()
    error = 0.0
    for at in ((0, 0), (batch - 1, heads - 1)):
        q, k, v = (a[at] for a in qkv)
        wanted = wanted_of(q, k, v, bool(causal))
        error = max(error, error_of(got[at].astype(np.float64), wanted))
    rivals = bench.rival.attention(there, precision, bool(causal)) if bench.rival else {}
    times = bench.time(compiled, rivals)
    flops = 4.0 * batch * heads * rows * rows * depth * (0.5 if causal else 1.0)
    return bench.figures(
        times,
        **checked(error, precision.tolerance),
        shape=list(shape),
        rate=flops / times.seconds[KERNELS],
        kernels=compiled.count,
        schedules=compiled.schedules(),
    )
