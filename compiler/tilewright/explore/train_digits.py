"""Trains the demo's classifier with NumPy alone: a small residual network on digits of 8x8 pixels.

python -m tilewright.explore.train_digits        # needs scikit-learn for the digits

Writes data/digits.onnx, and the digits that were held out to data/digits.npz.
Images are [n, y, x, channel] while training and [n, channel, y, x] in the exported model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

DATA = Path(__file__).with_name("data")
PIXEL_MAX = 16.0  # scikit-learn's digits have 17 levels
HELD_OUT = 360
EPOCHS, BATCH, RATE = 40, 64, 3e-3
MOMENTUM, EPSILON = 0.9, 1e-5
IR_VERSION, OPSET = 10, 21


@dataclass
class Parameter:
    """A trained array with its gradient and Adam's two moments (arxiv.org/abs/1412.6980)."""

    value: Floats
    gradient: Floats = field(init=False)
    mean: Floats = field(init=False)
    square: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.gradient, self.mean, self.square = (np.zeros_like(self.value) for _ in range(3))

    def step(self, rate: float, count: int) -> None:
        """One step of Adam, the `count`-th."""
        self.mean += 0.1 * (self.gradient - self.mean)
        self.square += 0.001 * (self.gradient**2 - self.square)
        mean, square = self.mean / (1 - 0.9**count), self.square / (1 - 0.999**count)
        self.value -= np.float32(rate) * mean / (np.sqrt(square) + np.float32(1e-8))


class Exporter:
    """Collects the nodes and weights of an ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, name: str, value: NDArray[np.generic]) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        name = f"{op.lower()}{len(self.nodes)}"
        result = output or f"{name}_out"
        self.nodes.append(helper.make_node(op, list(inputs), [result], name, **attributes))
        return result


class Layer(Protocol):
    """A function of one array, its derivative, and its ONNX form."""

    def forward(self, x: Floats, training: bool) -> Floats:
        """The layer's result."""

    def backward(self, g: Floats) -> Floats:
        """The gradient of the last forward's operand; sets those of the parameters."""

    def parameters(self) -> list[Parameter]:
        """What training changes."""

    def export(self, to: Exporter, x: str) -> str:
        """Adds the layer to a graph."""


