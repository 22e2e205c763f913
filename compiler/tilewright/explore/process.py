"""The process that holds an engine with one model, and answers questions about it.

`python process.py ENGINE MODEL THREADS`: a line of JSON for each question, an answer for each,
until it is hung up on. Arrays go through files. Nothing of this package is imported unless it is
the engine, so that the memory of another engine is its own.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
STATUS = Path("/proc/self/status")


def described(inputs: Iterable[Any]) -> list[dict[str, Any]]:
    """A model's inputs as JSON can hold them."""
    return [
        {
            "name": i.name,
            "kind": i.kind,
            "dtype": i.dtype.name if i.dtype is not None else None,
            "shape": i.shape,
            "has_default": i.has_default,
        }
        for i in inputs
    ]


def _tilewright(path: str, threads: int) -> tuple[Run, list[dict[str, Any]]]:
    import tilewright

    model = tilewright.compile(path, threads=threads)
    return model.run, described(model.inputs)


def _onnxruntime(path: str, threads: int) -> tuple[Run, list[dict[str, Any]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True)), []


def _reference(path: str, threads: int) -> tuple[Run, list[dict[str, Any]]]:
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(path)
    names = list(evaluator.output_names)
    return lambda feeds: dict(zip(names, evaluator.run(None, dict(feeds)), strict=True)), []


def _openvino(path: str, threads: int) -> tuple[Run, list[dict[str, Any]]]:
    try:
        import openvino
    except ImportError:
        raise ImportError("OpenVINO is not installed: pip install openvino") from None

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else it may compute in bfloat16
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = compiled(dict(feeds))
        return {n: found[k] for k, n in enumerate(names)}

    return run, []


LOADERS = {
    "tilewright": _tilewright,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "reference": _reference,
}


def flatten(name: str, value: Any) -> dict[str, np.ndarray]:
    """A result as arrays that a file can hold without pickling."""
    if isinstance(value, Mapping):
        parts = {f"{name}[{k!r}]": value[k] for k in sorted(value)}
        return {n: a for part, v in parts.items() for n, a in flatten(part, v).items()}
    if isinstance(value, (list, tuple)):
        lists = {f"{name}[{k}]": v for k, v in enumerate(value)}
        items = {n: a for part, v in lists.items() for n, a in flatten(part, v).items()}
        return {f"{name}.length": np.array(len(value)), **items}
    array = np.asarray(value)
    if array.dtype == object:
        array = array.astype(np.str_)
    if array.dtype.kind == "V":  # float types that NumPy does not know
        array = array.astype(np.float32)
    return {name: array}


def flat(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Results by name as arrays only."""
    return {n: a for name, v in values.items() for n, a in flatten(name, v).items()}


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    with suppress(OSError):
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):  # unlike getrusage, without what came before exec
                return int(line.split()[1]) << 10
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used << 10


class _Server:
    """The model, and what it is fed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._feeds: dict[str, Any] = {}

    def first(self, feeds: str, save: str) -> dict[str, Any]:
        """The first call with these inputs; its results go into a file."""
        with np.load(feeds, allow_pickle=False) as held:
            self._feeds = {name: held[name] for name in held.files}
        start = time.perf_counter()
        outputs = self._run(self._feeds)
        seconds = time.perf_counter() - start
        np.savez(save, **{f"={n}": a for n, a in flat(outputs).items()})  # type: ignore[arg-type]
        return {"first": seconds}

    def turn(self, seconds: float) -> dict[str, Any]:
        """Times of calls, one after the other, for so long; at least one, after one to warm up."""
        self._run(self._feeds)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            self._run(self._feeds)
            times.append(time.perf_counter() - start)
        return {"times": times}

    def memory(self) -> dict[str, Any]:
        return {"bytes": peak_bytes()}


def _answer(compute: Callable[[], dict[str, Any]], reply: IO[str]) -> bool:
    """Sends what `compute` returns, or the reason why there is nothing."""
    try:
        found = compute()
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        print(json.dumps({"failure": f"{type(error).__name__}: {text}"}), file=reply)
        return False
    print(json.dumps(found), file=reply)
    return True


def serve(start: Callable[[], tuple[object, dict[str, Any]]]) -> None:
    """The process: starts what answers, says hello, then answers with its methods."""
    reply = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever an engine prints is no answer
    servers: list[object] = []

    def hello() -> dict[str, Any]:
        server, greeting = start()
        servers.append(server)
        return greeting

    if not _answer(hello, reply):
        return
    for line in sys.stdin:
        question = json.loads(line)
        method = getattr(servers[0], question.pop("ask"))
        _answer(functools.partial(method, **question), reply)


def start(engine: str, path: str, threads: int) -> tuple[_Server, dict[str, Any]]:
    """The model in an engine."""
    begin = time.perf_counter()
    run, inputs = LOADERS[engine](path, threads)
    return _Server(run), {"load": time.perf_counter() - begin, "inputs": inputs}


if __name__ == "__main__":
    serve(functools.partial(start, sys.argv[1], sys.argv[2], int(sys.argv[3])))
