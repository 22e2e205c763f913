"""Arrays of other libraries on the device, in and out, in the caller's stream; DLPack; the pool."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

import tilewright as tw
from cuda_harness import needs_compiler
from device_arrays import (
    CupyArray,
    CupyModule,
    Foreign,
    NumbaArray,
    Tensor,
    elements,
    torch_module,
)
from emulated_device import OWN_STREAM, EmulatedDevice, compile_for
from test_cuda_run import free_rank, large
from tilewright.errors import DeviceError
from tilewright.runtime.crossings import TO_DEVICE, TO_HOST, WITHIN
from tilewright.runtime.cuda.arrays import DeviceArray
from tilewright.runtime.cuda.cupy_arrays import CupyArrays
from tilewright.runtime.cuda.dlpack import CUDA, make_capsule, read_capsule
from tilewright.runtime.cuda.imports import is_c_order
from tilewright.runtime.cuda.pool import MemoryPool, rounded
from tilewright.runtime.cuda.streams import stream_handle

Array = np.ndarray[Any, Any]
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
TEXT = """g (float[n,6] x, float[6] b) => (float[n,6] y, float[n,n] z) {
  y = Add(x, b)
  t = Transpose<perm = [1, 0]>(y)
  z = MatMul(y, t)
}"""
MODEL = parser.parse_model(HEADER + TEXT)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, B = normal(3, 6), normal(6, seed=1)
WANTED = {"y": X + B, "z": (X + B) @ (X + B).T}


@pytest.fixture(params=[False, True], ids=["late", "mixed"])
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(mixed=request.param)


@pytest.fixture
def model(device: EmulatedDevice) -> tw.CompiledModel:
    return compile_for(device, MODEL)


def directions(model: tw.CompiledModel) -> list[str]:
    return [c.direction for c in model.explain().crossings]


def check(outputs: dict[str, Any]) -> None:
    for name, want in WANTED.items():
        got = outputs[name]
        if isinstance(got, DeviceArray):
            got = got.get()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("kind", [Tensor, NumbaArray])
def test_arrays_are_read_in_place(
    device: EmulatedDevice, model: tw.CompiledModel, kind: type[Foreign]
) -> None:
    """The elements are only on their way, in two other streams, when the model is called."""
    x, b = kind(device, X, 50), kind(device, B, 60)
    outputs = model.run({"x": x, "b": b}, stream=70)
    assert all(isinstance(v, DeviceArray) and v.stream == 70 for v in outputs.values())
    assert not directions(model)
    check(outputs)
    assert kind is NumbaArray or x.asked == [70]


@needs_compiler
def test_a_call_on_the_device_does_not_wait(
    device: EmulatedDevice, model: tw.CompiledModel
) -> None:
    feeds = {"x": Tensor(device, X, 50), "b": Tensor(device, B, 50)}
    model.run(feeds)  # the plan is made, constants are copied
    device.finish_all()
    before = device.launched
    outputs = [model.run(feeds, stream=s) for s in (70, 80, 70)]
    assert device.launched == before or device.mixed
    for found in reversed(outputs):
        check(found)


@needs_compiler
def test_mixed_inputs(device: EmulatedDevice, model: tw.CompiledModel) -> None:
    outputs = model.run({"x": Tensor(device, X, 50), "b": B})
    assert directions(model) == [TO_DEVICE]
    check(outputs)
    check(model.run({"x": X, "b": B}))
    assert directions(model).count(TO_HOST) == 2


@needs_compiler
def test_outputs_are_inputs(device: EmulatedDevice, model: tw.CompiledModel) -> None:
    y = model.run({"x": Tensor(device, X, 50), "b": Tensor(device, B, 50)}, stream=70)["y"]
    again = compile_for(device, MODEL).run({"x": y, "b": Tensor(device, -B, 60)}, stream=80)["y"]
    np.testing.assert_allclose(again.get(), X, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_streams_are_the_callers(
    device: EmulatedDevice, model: tw.CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_module(90))
    tensor, array = Tensor(device, X, 50), NumbaArray(device, B, 60)
    assert model.run({"x": tensor, "b": array})["y"].stream == 90
    assert model.run({"x": X, "b": array})["y"].stream == 60
    array.names_stream = False
    device.finish_all()
    assert model.run({"x": X, "b": array})["y"].stream == 1
    assert model.run({"x": X, "b": array}, stream=SimpleNamespace(ptr=33))["y"].stream == 33
    assert device.stream == OWN_STREAM


@needs_compiler
def test_runs_in_several_streams_do_not_meet(device: EmulatedDevice) -> None:
    """Intermediate results of a plan are in one place, whoever runs it."""
    text = """g (float[n,6] x) => (float[n,6] y) {
      a = Softmax(x) c = CumSum(a, one) d = Softmax(c) e = CumSum(d, one) y = Softmax(e)
    }""".replace("{", "<int64 one = {1}> {", 1)
    proto = parser.parse_model(HEADER + text)
    model, cpu = compile_for(device, proto), tw.compile(proto, threads=1)
    arrays = [normal(3, 6, seed=k) for k in range(3)]
    outputs = [model.run({"x": Tensor(device, a, 50)}, stream=70 + k) for k, a in enumerate(arrays)]
    for a, found in zip(arrays, outputs, strict=True):
        np.testing.assert_allclose(found["y"].get(), cpu(a), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_constants_are_there_for_all_streams(device: EmulatedDevice) -> None:
    """Plans of one model share them, and run in streams that know nothing of each other."""
    model = compile_for(device, free_rank(large()))
    cpu = tw.compile(free_rank(large()), threads=1)
    arrays = [normal(n, 24) for n in (1, 2)]
    found = [model.run({"x": Tensor(device, a, 50)}, stream=a.shape[0] + 70) for a in arrays]
    np.testing.assert_allclose(found[1]["y"].get(), cpu(arrays[1]), rtol=1e-4, atol=1e-5)


@needs_compiler
def test_misaligned_arrays_are_moved(device: EmulatedDevice, model: tw.CompiledModel) -> None:
    check(model.run({"x": Tensor(device, X, 50, shift=4), "b": Tensor(device, B, 50)}))
    assert directions(model) == [WITHIN]


@needs_compiler
def test_inputs_are_let_go(device: EmulatedDevice, model: tw.CompiledModel) -> None:
    x = Tensor(device, X, 1)
    outputs = model.run({"x": x, "b": Tensor(device, B, 1)})
    memory = x.memory.address
    del x
    assert memory not in device.allocations
    check(outputs)


def test_what_cannot_be_used_is_refused(device: EmulatedDevice, model: tw.CompiledModel) -> None:
    b, other = NumbaArray(device, B, 50), EmulatedDevice(1)
    strided, foreign = NumbaArray(device, X, 50), NumbaArray(device, X, 50)
    strided.strides, foreign.address = (4, 12), 64
    elsewhere, learned, rocm = (Tensor(d, X, 50) for d in (other, device, device))
    learned.requires_grad, rocm.place = True, (10, 0)
    odd = NumbaArray(device, X.astype(np.complex64), 50)
    for x, message in (
        (strided, r"input 'x' of shape \(3, 6\) is not in C order.*contiguous"),
        (foreign, "no address on a CUDA device"),
        (elsewhere, "input 'x' is on CUDA device 1, but the model runs on CUDA device 0"),
        (learned, "cannot be read in place: .*detach"),
        (rocm, "input 'x' is on ROCm"),
        (NumbaArray(device, X.astype(np.float64), 50), "must have dtype float32, but has float64"),
        (NumbaArray(device, X[:, :5], 50), r"must have shape \(n, 6\)"),
        (odd, "must have dtype float32"),
    ):
        with pytest.raises(tw.InputError, match=message):
            model.run({"x": x, "b": b})
    with pytest.raises(tw.InputError, match="stream must be"):
        model.run({"x": X, "b": B}, stream="fast")
    with pytest.raises(tw.InputError, match="only models for a GPU"):
        tw.compile(MODEL).run({"x": X, "b": B}, stream=1)


@needs_compiler
def test_results_are_arrays_of_cupy(device: EmulatedDevice) -> None:
    module = CupyModule(device)
    cupy = CupyArrays(module)
    model = compile_for(device, MODEL, cupy=cupy)
    found = model.run({"x": Tensor(device, X, 50), "b": B})["y"]
    assert isinstance(found, CupyArray) and found.dtype == np.float32
    address = found.address
    got = np.empty(found.shape, np.float32)
    device.read(address, got)
    np.testing.assert_allclose(got, WANTED["y"])
    assert address in device.allocations
    del found
    assert address not in device.allocations
    memory = cupy.allocate(100, 70)
    assert device.allocations[memory.address] == 100
    check(model.run({"x": X, "b": B}))


def test_results_are_taken_by_dlpack(device: EmulatedDevice) -> None:
    for dtype in (np.float32, np.int8, np.uint16, np.bool_, np.float64, ml_dtypes.bfloat16):
        array = np.arange(12).reshape(3, 4).astype(dtype)
        source = Tensor(device, array, 50)
        made = DeviceArray(device, (3, 4), array.dtype, source.address, source, None)  # type: ignore[arg-type]
        made.mark, made.stream = source.mark, 50
        assert made.__dlpack_device__() == (CUDA, 0)
        with device.on(70):
            got = elements(device, made.__dlpack__(stream=70, max_version=(1, 0)))
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
        address = source.memory.address
        kept = made.__dlpack__()
        del source, made
        assert address in device.allocations
        del kept
        assert address not in device.allocations


def test_capsules_are_taken_once() -> None:
    x = np.arange(6, dtype=np.int16).reshape(2, 3)
    capsule = make_capsule(x.ctypes.data, x.shape, x.dtype, (1, 0), x)
    found = read_capsule(capsule)
    assert (found.shape, found.dtype, found.address) == ((2, 3), x.dtype, x.ctypes.data)
    with pytest.raises(TypeError, match="no DLPack capsule"):
        read_capsule(capsule)
    theirs = read_capsule(x.T.__dlpack__())  # NumPy's
    assert (theirs.shape, theirs.strides, theirs.device) == ((3, 2), (1, 3), (1, 0))
    with pytest.raises(TypeError, match="type 5"):
        read_capsule(np.zeros(3, np.complex64).__dlpack__())

    class Owner:
        def __dlpack__(self, **_: Any) -> Any:
            return make_capsule(x.ctypes.data, x.shape, x.dtype, (1, 0), x)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    count = sys.getrefcount(x)
    taken = np.from_dlpack(Owner())
    np.testing.assert_array_equal(taken, x)
    assert sys.getrefcount(x) == count + 1
    del taken
    assert sys.getrefcount(x) == count


def test_arrays_do_not_turn_into_numpy_by_accident(device: EmulatedDevice) -> None:
    source = Tensor(device, X, 50)
    array = DeviceArray(device, X.shape, X.dtype, source.address, source, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="get"):
        np.asarray(array)
    assert array.__cuda_array_interface__["data"] == (source.address, False)


@pytest.mark.parametrize(
    ("shape", "strides", "wanted"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), False),
        ((1, 3), (99, 1), True),
        ((3, 1), (1, 7), True),
        ((2, 3), (4, 1), False),
        ((0, 3), (5, 5), True),
        ((), (), True),
    ],
)
def test_order(shape: tuple[int, ...], strides: tuple[int, ...], wanted: bool) -> None:
    assert is_c_order(shape, strides) is wanted


def test_numbers_of_streams() -> None:
    class Protocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 77

    handle = SimpleNamespace(handle=SimpleNamespace(value=44))
    found = [stream_handle(s) for s in (0, 5, Protocol(), SimpleNamespace(cuda_stream=0), handle)]
    assert found == [1, 5, 77, 1, 44]


def test_the_pool_gives_memory_back_to_its_stream() -> None:
    made: list[int] = []
    freed: list[int] = []

    def allocate(nbytes: int) -> int:
        if len(made) - len(freed) == 3:
            raise DeviceError("out of memory")
        made.append(nbytes)
        return len(made)

    pool = MemoryPool(allocate, freed.append)
    first, second = pool.take(1000, 5), pool.take(1000, 5)
    assert made == [1024, 1024]
    address = first.address
    del first
    other = pool.take(1000, 6)
    assert other.address != address  # work of stream 5 may still use it
    again = pool.take(900, 5)
    assert again.address == address
    del again, other
    third, fourth = pool.take(5000, 5), pool.take(5000, 6)
    assert sorted(freed) == [1, 3]
    assert len({m.address for m in (second, third, fourth)}) == 3


@pytest.mark.parametrize("nbytes", [1, 512, 513, 4097, 10_000, 1 << 20, (1 << 20) + 1, 7_654_321])
def test_pooled_sizes(nbytes: int) -> None:
    room = rounded(nbytes)
    assert room % 512 == 0 and nbytes <= room and (room <= 1.25 * nbytes + 512)
    assert rounded(room) == room
