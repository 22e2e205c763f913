"""The levels of a kernel that nobody needs to run it: made when they are asked for, and kept."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from tilewright.loops.ir import Kernel
from tilewright.loops.show import show
from tilewright.runtime.display import Displayed
from tilewright.runtime.profile import Measured
from tilewright.schedule.directives import schedule

AS_LOWERED = "as lowered"
NUMBAS_NAME = re.compile(r"_ZN10tilewright9generated\w+")


class Levels(Displayed):
    """What a kernel's loops were on the way, and what the last profile found of it."""

    kernel: Kernel  # scheduled
    lowered: Kernel  # the same before any directive; of equal kernels the first one
    source: str

    @cached_property
    def steps(self) -> tuple[tuple[str, str], ...]:
        """The loops as lowered, and after each directive of the schedule: what was done, and the
        text of the loops from then on. Loops that were written by hand have no directives."""
        kernel, steps = self.lowered, [(AS_LOWERED, show(self.lowered))]
        for directive in self.kernel.schedule:
            kernel = schedule(kernel, (directive,))  # type: ignore[arg-type]
            steps.append((str(directive), show(kernel)))
        return tuple(steps)

    @property
    def measured(self) -> Measured | None:
        """What the last profile of the model found of this kernel."""
        return self.__dict__.get("_measured")

    def remember(self, found: Measured) -> None:
        """Keeps a measurement beside the kernel, which is the same with it and without."""
        self.__dict__["_measured"] = found


class CpuLevels(Levels):
    """Levels below the source on a CPU."""

    @property
    def llvm(self) -> str:
        """The optimised LLVM IR."""
        return self._compiled[0]

    @property
    def assembly(self) -> str:
        """The machine code, as text."""
        return self._compiled[1]

    @cached_property
    def _compiled(self) -> tuple[str, str]:
        # The one place here that needs Numba, which no warm start imports.
        from tilewright.runtime.objects import kernel_levels

        llvm, assembly = kernel_levels(self.source)
        return _named(llvm), _named(assembly)


class CudaLevels(Levels):
    """Levels below the source on a GPU."""

    compiled: Any  # a CompiledKernel

    @property
    def ptx(self) -> str:
        """The virtual machine code that NVIDIA's compiler was given."""
        return str(self.compiled.ptx)

    @cached_property
    def sass(self) -> str:
        """The machine code, as text; DeviceError says what to install where nvdisasm is missing."""
        return str(self.compiled.sass())


def _named(text: str) -> str:
    """The text without Numba's name for the kernel, which counts what was compiled before."""
    return NUMBAS_NAME.sub("python", text)
