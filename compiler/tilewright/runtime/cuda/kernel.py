"""A kernel for a GPU before and after compilation, as data; nothing here needs numba-cuda."""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tilewright.dtypes import DType
from tilewright.errors import DeviceError
from tilewright.runtime.cuda.toolchain import disassembler_path


@dataclass(frozen=True)
class KernelSource:
    """All that decides about the machine code, apart from the toolchain.

    `text` is a module with `def kernel(p0, p1, ..., n0, n1, ...)`: pointers to elements of
    `pointers`, then `numbers` of int64, if it makes `checks` the pointer to error codes, and
    `maps` descriptions of tensors for the hardware. Launches have `threads` threads a block.
    """

    text: str
    pointers: tuple[DType, ...]
    numbers: int
    threads: int
    architecture: str
    checks: bool = False
    maps: int = 0

    def as_json(self) -> str:
        fields = asdict(self) | {"pointers": [p.name for p in self.pointers]}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> KernelSource:
        fields = json.loads(text)
        return cls(**(fields | {"pointers": tuple(DType[name] for name in fields["pointers"])}))


@dataclass(frozen=True)
class Usage:
    """What a kernel takes.

    Of each thread: registers, bytes written to and read from memory for want of registers, and
    bytes of memory of its own. Of each block: bytes of shared memory whose size the code fixes;
    from sm_90 on, the KiB that the system takes of a block that uses shared memory is among them.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    local_bytes: int


@dataclass(frozen=True)
class LibraryCode:
    """Stands for machine code that is a library's."""

    entry: str
    ptx: str = "// the library's own, which it does not show\n"
    usage: Usage = Usage(0, 0, 0, 0)

    def sass(self) -> str:
        """Says that there is none to show."""
        return self.ptx


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code for one architecture: `entry` is the function to launch."""

    entry: str
    cubin: bytes
    ptx: str
    usage: Usage

    def as_bytes(self) -> bytes:
        fields = {"entry": self.entry, "ptx": self.ptx, "usage": asdict(self.usage)}
        head = json.dumps(fields).encode()
        return struct.pack("<I", len(head)) + head + self.cubin

    @classmethod
    def from_bytes(cls, data: bytes) -> CompiledKernel:
        (length,) = struct.unpack_from("<I", data)
        fields = json.loads(data[4 : 4 + length])
        return cls(fields["entry"], data[4 + length :], fields["ptx"], Usage(**fields["usage"]))

    def sass(self) -> str:
        """The machine code as text; DeviceError where there is no disassembler."""
        path = disassembler_path()
        if path is None:
            raise DeviceError("nvdisasm is not there: pip install nvidia-cuda-nvdisasm")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "kernel.cubin")
            file.write_bytes(self.cubin)
            found = subprocess.run([path, "-c", str(file)], capture_output=True, text=True)
        if found.returncode:
            raise DeviceError(f"nvdisasm failed: {found.stderr.strip()}")
        return found.stdout
