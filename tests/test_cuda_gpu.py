"""What only a real GPU can tell: `pytest -m gpu`. Skipped, with the reason, where there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import parser

import tilewright as tw
from cuda_harness import missing, toolchain
from test_cuda_arrays import MODEL, WANTED, B, X
from test_cuda_crossings import HEADER, HOST, LOOP
from test_cuda_mma import HALVES, agree
from test_cuda_node_cases import cases, run_case
from test_cuda_run import CHECKED, FAMILIES, compare_with_cpu, family_model, free_rank, large
from test_cuda_wgmma import KINDS, emulated, lowered
from tilewright.driver import compile_in
from tilewright.runtime.cuda.device import LEGACY_STREAM
from tilewright.runtime.cuda.libraries import CUBLAS, LIBRARYS
from tilewright.runtime.cuda.port import Port
from tilewright.runtime.cuda.toolchain import TO_RUN
from tilewright.runtime.cuda.workshop import cuda_workshop
from tilewright.schedule.choices import Choices
from tilewright.schedule.directives import schedule
from tilewright.schedule.wgmma_tiles import TILES

Array = np.ndarray[Any, Any]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(missing(TO_RUN)), reason=missing(TO_RUN)),
]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def model() -> tw.CompiledModel:
    return tw.compile(MODEL, target="cuda")


@pytest.fixture
def cupy() -> Iterator[Any]:
    yield pytest.importorskip("cupy")


@pytest.fixture
def torch() -> Iterator[Any]:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    yield module


@pytest.mark.filterwarnings("ignore:no part of:RuntimeWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_families_agree(family: str) -> None:
    compare_with_cpu(tw.compile(family_model(family), target="cuda"), family)


@pytest.mark.parametrize("part", range(16))
@pytest.mark.filterwarnings("ignore:no part of:RuntimeWarning")
def test_node_cases(part: int) -> None:
    """All of them; a failure does not hide the next."""
    failed = {}
    for name, case in list(cases().items())[part::16]:
        try:
            run_case(tw.compile(case.model, target="cuda"), case)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
    assert not failed


def test_several_kernels_are_one_graph() -> None:
    """Outputs have new addresses in each call, and so the graph new parameters."""
    ours, cpu = tw.compile(free_rank(large()), target="cuda"), tw.compile(large(), threads=1)
    kept = []
    for seed in range(5):
        x = normal(1, 24, seed=seed)
        kept.append((ours(x), cpu(x)))
    for got, want in kept:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert any("one CUDA graph" in d for s in ours.explain().stages for d in s.decisions)


def test_launches_one_by_one_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.errors import DeviceError
    from tilewright.runtime.cuda import gpu

    def fails(*_: Any) -> None:
        raise DeviceError("no graphs today")

    monkeypatch.setattr(gpu, "GraphLaunches", fails)
    ours, x = tw.compile(large(), target="cuda"), normal(1, 24)
    np.testing.assert_allclose(ours(x), tw.compile(large(), threads=1)(x), rtol=1e-4, atol=1e-5)
    assert "one by one: no graphs today" in str(ours.explain())


def test_memory_without_cupy() -> None:
    from tilewright.runtime.cuda.gpu import GpuDevice

    device = GpuDevice()
    device.cupy = None
    ours = compile_in(cuda_workshop(tw.Options.from_environment(), Port(device)), large())
    cpu = tw.compile(large(), threads=1)
    for seed in range(4):
        x = normal(1, 24, seed=seed)
        np.testing.assert_allclose(ours(x), cpu(x), rtol=1e-4, atol=1e-5)


def test_bad_data_names_the_node() -> None:
    ours = tw.compile(CHECKED, target="cuda")
    feeds = {"x": normal(5), "i": np.array([1, 4]), "d": np.array([1, 2])}
    ours.run(feeds)
    with pytest.raises(tw.ExecutionError, match=r"Gather.*out of range"):
        ours.run({**feeds, "i": np.array([5, 0])})
    np.testing.assert_array_equal(ours.run(feeds)["z"], [1, 2])


def test_parts_on_the_host() -> None:
    for text, feeds in (
        (HOST, {"x": normal(50, 40)}),
        (LOOP, {"n": np.array(3), "x": normal(8), "step": normal(8, seed=1)}),
    ):
        proto = parser.parse_model(HEADER + text)
        wanted = tw.compile(proto, threads=1).run(feeds)
        ours = tw.compile(proto, target="cuda")
        for name, got in ours.run(feeds).items():
            np.testing.assert_allclose(got, wanted[name], rtol=1e-5, atol=1e-5)
        assert ours.explain().crossings


def test_threads_share_a_model() -> None:
    ours = tw.compile(free_rank(large()), target="cuda")
    cpu = tw.compile(free_rank(large()), threads=1)
    feeds = [normal(1 + k % 2, 24, seed=k) for k in range(6)]
    wanted = [cpu(x) for x in feeds]
    failures: list[int] = []

    def work(k: int) -> None:
        for _ in range(20):
            if not np.allclose(ours(feeds[k]), wanted[k], rtol=1e-4, atol=1e-5):
                failures.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_arrays_of_cupy(model: tw.CompiledModel, cupy: Any) -> None:
    outputs = model.run({"x": cupy.asarray(X), "b": cupy.asarray(B)})
    for name, want in WANTED.items():
        assert isinstance(outputs[name], cupy.ndarray)
        np.testing.assert_allclose(cupy.asnumpy(outputs[name]), want, rtol=1e-5, atol=1e-5)
    assert not model.explain().crossings
    with pytest.raises(tw.InputError, match="not in C order"):
        model.run({"x": cupy.asarray(X.T.copy()).T, "b": cupy.asarray(B)})


def test_streams_of_cupy(model: tw.CompiledModel, cupy: Any) -> None:
    """Inputs are made in the stream by work that takes a while."""
    model.run({"x": cupy.asarray(X), "b": cupy.asarray(B)})
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        busy = cupy.random.standard_normal((4000, 4000), dtype=np.float32)
        for _ in range(10):
            busy = cupy.tanh(busy @ busy)
        x = cupy.asarray(X) + 0 * busy[:3, :6]
        outputs = model.run({"x": x, "b": cupy.asarray(B)})
        total = outputs["y"] + 0
    stream.synchronize()
    np.testing.assert_allclose(cupy.asnumpy(total), WANTED["y"], rtol=1e-5)


def test_tensors_of_torch(model: tw.CompiledModel, torch: Any) -> None:
    x, b = torch.from_numpy(X).cuda(), torch.from_numpy(B).cuda()
    outputs = model.run({"x": x, "b": b})
    for name, want in WANTED.items():
        tensor = torch.from_dlpack(outputs[name])
        assert tensor.is_cuda
        np.testing.assert_allclose(tensor.cpu().numpy(), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(tw.InputError, match="detach"):
        model.run({"x": x.clone().requires_grad_(), "b": b})


def test_streams_of_torch(model: tw.CompiledModel, torch: Any) -> None:
    stream, b = torch.cuda.Stream(), torch.from_numpy(B).cuda()
    model.run({"x": torch.from_numpy(X).cuda(), "b": b})
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        busy = torch.randn(4000, 4000, device="cuda")
        for _ in range(10):
            busy = torch.tanh(busy @ busy)
        x = torch.from_numpy(X).cuda() + 0 * busy[:3, :6]
        total = torch.from_dlpack(model.run({"x": x, "b": b})["y"]) + 0
    stream.synchronize()
    np.testing.assert_allclose(total.cpu().numpy(), WANTED["y"], rtol=1e-5)


def test_bfloat16_of_torch(torch: Any) -> None:
    text = "g (bfloat16[n] x) => (bfloat16[n] y) { y = Add(x, x) }"
    ours = tw.compile(parser.parse_model(HEADER + text), target="cuda")
    x = torch.arange(40, device="cuda").to(torch.bfloat16)
    assert torch.equal(torch.from_dlpack(ours(x)), x + x)


def test_a_stream_can_be_named(model: tw.CompiledModel, cupy: Any) -> None:
    feeds = {"x": cupy.asarray(X), "b": cupy.asarray(B)}
    cupy.cuda.Device().synchronize()
    for stream in (LEGACY_STREAM, cupy.cuda.Stream(non_blocking=True)):
        outputs = model.run(feeds, stream=stream)
        cupy.cuda.Device().synchronize()
        np.testing.assert_allclose(cupy.asnumpy(outputs["y"]), WANTED["y"], rtol=1e-5)


def test_a_profile_adds_up() -> None:
    ours = tw.compile(large(), target="cuda")
    found = ours.profile({"x": normal(1, 24)})
    assert len(found) == len(ours.kernels) and all(s.seconds > 0 for s in found)
    assert found.ceilings.bandwidth > 1e11 and found.ceilings.flops > 1e12


@pytest.mark.parametrize("kind", ["float", "float16", "bfloat16"])
def test_products_of_cublas_agree(cupy: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product that may be its is its; equal calls have equal results."""
    from tilewright.runtime.cuda.gpu import first_gpu  # imports the bindings

    if first_gpu().library is None:
        pytest.skip("CuPy does not find cuBLAS")
    text = f"g ({kind}[2,m,96] x, {kind}[2,96,160] w) => ({kind}[2,m,160] y, {kind}[2,m,160] z) "
    text += "{ y = MatMul(x, w) z = Relu(y) }"
    onnx = parser.parse_model(HEADER + text)
    wanted = tw.compile(onnx, threads=1)
    monkeypatch.setattr(
        Choices, "pick", lambda self, p: LIBRARYS if p.kind == "library" else p.default
    )
    ours = tw.compile(onnx, target="cuda")
    dtype = {i.name: i.dtype for i in ours._graph.inputs}["x"]
    assert dtype is not None
    for m in (1, 33, 128):
        x, w = (normal(2, *s).astype(dtype.numpy) for s in ((m, 96), (96, 160)))
        want, one, two = (f.run({"x": x, "w": w}) for f in (wanted, ours, ours))
        for name in ("y", "z"):
            np.testing.assert_array_equal(one[name], two[name])
            a, b = one[name].astype(np.float32), want[name].astype(np.float32)
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2)
    assert any(CUBLAS in k.source for k in ours.kernels)


