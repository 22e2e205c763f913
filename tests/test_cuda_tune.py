"""Tuning on a GPU, on a device that is emulated and with a clock that is planted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, parser

import tilewright as tw
from cuda_harness import needs_compiler
from emulated_device import EmulatedDevice, compile_for
from tilewright.errors import CompileError, DeviceError
from tilewright.runtime import tune
from tilewright.runtime.cuda.cache import CudaKernelCache, device_fields
from tilewright.runtime.cuda.plan import CudaPlan
from tilewright.runtime.tune import KeptChoices

pytestmark = needs_compiler

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
PRODUCT = "g (float[n,40] x, float[40,64] w) => (float[n,64] y) { p = MatMul(x, w) y = Relu(p) }"
ROWS = 33


def of(text: str) -> ModelProto:
    return parser.parse_model(HEADER + text)


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((ROWS, 40)), rng.standard_normal((40, 64))
    return {"x": x.astype(np.float32), "w": w.astype(np.float32)}


def check(model: tw.CompiledModel) -> None:
    got, given = model.run(feeds())["y"], feeds()
    np.testing.assert_allclose(got, np.maximum(given["x"] @ given["w"], 0), rtol=1e-4, atol=1e-4)


@pytest.fixture
def options(tmp_path: Path) -> tw.Options:
    return tw.Options(cache_dir=tmp_path / "cache", compile_workers=0)


def favour(monkeypatch: pytest.MonkeyPatch, wanted: str) -> list[CudaPlan]:
    """In place of the clock: kernels with this in their schedule take half the time. The plans
    measured."""
    seen: list[CudaPlan] = []

    def seconds(plan: CudaPlan, arrays: Sequence[Any]) -> list[float]:
        seen.append(plan)
        plan.timed(arrays)
        return [0.5 if wanted in str(k.schedule) else 1.0 for k in plan.kernels]

    monkeypatch.setattr(tune, "measure", seconds)
    monkeypatch.setattr(tune, "ROUNDS", 3)
    return seen


def told(model: tw.CompiledModel, word: str) -> list[str]:
    return [str(d) for s in model.explain().stages for d in s.decisions if word in str(d)]


def kept(options: tw.Options, device: EmulatedDevice) -> dict[str, int]:
    return KeptChoices(CudaKernelCache(options).store, device_fields(device, options)).known


WANTED = "BlockTile(rows=64, columns=64"


def test_the_winner_is_used_kept_and_explained(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = EmulatedDevice()
    usual = compile_for(device, of(PRODUCT), options)
    check(usual)
    assert WANTED not in str(usual.kernels[0].schedule)
    favour(monkeypatch, WANTED)
    tuned = compile_for(device, of(PRODUCT), options, tune=500)
    check(tuned)
    check(tuned)
    later = compile_for(device, of(PRODUCT), options)
    check(later)
    for model in (tuned, later):
        assert WANTED in str(model.kernels[0].schedule)
        (note,) = told(model, "as measured")
        assert note.startswith(f"tile {WANTED}") and "not BlockTile(" in note
    assert kept(options, device)
    other = EmulatedDevice()
    other.name = "another"
    check(elsewhere := compile_for(other, of(PRODUCT), options))
    assert not told(elsewhere, "as measured"), "another device has choices of its own"


def test_without_a_faster_way_nothing_changes(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, measured = EmulatedDevice(), favour(monkeypatch, "nothing of the kind")
    model = compile_for(device, of(PRODUCT), options, tune=500)
    check(model)
    rounds = len(measured)
    assert len({id(p) for p in measured}) > 2
    check(model)
    assert len(measured) == rounds, "later calls just run"
    assert not told(model, "as measured") and not kept(options, device)


@pytest.mark.parametrize("error", [CompileError("no such thing"), DeviceError("too many")])
@pytest.mark.parametrize("where", ["load", "launch"])
def test_a_candidate_that_fails_is_skipped_and_named(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    device = EmulatedDevice()
    check(compile_for(device, of(PRODUCT), options))  # what is usual is compiled
    if where == "load":

        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(CudaKernelCache, "_compile", fail)
    else:

        def late(plan: CudaPlan, arrays: Sequence[Any]) -> list[float]:
            raise error

        monkeypatch.setattr(tune, "measure", late)
    model = compile_for(device, of(PRODUCT), options, tune=500)
    check(model)
    check(model)
    skipped = told(model, "was not measured")
    assert skipped and all(str(error) in s and s.startswith("tile BlockTile(") for s in skipped)
    assert not told(model, "as measured")


def test_errors_of_ours_escape(options: tw.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(plan: CudaPlan, arrays: Sequence[Any]) -> list[float]:
        raise ZeroDivisionError

    monkeypatch.setattr(tune, "measure", fail)
    with pytest.raises(ZeroDivisionError):
        check(compile_for(EmulatedDevice(), of(PRODUCT), options, tune=500))


NO_KERNEL = "g (float[n] x) => (float[n] y) { y = Identity(x) }"


def test_nothing_to_tune(options: tw.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = favour(monkeypatch, "anything")
    model = compile_for(EmulatedDevice(), of(NO_KERNEL), options, tune=500)
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(model.run({"x": x})["y"], x)
    assert not measured


def in_threads(work: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []

    def guarded(k: int) -> None:
        try:
            work(k)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(k,)) for k in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_threads_share_a_model_that_is_tuned(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    favour(monkeypatch, WANTED)
    device = EmulatedDevice(mixed=True)
    model = compile_for(device, of(PRODUCT), options, tune=500)

    def work(k: int) -> None:
        for _ in range(2):
            got, given = model.run(feeds(), stream=100 + k % 2)["y"], feeds()
            wanted = np.maximum(given["x"] @ given["w"], 0)
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)

    in_threads(work, 3)
    assert WANTED in str(model.kernels[0].schedule)
