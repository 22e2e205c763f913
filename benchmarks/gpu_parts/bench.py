"""What a case has at hand: the device, arrays on it, compiled models, a clock and the ceilings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from onnx import parser

import tilewright as tw
from gpu_parts.part import Setting
from gpu_parts.timing import KERNELS, OURS, Call, Clock, EventClock, Times, in_turns
from tilewright.driver import compile_in
from tilewright.explore.compare import array_error
from tilewright.ops.tensor import Placeholder, Tensor
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.crossings import Crossings
from tilewright.runtime.cuda.arrays import DeviceArray
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.ceilings import DeviceCeilings, Effort
from tilewright.runtime.cuda.device import Device
from tilewright.runtime.cuda.plan import CudaPlan
from tilewright.runtime.cuda.port import Port
from tilewright.runtime.cuda.workshop import cuda_workshop
from tilewright.runtime.segments import Runner

Array = np.ndarray[Any, Any]
HEADER = '<ir_version: 11, opset_import: ["" : 23]>\n'
STEPS_KEPT = 12  # of a model, the slowest
BLOCK = 1_000_003  # random numbers that large arrays repeat; a prime, so that rows differ


@dataclass(frozen=True)
class Precision:
    """How numbers are kept and multiplied: ONNX's type, the array type, the error to expect."""

    onnx: str
    dtype: Any
    tolerance: float
    is_tf32: bool = False


PRECISIONS = {
    "f32": Precision("float", np.dtype(np.float32), 1e-4),
    "tf32": Precision("float", np.dtype(np.float32), 1e-2, is_tf32=True),
    "f16": Precision("float16", np.dtype(np.float16), 1e-2),
    "bf16": Precision("bfloat16", np.dtype(ml_dtypes.bfloat16), 4e-2),
}


