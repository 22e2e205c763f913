"""Kernel texts to addresses: from memory, from the store on disk, or compiled.

A kernel is known by its text alone within a process and by a key of named fields on disk. What is
not compiled is loaded without Numba, so a warm start never imports it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from tilewright.errors import CompileError
from tilewright.options import Options, available_cores
from tilewright.runtime.loader import (
    LOADER,
    missing_symbols,
    target,
    undefined_symbols,
)
from tilewright.runtime.progress import Progress, default_progress
from tilewright.runtime.store import Store, StoredObject, default_folder, digest
from tilewright.runtime.workers import compile_all, worker_count

DISK, COMPILED = "disk", "compiled"  # where a kernel came from
ABI_VERSION = "1"  # of the interface between kernels, executor and plan
KERNELS_PACKAGE = "tilewright_kernels"
PIPELINE_FILES = ("objects.py", "loader.py")  # they decide what becomes of a text


@dataclass(frozen=True)
class CacheStats:
    """How many kernels came from where, and the seconds spent on those not in memory."""

    memory: int = 0
    disk: int = 0
    compiled: int = 0
    seconds: float = 0.0


def fingerprint(folder: Path) -> str:
    """Digest of the names and contents of all Python files below the folder."""
    summary = blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        summary.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        summary.update(content)
    return summary.hexdigest()


@cache
def environment_fields() -> dict[str, str]:
    """Everything but the text that decides about the object code, by name."""
    pipeline = blake2b(digest_size=16)
    for name in PIPELINE_FILES:
        pipeline.update(Path(__file__).with_name(name).read_bytes())
    return {
        "abi": ABI_VERSION,
        "pipeline": pipeline.hexdigest(),
        "kernels": kernels_fingerprint(),
        "cpu": target().name,
        "features": target().features,
        "numba": version("numba"),
        "llvmlite": version("llvmlite"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "platform": sys.platform,
    }


def kernels_fingerprint() -> str:
    """Of the package that generated kernels import; it is found, not imported."""
    found = importlib.util.find_spec(KERNELS_PACKAGE)
    locations = (found.submodule_search_locations if found else None) or ()
    return "+".join(map(fingerprint, sorted({Path(place).resolve() for place in locations})))


class KernelCache:
    """Compiled kernels of this process, backed by a folder that processes share.

    Safe to use from several threads; a text that two of them ask for is compiled once.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options.from_environment()
        self.store = Store(self.options.cache_dir or default_folder(), self.options.cache_bytes)
        self._known: dict[str, Future[int]] = {}
        self.origins: dict[str, str] = {}  # of each text: DISK or COMPILED
        self._stats = CacheStats()
        self._lock = threading.Lock()
        _CACHES.add(self)

    def load(self, texts: Sequence[str], progress: Progress | None = None) -> list[int]:
        """Addresses of the kernels, in order; each is `void kernel(int64 task, int64 args)`.

        `progress` receives (compiled, to compile); by default a bar appears if it takes long.
        Raises CompileError for a text that is not a kernel.
        """
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._known]
            futures = {text: self._known.setdefault(text, Future()) for text in texts}
            memory = len(futures) - len(new)
            self._stats = replace(self._stats, memory=self._stats.memory + memory)
        if new:
            self._provide({text: futures[text] for text in new}, progress or default_progress())
        try:
            return [futures[text].result() for text in texts]
        except CompileError:
            # Another thread failed on its kernels, perhaps not on those that are wanted here.
            return self.load(texts, progress)

    def key_fields(self, text: str) -> dict[str, str]:
        """The key of a text on disk, by named fields: compare two of them to explain a miss."""
        return {"text": text, **environment_fields()}

    def stats(self) -> CacheStats:
        """Counts since this cache was made."""
        with self._lock:
            return self._stats

    def after_fork(self) -> None:
        """In a forked child: forgets the work of threads that exist only in the parent."""
        self._lock = threading.Lock()
        self._known = {text: f for text, f in self._known.items() if f.done()}

    def _provide(self, wanted: dict[str, Future[int]], progress: Progress) -> None:
        """Completes every future, with an address or with the reason why there is none."""
        start = time.perf_counter()
        try:
            stored = self._from_disk(list(wanted))
            missing = [text for text in wanted if text not in stored]
            compiled = self._compile(missing, progress) if missing else {}
            addresses = LOADER.load([(stored.get(text) or compiled[text]) for text in wanted])
        except BaseException as error:
            self._fail(wanted, error)
            raise
        self.origins.update({t: COMPILED if t in compiled else DISK for t in wanted})
        for future, address in zip(wanted.values(), addresses, strict=True):
            future.set_result(address)
        self._record(len(stored), len(compiled), time.perf_counter() - start)

    def _from_disk(self, texts: Sequence[str]) -> dict[str, StoredObject]:
        """What the store has and this process can load."""
        found = dict[str, StoredObject]()
        for text in texts:
            item = self.store.get(self._key(text))
            if item is not None and not missing_symbols(item):
                found[text] = item
        return found

    def _compile(self, texts: Sequence[str], progress: Progress) -> dict[str, StoredObject]:
        """Objects of texts that nobody has compiled yet; each is kept as soon as it is there."""
        # The one place that needs Numba, which takes half a second to import.
        from tilewright.runtime.objects import compile_kernel

        jobs = [(text, self._symbol(text)) for text in texts]
        items = dict[str, StoredObject]()

        def deliver(index: int, data: bytes) -> None:
            text, symbol = jobs[index]
            items[text] = StoredObject(data, symbol, undefined_symbols(data))
            self.store.put(self._key(text), items[text])
            progress(len(items), len(jobs))

        progress(0, len(jobs))
        workers = self._workers(len(jobs))
        compile_all(jobs, workers, environment_fields(), compile_kernel, deliver)
        return items

    def _workers(self, jobs: int) -> int:
        """Processes that help with this many kernels."""
        asked = self.options.compile_workers
        if asked is not None:
            return min(asked, jobs - 1)
        return worker_count(jobs, available_cores())

    def _key(self, text: str) -> str:
        return json.dumps(self.key_fields(text), sort_keys=True)

    def _symbol(self, text: str) -> str:
        """The kernel's exported name, which no other text in any environment has."""
        return f"tw_{digest(self._key(text))}"

    def _fail(self, wanted: dict[str, Future[int]], error: BaseException) -> None:
        """Whoever waits for these kernels hears of the error; the next call tries again."""
        reason = error if isinstance(error, CompileError) else CompileError(repr(error))
        with self._lock:
            for text in wanted:
                self._known.pop(text, None)
        for future in wanted.values():
            future.set_exception(reason)

    def _record(self, disk: int, compiled: int, seconds: float) -> None:
        with self._lock:
            old = self._stats
            self._stats = replace(
                old,
                disk=old.disk + disk,
                compiled=old.compiled + compiled,
                seconds=old.seconds + seconds,
            )
        if self.options.debug >= 1:
            print(
                f"tilewright: {disk} kernels from disk, {compiled} compiled, {seconds:.3f} s",
                file=sys.stderr,
            )


@cache
def default_cache() -> KernelCache:
    """The cache that the environment describes, one per process."""
    return KernelCache()


def _after_fork() -> None:
    for kernels in _CACHES:
        kernels.after_fork()


_CACHES: weakref.WeakSet[KernelCache] = weakref.WeakSet()
with suppress(AttributeError):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_after_fork)
