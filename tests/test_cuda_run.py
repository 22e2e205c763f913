"""Models on an emulated GPU: every family of operators agrees with the CPU, memory and threads."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from onnx import ModelProto, NodeProto, parser
from onnx.helper import make_node

import tilewright as tw
from cuda_harness import needs_compiler
from emulated_device import EmulatedDevice, compile_for
from graph_samples import evaluate, feeds, graphs, model_of
from tilewright.graph.export import to_model
from tilewright.graph.ir import Graph
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.ceilings import DeviceCeilings, Effort

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
pytestmark = needs_compiler
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> NodeProto:
    return make_node(op, inputs.split(), outputs.split(), **attributes)


W, B = normal(12, 10), normal(10)
FILTERS = normal(8, 4, 3, 3)
INDEX = np.array([2, 0, 1, 1], np.int64)
AXIS = np.array([1], np.int64)

FAMILIES: dict[str, tuple[list[NodeProto], list[Shape], dict[str, Array]]] = {
    "elementwise": (
        [node("Mul", "x b", "m"), node("Erf", "m", "e"), node("Where", "c e b")],
        [(3, 7, 10), (2, 1, 10)],
        {"b": B, "c": B > 0},
    ),
    "powers": (  # by branches, after which all lanes meet
        [node("Pow", "x e", "p"), node("ReduceSum", "p a", keepdims=0)],
        [(2, 128)],
        {"e": np.array(2, np.float32), "a": AXIS},
    ),
    "integers": (
        [node("Cast", "x", "i", to=7), node("Mod", "i n", "m"), node("BitShift", "u u", "s",
         direction="LEFT"), node("Cast", "s", "t", to=7), node("Add", "m t")],
        [(4, 3), (17, 3)],
        {"n": np.array(3, np.int64), "u": np.arange(3, dtype=np.uint8)},
    ),
    "matmul": (
        [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Gelu", "a")],
        [(5, 12), (2, 3, 12), (12,)],
        {"w": W, "b": B},
    ),
    "gemm": ([node("Gemm", "x w b", alpha=0.5, transA=1)], [(12, 5), (12, 64)], {"w": W, "b": B}),
    "convolution": (
        [node("Conv", "x f", "c", pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "c")],
        [(1, 4, 9, 9), (2, 4, 6, 7)],
        {"f": FILTERS},
    ),
    "transposed": ([node("ConvTranspose", "x f", strides=[2, 2])], [(1, 8, 4, 5)], {"f": FILTERS}),
    "pooling": (
        [node("MaxPool", "x", "m", kernel_shape=[3, 3]), node("GlobalAveragePool", "m")],
        [(1, 3, 8, 8), (2, 5, 7, 9)],
        {},
    ),
    "softmax": ([node("Softmax", "x", axis=-1)], [(5, 37), (3, 512), (4, 1)], {}),
    "normalization": (
        [node("LayerNormalization", "x g h", axis=-1, epsilon=1e-3)],
        [(3, 10), (2, 5, 10)],
        {"g": B, "h": B},
    ),
    "reduction": (
        [node("ReduceMean", "x a", "m", keepdims=0), node("ReduceMax", "x a", "n", keepdims=0),
         node("Sub", "m n")],
        [(3, 300), (5, 1, 7)],
        {"a": AXIS},
    ),
    "argmax": ([node("ArgMax", "x", "a", axis=0), node("Cast", "a", to=1)], [(9, 5)], {}),
    "cumulative": ([node("CumSum", "x a")], [(3, 20)], {"a": AXIS[0]}),
    "movement": (
        [node("Transpose", "x", "t", perm=[1, 0]), node("Concat", "t t", "c", axis=0),
         node("Slice", "c s e", "l"), node("Pad", "l p")],
        [(7, 5), (64, 33)],
        {"s": AXIS, "e": AXIS * 4, "p": np.array([1, 0, 0, 2], np.int64)},
    ),
    "gather": ([node("Gather", "x i", axis=0)], [(3, 5), (4, 2, 2)], {"i": INDEX}),
    "scatter": (
        [node("ScatterND", "x i u", reduction="add")],
        [(3, 5)],
        {"i": INDEX[:, None], "u": normal(4, 5)},
    ),
    "updates": (
        [node("Add", "x u", "v"),
         node("ScatterElements", "x i v", "a", reduction="mul"), node("ScatterElements", "a i u")],
        [(40,)],
        {"i": np.arange(40) * 7 % 36 - np.arange(40) % 2 * 36, "u": normal(40)},
    ),
    "resize": (
        [make_node("Resize", ["x", "", "s"], ["y"], mode="linear")],
        [(1, 2, 5, 6)],
        {"s": np.array([1, 1, 2, 1.5], np.float32)},
    ),
    "sorting": ([node("TopK", "x k", "y i")], [(3, 9)], {"k": AXIS * 4}),
    "recurrence": (
        [node("LSTM", "x w r", hidden_size=4)],
        [(3, 2, 5)],
        {"w": normal(1, 16, 5), "r": normal(1, 16, 4)},
    ),
    "attention": (
        [node("MatMul", "x w", "q"), node("Transpose", "q", "k", perm=[0, 2, 1]),
         node("MatMul", "q k", "s"), node("Softmax", "s", "p"), node("MatMul", "p q")],
        [(2, 6, 12)],
        {"w": W},
    ),
    "quantised": (
        [node("QuantizeLinear", "x s z", "q"), node("MatMulInteger", "q v z", "m"),
         node("Cast", "m", to=1)],
        [(3, 12)],
        {"s": np.array(0.1, np.float32), "z": np.array(128, np.uint8),
         "v": np.arange(120, dtype=np.uint8).reshape(12, 10)},
    ),
    "halves": (
        [node("Cast", "x", "h", to=10), node("MatMul", "h w", "m"), node("Cast", "m", to=1)],
        [(3, 12)],
        {"w": W.astype(np.float16)},
    ),
    "doubles": ([node("Cast", "x", "d", to=11), node("Exp", "d")], [(3, 5)], {}),
    "empty": ([node("ReduceSum", "x a", keepdims=0)], [(0, 3), (3, 0)], {"a": AXIS}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:no part of:RuntimeWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_families_agree(family: str) -> None:
    """One model for all shapes, each twice."""
    device = EmulatedDevice()
    ours = compile_for(device, family_model(family))
    compare_with_cpu(ours, family)
    assert ours.kernels or family in ("empty", "sorting")
    del ours
    gc.collect()  # Numba's errors hold frames
    assert not device.allocations


def family_model(family: str) -> ModelProto:
    nodes, shapes, constants = FAMILIES[family]
    names = [o for n in nodes for o in n.output if o in ("y", "i")]
    return free_rank(model_of(nodes, {"x": normal(*shapes[0])}, names, constants))


def compare_with_cpu(ours: tw.CompiledModel, family: str) -> None:
    cpu, shapes = tw.compile(family_model(family), threads=1), FAMILIES[family][1]
    for shape in shapes * 2:
        x = normal(*shape, seed=3)
        for want, got in zip(cpu.run({"x": x}).values(), ours.run({"x": x}).values(), strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(graphs())
def test_random_graphs_agree(graph: Graph) -> None:
    values = feeds()
    wanted = evaluate(graph, values)
    outputs = compile_for(EmulatedDevice(mixed=True), to_model(graph)).run(values)
    for want, got in zip(wanted, outputs.values(), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def of(text: str) -> ModelProto:
    return parser.parse_model(HEADER + text)


DOUBLES = "g (double[m,k] x, double[k,n] w) => (double[m,n] y) { y = MatMul(x, w) }"


def test_products_of_doubles() -> None:
    """A vector of four of them is more than a thread can read at once."""
    model = compile_for(EmulatedDevice(), of(DOUBLES))
    for m, k, n in ((16, 16, 64), (9, 21, 70)):
        x, w = normal(m, k).astype(np.float64), normal(k, n, seed=1).astype(np.float64)
        np.testing.assert_allclose(model.run({"x": x, "w": w})["y"], x @ w, rtol=1e-12, atol=1e-12)
    assert any("shared_f64" in kernel.source for kernel in model.kernels)


CHECKED = of("""g (float[n] x, int64[m] i, int64[m] d) => (float[m] y, int64[m] z) {
  y = Gather(x, i)
  z = Div(i, d)
}""")


def test_bad_data_names_the_node() -> None:
    model = compile_for(EmulatedDevice(), CHECKED)
    x, i, d = normal(5), np.array([1, 4]), np.array([1, 2])
    feeds = {"x": x, "i": i, "d": d}
    np.testing.assert_array_equal(model.run(feeds)["z"], [1, 2])
    with pytest.raises(tw.ExecutionError, match=r"Gather.*out of range"):
        model.run({**feeds, "i": np.array([5, 0])})
    with pytest.raises(tw.ExecutionError, match=r"Div.*divided by zero"):
        model.run({**feeds, "d": np.array([0, 1])})
    np.testing.assert_array_equal(model.run(feeds)["y"], x[i])  # and is none later


def large() -> ModelProto:
    """Several kernels that pass on intermediate results."""
    nodes = [node("MatMul", "x w", "a"), node("LogSoftmax", "a", "s"), node("MatMul", "s v", "y")]
    constants = {"w": normal(24, 24), "v": normal(24, 24, seed=1)}
    return model_of(nodes, {"x": normal(1, 24)}, ["y"], constants)


def free_rank(model: ModelProto) -> ModelProto:
    model.graph.input[0].type.tensor_type.ClearField("shape")
    return model


def test_threads_share_a_model() -> None:
    device, model = EmulatedDevice(), free_rank(large())
    ours, cpu = compile_for(device, model), tw.compile(model, threads=1)
    feeds = [normal(2 + k % 2, 24, seed=k) for k in range(8)]
    wanted = [cpu(x) for x in feeds]
    failures: list[str] = []

    def work(k: int, stream: int) -> None:
        for _ in range(2):
            got = ours.run({"x": feeds[k]}, stream=stream)["y"]
            if not np.allclose(got, wanted[k], rtol=1e-4, atol=1e-4):
                failures.append(f"call {k}")

    threads = [threading.Thread(target=work, args=(k, 100 + k % 3)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def allocated(device: EmulatedDevice) -> int:
    return sum(device.allocations.values())


def test_memory_is_freed_and_constants_are_shared() -> None:
    device = EmulatedDevice()
    model = compile_for(device, free_rank(large()))
    model(normal(2, 24))
    first = allocated(device)
    assert 2 * 24 * 24 * 4 <= first < 4 * 24 * 24 * 4
    model(normal(3, 24))
    assert allocated(device) - first < 24 * 24 * 4  # no second copy of the weights
    second = allocated(device)
    for _ in range(3):
        model(normal(3, 24))
    assert allocated(device) == second
    del model
    assert not allocated(device)


def with_options(**changes: Any) -> tw.Options:
    return replace(tw.Options.from_environment(), **changes)


def test_plans_beyond_the_budget_are_freed() -> None:
    device = EmulatedDevice()
    model = compile_for(device, free_rank(large()), with_options(plan_bytes=0))
    sizes = []
    for n in (2, 3, 4):
        model(normal(n, 24))
        sizes.append(allocated(device))
    assert model.cache_info().dropped == 2
    assert max(sizes) - min(sizes) < 24 * 24 * 4


@pytest.mark.parametrize("name", ["constant", "input", "twice"])
def test_outputs_are_fresh(name: str) -> None:
    """Even those that are constants, inputs, or other outputs."""
    text = {
        "constant": "c = Constant<value_floats = [1.0, 2.0]>() y = Identity(c) z = Neg(x)",
        "input": "y = Identity(x) z = Neg(x)",
        "twice": "z = Neg(x) y = Identity(z)",
    }[name]
    model = of(f"g (float[n] x) => (float[n] y, float[n] z) {{ {text} }}")
    cpu, ours = tw.compile(model, threads=1), compile_for(EmulatedDevice(), model)
    x = normal(2)
    for _ in range(2):
        outputs = ours.run({"x": x})
        for want, got in zip(cpu.run({"x": x}).values(), outputs.values(), strict=True):
            np.testing.assert_array_equal(got, want)
            got[:] = 7
        assert (x != 7).all()


def test_kernels_are_dumped(tmp_path: Path) -> None:
    model = compile_for(EmulatedDevice(), large(), with_options(dump=tmp_path))
    model(normal(1, 24))
    texts = [f.read_text() for f in tmp_path.iterdir()]
    assert all(any(k.source in text for text in texts) for k in model.kernels)


def test_a_profile_is_that_of_the_device() -> None:
    """Times are those of the emulator: each is a count of instructions."""
    device = EmulatedDevice()
    cache = CudaKernelCache()
    model = compile_for(device, large())
    effort = Effort(steps=8, buffer_bytes=1 << 16, kernels=4)
    model._workshop._ceilings = ceilings = DeviceCeilings(device, cache, effort)
    assert "at least" not in str(model.explain())
    found = model.profile({"x": normal(1, 24)}, seconds=0)
    assert [s.name for s in found] == [k.name for k in model.kernels]
    assert [s.tasks for s in found] == [k.tasks for k in model.kernels]
    assert all(s.seconds > 0 and s.bytes > 0 for s in found)
    assert found.ceilings is ceilings.known and found.ceilings.bandwidth > 0
    assert "emulator, 1 multiprocessors" in str(found)
    assert "at least" in str(model.explain())


def test_ceilings_count_what_is_done() -> None:
    """The kernels do the work that is divided by their time."""
    device = EmulatedDevice()
    ceilings = DeviceCeilings(device, CudaKernelCache(), Effort(8, 1 << 18, 4))
    one = ceilings()
    assert ceilings() is one
    # At best a multiply-add, or a copied vector of 16 bytes, takes one instruction; and some.
    assert 0.5e9 < one.flops <= 2e9
    assert 1e9 < one.bandwidth <= 32e9
