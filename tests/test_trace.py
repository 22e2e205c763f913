"""Traces of profiles: events as the format wants them, in order, and on the right track."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, parser

import tilewright as tw
from cuda_harness import needs_compiler
from emulated_device import EmulatedDevice, compile_for
from page_checks import check_page
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.ceilings import DeviceCeilings, Effort
from tilewright.runtime.profile import Profile, StepProfile, with_busy
from tilewright.runtime.timeline import (
    CALL,
    THREADS,
    Event,
    Slice,
    TaskTrace,
    consecutive,
    timeline,
)

DIGITS = Path(tw.__file__).parent / "explore" / "data" / "digits.onnx"
LOOP = """<ir_version: 10, opset_import: ["" : 21]>
g (int64 n, float[8] x, float[8] step) => (float[8] last) {
  yes = Constant<value_int = 1>()
  go = Cast<to = 9>(yes)
  last = Loop(n, go, x) <body = b (int64 i, bool c, float[8] v) => (bool d, float[8] w) {
    d = Identity(c)
    w = Add(v, step)
  }>
}"""


def images(n: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).standard_normal((n, 1, 8, 8)).astype(np.float32)}


def written(profile: Profile, folder: Path) -> list[dict[str, Any]]:
    """The slices of a trace, the whole file being what the format wants."""
    profile.trace(folder / "trace.json")
    data = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    assert data["displayTimeUnit"] in ("ms", "ns")
    events = data["traceEvents"]
    for e in events:
        assert isinstance(e["name"], str) and isinstance(e["pid"], int)
        assert isinstance(e["tid"], int) and e["ph"] in "XM"
        if e["ph"] == "M":
            assert e["name"] in ("process_name", "thread_name", "thread_sort_index") and e["args"]
        else:
            assert isinstance(e["ts"], (int, float)) and isinstance(e["dur"], (int, float))
            assert e["ts"] >= 0 and e["dur"] >= 0 and e["cat"]
    named = {e["tid"] for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    assert named == {e["tid"] for e in slices}
    for track in named:
        check_track([e for e in slices if e["tid"] == track])
    return slices


def check_track(slices: list[dict[str, Any]]) -> None:
    """In order of time, each within another one or beside it."""
    starts = [e["ts"] for e in slices]
    assert starts == sorted(starts)
    inside: list[float] = []
    for e in slices:
        while inside and inside[-1] <= e["ts"] + 1e-6:
            inside.pop()
        end = e["ts"] + e["dur"]
        assert not inside or end <= inside[-1] + 1e-6, e
        inside.append(end)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_task_of_every_kernel_is_there(threads: int, tmp_path: Path) -> None:
    compiled = tw.compile(DIGITS, threads=threads)
    found = compiled.profile(images(64))
    slices = written(found, tmp_path)
    kernels = [e for e in slices if e["cat"] == "kernel"]
    assert [e["name"] for e in kernels] == [k.name for k in compiled.kernels]
    assert {e["tid"] for e in kernels} == {CALL}
    for e, kernel in zip(kernels, compiled.kernels, strict=True):
        tasks = [t for t in slices if t["cat"] == "task" and t["name"] == kernel.name]
        assert sorted(t["args"]["task"] for t in tasks) == list(range(kernel.tasks))
        assert all(t["tid"] in range(THREADS, THREADS + threads) for t in tasks)
        for t in tasks:
            assert e["ts"] <= t["ts"] and t["ts"] + t["dur"] <= e["ts"] + e["dur"] + 1e-6
    (call,) = (e for e in slices if e["cat"] == "call")
    assert call["ts"] == 0 and call["dur"] * 1e-6 >= sum(e["dur"] for e in kernels) * 1e-6


def test_steps_say_how_busy_threads_were() -> None:
    compiled = tw.compile(DIGITS, threads=2)
    found = compiled.profile(images(64))
    for s in found:
        if s.tasks == 1:
            assert s.busy == () and s.balance is None
        else:
            assert len(s.busy) == 2 and 0 <= (s.balance or 0) <= 1
            spent = [x for x in found.timeline if x.kind == "task" and found.steps[x.step] is s]
            assert sum(s.busy) == pytest.approx(sum(x.end - x.start for x in spent) * 1e-9)
    assert found.watched > 0 and "watching adds" in found.summary
    assert "timeline" not in str(found.to_dict()["timeline"])
    assert not json.loads(json.dumps(found.to_dict()))["timeline"]


def test_host_steps_are_around_what_they_run(tmp_path: Path) -> None:
    compiled = tw.compile(parser.parse_model(LOOP), threads=1)
    feeds = {"n": np.int64(3), "x": np.ones(8, np.float32), "step": np.ones(8, np.float32)}
    slices = written(compiled.profile(feeds), tmp_path)
    (loop,) = (e for e in slices if e["cat"] == "host" and "Loop" in str(e["args"]["computes"]))
    inside = [e for e in slices if e["cat"] == "kernel" and "Add" in e["args"]["computes"]]
    assert len(inside) == 3
    for e in inside:
        assert loop["ts"] <= e["ts"] and e["ts"] + e["dur"] <= loop["ts"] + loop["dur"]


def test_models_without_kernels_have_a_trace(tmp_path: Path) -> None:
    compiled = tw.compile(DIGITS, options=tw.Options(interpret=True, threads=1))
    assert [e["cat"] for e in written(compiled.profile(images(2)), tmp_path)] == ["call", "host"]


def test_names_need_no_care(tmp_path: Path) -> None:
    model: ModelProto = parser.parse_model(LOOP)
    model.graph.name = 'a "name"\n</script>'
    compiled = tw.compile(model, threads=1)
    feeds = {"n": np.int64(1), "x": np.ones(8, np.float32), "step": np.ones(8, np.float32)}
    assert written(compiled.profile(feeds), tmp_path)


def test_traced_runs_have_the_outputs_of_runs() -> None:
    compiled = tw.compile(DIGITS, threads=2)
    want = compiled.run(images(40))["probabilities"]
    (segment,) = (g for path in compiled.paths() for g in path)
    plan: Any = segment.runner
    (got,), steps = plan.traced(list(images(40).values()))
    np.testing.assert_array_equal(got, want)
    me = threading.get_ident()
    assert steps[0].tasks[0].thread == me
    known = {t.ident for t in threading.enumerate()}
    for before, after in pairwise(steps):
        assert before.end <= after.start
    for kernel, step in zip(plan.kernels, steps, strict=True):
        assert len(step.tasks) == kernel.tasks
        assert all(step.start <= t.start <= t.end <= step.end for t in step.tasks)
        assert all(t.thread in known for t in step.tasks)


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=5))
def test_threads_are_numbered_as_they_appear(threads: list[list[int]]) -> None:
    """The caller is the first, whether it has tasks or not."""
    events, now = [], 1000
    for k, tasks in enumerate(threads):
        spans = tuple(
            TaskTrace(t + 70, now + 10 * n, now + 10 * n + 5) for n, t in enumerate(tasks)
        )
        events.append(Event(k, now, now + 10 * len(tasks) + 1, spans))
        now = events[-1].end
    places = {k: k for k in range(len(events))}
    found = timeline(990, now + 3, events, places, [f"k{k}" for k in places], 70)
    assert found[0] == Slice(CALL, "call", "call", 0, now + 3 - 990)
    order = list(dict.fromkeys([0, *(t for tasks in threads for t in tasks)]))
    for s in found:
        if s.kind == "task":
            assert order[s.track - THREADS] == threads[s.step][s.task]
    for k, tasks in enumerate(threads):
        step = with_busy(StepProfile("k", "Op", "kernel", 1, 1.0, len(tasks)), k, found, 2)
        if len(tasks) > 1:
            assert sum(step.busy) == pytest.approx(5e-9 * len(tasks))
            assert len(step.busy) == max(2, len(set(tasks)))


def test_steps_of_known_length_follow_each_other() -> None:
    first, second = consecutive(100, [2e-9, 3e-9])
    assert (first.start, first.end, second.start, second.end) == (100, 102, 102, 105)


@needs_compiler
def test_kernels_on_a_gpu_follow_each_other(tmp_path: Path) -> None:
    text = "<ir_version: 10, opset_import: ['' : 21]> g (float[6,9] x) => (float[6,9] y)"
    text = text.replace("'", '"') + " { a = Softmax(x) b = Exp(a) y = Softmax(b) }"
    device = EmulatedDevice()
    compiled = compile_for(device, parser.parse_model(text))
    effort = Effort(steps=8, buffer_bytes=1 << 16, kernels=4)
    compiled._workshop._ceilings = DeviceCeilings(device, CudaKernelCache(), effort)
    found = compiled.profile({"x": np.ones((6, 9), np.float32)}, seconds=0)
    slices = written(found, tmp_path)
    kernels = [e for e in slices if e["cat"] == "kernel"]
    assert [e["name"] for e in kernels] == [k.name for k in compiled.kernels]
    assert not [e for e in slices if e["cat"] == "task"] and not found.steps[0].busy
    check_page(compiled._repr_mimebundle_()["text/html"])
    check_page(compiled.kernels[0]._repr_mimebundle_()["text/html"])
    check_page(found._repr_mimebundle_()["text/html"])
