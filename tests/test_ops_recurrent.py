"""LSTM, GRU and RNN against ONNX Runtime, over their attributes and omitted operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright.ops.contrib_recurrent
import tilewright.ops.recurrent  # noqa: F401  (registers the operators)
from operator_oracle import check, normal, own
from tilewright.dtypes import DType
from tilewright.errors import OperatorError
from tilewright.ops.registry import find
from tilewright.ops.tensor import placeholder

STEPS, BATCH, INPUTS, HIDDEN = 3, 2, 3, 5
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def operands(
    op: str, direction: str = "forward", layout: int = 0, batch: int = BATCH, **present: bool
) -> list[np.ndarray | None]:
    """X, W, R and, where asked for, the optional operands."""
    d, width = 1 + (direction == "bidirectional"), GATES[op] * HIDDEN
    state = (batch, d, HIDDEN) if layout else (d, batch, HIDDEN)
    optional = {
        "bias": normal(d, 2 * width, seed=3),
        "lengths": np.array([2, STEPS, 1, 0] * batch, np.int32)[:batch],
        "initial_h": normal(*state, seed=4),
        "initial_c": normal(*state, seed=5),
        "peepholes": normal(d, 3 * HIDDEN, seed=6),
    }
    if op != "LSTM":
        del optional["initial_c"], optional["peepholes"]
    rows = (batch, STEPS) if layout else (STEPS, batch)
    fixed = [normal(*rows, INPUTS, seed=0), normal(d, width, INPUTS, seed=1)]
    fixed.append(normal(d, width, HIDDEN, seed=2))
    return [*fixed, *(v if present.get(k) else None for k, v in optional.items())]


def results(op: str) -> int:
    return 3 if op == "LSTM" else 2


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_plain(op: str, direction: str) -> None:
    check(op, operands(op, direction), results(op), hidden_size=HIDDEN, direction=direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_every_operand(op: str, direction: str) -> None:
    every = dict.fromkeys(("bias", "lengths", "initial_h", "initial_c", "peepholes"), True)
    given = operands(op, direction, batch=3, **every)
    check(op, given, results(op), hidden_size=HIDDEN, direction=direction)


@pytest.mark.parametrize("op", GATES)
def test_clip(op: str) -> None:
    given = operands(op, bias=True)
    check(op, given, results(op), hidden_size=HIDDEN, clip=0.3)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gru_linear_before_reset(direction: str) -> None:
    given = operands("GRU", direction, bias=True, initial_h=True)
    check("GRU", given, 2, hidden_size=HIDDEN, direction=direction, linear_before_reset=1)


def test_lstm_coupled_gates() -> None:
    given = operands("LSTM", bias=True, initial_c=True)
    check("LSTM", given, 3, hidden_size=HIDDEN, input_forget=1)


FUNCTIONS: list[tuple[list[str], dict[str, Any]]] = [
    (["Relu", "Softsign", "Softplus"], {}),
    (
        ["HardSigmoid", "ScaledTanh", "Affine"],
        {"activation_alpha": [0.3, 0.7, 0.5], "activation_beta": [0.4, 1.1, 0.2]},
    ),
    (
        ["HardSigmoid", "LeakyRelu", "Elu"],
        {"activation_alpha": [0.2, 0.1, 0.5], "activation_beta": [0.5]},
    ),
    (["Sigmoid", "ThresholdedRelu", "Tanh"], {"activation_alpha": [0.1]}),
]


@pytest.mark.parametrize(("names", "parameters"), FUNCTIONS)
def test_activations(names: list[str], parameters: dict[str, Any]) -> None:
    given = operands("LSTM", bias=True)
    check("LSTM", given, 3, hidden_size=HIDDEN, activations=names, **parameters)


def test_activations_differ_by_direction() -> None:
    given = operands("GRU", "bidirectional", bias=True)
    names = ["Sigmoid", "Tanh", "HardSigmoid", "Relu"]
    more: dict[str, Any] = {"activation_alpha": [0.25], "activation_beta": [0.5]}
    check("GRU", given, 2, hidden_size=HIDDEN, direction="bidirectional", activations=names, **more)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_batch_first_is_a_transposition(op: str, direction: str) -> None:
    """ONNX Runtime does not have this layout; the other one, transposed, is the oracle."""
    flags: dict[str, Any] = {"bias": True, "lengths": True, "initial_h": True, "initial_c": True}
    given = operands(op, direction, 0, **flags)
    swapped = [
        a.swapaxes(0, 1) if a is not None and k in (0, 5, 6) else a for k, a in enumerate(given)
    ]
    n = results(op)
    wanted = own(op, given, n, hidden_size=HIDDEN, direction=direction)
    actual = own(op, swapped, n, hidden_size=HIDDEN, direction=direction, layout=1)
    np.testing.assert_array_equal(actual[0], wanted[0].transpose(2, 0, 1, 3))
    for a, b in zip(actual[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(a, b.swapaxes(0, 1))


def test_batches_that_share_weights() -> None:
    """So many rows that a task has several, and a hidden size without a remainder."""
    given = [normal(2, 8, 3), normal(1, 16, 3, seed=1), normal(1, 16, 4, seed=2)]
    check("LSTM", given, 3, hidden_size=4)


def test_lengths_out_of_range_are_clamped() -> None:
    given = operands("RNN", "reverse", lengths=True)
    inside = own("RNN", given, 2, direction="reverse")
    given[4] = np.array([2, 1_000_000], np.int32)
    np.testing.assert_array_equal(own("RNN", given, 2, direction="reverse")[0], inside[0])


def test_no_steps_leave_the_initial_state() -> None:
    given = operands("LSTM", initial_h=True)
    given[0] = np.zeros((0, BATCH, INPUTS), np.float32)
    y, h, c = own("LSTM", given, 3)
    assert y.shape == (0, 1, BATCH, HIDDEN) and not c.any()
    np.testing.assert_array_equal(h, given[5])


def test_half_precision_computes_in_float32() -> None:
    given = [a.astype(np.float16) if a is not None else None for a in operands("GRU", bias=True)]
    wide = [a.astype(np.float32) if a is not None else None for a in given]
    np.testing.assert_allclose(own("GRU", given, 2)[0], own("GRU", wide, 2)[0], atol=4e-3)


@pytest.mark.parametrize(
    ("position", "shape"),
    [(1, (1, 21, 3)), (2, (1, 20, 6)), (3, (1, 41)), (4, (3,)), (5, (2, 2, 5))],
)
def test_operands_that_do_not_fit(position: int, shape: tuple[int, ...]) -> None:
    given = operands("LSTM")
    given[position] = np.zeros(shape, np.int32 if position == 4 else np.float32)
    with pytest.raises(OperatorError):
        own("LSTM", given, 3)


def test_unknown_activation() -> None:
    with pytest.raises(OperatorError, match="no activation"):
        own("RNN", operands("RNN"), 2, activations=["Cube"])


def quantised(
    direction: str, kind: type, per_column: bool, zero: int = 0, hidden: int = HIDDEN
) -> list[np.ndarray | None]:
    """Operands of a DynamicQuantizeLSTM with sequences of several lengths."""
    d = 1 + (direction == "bidirectional")
    random, limits = np.random.default_rng(0), np.iinfo(kind)
    w, r = (
        random.integers(limits.min, limits.max, (d, n, 4 * hidden), kind) for n in (INPUTS, hidden)
    )
    shape = (d, 4 * hidden) if per_column else (d,)
    scales = [random.uniform(0.003, 0.01, shape).astype(np.float32) for _ in range(2)]
    point: np.ndarray = np.full(shape, zero, kind)
    given = [normal(STEPS, BATCH, INPUTS), w, r, normal(d, 8 * hidden, seed=3)]
    state = [np.array([STEPS, 1], np.int32), normal(d, BATCH, hidden, seed=4)]
    more = [normal(d, BATCH, hidden, seed=5), normal(d, 3 * hidden, seed=6)]
    return [*given, *state, *more, scales[0], point, scales[1], point]


@pytest.mark.parametrize("hidden", [HIDDEN, 8])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("kind", "per_column", "zero"),
    [(np.int8, False, 0), (np.int8, True, 0), (np.uint8, False, 128), (np.uint8, True, 121)],
)
def test_quantised_weights(
    kind: type, per_column: bool, zero: int, direction: str, hidden: int
) -> None:
    """ONNX Runtime's bytes, and so its results but for the rounding of the gates' functions."""
    given = quantised(direction, kind, per_column, zero, hidden)
    how: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    check("DynamicQuantizeLSTM", given, 3, "com.microsoft", **how)


def test_quantised_weights_need_scales_that_fit() -> None:
    given = quantised("forward", np.int8, False)
    given[8] = given[9] = np.ones(3, np.float32)
    with pytest.raises(OperatorError, match="scales"):
        own("DynamicQuantizeLSTM", given, 3, "com.microsoft")


@pytest.mark.parametrize("op", GATES)
def test_unknown_attributes_are_refused(op: str) -> None:
    definition = find("", op)
    assert definition is not None
    fixed = [a for a in operands(op) if a is not None]
    x, w, r = (placeholder(a.shape, DType.F32, f"x{k}") for k, a in enumerate(fixed))
    with pytest.raises(TypeError, match="output_sequence"):
        definition(x, w, r, output_sequence=1)
