"""What the sessions of a model share where its plans run on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.fusion.weights import PackedWeights
from tilewright.ops.tensor import Placeholder, Tensor
from tilewright.options import Options
from tilewright.runtime.cuda.cache import CudaKernelCache, device_fields
from tilewright.runtime.cuda.ceilings import DeviceCeilings
from tilewright.runtime.cuda.constants import DeviceConstants
from tilewright.runtime.cuda.plan import CudaPlan
from tilewright.runtime.cuda.port import Port
from tilewright.runtime.segments import Runner
from tilewright.runtime.session import Workshop
from tilewright.runtime.tune import Allowance, KeptChoices, TunedOnDevice
from tilewright.schedule.choices import Choices


def cuda_workshop(
    options: Options, port: Port, ceilings: DeviceCeilings | None = None, tune: float = 0.0
) -> Workshop:
    """Makes plans for the GPU of `port`; constants are in its memory once."""
    cache, weights = CudaKernelCache(options), PackedWeights()
    constants = DeviceConstants(port.device)
    kept = KeptChoices(cache.store, device_fields(port.device, options))
    allowance = Allowance(tune)

    def build(inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> Runner:
        def make(choices: Choices) -> CudaPlan:
            return CudaPlan(inputs, outputs, port, cache, weights, constants, choices)

        if inputs and allowance.left > 0:
            return TunedOnDevice(make, kept, allowance)
        return make(Choices(kept.known))

    measured = ceilings or DeviceCeilings(port.device, cache)
    return Workshop(options, build, port, measured, cache.stats)
