"""The demo runs, and its classifier is what the training script makes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tilewright import Options
from tilewright.explore import demo, train_digits
from tilewright.explore.screen import PlainScreen, open_screen
from tilewright.explore.train_digits import (
    Classifier,
    Convolution,
    Layer,
    MaxPool,
    Normalisation,
    Relu,
    Residual,
)


class Recorder:
    """A screen that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tables: list[Sequence[Sequence[str]]] = []
        self.sources: list[str] = []

    def heading(self, text: str) -> None:
        self.lines.append(text)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        assert all(len(row) == len(columns) for row in rows)
        self.tables.append(rows)

    def source(self, code: str) -> None:
        self.sources.append(code)

    def show(self, thing: object) -> None:
        self.lines.append(str(thing))


def test_demo_shows_a_model_that_is_right() -> None:
    screen = Recorder()
    demo.demonstrate(screen, Options.from_environment())
    text = "\n".join(screen.lines)
    assert "358 of 360 held-out digits are classified correctly (99.4%)" in text
    assert "the same class for 100.0%" in text
    kernels, calls = screen.tables
    assert any("Conv+Add+Relu" in row for row in kernels)
    assert len(calls) == 3
    assert "def kernel(task, args):" in screen.sources[0]


def test_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    PlainScreen().table(["name", "is", "time"], [["a", "long name", "1 us"], ["bb", "c", "100 us"]])
    assert capsys.readouterr().out.splitlines() == [
        "name  is           time",
        "----  ---------  ------",
        "a     long name    1 us",
        "bb    c          100 us",
    ]


@pytest.mark.parametrize("missing", [True, False])
def test_screen_without_rich(
    missing: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    screen = open_screen()
    assert isinstance(screen, PlainScreen) == missing
    screen.heading("Heading")
    screen.line("[a] line")
    screen.table(["name", "[is]"], [["a", "[b]"]])
    screen.source("def f(): ...\n")
    shown = capsys.readouterr().out
    for text in ("Heading", "[a] line", "[is]", "[b]", "def f(): ..."):
        assert text in shown


def random_layer(name: str, rng: np.random.Generator) -> Layer:
    match name:
        case "convolution":
            return Convolution(rng, 3, 3)
        case "normalisation":
            return Normalisation(3)
        case "relu":
            return Relu()
        case "pool":
            return MaxPool()
        case "residual":
            return Residual(Convolution(rng, 3, 3), Relu())
    return Classifier(rng, (4, 4, 3), 5)


LAYERS = ["convolution", "normalisation", "relu", "pool", "residual", "classifier"]


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_slopes(name: str) -> None:
    """Along a random direction, in float64 so that the difference quotient is exact enough."""
    rng = np.random.default_rng(3)
    layer: Any = random_layer(name, rng)
    x, direction = (rng.normal(size=(2, 4, 4, 3)) for _ in range(2))
    for parameter in layer.parameters():
        parameter.value = parameter.value.astype(np.float64)
    weights = rng.normal(size=layer.forward(x, True).shape)

    def loss(step: float) -> float:
        return float((layer.forward(x + step * direction, True) * weights).sum())

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    layer.forward(x, True)
    assert float((layer.backward(weights) * direction).sum()) == pytest.approx(slope, rel=1e-3)


def test_exported_network_computes_the_same() -> None:
    rng = np.random.default_rng(0)
    model = train_digits.network(rng)
    images = rng.random((5, 8, 8, 1), np.float32)
    model.forward(images, training=True)  # moves the statistics of the normalisations
    want = train_digits.softmax(model.forward(images, training=False))
    exported = train_digits.to_onnx(model)
    results: Any = ReferenceEvaluator(exported).run(None, {"image": images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(results[0], want, atol=1e-5)


def test_shipped_model_is_valid() -> None:
    model = onnx.load(demo.MODEL)
    onnx.checker.check_model(model, full_check=True)
    pixels, labels = demo.load_digits()
    assert pixels.shape == (train_digits.HELD_OUT, 8, 8) and labels.shape == (360,)
    assert pixels.max() == demo.PIXEL_MAX
