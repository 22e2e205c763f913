"""Numba's CUDA simulator for generated kernels: each thread of a block is one of Python's.

Whether Numba simulates is decided when it is imported, so this is a program of its own:

    NUMBA_ENABLE_CUDASIM=1 python cuda_simulator.py FOLDER

runs the kernels that FOLDER/kernels.json lists on the arrays in FOLDER/NAME.npz, and writes what
they are then. A kernel's text is run as it is; what it imports is replaced by its meaning.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.simulator.kernel import _get_kernel_context as context

from tilewright.codegen.spelling import ACCUMULATE, ADD_PRODUCT, FLOAT_FUNCTIONS, SUFFIX
from tilewright.dtypes import DType

LANES = 32
PATIENCE = 30.0  # seconds until threads that wait for others of their warp give up
MODULE = "tilewright_kernels.cuda."
TYPES = {suffix: dtype for dtype, suffix in SUFFIX.items()}


def thread() -> int:
    return int(context().threadIdx.x)


def block() -> int:
    return int(context().blockIdx.x)


def sync() -> None:
    context().syncthreads()


class Meetings:
    """Threads that lay down a value each and see those of all others."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, int, int], tuple[threading.Barrier, list[Any]]] = {}
        self._lock = threading.Lock()

    def values(self, value: Any, count: int) -> Any:
        """The values of `count` neighbouring threads, in order, and nobody else's."""
        group, place = divmod(thread(), count)
        with self._lock:
            new = threading.Barrier(count, timeout=PATIENCE), [None] * count
            barrier, values = self._groups.setdefault((block(), count, group), new)
        values[place] = value
        barrier.wait()
        found = np.array(values)
        barrier.wait()  # only then may the next values be laid down
        return found


MEETINGS = Meetings()


def of_warp(meaning: Callable[..., Any]) -> Callable[..., Any]:
    def function(value: Any, *rest: Any) -> Any:
        return meaning(MEETINGS.values(value, LANES), *rest)[thread() % LANES]

    return function


def of_block(meaning: Callable[..., Any]) -> Callable[..., Any]:
    def function(value: Any, scratch: Any, at: int, threads: int) -> Any:
        scratch[at : at + threads // LANES] = value  # there is room, and nothing else lies there
        return meaning(MEETINGS.values(value, threads), threads)

    return function


def of_shared_memory(meaning: Callable[..., Any]) -> Callable[..., Any]:
    return lambda at: meaning(context().shared.array(0, np.dtype(np.uint8)), at)


def scalar(name: str) -> Callable[..., Any]:
    """What `exp_f32` and the like compute, by the table of scalar functions."""
    verb, _, suffix = name.rpartition("_")
    dtype = TYPES[suffix].numpy
    if verb == "to":
        return lambda x: dtype.type(x)
    if verb == ADD_PRODUCT:
        assert TYPES[suffix] is DType.F32  # a float64 holds the product of any two
        return lambda total, x, y: dtype.type(float(total) + float(x) * float(y))
    names = {**FLOAT_FUNCTIONS, **ACCUMULATE}
    op = next(op for op, spelled in names.items() if spelled == verb)
    return lambda *values: dtype.type(op.meaning(*values))


def meaning_of(module: str, name: str) -> Callable[..., Any]:
    """What a kernel imports, in Python; an error for what only a GPU can do."""
    if module == "threads" and name in ("thread", "block", "sync"):
        return {"thread": thread, "block": block, "sync": sync}[name]
    function = getattr(import_module(MODULE + module), name)
    meaning: Callable[..., Any] | None = getattr(function, "meaning", None)
    if meaning is None:
        return scalar(name)
    if name.startswith("shared_"):
        return of_shared_memory(meaning)
    if module == "reduce":
        return of_block(meaning) if name.startswith("block_") else of_warp(meaning)
    return meaning


def loaded(text: str) -> Any:
    """The kernel of a text, with Python's meaning of everything that it imports."""
    head, _, body = text.partition("\n\n\n")
    names: dict[str, Any] = {"inf": math.inf, "nan": math.nan}
    for line in head.splitlines():
        _, module, _, imported = line.split(maxsplit=3)
        if module.startswith(MODULE):
            module = module.removeprefix(MODULE)
            names |= {n: meaning_of(module, n) for n in imported.split(", ")}
    exec(compile(body, "<generated>", "exec"), names)
    return cuda.jit(names["kernel"])


def run(folder: Path) -> None:
    sys.setswitchinterval(1e-4)  # threads wait for each other more than they work
    for job in json.loads((folder / "kernels.json").read_text()):
        place = folder / f"{job['name']}.npz"
        with np.load(place) as file:
            arrays = [file[key] for key in file.files]
        grid = (job["blocks"], job["threads"], 0, job["shared"])
        try:
            with np.errstate(all="ignore"):  # as on a GPU
                loaded(job["text"])[grid](*arrays, *job["numbers"])
        except Exception as error:
            error.add_note(f"in {job['name']}:\n{job['text']}")
            raise
        np.savez(place, *arrays)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
