"""Profiles: every step that runs is there, with its cost, whatever the model is made of."""

from __future__ import annotations

import dataclasses
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, parser

import tilewright as tw
from tilewright.errors import ExecutionError
from tilewright.runtime import ceilings as ceilings_module
from tilewright.runtime import profile as profile_module
from tilewright.runtime.cache import KernelCache
from tilewright.runtime.ceilings import Ceilings, ceilings, ceilings_for, measure
from tilewright.runtime.pool import Executor
from tilewright.runtime.profile import COLUMNS, Profile, StepProfile, judge
from tilewright.schedule.cost import Cost

DIGITS = Path(tw.__file__).parent / "explore" / "data" / "digits.onnx"
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'

LAYERS = """g (float[n,64] x, float[64,48] a, float[48,32] b) => (float[n,32] y) {
  p = MatMul(x, a)
  q = Relu(p)
  r = MatMul(q, b)
  y = Softmax(r)
}"""

LOOP = """g (int64 n, float[8] x, float[8] step) => (float[8] last, int64[k,r] where) {
  yes = Constant<value_int = 1>()
  go = Cast<to = 9>(yes)
  last = Loop(n, go, x) <body = b (int64 i, bool c, float[8] v) => (bool d, float[8] w) {
    d = Identity(c)
    w = Add(v, step)
  }>
  where = NonZero(last)
}"""

GATHER = """g (float[4,4] x, int64[2] i) => (float[2,4] y) { y = Gather(x, i) }"""

LIMITS = Ceilings("test", 2, 1e11, 2e11, 1e10, 2e10, 1e-8, 1e-6)


def model(text: str) -> ModelProto:
    return parser.parse_model(HEADER + text)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def layers(n: int) -> dict[str, np.ndarray]:
    return {"x": random(n, 64), "a": random(64, 48), "b": random(48, 32)}


@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_stand_in_order_with_time_and_cost(threads: int) -> None:
    compiled = tw.compile(model(LAYERS), threads=threads)
    found = compiled.profile(layers(200))
    assert [s.name for s in found] == [k.name for k in compiled.kernels]
    assert [s.tasks for s in found] == [k.tasks for k in compiled.kernels]
    assert len(found) == len(found.kernels) and found.seconds > 0 and found.runs >= 5
    for s in found:
        assert s.calls == 1 and s.seconds > 0 and s.bytes > 0 and s.bound in LIMIT_NAMES
        assert s.flops_rate == pytest.approx(s.flops / s.seconds)
        assert s.peak == pytest.approx(s.flops_rate / found.ceilings.flops)
        assert s.bandwidth == pytest.approx(s.bytes_rate / found.ceilings.bandwidth_for(s.bytes))
        assert s.limit == found.ceilings.seconds(s.flops, s.bytes)
    products = 2 * 200 * (64 * 48 + 48 * 32)
    assert products <= sum(s.flops for s in found) <= 1.5 * products


LIMIT_NAMES = {"compute", "memory", "overhead"}


def test_a_profile_is_text_and_data() -> None:
    found = tw.compile(DIGITS, threads=1).profile({"image": random(2, 1, 8, 8)})
    text = str(found).splitlines()
    assert len(text) == 3 + len(found) and all(c in text[2] for c in COLUMNS)
    for line, step in zip(text[3:], found, strict=True):
        assert line.startswith(step.name) and line.endswith(step.bound)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["steps"][0]["name"] == found.steps[0].name
    assert data["ceilings"]["threads"] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.steps[0].seconds = 0.0  # type: ignore[misc]


def test_rich_prints_the_same_cells() -> None:
    text = io.StringIO()
    console = pytest.importorskip("rich.console").Console(width=300, file=text)
    steps = (StepProfile("k0_[bold]", "Relu", "kernel", 1, 1e-6, 1, bound="memory"),)
    console.print(Profile("m [red]", 1e-6, 5, LIMITS, steps))
    shown = text.getvalue()
    assert "k0_[bold]" in shown and "m [red]" in shown and "memory" in shown