class Convolution:
    """3x3, stride 1, one pixel of padding, no bias: a normalisation follows."""

    def __init__(self, rng: np.random.Generator, channels: int, features: int) -> None:
        scale = np.sqrt(2 / (9 * channels))
        drawn = rng.normal(0, scale, (9 * channels, features))
        self.weight = Parameter(drawn.astype(np.float32))

    def forward(self, x: Floats, training: bool) -> Floats:
        n, height, width, channels = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        self.shape = x.shape
        self.patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 9 * channels)
        return (self.patches @ self.weight.value).reshape(n, height, width, -1)

    def backward(self, g: Floats) -> Floats:
        n, height, width, channels = self.shape
        flat = g.reshape(-1, g.shape[-1])
        self.weight.gradient = self.patches.T @ flat
        taps = (flat @ self.weight.value.T).reshape(n, height, width, 3, 3, channels)
        padded = np.zeros((n, height + 2, width + 2, channels), np.float32)
        for i in range(3):
            for j in range(3):
                padded[:, i : i + height, j : j + width] += taps[:, :, :, i, j]
        return padded[:, 1:-1, 1:-1]

    def parameters(self) -> list[Parameter]:
        return [self.weight]

    def export(self, to: Exporter, x: str) -> str:
        matrix = self.weight.value
        kernel = matrix.reshape(3, 3, -1, matrix.shape[1]).transpose(3, 2, 0, 1)
        weight = to.weight(f"conv{len(to.nodes)}_weight", kernel)
        return to.node("Conv", x, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


class Normalisation:
    """Batch normalisation over all but the last axis (arxiv.org/abs/1502.03167)."""

    def __init__(self, features: int) -> None:
        self.scale = Parameter(np.ones(features, np.float32))
        self.bias = Parameter(np.zeros(features, np.float32))
        self.mean = np.zeros(features, np.float32)
        self.variance = np.ones(features, np.float32)

    def forward(self, x: Floats, training: bool) -> Floats:
        mean, variance = self.mean, self.variance
        if training:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.mean = MOMENTUM * self.mean + np.float32(1 - MOMENTUM) * mean
            self.variance = MOMENTUM * self.variance + np.float32(1 - MOMENTUM) * variance
        self.spread = np.sqrt(variance + np.float32(EPSILON))
        self.normal = (x - mean) / self.spread
        result: Floats = self.normal * self.scale.value + self.bias.value
        return result

    def backward(self, g: Floats) -> Floats:
        axes = (0, 1, 2)
        self.scale.gradient = (g * self.normal).sum(axes)
        self.bias.gradient = g.sum(axes)
        count = np.float32(g[..., 0].size)
        centred = g - (self.bias.gradient + self.normal * self.scale.gradient) / count
        result: Floats = centred * self.scale.value / self.spread
        return result

    def parameters(self) -> list[Parameter]:
        return [self.scale, self.bias]

    def export(self, to: Exporter, x: str) -> str:
        name = f"norm{len(to.nodes)}"
        values = (self.scale.value, self.bias.value, self.mean, self.variance)
        parts = ("scale", "bias", "mean", "variance")
        inputs = [to.weight(f"{name}_{p}", v) for p, v in zip(parts, values, strict=True)]
        return to.node("BatchNormalization", x, *inputs, epsilon=EPSILON)


class Relu:
    """max(x, 0)"""

    def forward(self, x: Floats, training: bool) -> Floats:
        self.positive = x > 0
        return x * self.positive

    def backward(self, g: Floats) -> Floats:
        return g * self.positive

    def parameters(self) -> list[Parameter]:
        return []

    def export(self, to: Exporter, x: str) -> str:
        return to.node("Relu", x)


class MaxPool:
    """The largest of each 2x2 square."""

    def forward(self, x: Floats, training: bool) -> Floats:
        n, height, width, channels = x.shape
        squares = x.reshape(n, height // 2, 2, width // 2, 2, channels)
        result: Floats = squares.max((2, 4))
        self.largest = squares == result[:, :, None, :, None]
        return result

    def backward(self, g: Floats) -> Floats:
        n, height, width, channels = g.shape
        spread = self.largest * g[:, :, None, :, None]
        result: Floats = spread.reshape(n, 2 * height, 2 * width, channels)
        return result

    def parameters(self) -> list[Parameter]:
        return []

    def export(self, to: Exporter, x: str) -> str:
        return to.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


class Classifier:
    """Flattens and multiplies with a matrix; the export adds a softmax."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], classes: int) -> None:
        self.shape = shape
        size = int(np.prod(shape))
        drawn = rng.normal(0, np.sqrt(1 / size), (size, classes))
        self.weight = Parameter(drawn.astype(np.float32))
        self.bias = Parameter(np.zeros(classes, np.float32))

    def forward(self, x: Floats, training: bool) -> Floats:
        self.flat = x.reshape(len(x), -1)
        return self.flat @ self.weight.value + self.bias.value

    def backward(self, g: Floats) -> Floats:
        self.weight.gradient, self.bias.gradient = self.flat.T @ g, g.sum(0)
        return (g @ self.weight.value.T).reshape(-1, *self.shape)

    def parameters(self) -> list[Parameter]:
        return [self.weight, self.bias]

    def export(self, to: Exporter, x: str) -> str:
        by_channel = self.weight.value.reshape(*self.shape, -1).transpose(2, 0, 1, 3)
        weight = to.weight("classifier_weight", by_channel.reshape(self.weight.value.shape))
        bias = to.weight("classifier_bias", self.bias.value)
        flat = to.node("Flatten", x, axis=1)
        return to.node("Gemm", flat, weight, bias)


class Chain:
    """One layer after the other."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def forward(self, x: Floats, training: bool) -> Floats:
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, g: Floats) -> Floats:
        for layer in reversed(self.layers):
            g = layer.backward(g)
        return g

    def parameters(self) -> list[Parameter]:
        return [p for layer in self.layers for p in layer.parameters()]

    def export(self, to: Exporter, x: str) -> str:
        for layer in self.layers:
            x = layer.export(to, x)
        return x


class Residual(Chain):
    """x + f(x)"""

    def forward(self, x: Floats, training: bool) -> Floats:
        return x + super().forward(x, training)

    def backward(self, g: Floats) -> Floats:
        return g + super().backward(g)

    def export(self, to: Exporter, x: str) -> str:
        return to.node("Add", super().export(to, x), x)


def network(rng: np.random.Generator) -> Chain:
    """The classifier with random weights."""
    block = Residual(
        *(Convolution(rng, 16, 16), Normalisation(16), Relu()),
        *(Convolution(rng, 16, 16), Normalisation(16)),
    )
    return Chain(
        *(Convolution(rng, 1, 16), Normalisation(16), Relu()),
        *(block, Relu()),
        *(Convolution(rng, 16, 32), Normalisation(32), Relu()),
        *(MaxPool(), Classifier(rng, (4, 4, 32), 10)),
    )


def softmax(x: Floats) -> Floats:
    """Probabilities over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    result: Floats = e / e.sum(-1, keepdims=True)
    return result


def shifted(rng: np.random.Generator, images: Floats) -> Floats:
    """Each image moved by up to one pixel to either side, and up or down."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    moves = rng.integers(0, 3, (len(images), 2))
    rows, columns = (moves[:, k, None] + np.arange(8) for k in range(2))
    image = np.arange(len(images))[:, None, None]
    result: Floats = padded[image, rows[:, :, None], columns[:, None, :]]
    return result


def train(model: Chain, images: Floats, labels: Labels, rng: np.random.Generator) -> None:
    """Minimises the cross entropy, with a rate that falls along a half cosine."""
    steps = EPOCHS * (len(images) // BATCH)
    wanted = np.eye(10, dtype=np.float32)[labels]
    for step in range(1, steps + 1):
        batch = rng.choice(len(images), BATCH, replace=False)
        scores = model.forward(shifted(rng, images[batch]), training=True)
        model.backward((softmax(scores) - wanted[batch]) / np.float32(BATCH))
        rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        for parameter in model.parameters():
            parameter.step(rate, step)


def accuracy(model: Chain, images: Floats, labels: Labels) -> float:
    """The share of images that get their label."""
    return float((model.forward(images, training=False).argmax(1) == labels).mean())


def to_onnx(model: Chain) -> onnx.ModelProto:
    """The model from pixels in 0..1 to probabilities, for any number of images."""
    to = Exporter()
    to.node("Softmax", model.export(to, "image"), output="probabilities", axis=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(to.nodes, "digits", [image], [result], to.weights)
    opsets = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(graph, producer_name="tilewright", opset_imports=opsets)
    made.ir_version = IR_VERSION
    onnx.checker.check_model(made, full_check=True)
    return made


def main() -> None:
    """Trains, reports the accuracy, writes the model and the held-out digits."""
    from sklearn.datasets import load_digits  # only this script needs it

    rng = np.random.default_rng(0)
    pixels, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    pixels, labels = pixels[order].reshape(-1, 8, 8), labels[order]
    images = (pixels[..., None] / PIXEL_MAX).astype(np.float32)
    model = network(rng)
    train(model, images[HELD_OUT:], labels[HELD_OUT:], rng)
    print(f"training digits {accuracy(model, images[HELD_OUT:], labels[HELD_OUT:]):.2%}")
    print(f"held-out digits {accuracy(model, images[:HELD_OUT], labels[:HELD_OUT]):.2%}")
    DATA.mkdir(exist_ok=True)
    onnx.save(to_onnx(model), DATA / "digits.onnx")
    held_out = {"pixels": pixels[:HELD_OUT], "labels": labels[:HELD_OUT]}
    small = {name: a.astype(np.uint8) for name, a in held_out.items()}
    np.savez_compressed(DATA / "digits.npz", **small)


if __name__ == "__main__":
    main()
