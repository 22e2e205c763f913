"""Kernel sources to machine code: from memory, from the store on disk, or compiled.

Machine code is for an architecture, not for a machine: what one with no GPU compiled serves
another that has one. What is not compiled is read without numba-cuda.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from tilewright.options import Options, available_cores
from tilewright.runtime.cache import COMPILED, DISK, CacheStats, kernels_fingerprint
from tilewright.runtime.cuda.device import Device
from tilewright.runtime.cuda.kernel import CompiledKernel, KernelSource
from tilewright.runtime.cuda.toolchain import TO_COMPILE, find_toolchain, library_version
from tilewright.runtime.progress import Progress, default_progress
from tilewright.runtime.store import Store, StoredObject, default_folder, digest
from tilewright.runtime.workers import compile_all, worker_count

ABI_VERSION = "1"  # of the interface between kernels and their launches
PIPELINE_FILES = (
    "frontend.py",
    "compiling.py",
    "kernel.py",
)  # they decide what becomes of a source


@cache
def environment_fields() -> dict[str, str]:
    """Everything but the source that decides about the machine code, by name.

    Raises DeviceError where a part of the toolchain is missing.
    """
    pipeline = blake2b(digest_size=16)
    for name in PIPELINE_FILES:
        pipeline.update(Path(__file__).with_name(name).read_bytes())
    try:
        libraries = {
            "nvvm": library_version("nvidia-nvvm", "nvvm"),
            "nvjitlink": library_version("nvidia-nvjitlink", "nvJitLink"),
            **{name: version(name) for name in ("numba-cuda", "numba", "llvmlite")},
        }
    except Exception:
        find_toolchain().require(TO_COMPILE, "compile kernels")
        raise
    return {
        "target": "cuda",
        "abi": ABI_VERSION,
        "pipeline": pipeline.hexdigest(),
        "kernels": kernels_fingerprint(),
        "python": ".".join(map(str, sys.version_info[:3])),
        **libraries,
    }


def device_fields(device: Device, options: Options) -> dict[str, str]:
    """Everything but the kernel that decides how long it takes on a device, by name."""
    where = {"device": device.name, "architecture": device.architecture, "driver": device.driver}
    return {**environment_fields(), **where, "tf32": str(options.tf32)}


class CudaKernelCache:
    """Compiled kernels of this process, backed by a folder that processes share.

    Safe to use from several threads.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options.from_environment()
        self.store = Store(self.options.cache_dir or default_folder(), self.options.cache_bytes)
        self._known: dict[KernelSource, CompiledKernel] = {}
        self.origins: dict[KernelSource, str] = {}
        self._stats = CacheStats()
        self._lock = threading.Lock()

    def load(
        self, sources: Sequence[KernelSource], progress: Progress | None = None
    ) -> list[CompiledKernel]:
        """The kernels' machine code, in order.

        `progress` receives (compiled, to compile); by default a bar appears if it takes long.
        Raises CompileError for a text that is not a kernel, DeviceError without a toolchain.
        """
        with self._lock:
            new = [s for s in dict.fromkeys(sources) if s not in self._known]
            memory = len(dict.fromkeys(sources)) - len(new)
            self._stats = replace(self._stats, memory=self._stats.memory + memory)
            if new:
                self._provide(new, progress or default_progress())
            return [self._known[source] for source in sources]

    def key_fields(self, source: KernelSource) -> dict[str, str]:
        """The key of a source on disk, by named fields: compare two of them to explain a miss."""
        return {"source": source.as_json(), **environment_fields()}

    def stats(self) -> CacheStats:
        """Counts since this cache was made."""
        return self._stats

    def _provide(self, new: Sequence[KernelSource], progress: Progress) -> None:
        start = time.perf_counter()
        missing = [source for source in new if not self._from_disk(source)]
        if missing:
            self._compile(missing, progress)
        self.origins.update({s: COMPILED if s in missing else DISK for s in new})
        old, disk = self._stats, len(new) - len(missing)
        self._stats = replace(
            old,
            disk=old.disk + disk,
            compiled=old.compiled + len(missing),
            seconds=old.seconds + time.perf_counter() - start,
        )
        if self.options.debug >= 1:
            seconds = self._stats.seconds - old.seconds
            counts = f"{disk} CUDA kernels from disk, {len(missing)} compiled"
            print(f"tilewright: {counts}, {seconds:.3f} s", file=sys.stderr)

    def _from_disk(self, source: KernelSource) -> bool:
        """Whether the store had it."""
        item = self.store.get(self._key(source))
        if item is not None:
            self._known[source] = CompiledKernel.from_bytes(item.data)
        return item is not None

    def _compile(self, sources: Sequence[KernelSource], progress: Progress) -> None:
        """Kernels that nobody has compiled yet; each is kept as soon as it is there."""
        find_toolchain().require(TO_COMPILE, "compile kernels")
        jobs = [(source.as_json(), f"tw_{digest(self._key(source))}") for source in sources]
        done = 0

        def deliver(index: int, data: bytes) -> None:
            nonlocal done
            done += 1
            self._known[sources[index]] = CompiledKernel.from_bytes(data)
            self.store.put(self._key(sources[index]), StoredObject(data, jobs[index][1]))
            progress(done, len(jobs))

        progress(0, len(jobs))
        workers = self._workers(len(jobs))
        compile_all(jobs, workers, environment_fields(), compile_job, deliver, target="cuda")

    def _workers(self, jobs: int) -> int:
        """Processes that help with this many kernels."""
        asked = self.options.compile_workers
        return (
            worker_count(jobs, available_cores()) if asked is None else max(0, min(asked, jobs - 1))
        )

    def _key(self, source: KernelSource) -> str:
        return json.dumps(self.key_fields(source), sort_keys=True)


def compile_job(source: str, symbol: str) -> bytes:
    """A worker's job: a source as JSON to a compiled kernel as bytes."""
    # The one place that needs numba-cuda, which takes half a second to import.
    from tilewright.runtime.cuda.compiling import compile_kernel

    return compile_kernel(KernelSource.from_json(source), symbol).as_bytes()