def test_host_steps_and_bodies_of_loops_are_rows() -> None:
    compiled = tw.compile(model(LOOP), threads=1)
    feeds = {"n": np.int64(3), "x": random(8), "step": random(8)}
    want = compiled.run(feeds)
    found = compiled.profile(feeds)
    kinds = {s.kind for s in found}
    assert kinds == {"kernel", "host"}
    (loop,) = (s for s in found if "Loop" in s.operators or "control" in s.operators)
    assert loop.kind == "host" and loop.calls == 1
    body = [s for s in found.kernels if s.calls == 3]
    assert body and all(s.flops == 3 * 8 for s in body if "Add" in s.operators)
    assert any("NonZero" in s.operators for s in found)
    assert sum(s.seconds for s in found) < 50 * found.seconds
    assert str(found).count("\n") == 2 + len(found)
    for name, value in compiled.run(feeds).items():
        np.testing.assert_array_equal(value, want[name])


def test_nothing_is_watched_afterwards() -> None:
    compiled = tw.compile(model(LOOP), threads=1)
    feeds = {"n": np.int64(2), "x": random(8), "step": random(8)}
    compiled.run(feeds)
    segments = [g for s in compiled._all_sessions() for g in s.segments()]
    before = [(s.runner, s.step) for s in segments]
    compiled.profile(feeds)
    assert [(s.runner, s.step) for s in segments] == before


def test_errors_leave_nothing_behind() -> None:
    compiled = tw.compile(model(GATHER), threads=1)
    good = {"x": random(4, 4), "i": np.array([0, 3])}
    with pytest.raises(ExecutionError):
        compiled.profile({"x": random(4, 4), "i": np.array([0, 4])})
    assert len(compiled.profile(good)) == 1
    np.testing.assert_array_equal(compiled.run(good)["y"], good["x"][[0, 3]])


def test_models_without_kernels() -> None:
    options = tw.Options(interpret=True, threads=1)
    found = tw.compile(model(LAYERS), options=options).profile(layers(2))
    assert [s.operators for s in found] == ["evaluation"] and found.steps[0].kind == "host"
    constant = model("g (float[2] x) => (float[2] y) { y = Identity(x) }")
    assert len(tw.compile(constant, threads=1).profile({"x": random(2)})) == 0


def test_calls_of_other_threads_are_not_counted() -> None:
    compiled = tw.compile(model(LAYERS), threads=1)
    feeds = layers(4)
    want = compiled.run(feeds)["y"]
    done = threading.Event()
    wrong: list[Any] = []

    def call() -> None:
        while not done.is_set():
            if not np.array_equal(compiled.run(feeds)["y"], want):
                wrong.append("other outputs")

    thread = threading.Thread(target=call)
    thread.start()
    try:
        found = compiled.profile(feeds)
    finally:
        done.set()
        thread.join()
    assert not wrong and all(s.calls == 1 for s in found)


def test_timed_runs_have_the_outputs_of_runs() -> None:
    compiled = tw.compile(model(LAYERS), threads=2)
    feeds = layers(300)
    want = compiled.run(feeds)["y"]
    (segment,) = (g for s in compiled._all_sessions() for g in s.segments())
    plan: Any = segment.runner
    (got,), seconds = plan.timed(list(feeds.values()))
    np.testing.assert_array_equal(got, want)
    assert len(seconds) == len(plan.kernels) and min(seconds) > 0


