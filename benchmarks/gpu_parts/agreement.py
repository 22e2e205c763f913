"""Each model of a folder on the GPU beside the processor: the largest error of any output.

Inputs are random, or those of NAME.npz beside NAME.onnx.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tilewright as tw
from gpu_parts.bench import checked
from gpu_parts.part import Figures, Setting, Unavailable
from tilewright.explore.compare import largest_error
from tilewright.explore.feeds import Wanted, feeds_of
from tilewright.explore.process import flatten

if TYPE_CHECKING:
    from gpu_parts.bench import Bench

TOLERANCE = 1e-3
NONE = "no models"
Outputs = dict[str, np.ndarray[Any, Any]]


def cases(setting: Setting) -> list[str]:
    return sorted(p.stem for p in setting.folder.glob("*.onnx")) or [NONE]


def flat(outputs: Any) -> Outputs:
    return {n: a for name, v in outputs.items() for n, a in flatten(name, v).items()}


def feeds_for(path: Path, model: tw.CompiledModel) -> Any:
    """Arrays for a model's inputs."""
    given = path.with_suffix(".npz")
    return feeds_of(model, Wanted(arrays=[str(given)] if given.exists() else []))


def run(bench: Bench, case: str) -> Figures:
    if case == NONE:
        raise Unavailable(f"there are no models in {bench.setting.folder}: make models")
    path = bench.setting.folder / f"{case}.onnx"
    processor = tw.compile(str(path))
    feeds = feeds_for(path, processor)
    wanted = flat(processor.run(feeds))
    ours = bench.compile(str(path))
    error = largest_error(flat(ours.model.run(feeds)), wanted)  # inputs on the host: outputs too
    again = largest_error(flat(ours.model.run(feeds)), wanted)
    crossings = [str(c) for c in ours.model.explain().crossings]
    return {**checked(max(error, again), TOLERANCE), "kernels": ours.count, "crossings": crossings}
