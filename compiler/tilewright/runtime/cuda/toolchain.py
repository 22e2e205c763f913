"""What this machine has for CUDA, part by part, and what to do about each part that is missing.

Looking never raises and never picks another target: who needs a part asks for it (`require`), and
gets a DeviceError that names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tilewright.errors import DeviceError

INSTALL = 'pip install "tilewright[cuda]"'
LEAST_DRIVER = (13, 0)  # the CUDA version that a driver must know
DRIVER_RELEASE = "580"
NUMBA_CUDA_SERIES = "0.30."  # kernels are compiled with its inner parts
LEAST_CAPABILITY = (8, 0)  # asynchronous copies, bfloat16, max.NaN

NUMBA_CUDA, BINDINGS, NVVM, NVJITLINK = "numba-cuda", "cuda-bindings", "libnvvm", "nvJitLink"
DRIVER, DEVICE, DISASSEMBLER = "driver", "device", "nvdisasm"
TO_COMPILE = (BINDINGS, NVVM, NVJITLINK, NUMBA_CUDA)
TO_RUN = (*TO_COMPILE, DRIVER, DEVICE)


@dataclass(frozen=True)
class Part:
    """A part of the toolchain: its version, or the problem with it and the remedy."""

    name: str
    version: str = ""
    problem: str = ""
    remedy: str = ""

    @property
    def is_there(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class Gpu:
    """A device that the driver offers."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    multiprocessors: int

    @property
    def architecture(self) -> str:
        """What kernels are compiled for, such as sm_90a."""
        return architecture_of(self.capability)


@dataclass(frozen=True)
class Toolchain:
    """Every part, there or not, and the devices."""

    parts: tuple[Part, ...]
    gpus: tuple[Gpu, ...] = ()

    def part(self, name: str) -> Part:
        return next(p for p in self.parts if p.name == name)

    def has(self, names: Iterable[str]) -> bool:
        return all(self.part(name).is_there for name in names)

    def require(self, names: Iterable[str], purpose: str) -> Toolchain:
        """Itself; DeviceError naming every missing part of these, in order."""
        missing = [p for p in map(self.part, names) if not p.is_there]
        if missing:
            lines = [f"  {p.name}: {p.problem}. {p.remedy}" for p in missing]
            raise DeviceError("\n".join([f"CUDA cannot be used to {purpose}:", *lines]))
        return self


def architecture_of(capability: tuple[int, int]) -> str:
    """From 9.0 on with the features that only this very architecture has."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def capability_of(architecture: str) -> tuple[int, int, str]:
    """(9, 0, "a") of sm_90a; DeviceError for other texts and for what is too old."""
    digits = architecture.removeprefix("sm_").rstrip("af")
    if not architecture.startswith("sm_") or not digits.isdecimal() or len(digits) < 2:
        raise DeviceError(f"{architecture!r} is no architecture of the form sm_80 or sm_90a")
    capability = int(digits[:-1]), int(digits[-1])
    if capability < LEAST_CAPABILITY:
        raise DeviceError(f"{architecture} is too old: kernels need sm_80 or newer")
    return (*capability, architecture.removeprefix("sm_" + digits))


def find_toolchain() -> Toolchain:
    """What is there now; nothing is remembered, so that a later look sees what was installed."""
    driver, gpus = _driver_and_devices()
    device = _device_part(driver, gpus)
    found = [_library(BINDINGS, _bindings_version), _library(NVVM, _nvvm_version)]
    found += [_library(NVJITLINK, _nvjitlink_version), _library(NUMBA_CUDA, _numba_cuda_version)]
    return Toolchain((*found, driver, device, _disassembler()), tuple(gpus))


def _library(name: str, version_of: Callable[[], str]) -> Part:
    """A part of the wheels: there if it can say its version."""
    try:
        return Part(name, version_of())
    except Exception as error:  # an import, a shared library or a symbol that is not there
        return Part(name, problem=_reason(error), remedy=f"Install it with {INSTALL}")


def _reason(error: BaseException) -> str:
    """The first line of an error from a library, or what it means."""
    if isinstance(error, (ModuleNotFoundError, PackageNotFoundError)):
        return f"{error.name} is not installed"
    if type(error).__name__.startswith("DynamicLib"):  # of cuda.pathfinder, which may be absent
        return "its library is not found"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _bindings_version() -> str:
    import_module("cuda.bindings.driver")
    return version("cuda-bindings")


def _nvvm_version() -> str:
    nvvm: Any = import_module("cuda.bindings.nvvm")
    nvvm.version()  # loads the library
    return library_version("nvidia-nvvm", "nvvm")


def _nvjitlink_version() -> str:
    nvjitlink: Any = import_module("cuda.bindings.nvjitlink")
    nvjitlink.version()
    return library_version("nvidia-nvjitlink", "nvJitLink")


def _numba_cuda_version() -> str:
    found = version("numba-cuda")  # first: Numba alone has a `numba.cuda` too
    if not found.startswith(NUMBA_CUDA_SERIES):
        raise DeviceError(f"version {found} is here, {NUMBA_CUDA_SERIES}* is needed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("numba.cuda.compiler")
    return found


def library_version(wheel: str, library: str) -> str:
    """The wheel's version; of a library that came otherwise, its path, size and time."""
    try:
        return version(wheel)
    except PackageNotFoundError:
        pathfinder: Any = import_module("cuda.pathfinder")
        path = Path(pathfinder.load_nvidia_dynamic_lib(library).abs_path)
        status = path.stat()
        return f"{path} ({status.st_size} bytes, {status.st_mtime_ns})"