def test_tuning_keeps_the_results() -> None:
    text = (
        "g (float[m,256] x, float[256,192] w) => (float[m,192] y) { p = MatMul(x, w) y = Relu(p) }"
    )
    onnx = parser.parse_model(HEADER + text)
    x, w = normal(300, 256), normal(256, 192, seed=1)
    tuned = tw.compile(onnx, target="cuda", tune=20)
    for _ in range(2):
        np.testing.assert_allclose(
            tuned.run({"x": x, "w": w})["y"], np.maximum(x @ w, 0), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [t for t, _ in TILES], ids=str)
def test_warpgroups_find_matrices_where_boxes_are_copied(tile: Any, kind: str, dtype: Any) -> None:
    """Layouts in shared memory and descriptions of tensors, which nobody but hardware knows."""
    if toolchain().gpus[0].architecture != "sm_90a":
        pytest.skip("this GPU has no products by warpgroups")
    found, wanted = lowered(kind, dtype, 200, 264, 328)
    agree(emulated(schedule(found.kernel, (tile,))), wanted, dtype)


def test_tensors_are_described_anew() -> None:
    """Inputs have new addresses in each call, several kernels are one graph."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
g (float16[1024,256] x, float16[256,1024] w, float16[1024,512] v) => (float16[1024,512] y)
{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"""
    ours = tw.compile(parser.parse_model(text), target="cuda")
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(s).astype(np.float16) for s in ((256, 1024), (1024, 512)))
    for _ in range(3):
        x = rng.standard_normal((1024, 256)).astype(np.float16)
        inner = np.maximum(x.astype(np.float32) @ w.astype(np.float32), 0).astype(np.float16)
        wanted = inner.astype(np.float32) @ v.astype(np.float32)
        got = ours.run({"x": x, "w": w, "v": v})["y"].astype(np.float32)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3 * float(np.abs(wanted).max()))
