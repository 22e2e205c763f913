"""Tuning: what is measured to be faster is taken and kept, and every way computes the same."""

from __future__ import annotations

import os
import random as lottery
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, parser

import tilewright as tw
from tilewright.dtypes import DType
from tilewright.fusion.decide import Point
from tilewright.loops.ir import Expr
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import select
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Placeholder, Tensor, compute, constant, placeholder
from tilewright.runtime import tune
from tilewright.runtime.cache import KernelCache, default_cache, environment_fields
from tilewright.runtime.plan import Plan, PlannedKernel, build_plan
from tilewright.runtime.store import StoredObject
from tilewright.runtime.tune import KeptChoices
from tilewright.schedule.choices import Choices, key_of

PRODUCT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,64] x, float[64,48] w) => (float[n,48] y) {
  p = MatMul(x, w)
  y = Relu(p)
}"""

ROWS = 100


def product() -> ModelProto:
    return parser.parse_model(PRODUCT)


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((ROWS, 64)).astype(np.float32),
        "w": rng.standard_normal((64, 48)).astype(np.float32),
    }


def check(model: tw.CompiledModel) -> None:
    got, given = model.run(feeds())["y"], feeds()
    np.testing.assert_allclose(got, np.maximum(given["x"] @ given["w"], 0), rtol=1e-4, atol=1e-4)


def block(kernel: PlannedKernel, axis: str) -> int:
    """How many iterations of an axis make a block in the product; 0 for other kernels."""
    found = [re.search(rf"Block\(axis='{axis}', factor=(\d+)", d) for d in kernel.schedule]
    return next((int(f[1]) for f in found if f), 0)


def blocks(model: tw.CompiledModel) -> tuple[int, int]:
    """Height and width of the product's tiles."""
    (kernel,) = (k for k in model.kernels if "Relu" in k.graph)
    return block(kernel, "row0"), block(kernel, "row1")


def notes(model: tw.CompiledModel) -> list[str]:
    return [d for s in model.explain().stages for d in s.decisions if "as measured" in d]


@pytest.fixture
def options(tmp_path: Path) -> tw.Options:
    return tw.Options(threads=1, cache_dir=tmp_path / "cache")


def favour(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Plan, int], bool]) -> list[Plan]:
    """In place of the clock: kernels that are wanted take half the time. The plans measured."""
    seen: list[Plan] = []

    def seconds(plan: Plan, arrays: Sequence[np.ndarray]) -> list[float]:
        seen.append(plan)
        return [0.5 if wanted(plan, k) else 1.0 for k in range(len(plan.kernels))]

    monkeypatch.setattr(tune, "measure", seconds)
    return seen


def other_height(options: tw.Options) -> Callable[[Plan, int], bool]:
    """Wants tiles of the usual width and of another height than usual."""
    model = tw.compile(product(), options=options)
    check(model)
    height, width = blocks(model)
    assert height and width

    def wanted(plan: Plan, k: int) -> bool:
        kernel = plan.kernels[k]
        return block(kernel, "row1") == width and block(kernel, "row0") != height

    return wanted


