"""Compiled recurrences with constant weights, against ONNX Runtime.

Hidden sizes are odd, or fill panels exactly; batches fill a task, or leave rows of the last one
empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import tilewright
from operator_oracle import normal, runtime

pytestmark = pytest.mark.avx2

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
STEPS, INPUTS = 4, 7
SIZES = [(1, 3), (5, 1), (33, 9), (64, 5)]


def compiled(
    op: str,
    given: list[np.ndarray | None],
    outputs: int,
    domain: str = "",
    *,
    threads: int = 2,
    **attributes: Any,
) -> list[np.ndarray]:
    """The results of a model in which all operands but the first are constants."""
    names = [f"x{k}" if a is not None else "" for k, a in enumerate(given)]
    results = [f"y{k}" for k in range(outputs)]
    node = onnx.helper.make_node(op, names, results, domain=domain, **attributes)
    x, *constants = given
    assert x is not None
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.ValueInfoProto(name=n) for n in results],
        [numpy_helper.from_array(a, f"x{k}") for k, a in enumerate(constants, 1) if a is not None],
    )
    versions = {"": 21, domain: 21 if not domain else 1}
    imports = [onnx.helper.make_opsetid(d, v) for d, v in versions.items()]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    made = tilewright.compile(model, threads=threads).run({"x0": x})
    return [made[n] for n in results]


def agree(
    op: str, given: list[np.ndarray | None], outputs: int, domain: str = "", **attributes: Any
) -> None:
    wanted = runtime(op, given, outputs, domain, **attributes)
    for a, b in zip(compiled(op, given, outputs, domain, **attributes), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_sizes(op: str, direction: str) -> None:
    d, outputs = 1 + (direction == "bidirectional"), 3 if op == "LSTM" else 2
    for hidden, batch in SIZES:
        width = GATES[op] * hidden
        lengths = np.arange(batch, dtype=np.int32)[::-1] % STEPS + 1
        lengths[0] = STEPS
        given: list[np.ndarray | None] = [normal(STEPS, batch, INPUTS)]
        given += [normal(d, width, INPUTS, seed=1) / 4]
        given += [normal(d, width, hidden, seed=2) / 8, normal(d, 2 * width, seed=3)]
        given += [lengths, normal(d, batch, hidden, seed=4)]
        how: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
        agree(op, given, outputs, **how)
        if op == "GRU":
            agree(op, given, outputs, linear_before_reset=1, **how)


def test_float64() -> None:
    """ONNX Runtime has no such kernel; the same numbers in float32 are the oracle."""
    given = [normal(STEPS, 3, INPUTS), normal(1, 120, INPUTS, seed=1) / 4]
    given.append(normal(1, 120, 30, seed=2) / 8)
    wide = [a.astype(np.float64) for a in given]
    names = ["x0", "x1", "x2"]
    node = onnx.helper.make_node("LSTM", names, ["y"], hidden_size=30)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.DOUBLE, given[0].shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(a, n) for a, n in zip(wide[1:], names[1:], strict=True)],
    )
    imports = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    made = tilewright.compile(model).run({"x0": wide[0]})["y"]
    (wanted,) = runtime("LSTM", list(given), 1, hidden_size=30)
    assert made.dtype == np.float64
    np.testing.assert_allclose(made, wanted, atol=1e-5)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize(("kind", "zero"), [(np.int8, 0), (np.uint8, 128), (np.uint8, 117)])
def test_bytes(kind: type, zero: int, per_column: bool) -> None:
    limits, random = np.iinfo(kind), np.random.default_rng(1)
    for hidden, batch in [(1, 1), (5, 3), (64, 2), (70, 1)]:
        shape = (2, 4 * hidden) if per_column else (2,)
        w, r = (
            random.integers(limits.min, limits.max, (2, n, 4 * hidden), kind)
            for n in (INPUTS, hidden)
        )
        scales = [random.uniform(0.002, 0.006, shape).astype(np.float32) for _ in range(2)]
        point: np.ndarray = np.full(shape, zero, kind)
        given: list[np.ndarray | None] = [normal(STEPS, batch, INPUTS), w, r]
        given += [normal(2, 8 * hidden, seed=3), None, None]
        more = [None, None, scales[0], point, scales[1], point]
        how: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional"}
        agree("DynamicQuantizeLSTM", [*given, *more], 3, "com.microsoft", **how)


def long_of_bytes(batch: int) -> list[np.ndarray | None]:
    """Operands of a recurrence of many steps, in which one byte rounded otherwise would show."""
    random, steps, hidden = np.random.default_rng(0), 150, 224
    given: list[np.ndarray | None] = [normal(steps, batch, 40)]
    given += [random.integers(-90, 90, (1, n, 4 * hidden), np.int8) for n in (40, hidden)]
    given += [normal(1, 8 * hidden, seed=3) / 8, None, None, None, None]
    for _ in range(2):
        scale = random.uniform(0.0005, 0.002, (1, 4 * hidden)).astype(np.float32)
        given += [scale, np.zeros((1, 4 * hidden), np.int8)]
    return given


def test_bytes_stay_in_step() -> None:
    given = long_of_bytes(6)
    wanted = runtime("DynamicQuantizeLSTM", given, 3, "com.microsoft", hidden_size=224)
    got = compiled("DynamicQuantizeLSTM", given, 3, "com.microsoft", hidden_size=224)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_threads_do_not_change_what_is_quantised(batch: int) -> None:
    """The scale of a step is that of the whole batch, however it is shared out."""
    given = long_of_bytes(batch)
    alone, *others = (
        compiled(
            *("DynamicQuantizeLSTM", given, 3, "com.microsoft"), threads=threads, hidden_size=224
        )
        for threads in (1, 2, 3)
    )
    for other in others:
        for a, b in zip(alone, other, strict=True):
            np.testing.assert_array_equal(a, b)
