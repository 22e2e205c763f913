"""Compiles a trained classifier, checks its answers, and shows the kernels that were made.

python -m tilewright.explore.demo

The model is train_digits.py's; the digits are those it was not trained on. Kernels are cached in
a temporary folder, so that the first call shows what compiling costs.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

import tilewright
from tilewright import CompiledModel, Options
from tilewright.explore.screen import Screen, open_screen

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

DATA = Path(__file__).with_name("data")
MODEL = DATA / "digits.onnx"
INPUT, OUTPUT = "image", "probabilities"
PIXEL_MAX = 16
SHADES = " ░▒▓█"
DRAWN = 4
REPEATS = 50
OTHER_BATCH = 100


def load_digits() -> tuple[Bytes, Bytes]:
    """Pixels [n, 8, 8] from 0 to 16, and labels [n]."""
    with np.load(DATA / "digits.npz") as held_out:
        return held_out["pixels"], held_out["labels"]


def as_images(pixels: Bytes) -> Floats:
    """What the model reads: [n, 1, 8, 8] from 0 to 1."""
    images: Floats = pixels[:, None].astype(np.float32) / np.float32(PIXEL_MAX)
    return images


def timed(model: CompiledModel, images: Floats) -> tuple[float, Floats]:
    """Seconds of one call, and the probabilities."""
    start = time.perf_counter()
    result: Floats = model.run({INPUT: images})[OUTPUT]
    return time.perf_counter() - start, result


def steady(model: CompiledModel, images: Floats) -> float:
    """Seconds of a typical call."""
    return statistics.median(timed(model, images)[0] for _ in range(REPEATS))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"


def show_model(screen: Screen, model: CompiledModel) -> None:
    """What goes in and out, and what importing made simpler."""
    screen.heading("The model")
    screen.line("\n".join(f"in   {value}" for value in model.inputs))
    screen.line("\n".join(f"out  {value}" for value in model.outputs))
    rules = Counter(rule for rule, _ in model.explain().rewrites)
    if rules:
        screen.line("rewritten on import: " + ", ".join(f"{r} x{n}" for r, n in rules.items()))


def show_answers(screen: Screen, probabilities: Floats, images: Floats, labels: Bytes) -> None:
    """How often the model is right, and how far it is from ONNX's reference implementation."""
    reference: Any = ReferenceEvaluator(str(MODEL)).run([OUTPUT], {INPUT: images})
    classes, wanted = probabilities.argmax(1), reference[0].argmax(1)
    difference = float(np.abs(probabilities - reference[0]).max())
    right, same = int((classes == labels).sum()), float((classes == wanted).mean())
    screen.heading("Answers")
    screen.line(
        f"{right} of {len(labels)} held-out digits are classified correctly "
        f"({right / len(labels):.1%})."
    )
    screen.line(
        f"ONNX's reference implementation gives the same class for {same:.1%} of them; "
        f"no probability differs by more than {difference:.1e}."
    )


def drawing(pixels: Bytes) -> list[str]:
    """The rows of one digit, two characters to a pixel."""
    levels = (pixels.astype(int) * (len(SHADES) - 1) + PIXEL_MAX - 1) // PIXEL_MAX
    return ["".join(SHADES[level] * 2 for level in row) for row in levels]


def caption(probabilities: Floats, label: int) -> str:
    """The answer and its probability; the truth where that is something else."""
    answer = int(probabilities.argmax())
    text = f"{answer} ({probabilities[answer]:.0%})"
    return text if answer == label else f"{text}, is {label}"


def show_digits(screen: Screen, pixels: Bytes, probabilities: Floats, labels: Bytes) -> None:
    """A few digits, the mistakes first."""
    wrong = probabilities.argmax(1) != labels
    chosen = np.argsort(~wrong, kind="stable")[:DRAWN]
    pictures = [
        [*drawing(pixels[i]), caption(probabilities[i], int(labels[i])).ljust(16)] for i in chosen
    ]
    screen.heading("Some digits, mistakes first")
    for row in zip(*pictures, strict=True):
        screen.line("  ".join(row))


def show_kernels(screen: Screen, model: CompiledModel, images: Floats) -> None:
    """What was fused, and the time of each kernel, measured in whole runs."""
    times = model.profile({INPUT: images})
    total = sum(t.seconds for t in times)
    rows = [
        [t.name, t.operators, f"{t.seconds * 1e6:,.0f} us", f"{t.seconds / total:.0%}"]
        for t in times
    ]
    screen.heading(f"{len(rows)} kernels for {len(images)} images")
    screen.table(["kernel", "computes", "time", "share"], rows)


def most_fused(kernels: Sequence[Any]) -> Any:
    """The first kernel with the most operators."""
    return max(kernels, key=lambda k: k.graph.count("+"))


def show_source(screen: Screen, model: CompiledModel) -> None:
    """One kernel as it was generated."""
    kernel = most_fused(model.kernels)
    screen.heading(f"The source of {kernel.name}")
    screen.source(kernel.source)


def show_other_batch(screen: Screen, model: CompiledModel, images: Floats) -> None:
    """A new shape needs a new plan, but hardly a new kernel."""
    known = {k.source for k in model.kernels}
    first, _ = timed(model, images)
    new = {k.source for k in model.kernels} - known
    screen.heading(f"Another batch size: {len(images)} images")
    compiled = f"Only {len(new)}" if new else "None"
    screen.line(f"{compiled} of its kernels had to be compiled; the others are those of before.")
    screen.line(
        f"The first call took {milliseconds(first)}, "
        f"the next ones take {milliseconds(steady(model, images))}."
    )


def show_times(screen: Screen, cold: float, warm: float, later: float) -> None:
    """The three kinds of calls."""
    screen.heading("Calls")
    rows = [
        ["first call", "plans, generates and compiles every kernel", milliseconds(cold)],
        [
            "first call of a new model object",
            "takes the kernels from the cache",
            milliseconds(warm),
        ],
        ["every later call", "runs the plan", milliseconds(later)],
    ]
    screen.table(["call", "what it does", "time"], rows)


def demonstrate(screen: Screen, options: Options) -> None:
    """The whole demo."""
    pixels, labels = load_digits()
    images = as_images(pixels)
    model = tilewright.compile(MODEL, options=options)
    cold, probabilities = timed(model, images)
    show_model(screen, model)
    show_answers(screen, probabilities, images, labels)
    show_digits(screen, pixels, probabilities, labels)
    show_kernels(screen, model, images)
    show_source(screen, model)
    warm, _ = timed(tilewright.compile(MODEL, options=options), images)
    show_times(screen, cold, warm, steady(model, images))
    show_other_batch(screen, model, images[:OTHER_BATCH])


def main() -> None:
    """Runs the demo with a kernel cache of its own."""
    with tempfile.TemporaryDirectory(prefix="tilewright-demo-") as folder:
        options = dataclasses.replace(Options.from_environment(), cache_dir=Path(folder))
        demonstrate(open_screen(), options)


if __name__ == "__main__":
    main()