def test_the_winner_is_used_kept_and_explained(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = tw.compile(product(), options=options)
    check(usual)
    favour(monkeypatch, other_height(options))
    tuned = tw.compile(product(), options=options, tune=60)
    check(tuned)
    check(tuned)
    later = tw.compile(product(), options=options)
    check(later)
    (height, width), (other, same) = blocks(usual), blocks(tuned)
    assert height != other and width == same and blocks(later) == (other, same)
    for model in (tuned, later):
        assert notes(model) == [f"height {other} as measured, not {height}"]
    assert tuned.profile(feeds()).kernels


def test_another_process_takes_the_winner(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    favour(monkeypatch, other_height(options))
    tuned = tw.compile(product(), options=options, tune=60)
    check(tuned)
    (tmp_path / "model.onnx").write_bytes(product().SerializeToString())
    text = (
        "import sys, tilewright, numpy\n"
        "m = tilewright.compile(sys.argv[1], threads=1)\n"
        f"m.warmup({{'x': ({ROWS}, 64), 'w': (64, 48)}})\n"
        "print(m.explain())"
    )
    where = {"TILEWRIGHT_CACHE_DIR": str(options.cache_dir), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", text, str(tmp_path / "model.onnx")]
    done = subprocess.run(
        command, env={**os.environ, **where}, capture_output=True, text=True, check=True
    )
    assert f"height {blocks(tuned)[0]} as measured" in done.stdout


def test_without_a_faster_way_nothing_changes(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = favour(monkeypatch, lambda plan, k: False)
    model = tw.compile(product(), options=options, tune=60)
    check(model)
    assert len({id(p) for p in measured}) > 3, "other ways were tried"
    rounds = len(measured)
    check(model)
    assert len(measured) == rounds, "later calls just run"
    assert not notes(model)
    kept = KeptChoices(KernelCache(options).store, {**environment_fields(), "threads": 1})
    assert not kept.known


def test_time_is_bounded_and_shared(options: tw.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = favour(monkeypatch, lambda plan, k: True)
    model = tw.compile(product(), options=options, tune=1e-9)
    check(model)
    assert not measured and not notes(model)


def test_a_run_that_fails_is_not_tuned(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[4,4] x, int64[2] i) => (float[2,4] y) { y = Gather(x, i) }"""
    measured = favour(monkeypatch, lambda plan, k: False)
    model = tw.compile(parser.parse_model(text), options=options, tune=60)
    with pytest.raises(tw.ExecutionError):
        model.run({"x": np.ones((4, 4), np.float32), "i": np.array([0, 9])})
    assert not measured


def kept_in(cache: KernelCache, threads: int) -> KeptChoices:
    return KeptChoices(cache.store, {"threads": threads})


def damaged(kept: KeptChoices, cache: KernelCache, data: bytes, symbol: str) -> None:
    cache.store.put(kept._key, StoredObject(data, symbol))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b"3", b"null", b"\xff\xfe", b'{"a": "b", "c": null, "d": [1], "e": 1.5}'],
)
def test_a_broken_record_is_no_record(options: tw.Options, data: bytes) -> None:
    cache = KernelCache(options)
    kept = kept_in(cache, 1)
    kept.add({"key": 3})
    assert kept_in(cache, 1).known == {"key": 3}
    assert not kept_in(cache, 2).known, "other numbers of threads have choices of their own"
    damaged(kept, cache, data, tune.KIND)
    assert not kept_in(cache, 1).known
    damaged(kept, cache, b'{"key": 3}', "kernel")
    assert not kept_in(cache, 1).known
    path = cache.store.path(kept._key)
    assert path is not None
    path.write_bytes(b"garbage")
    check(tw.compile(product(), options=options))


@pytest.mark.parametrize("value", [-1, 0, 5000, True])
def test_what_is_no_option_is_not_taken(options: tw.Options, value: int) -> None:
    model = tw.compile(product(), options=options)
    check(model)
    cache, choices = KernelCache(options), Choices(watched=True)
    (x, w) = (placeholder((ROWS, 64), DType.F32), placeholder((64, 48), DType.F32))
    y = compute((ROWS, 48), lambda i, j, k: x[i, k] * w[k, j], reduce=ScalarOp.ADD, over=[64])
    build_plan([x, w], [y], options, cache, choices=choices)
    assert {d.point.kind for d in choices.decisions} >= {"height", "panel"}
    foreign = Choices({d.key: value for d in choices.decisions})
    plan = build_plan([x, w], [y], options, cache, choices=foreign)
    got = plan.run([feeds()["x"], feeds()["w"]])[0]
    np.testing.assert_allclose(got, feeds()["x"] @ feeds()["w"], rtol=1e-4, atol=1e-4)


def test_only_kernels_that_differ_are_compared(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, cache = placeholder((40, 50), DType.F32), KernelCache(options)
    total = compute((40,), lambda i, k: x[i, k], reduce=ScalarOp.ADD, over=[50])
    most = compute((40,), lambda i, k: x[i, k], reduce=ScalarOp.MAX, over=[50])
    two, one = (build_plan([x], ts, options, cache) for ts in ([most, total], [total]))
    left = tune._differing(two, one)
    assert [two.kernels[k].writes for k in left] == [two.kernels[0].writes]
    assert tune._differing(one, two) == [] == tune._differing(two, two)

    least = compute((40,), lambda i, k: x[i, k], reduce=ScalarOp.MIN, over=[50])
    other = build_plan([x], [total, least], options, cache)

    def seconds(plan: Plan, arrays: Sequence[np.ndarray]) -> list[float]:
        return [8.0, 100.0] if plan is two else [100.0, 4.0]

    monkeypatch.setattr(tune, "measure", seconds)
    search = tune.Search(lambda choices: two, kept_in(cache, 1), [], 60)
    assert search._gain(two, other) == 2.0, "sums are in both"
    assert search._gain(two, one) == 1.0, "nothing is new"


def test_keys_tell_kinds_and_structures_apart() -> None:
    def point(kind: str, structure: object) -> Point:
        return Point(kind, lambda: structure, (1, 2), 1, 0.0)  # type: ignore[arg-type,return-value]

    keys = [key_of(point(k, s)) for k in ("height", "tasks") for s in ((1, 2), (12,), "1")]
    assert len(set(keys)) == len(keys)


class Random(Choices):
    """Takes any of the options."""

    def __init__(self, seed: int) -> None:
        super().__init__(watched=True)
        self._lottery, self._taken = lottery.Random(seed), dict[str, int]()

    def pick(self, point: Point) -> int:
        key = key_of(point)
        return self._taken.setdefault(key, self._lottery.choice(point.options))


def convolution(
    inputs: int, outputs: int, size: tuple[int, int], pad: int
) -> tuple[Placeholder, Tensor]:
    """A padded window of 3x3 over few pixels."""
    (h, w), rng = size, np.random.default_rng(1)
    x = placeholder((2, inputs, h, w), DType.F32)
    k = constant(rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float32), DType.F32)

    def element(n: Expr, o: Expr, y: Expr, z: Expr, i: Expr, a: Expr, b: Expr) -> Expr:
        up, left = y + a - pad, z + b - pad
        value: Expr = x[n, i, up, left]
        if pad:
            inside = (up >= 0) & (up < h) & (left >= 0) & (left < w)
            value = select(inside, value, 0)
        return value * k[o, i, a, b]

    shape = (2, outputs, h + 2 * pad - 2, w + 2 * pad - 2)
    return x, compute(shape, element, reduce=ScalarOp.ADD, over=[inputs, 3, 3])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    channels=st.tuples(st.integers(14, 34), st.integers(14, 40)),
    size=st.tuples(st.integers(3, 13), st.integers(3, 13)),
    pad=st.integers(0, 1),
    threads=st.integers(1, 2),
)
def test_any_choice_convolves_right(
    seed: int, channels: tuple[int, int], size: tuple[int, int], pad: int, threads: int
) -> None:
    x, y = convolution(*channels, size, pad)
    value = np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32)
    want = evaluate(y, {x.name: value})
    options = tw.Options(threads=threads)
    plan = build_plan([x], [y], options, default_cache(), choices=Random(seed))
    tolerance = 1e-4 * max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(plan.run([value])[0], want, rtol=0, atol=tolerance)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    sizes=st.tuples(st.integers(4, 300), st.integers(2, 70), st.integers(4, 90)),
    threads=st.integers(1, 2),
)
def test_any_choice_multiplies_right(seed: int, sizes: tuple[int, int, int], threads: int) -> None:
    m, d, n = sizes
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, d), (d, n)))
    x, w = placeholder((m, d), DType.F32), placeholder((d, n), DType.F32)
    y = compute((m, n), lambda i, j, k: x[i, k] * w[k, j], reduce=ScalarOp.ADD, over=[d])
    options = tw.Options(threads=threads)
    plan = build_plan([x, w], [y], options, default_cache(), choices=Random(seed))
    np.testing.assert_allclose(plan.run([a, b])[0], a @ b, rtol=1e-4, atol=1e-4)
