"""The device behind a real GPU, with an emulated driver: what it asks of the driver, and when."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from onnx import parser

import tilewright as tw
from cuda_harness import missing, needs_compiler
from device_arrays import CupyModule, Tensor
from emulated_driver import Driver
from fake_cublas import Queued
from test_cuda_arrays import MODEL, WANTED, B, X
from test_cuda_run import CHECKED, free_rank, large, normal
from tilewright.driver import compile_in
from tilewright.fusion.decide import Point
from tilewright.runtime.cuda.cupy_arrays import CupyArrays
from tilewright.runtime.cuda.kernel import CompiledKernel
from tilewright.runtime.cuda.libraries import CUBLAS, LIBRARYS
from tilewright.runtime.cuda.port import Port
from tilewright.runtime.cuda.toolchain import BINDINGS, Gpu, Part
from tilewright.runtime.cuda.workshop import cuda_workshop
from tilewright.schedule.choices import Choices

if missing([BINDINGS]):
    pytest.skip(missing([BINDINGS]), allow_module_level=True)

from tilewright.runtime.cuda import gpu, launches, tensor_maps

pytestmark = needs_compiler


class Toolchain:
    """One that has everything."""

    gpus = (Gpu("emulated", (9, 0), 1 << 30, 4),)

    def require(self, *_: Any) -> Toolchain:
        return self

    def part(self, name: str) -> Part:
        return Part(name, "CUDA 13.0")


@pytest.fixture(params=[True, False], ids=["graphs", "direct"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(has_graphs=request.param)
    for module in (gpu, launches, tensor_maps):
        monkeypatch.setattr(module, "driver", made)
    monkeypatch.setattr(gpu, "find_toolchain", Toolchain)
    monkeypatch.setattr(CupyArrays, "find", classmethod(lambda cls: None))
    load = gpu.GpuDevice.load

    def loaded(self: gpu.GpuDevice, kernel: CompiledKernel) -> Any:
        made.kernels[kernel.entry] = kernel  # the emulator runs PTX
        return load(self, kernel)

    monkeypatch.setattr(gpu.GpuDevice, "load", loaded)
    return made


def compiled(driver: Driver, model: Any, device: gpu.GpuDevice | None = None) -> tw.CompiledModel:
    device = device or gpu.GpuDevice()
    workshop = cuda_workshop(tw.Options.from_environment(), Port(device, device.cupy))
    return compile_in(workshop, model)


HALVES = """<ir_version: 10, opset_import: ["" : 21]>
g (float16[512,72] x, float16[72,512] w, float16[72,512] v)
=> (float16[512,512] y, float16[512,512] z)
{ a = MatMul(x, w) y = Relu(a) z = MatMul(x, v) }"""


def test_tensors_are_described_anew(driver: Driver) -> None:
    """Products by warpgroups: what hardware is told of inputs follows their addresses."""
    ours = compiled(driver, parser.parse_model(HALVES))
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal((72, 512)).astype(np.float16) for _ in "wv")
    kept = [rng.standard_normal((512, 72)).astype(np.float16) for _ in range(2)]
    for x in kept:
        got = ours.run({"x": x, "w": w, "v": v})
        y, z = (x.astype(np.float64) @ m.astype(np.float64) for m in (w, v))
        np.testing.assert_allclose(got["y"], np.maximum(y, 0), rtol=2e-3, atol=2e-2)
        np.testing.assert_allclose(got["z"], z, rtol=2e-3, atol=2e-2)
    for kernel in ours.kernels:
        assert kernel.schedule == ("WgmmaTile(rows=64, columns=64, stages=4)",)
    assert driver.calls.count("cuGetProcAddress") == 1


def test_calls_agree(driver: Driver) -> None:
    """Outputs of earlier calls are kept, so that each call has other addresses."""
    ours = compiled(driver, free_rank(large()))
    cpu = tw.compile(free_rank(large()), threads=1)
    kept = [(ours(x), cpu(x)) for x in (normal(1 + k % 2, 24, seed=k) for k in range(6))]
    for got, want in kept:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    how = "as one CUDA graph of" if driver.has_graphs else "one by one: cuGraphInstantiate failed"
    assert all(any(how in d for d in s.decisions) for s in ours.explain().stages)


def test_a_graph_is_one_call_of_the_driver(driver: Driver) -> None:
    ours = compiled(driver, large())
    x = normal(1, 24)
    ours(x)
    driver.calls.clear()
    ours(x)
    kernels = len(ours.kernels)
    assert driver.calls.count("cuGraphLaunch") == (1 if driver.has_graphs else 0)
    assert driver.calls.count("cuLaunchKernel") == (0 if driver.has_graphs else kernels)
    assert driver.calls.count("cuMemAlloc") == 0  # memory of the call before serves again
    assert driver.calls.count("cuGraphExecKernelNodeSetParams") <= 2


def test_results_stay_on_the_device(driver: Driver) -> None:
    ours = compiled(driver, MODEL)
    feeds = {"x": Tensor(driver.device, X, 50), "b": Tensor(driver.device, B, 60)}
    found = [ours.run(feeds, stream=s) for s in (70, 80)]
    for outputs in found:
        for name, want in WANTED.items():
            np.testing.assert_allclose(outputs[name].get(), want, rtol=1e-5, atol=1e-5)


def test_checks(driver: Driver) -> None:
    ours = compiled(driver, CHECKED)
    feeds = {"x": normal(5), "i": np.array([1, 4]), "d": np.array([1, 2])}
    ours.run(feeds)
    with pytest.raises(tw.ExecutionError, match=r"Div.*divided by zero"):
        ours.run({**feeds, "d": np.array([0, 1])})
    np.testing.assert_array_equal(ours.run(feeds)["z"], [1, 2])


def test_times_are_those_of_events(driver: Driver) -> None:
    ours = compiled(driver, large())
    x = normal(1, 24)
    ours(x)
    [segment] = [g for s in ours._all_sessions() for g in s.segments()]
    device = ours._workshop.port.device  # type: ignore[union-attr]
    array = ours._workshop.port.upload(x, "x", "")  # type: ignore[union-attr]
    outputs, seconds = segment.runner.timed([array])  # type: ignore[union-attr]
    assert seconds == [1e-3] * len(ours.kernels)  # one piece of work between two events
    np.testing.assert_allclose(outputs[0].get(), ours(x))
    assert device.stream


def test_all_is_given_back(driver: Driver) -> None:
    device = gpu.GpuDevice()
    ours = compiled(driver, large(), device)
    for seed in range(3):
        ours(normal(1, 24, seed=seed))
    del ours
    gc.collect()
    assert not any(driver.live[k] for k in ("event", "graph", "executable") if k in driver.live)
    device._pool.give_up()
    assert not driver.held


def test_arrays_may_change_after_a_copy(driver: Driver) -> None:
    device = gpu.GpuDevice()
    memory, x = device.allocate(4 * X.size), X.copy()
    device.write(memory.address, x)
    x[:] = 0
    got = np.empty_like(X)
    device.read(memory.address, got)
    np.testing.assert_array_equal(got, X)


def test_want_of_memory_empties_the_pool(driver: Driver) -> None:
    device = gpu.GpuDevice()
    driver.room = 100_000
    memory = [device.allocate(30_000) for _ in range(3)]
    del memory
    assert device.allocate(90_000).address in driver.held
    with pytest.raises(tw.DeviceError, match="cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY"):
        device.allocate(200_000)


def test_memory_is_that_of_cupy(driver: Driver) -> None:
    device = gpu.GpuDevice()
    module = CupyModule(driver.device)
    device.cupy = CupyArrays(module)
    ours = compiled(driver, MODEL, device)
    np.testing.assert_allclose(ours.run({"x": X, "b": B})["y"], WANTED["y"])
    assert module.allocated > X.nbytes + B.nbytes and "cuMemAlloc" not in driver.calls


PRODUCTS = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,24] x, float[24,24] w) => (float[n,24] y) {
  a = Exp(x) b = MatMul(a, w) c = LogSoftmax(b) d = MatMul(c, w) y = Softmax(d)
}"""


def test_products_of_a_library_lie_between_graphs(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the stream of the call, on the arrays of that call; each part has its own updates."""
    model = parser.parse_model(PRODUCTS)
    device, cpu = gpu.GpuDevice(), tw.compile(model, threads=1)
    fake = Queued.install(driver.device, device)

    def pick(self: Choices, point: Point) -> int:
        return LIBRARYS if point.kind == "library" else point.default

    monkeypatch.setattr(Choices, "pick", pick)
    ours, w = compiled(driver, model, device), normal(24, 24, seed=1)
    for k in range(3):
        x = normal(19, 24, seed=k)
        got = ours.run({"x": x, "w": w}, stream=100 + k % 2)["y"]
        np.testing.assert_allclose(got, cpu.run({"x": x, "w": w})["y"], rtol=1e-4, atol=1e-4)
    assert fake.calls == 6 and fake.streams == [100, 100, 101, 101, 100, 100]
    assert sum(CUBLAS in kernel.source for kernel in ours.kernels) == 2
