"""The libraries to compare with: PyTorch (cuBLAS, cuDNN, its attention), else CuPy (cuBLAS).

Their work goes into the stream of our device, so that one clock is right for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from gpu_parts.bench import PRECISIONS, Precision
from gpu_parts.timing import Call
from tilewright.runtime.cuda.arrays import DeviceArray
from tilewright.runtime.cuda.device import Device


class Rival(Protocol):
    """Each method gives the calls that compute the same, by name; none where it has nothing."""

    name: str

    def matmul(self, x: DeviceArray, w: DeviceArray, precision: Precision) -> Mapping[str, Call]:
        """The product of two matrices."""

    def integer_matmul(self, x: DeviceArray, w: DeviceArray) -> Mapping[str, Call]:
        """The product of int8 as int32."""

    def conv(
        self,
        x: DeviceArray,
        w: DeviceArray,
        precision: Precision,
        stride: int,
        pad: int,
        groups: int,
    ) -> Mapping[str, Call]:
        """A convolution."""

    def attention(
        self, qkv: Sequence[DeviceArray], precision: Precision, causal: bool
    ) -> Mapping[str, Call]:
        """Softmax of scaled products, times values."""

    def products(self, x: DeviceArray, w: DeviceArray, length: int) -> Mapping[str, Call]:
        """x @ w @ w ..., one product after the other."""


def find_rival(device: Device) -> Rival | None:
    """What is installed and works on a GPU."""
    for kind in (TorchRival, CupyRival):
        try:
            made: Rival = kind(device)
        except Exception:  # not installed, for another CUDA, or without a device
            continue
        return made
    return None


class TorchRival:
    """PyTorch."""

    name = "torch"

    def __init__(self, device: Device) -> None:
        self.torch: Any = import_module("torch")
        if not self.torch.cuda.is_available():
            raise RuntimeError("this PyTorch has no CUDA")
        self.stream = self.torch.cuda.ExternalStream(device.stream)
        self.torch.cuda.set_stream(self.stream)
        self.torch.backends.cudnn.benchmark = True
        self.torch.set_grad_enabled(False)

    def set_precision(self, precision: Precision) -> None:
        """Whether float32 is multiplied as TF32."""
        self.torch.set_float32_matmul_precision("high" if precision.is_tf32 else "highest")
        self.torch.backends.cudnn.allow_tf32 = precision.is_tf32

    def take(self, array: DeviceArray) -> Any:
        return self.torch.from_dlpack(array)

    def matmul(self, x: DeviceArray, w: DeviceArray, precision: Precision) -> Mapping[str, Call]:
        self.set_precision(precision)
        a, b = self.take(x), self.take(w)
        return {"torch": lambda: a @ b}

    def integer_matmul(self, x: DeviceArray, w: DeviceArray) -> Mapping[str, Call]:
        a, b = self.take(x), self.take(w)
        if min(*a.shape, *b.shape) <= 16 or any(n % 8 for n in (*a.shape, *b.shape)):
            return {}  # cuBLAS refuses them
        turned = b.t().contiguous().t()  # as cuBLAS likes it
        return {"torch": lambda: self.torch._int_mm(a, turned)}

    def conv(
        self,
        x: DeviceArray,
        w: DeviceArray,
        precision: Precision,
        stride: int,
        pad: int,
        groups: int,
    ) -> Mapping[str, Call]:
        self.set_precision(precision)
        a, b = self.take(x), self.take(w)
        order = self.torch.channels_last
        last = a.contiguous(memory_format=order), b.contiguous(memory_format=order)
        conv = self.torch.nn.functional.conv2d
        return {
            "torch": lambda: conv(a, b, None, stride, pad, 1, groups),
            "torch channels last": lambda: conv(*last, None, stride, pad, 1, groups),
        }

    def attention(
        self, qkv: Sequence[DeviceArray], precision: Precision, causal: bool
    ) -> Mapping[str, Call]:
        self.set_precision(precision)
        q, k, v = map(self.take, qkv)
        attend = self.torch.nn.functional.scaled_dot_product_attention
        return {"torch": lambda: attend(q, k, v, is_causal=causal)}

    def products(self, x: DeviceArray, w: DeviceArray, length: int) -> Mapping[str, Call]:
        self.set_precision(PRECISIONS["f32"])
        a, b = self.take(x), self.take(w)

        def chain() -> Any:
            y = a
            for _ in range(length):
                y = y @ b
            return y

        chain()  # what a library makes at its first call has no place in a graph
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            kept = chain()
        return {"torch": chain, "torch graph": lambda: (graph.replay(), kept)}


class CupyRival:
    """CuPy: its products of matrices are cuBLAS's."""

    name = "cupy"

    def __init__(self, device: Device) -> None:
        self.cupy: Any = import_module("cupy")
        self.cupy.cuda.runtime.getDeviceCount()
        self.stream = self.cupy.cuda.ExternalStream(device.stream)
        self.stream.use()

    def matmul(self, x: DeviceArray, w: DeviceArray, precision: Precision) -> Mapping[str, Call]:
        if precision.is_tf32 or precision.dtype.kind == "V":
            return {}  # CuPy has a variable of the environment for one, no type for the other
        a, b = self.cupy.from_dlpack(x), self.cupy.from_dlpack(w)
        return {"cupy": lambda: a @ b}

    def integer_matmul(self, x: DeviceArray, w: DeviceArray) -> Mapping[str, Call]:
        return {}

    def conv(self, x: DeviceArray, w: DeviceArray, *_: Any) -> Mapping[str, Call]:
        return {}

    def attention(self, qkv: Sequence[DeviceArray], *_: Any) -> Mapping[str, Call]:
        return {}

    def products(self, x: DeviceArray, w: DeviceArray, length: int) -> Mapping[str, Call]:
        a, b = self.cupy.from_dlpack(x), self.cupy.from_dlpack(w)

        def chain() -> Any:
            y = a
            for _ in range(length):
                y = y @ b
            return y

        return {"cupy": chain}