class Compiled:
    """A model on the device, whose kernels can be started again by themselves."""

    def __init__(self, model: tw.CompiledModel, plans: list[CudaPlan]) -> None:
        self.model, self._plans = model, plans
        self._feeds: dict[str, Any] = {}
        self._kept: list[Any] = []
        self._is_bound = False

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a first call, which stay on the device; later calls repeat it."""
        self._feeds = dict(feeds)
        return self._bind()

    def _bind(self) -> dict[str, Any]:
        outputs = self.model.run(self._feeds)
        self._kept, self._is_bound = list(outputs.values()), True
        return outputs

    def first(self) -> Array:
        """The first output, on the host."""
        found: Array = self._kept[0].get()
        return found

    def steps(self) -> list[dict[str, Any]]:
        """The kernels of a call, the slowest first, with the seconds that each takes."""
        self._is_bound = False
        steps = self.model.profile(self._feeds, 0.0)
        rows = [{"kernel": s.name, "seconds": s.seconds, "blocks": s.tasks} for s in steps]
        return sorted(rows, key=lambda row: -float(str(row["seconds"])))[:STEPS_KEPT]

    def call(self) -> object:
        """A call as a user makes it who does not keep the results."""
        self._is_bound = False  # the kernels are, to memory that may be another's by then
        return self.model.run(self._feeds)

    def kernels(self) -> None:
        """The kernels of a call, on its inputs and the outputs that are kept."""
        if not self._is_bound:
            self._bind()
        for plan in self._plans:
            plan.again()

    @property
    def count(self) -> int:
        return sum(len(p.kernels) for p in self._plans)

    def schedules(self) -> list[str]:
        """How each kernel is made, for who asks why it is slow."""
        return [f"{k.graph}: {'; '.join(k.schedule)}" for p in self._plans for k in p.kernels]


class Bench:
    """Cases of one process share it."""

    def __init__(
        self,
        setting: Setting,
        device: Device,
        clock: Clock,
        rival: Any = None,
        effort: Effort | None = None,
    ) -> None:
        self.setting, self.device, self.clock = setting, device, clock
        self.rival = rival  # see `rivals`; None where there is no other library
        self.options = tw.Options.from_environment()
        self.cache = CudaKernelCache(self.options)
        self.effort = effort or Effort(buffer_bytes=1 << 30)
        self._ceilings = DeviceCeilings(device, self.cache, self.effort)
        self.crossings = Crossings()

    @property
    def ceilings(self) -> Ceilings:
        return self._ceilings()

    @cached_property
    def copy_bandwidth(self) -> float:
        """Bytes read and written in a second by the faster of our kernel and the driver's copy."""
        return max(self.ceilings.bandwidth, self.driver_bandwidth)

    @cached_property
    def driver_bandwidth(self) -> float:
        size = self.effort.buffer_bytes
        source, target = self.device.allocate(size), self.device.allocate(size)
        self.device.clear(source.address, size)

        def copy() -> None:
            self.device.move(target.address, source.address, size)

        return 2.0 * size / in_turns(self.clock, {OURS: copy}, self.setting).seconds[OURS]

    # -- models

    def options_for(self, precision: Precision) -> tw.Options:
        """Those under which float32 is multiplied as the precision says."""
        return dataclasses.replace(self.options, tf32=precision.is_tf32)

    def compile(self, model: Any, options: tw.Options | None = None) -> Compiled:
        """A model for the device: ONNX's text, without its header, or what `tw.compile` takes."""
        if isinstance(model, str) and "=>" in model:
            model = parser.parse_model(HEADER + model)
        workshop = cuda_workshop(options or self.options, Port(self.device), self._ceilings)
        plans: list[CudaPlan] = []
        build = workshop.planner

        def planner(inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> Runner:
            plan = build(inputs, outputs)
            if isinstance(plan, CudaPlan):
                plans.append(plan)
            return plan

        workshop.planner = planner
        return Compiled(compile_in(workshop, model), plans)

    # -- arrays

    def random(self, shape: Sequence[int], dtype: Any, seed: int = 0) -> Array:
        """Normal numbers, or integers of all values of a byte; large arrays repeat themselves."""
        rng, kind = np.random.default_rng(seed), np.dtype(dtype)
        count = min(BLOCK, int(np.prod(shape)))
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            block = rng.integers(limits.min, limits.max, count, kind, endpoint=True)
        else:
            block = rng.standard_normal(count, np.float32).astype(kind)
        return np.resize(block, tuple(shape))

    def put(self, array: Array) -> DeviceArray:
        """A copy on the device."""
        with self.device.on(self.device.stream):
            made = DeviceArray.empty(self.device, array.shape, array.dtype, self.crossings)
            self.device.write(made.address, array)
            made.mark = self.device.mark()
        return made

    # -- figures

    def time(self, compiled: Compiled, rivals: Mapping[str, Call] | None = None) -> Times:
        """Calls, our kernels alone ("kernels"), and the rivals' calls, in turns."""
        turns: dict[str, Call] = {OURS: compiled.call, **(rivals or {})}
        times = in_turns(self.clock, turns, self.setting)
        kernels = in_turns(self.clock, {KERNELS: compiled.kernels}, self.setting)
        return Times({**times.seconds, **kernels.seconds}, times.ratios)

    def figures(self, times: Times, **others: Any) -> dict[str, Any]:
        """Also how often our kernels alone are as fast as the fastest rival."""
        sides = [s for name, s in times.seconds.items() if name not in (OURS, KERNELS)]
        beside = {"kernel_ratio": min(sides) / times.seconds[KERNELS]} if sides else {}
        return {**times.as_figures(), **beside, **others}


def checked(error: float, tolerance: float) -> dict[str, Any]:
    """Figures about an error relative to the largest value."""
    wrong = "" if error <= tolerance else f"wrong by {error:.1e}, more than {tolerance:.0e}"
    return {"error": error, "wrong": wrong}


def error_of(got: Array, want: Array) -> float:
    """The largest difference over the largest magnitude, also of halves."""
    wide = [a.astype(np.float64) if a.dtype.kind in "fV" else a for a in (got, want)]
    return array_error(*wide)


def require_gpu() -> None:
    """DeviceError where CUDA cannot be used, with what is missing."""
    tw.driver.check_target("cuda")


def gpu_bench(setting: Setting) -> Bench:
    """On the first GPU. DeviceError where there is none."""
    require_gpu()
    # Here alone: the bindings of the driver are imported only if there is one.
    from gpu_parts.rivals import find_rival
    from tilewright.runtime.cuda.gpu import first_gpu

    device = first_gpu()
    return Bench(setting, device, EventClock(device), find_rival(device))