def _driver_and_devices() -> tuple[Part, list[Gpu]]:
    remedy = f"Install an NVIDIA driver of release {DRIVER_RELEASE} or newer"
    try:
        driver: Any = import_module("cuda.bindings.driver")
    except ImportError as error:
        # Without the bindings nobody can tell whether there is a driver.
        return Part(DRIVER, problem=f"not known: {_reason(error)}", remedy=remedy), []
    try:
        known = _checked(driver, driver.cuDriverGetVersion())
        if (known // 1000, known % 1000 // 10) < LEAST_DRIVER:
            problem = f"it knows CUDA {_dotted(known)}, older than {LEAST_DRIVER[0]}.0"
            return Part(DRIVER, problem=problem, remedy=remedy), []
        _checked(driver, driver.cuInit(0))
        count = _checked(driver, driver.cuDeviceGetCount())
        return Part(DRIVER, f"CUDA {_dotted(known)}"), [_gpu(driver, k) for k in range(count)]
    except Exception as error:  # no library, no permission, no device
        return Part(DRIVER, problem=_reason(error), remedy=remedy), []


def _dotted(known: int) -> str:
    return f"{known // 1000}.{known % 1000 // 10}"


def _checked(driver: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a driver call; DeviceError with the name of its error."""
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"the driver answers {getattr(status, 'name', status)}")
    return values[0] if values else None


def _gpu(driver: Any, index: int) -> Gpu:
    device = _checked(driver, driver.cuDeviceGet(index))

    def attribute(name: str) -> int:
        key = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(_checked(driver, driver.cuDeviceGetAttribute(key, device)))

    name = _checked(driver, driver.cuDeviceGetName(128, device))
    return Gpu(
        name.split(b"\0")[0].decode(errors="replace"),
        (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
        int(_checked(driver, driver.cuDeviceTotalMem(device))),
        attribute("MULTIPROCESSOR_COUNT"),
    )


def _device_part(driver: Part, gpus: list[Gpu]) -> Part:
    needed = f"An NVIDIA GPU of compute capability {LEAST_CAPABILITY[0]}.0 or newer is needed"
    if not driver.is_there:
        return Part(DEVICE, problem="not known without a driver", remedy=needed)
    if not gpus:
        return Part(DEVICE, problem="the driver finds none", remedy=needed)
    if gpus[0].capability < LEAST_CAPABILITY:
        major, minor = gpus[0].capability
        problem = f"{gpus[0].name} has compute capability {major}.{minor}"
        return Part(DEVICE, problem=problem, remedy=needed)
    return Part(DEVICE, gpus[0].name)


def _disassembler() -> Part:
    """Only shows machine code; nothing else needs it."""
    remedy = "Install it with pip install nvidia-cuda-nvdisasm"
    path = disassembler_path()
    if path is None:
        return Part(DISASSEMBLER, problem="not found", remedy=remedy)
    return Part(DISASSEMBLER, path)


def disassembler_path() -> str | None:
    """Where nvdisasm is, in the wheels or in a toolkit."""
    try:
        pathfinder: Any = import_module("cuda.pathfinder")
        found = pathfinder.find_nvidia_binary_utility("nvdisasm")
    except Exception:  # an older pathfinder does not know the name
        return None
    return str(found) if found else None