@pytest.mark.parametrize(
    ("flops", "moved", "tasks", "bound"),
    [
        (2e8, 1e6, 4, "compute"),
        (1e5, 2e7, 4, "memory"),
        (1e3, 1e3, 4, "overhead"),
        (1e3, 1e3, 1, "memory"),
    ],
)
def test_the_bound_is_what_takes_longest_by_itself(
    flops: float, moved: float, tasks: int, bound: str
) -> None:
    measured = StepProfile("k", "Op", "kernel", 2, 4e-3, tasks)
    found = judge(measured, Cost(flops, moved / 2, moved / 2), LIMITS)
    assert found.bound == bound
    assert (found.flops, found.bytes) == (2 * flops, 2 * moved)
    assert found.flops_rate == pytest.approx(2 * flops / 4e-3)
    assert found.peak == pytest.approx(found.flops_rate / 2e11)
    assert found.bandwidth == pytest.approx(found.bytes_rate / 2e10)


def test_shares_of_a_step_without_time_are_zero() -> None:
    found = judge(StepProfile("k", "Op", "kernel", 0, 0.0, 1), Cost(1, 1, 1), LIMITS)
    assert found.peak == 0 and found.bandwidth == 0


def test_ceilings_are_measured_once_for_each_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def counting(executor: Executor, cache: KernelCache) -> Ceilings:
        counted.append(executor.threads)
        return dataclasses.replace(LIMITS, threads=executor.threads)

    monkeypatch.setattr(ceilings_module, "measure", counting)
    monkeypatch.setattr(ceilings_module, "_measured", {})
    options = tw.Options(threads=1, cache_dir=tmp_path)
    first = ceilings_for(options)
    assert ceilings_for(options) is first
    monkeypatch.setattr(ceilings_module, "_measured", {})
    assert ceilings_for(options) == first
    monkeypatch.setattr(ceilings_module, "cpu_name", lambda: "another processor")
    ceilings_for(options)
    assert counted == [1, 1]


def test_a_damaged_file_of_ceilings_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings_module, "measure", lambda executor, cache: LIMITS)
    monkeypatch.setattr(ceilings_module, "_measured", {})
    cache = KernelCache(tw.Options(cache_dir=tmp_path))
    executor = Executor(1, cache)
    ceilings(executor, cache)
    path = cache.store.path(ceilings_module._key(1))
    assert path is not None
    path.write_bytes(path.read_bytes()[:-3])
    monkeypatch.setattr(ceilings_module, "_measured", {})
    assert ceilings(executor, cache) == LIMITS


def test_what_is_measured_is_possible() -> None:
    cache = KernelCache()
    found = measure(Executor(2, cache), cache)
    assert 1e9 < found.flops_core < 1e13 and 1e8 < found.bandwidth_core < 1e13
    assert found.flops > 0 and found.bandwidth > 0 and found.step > 0 and found.region > 0
    assert found.cpu in str(found)


def test_a_profile_runs_several_times() -> None:
    compiled = tw.compile(model(LAYERS), threads=1)
    assert compiled.profile(layers(1), seconds=0).runs == profile_module.RUNS
    assert compiled.profile(layers(1), seconds=60).runs == profile_module.ENOUGH_RUNS


def test_what_a_cache_holds_comes_at_the_speed_of_the_cache() -> None:
    limits = dataclasses.replace(LIMITS, levels=((1000, 4e11), (100_000, 1e11)))
    assert [limits.bandwidth_for(n) for n in (10, 1000, 1001, 1e9)] == [4e11, 4e11, 1e11, 2e10]
    assert limits.seconds(1e3, 1000) == 1e3 / 2e11  # operations take longer
    assert limits.seconds(1e3, 2e9) == 0.1


def test_explanations_state_the_cost_and_the_least_time(tmp_path: Path) -> None:
    options = tw.Options(threads=1, cache_dir=tmp_path)
    compiled = tw.compile(model(LAYERS), options=options)
    compiled.run(layers(200))
    ceilings_for(options)
    (stage,) = compiled.explain().stages
    for line, kernel in zip(map(str, stage.kernels), compiled.kernels, strict=True):
        least = ceilings_for(options).seconds(kernel.cost.flops, kernel.cost.bytes)
        assert line.startswith(f"{kernel.name}: {kernel.cost.flops / 1e6:,.2f} MFLOP")
        assert line.endswith(f"at least {least * 1e6:,.1f} us")
