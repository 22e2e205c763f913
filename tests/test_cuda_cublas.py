"""Products by cuBLAS where tuning measured it faster: a library in NumPy, an emulated device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import tilewright as tw
from cuda_harness import needs_compiler
from emulated_device import EmulatedDevice, compile_for
from fake_cublas import FakeCublas, install
from test_cuda_tune import of, told
from tilewright.dtypes import DType
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.lower import lower
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops.tensor import Tensor, compute, placeholder
from tilewright.runtime import tune
from tilewright.runtime.cuda.libraries import CUBLAS
from tilewright.runtime.cuda.plan import CudaPlan
from tilewright.schedule import cuda
from tilewright.schedule.library import library_product

pytestmark = needs_compiler
Array = np.ndarray[Any, Any]

MODELS = {
    "epilogue": "g (float[n,24] x, float[24,32] w, float[32] b) => (float[n,32] y) "
    "{ p = MatMul(x, w) q = Add(p, b) y = Relu(q) }",
    "plain": "g (float[n,24] x, float[24,32] w) => (float[n,32] y) { y = MatMul(x, w) }",
    "turned": "g (float[24,n] x, float[32,24] w) => (float[n,32] y) "
    "{ y = Gemm<transA = 1, transB = 1>(x, w) }",
    "batch": "g (float[3,n,24] x, float[3,24,32] w) => (float[3,n,32] y) { y = MatMul(x, w) }",
    "halves": "g (float16[n,24] x, float16[24,32] w, float16[32] b) => (float16[n,32] y) "
    "{ p = MatMul(x, w) y = Add(p, b) }",
    "plain halves": "g (float16[n,24] x, float16[24,32] w) => (float16[n,32] y) "
    "{ y = MatMul(x, w) }",
}


def feeds(model: tw.CompiledModel, n: int = 19) -> dict[str, Array]:
    rng = np.random.default_rng(n)
    made = {}
    for i in model._graph.inputs:
        assert i.dtype is not None
        shape = [d if isinstance(d, int) else n for d in i.shape or ()]
        made[i.name] = rng.standard_normal(shape).astype(i.dtype.numpy)
    return made


@pytest.fixture
def options(tmp_path: Path) -> tw.Options:
    return tw.Options(cache_dir=tmp_path / "cache", compile_workers=0)


def favour_library(monkeypatch: pytest.MonkeyPatch, faster: bool = True) -> None:
    def seconds(plan: CudaPlan, arrays: Sequence[Any]) -> list[float]:
        plan.timed(arrays)
        theirs = any(CUBLAS in k.source for k in plan.kernels)
        return [0.1 if theirs == faster else 1.0 for _ in plan.kernels]

    monkeypatch.setattr(tune, "measure", seconds)
    monkeypatch.setattr(tune, "ROUNDS", 3)
    for name in ("TILES", "MMA_TILES"):  # other tiles are tested elsewhere
        monkeypatch.setattr(cuda, name, getattr(cuda, name)[-1:])
    monkeypatch.setattr(cuda, "STAGES", (3,))
    monkeypatch.setattr(cuda, "ELEMENT_THREADS", ())


def check(model: tw.CompiledModel, reference: tw.CompiledModel, n: int = 19) -> None:
    given = feeds(reference, n)
    want, got = reference.run(given)["y"], model.run(given)["y"]
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2)


def by_library(model: tw.CompiledModel) -> list[str]:
    return [k.source for k in model.kernels if CUBLAS in k.source]


@pytest.mark.parametrize("name", MODELS)
def test_a_faster_library_is_taken_and_named(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    device, reference = EmulatedDevice(), tw.compile(of(MODELS[name]), threads=1)
    fake = install(device)
    favour_library(monkeypatch)
    tuned = compile_for(device, of(MODELS[name]), options, tune=500)
    check(tuned, reference)
    (source,) = by_library(tuned)
    assert (
        "19" in source
        and "24" in source
        and ("f16" if "halves" in name else "f32") in source.lower()
    )
    assert any("library cuBLAS 13.1.1 for" in d for d in told(tuned, "as measured"))
    count = fake.calls
    later = compile_for(device, of(MODELS[name]), options)
    for _ in range(2):
        check(later, reference)  # new addresses each time
    assert fake.calls == count + 2 and by_library(later) == [source]
    assert len(later.kernels) == (1 if "plain" in name or name in ("batch", "turned") else 2)


def test_never_without_a_measurement(options: tw.Options) -> None:
    device, reference = EmulatedDevice(), tw.compile(of(MODELS["epilogue"]), threads=1)
    fake = install(device)
    model = compile_for(device, of(MODELS["epilogue"]), options)
    check(model, reference)
    assert not fake.calls and not by_library(model) and len(model.kernels) == 1


def test_a_slower_library_is_not_taken(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, reference = EmulatedDevice(), tw.compile(of(MODELS["plain"]), threads=1)
    fake = install(device)
    favour_library(monkeypatch, faster=False)
    model = compile_for(device, of(MODELS["plain"]), options, tune=500)
    check(model, reference)
    assert fake.calls and not by_library(model)


def test_a_library_that_refuses_is_skipped(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, reference = EmulatedDevice(), tw.compile(of(MODELS["plain"]), threads=1)
    install(device).refuses = True

    def seconds(plan: CudaPlan, arrays: Sequence[Any]) -> list[float]:
        plan.timed(arrays)
        return [1.0 for _ in plan.kernels]

    monkeypatch.setattr(tune, "measure", seconds)
    monkeypatch.setattr(tune, "ROUNDS", 3)
    model = compile_for(device, of(MODELS["plain"]), options, tune=500)
    check(model, reference)
    (skipped,) = told(model, "CUBLAS_STATUS_NOT_SUPPORTED")
    assert skipped.startswith("library cuBLAS") and not by_library(model)


def test_a_kept_choice_counts_only_where_the_library_is(
    options: tw.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, reference = EmulatedDevice(), tw.compile(of(MODELS["plain"]), threads=1)
    install(device)
    favour_library(monkeypatch)
    check(compile_for(device, of(MODELS["plain"]), options, tune=500), reference)
    bare = compile_for(EmulatedDevice(), of(MODELS["plain"]), options)
    check(bare, reference)
    assert not by_library(bare)


sizes = st.integers(1, 5)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_products_are_those_of_the_loops(
    batch: int, m: int, k: int, n: int, turn_a: bool, turn_b: bool, shared: bool, plain: bool
) -> None:
    """The parts compute what the kernel does, and the library what their loops do."""
    a = placeholder((batch, k, m) if turn_a else (batch, m, k), DType.F32)
    b = placeholder(
        (1 if shared else batch, n, k) if turn_b else (1 if shared else batch, k, n), DType.F32
    )

    def element(q: Any, i: Any, j: Any, d: Any) -> Any:
        r = 0 if shared else q
        return (a[q, d, i] if turn_a else a[q, i, d]) * (b[r, j, d] if turn_b else b[r, d, j])

    p = compute((batch, m, n), element, reduce=ScalarOp.ADD, over=[k])
    y: Tensor = p if plain else compute(p.shape, lambda q, i, j: p[q, i, j] + 1.0)
    program = inline([a, b], [y])
    (lowered,) = [lower(g, program) for g in form_groups(program, side_by_side=True)]
    found = library_product(lowered)
    event("a product" if found else "none")
    if found is None:
        return
    rng = np.random.default_rng(0)
    values = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in (a, b)}
    x, w = values[a.name], values[b.name]
    wanted = (x.transpose(0, 2, 1) if turn_a else x) @ (w.transpose(0, 2, 1) if turn_b else w)
    device = EmulatedDevice()
    fake = install(device)
    _by_library(device, fake, found.gemm, found.lowered, values, wanted)
    parts = [found.lowered, *([found.rest] if found.rest else [])]
    for part in parts:
        verify(part.kernel)
    memory: dict[str, Array] = {**values}
    for part in parts:
        names = [t.name for t in part.tensors]
        for buffer, name in zip(part.kernel.params, names, strict=True):
            memory.setdefault(name, poisoned(buffer.shape, buffer.dtype))
        interpret(
            part.kernel, {q.name: memory[t] for q, t in zip(part.kernel.params, names, strict=True)}
        )
    got = memory[parts[-1].tensors[-1].name]
    np.testing.assert_allclose(
        got.reshape(wanted.shape), wanted + (not plain), rtol=1e-5, atol=1e-5
    )


def _by_library(
    device: EmulatedDevice, fake: FakeCublas, gemm: Any, lowered: Any, values: Any, wanted: Array
) -> None:
    words, held = [], []
    for t in lowered.tensors:
        held.append(device.allocate(max(1, t.size * 4)))
        words.append(held[-1].address)
        if t.name in values:
            device.memory.write(words[-1], values[t.name])
    assert device.library is not None
    device.library.gemm(gemm, words, device.stream)
    got = device.memory.get(words[gemm.c.slot], wanted.shape, np.dtype(np.float32))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
