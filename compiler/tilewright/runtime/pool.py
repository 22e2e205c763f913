"""Helper threads for the executor, and the executor itself as Python sees it. No Numba here.

Each thread count has one pool in the process. Its helpers are daemon threads that sleep while no
plan runs: in native code on a futex, or here on a lock where there is none. A plan never waits for
a helper that has not joined, so helpers that are late, busy with another plan, or absent (in a
forked child, at exit) cost speed, never an answer.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from tilewright.options import available_cores
from tilewright.runtime.cache import KernelCache, default_cache
from tilewright.runtime.layout import (
    ACTIVE,
    LINE,
    LINE_BYTES,
    LINGER,
    NAP,
    OPEN,
    OWNER,
    PARTS,
    SLEEPERS,
    STOPPING,
    WAITING,
    WANTED,
    words,
)

NAP_NANOSECONDS = 50_000
LINGER_SPINS = 1000  # about 40 us: consecutive plans find the helpers awake
CLOSE_SECONDS = 20e-6  # between plans that do
STREAK = 16  # of them, and waking the helpers will have been worth it
STACK_BYTES = 16 << 20  # kernels keep up to 512 KB of scratch on the stack
NATIVE_FILES = ("native.py", "futex.py", "layout.py")

NativeFunction = Callable[[int, int], None]


class Executor:
    """Runs plans on `threads` threads, the caller included; never more than there are cores.

    Any number of Python threads may run plans at the same time.
    """

    def __init__(self, threads: int | None = None, cache: KernelCache | None = None) -> None:
        cores = available_cores()
        self.threads = min(threads or cores, cores)
        self._native = _native(cache or default_cache())
        self._pool = _pool(self.threads, self._native) if self.threads > 1 else None

    def run(self, table_address: int, steps: int, last_parallel: int) -> None:
        """Runs the table's steps in order, each of them finished before the next starts.

        The table has `steps` triples of int64: kernel address, number of tasks, address of the
        arguments. `last_parallel` is the index of the last step with more than one task, or -1;
        after it the helpers are free for other plans.
        """
        self.prepare(table_address, steps, last_parallel)()

    def prepare(
        self, table_address: int, steps: int, last_parallel: int, brief: bool = False
    ) -> Plan:
        """The same as a callable with less cost per call; the table must outlive it.

        A `brief` plan is not worth waking helpers that sleep, unless its calls come one upon the
        other, so that they stay awake from then on.
        """
        return Plan(self._native.run, self._pool, table_address, steps, last_parallel, brief)


class Plan:
    """One table, ready to run as often as wanted while this exists."""

    def __init__(
        self,
        run: NativeFunction,
        pool: Pool | None,
        table: int,
        steps: int,
        last_parallel: int,
        brief: bool,
    ) -> None:
        memory = pool.address if pool else 0
        self._block = (ctypes.c_int64 * 4)(memory, table, steps, last_parallel)
        address = ctypes.addressof(self._block)
        if pool is None or last_parallel < 0:
            self.run = partial(run, 0, address)
        else:
            self.run = partial(_run_briefly if brief else _run_awake, pool, run, address)

    def __call__(self) -> None:
        self.run()


def _run_awake(pool: Pool, run: NativeFunction, address: int) -> None:
    """Runs with all helpers."""
    if pool.has_sleepers:
        pool.wake()
    run(1, address)


def _run_briefly(pool: Pool, run: NativeFunction, address: int) -> None:
    """Runs with the helpers that are awake; with all once many calls have followed closely."""
    now = time.perf_counter()
    pool.streak = pool.streak + 1 if now - pool.ended < CLOSE_SECONDS else 0
    if pool.streak < STREAK:
        run(0, address)
    else:
        _run_awake(pool, run, address)
    pool.ended = time.perf_counter()


@dataclass(frozen=True)
class Native:
    """The executor's functions; calling one releases the interpreter lock."""

    run: NativeFunction
    helper: NativeFunction


class Pool:
    """Shared memory and `threads - 1` helper threads, which start with the first plan."""

    def __init__(self, threads: int, native: Native) -> None:
        self.ended = 0.0  # when a brief plan ended,
        self.streak = 0  # and how many before it came closely upon each other
        self._native = native
        self._helpers = threads - 1
        self._memory = (ctypes.c_int64 * (words(threads) + LINE))()
        start = ctypes.addressof(self._memory)
        self.address = -(-start // LINE_BYTES) * LINE_BYTES
        self._words = (ctypes.c_int64 * words(threads)).from_address(self.address)
        self._words[PARTS], self._words[LINGER] = threads, LINGER_SPINS
        self.reset()

    def reset(self) -> None:
        """No helpers and no plan: the state of a new pool, and of one in a forked child.

        The memory stays where it is, because prepared plans hold its address.
        """
        for word in (OPEN, ACTIVE, WAITING, WANTED, STOPPING, OWNER, SLEEPERS):
            self._words[word] = 0
        self._words[NAP + 1] = NAP_NANOSECONDS
        self._sleeping: list[threading.Lock] = []
        self._starting = threading.Lock()
        self._started = False
        self._stopping = False

    @property
    def has_sleepers(self) -> bool:
        """Whether `wake` would do anything."""
        return bool(self._sleeping) or not self._started

    def wake(self) -> None:
        """All helpers are awake, or started if this is the first time."""
        if not self._started:
            with self._starting:
                if not self._started:
                    self._started = True
                    self._start()
        with suppress(IndexError):  # another thread may wake the last one
            while True:
                self._sleeping.pop().release()

    def stop(self) -> None:
        """No helper is in native code any more, as the interpreter wants it when it ends."""
        self._stopping = True
        self._words[STOPPING] = 1
        nothing = (ctypes.c_int64 * 3)()  # a region without tasks, which wakes who sleeps
        block = (ctypes.c_int64 * 4)(self.address, ctypes.addressof(nothing), 1, 0)
        deadline = time.monotonic() + 1.0
        while self._started and len(self._sleeping) < self._helpers and time.monotonic() < deadline:
            self._native.run(1, ctypes.addressof(block))
            time.sleep(1e-4)

    def _start(self) -> None:
        with _deep_stacks:
            for k in range(1, self._helpers + 1):
                work = threading.Thread(
                    target=self._serve, args=(k,), daemon=True, name="tilewright"
                )
                work.start()

    def _serve(self, share: int) -> None:
        """A helper's life: in native code, and asleep between plans where that cannot sleep."""
        bell = threading.Lock()
        bell.acquire()
        while True:
            if not self._stopping:
                self._native.helper(share, self.address)
            self._sleeping.append(bell)
            if self._words[WANTED] and not self._stopping:
                # A plan began while this thread waited for the interpreter lock, so nobody has
                # seen it in the list; unless a caller has just taken it out, stay awake.
                with suppress(ValueError):
                    self._sleeping.remove(bell)
                    continue
            bell.acquire()


class _DeepStacks:
    """While entered, new threads of this process get STACK_BYTES of stack."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._before = threading.stack_size(STACK_BYTES)

    def __exit__(self, *unused: object) -> None:
        threading.stack_size(self._before)
        self._lock.release()


_deep_stacks = _DeepStacks()
_pools: dict[int, Pool] = {}
_lock = threading.Lock()
_loaded: Native | None = None


def _native(cache: KernelCache) -> Native:
    """The executor's code, loaded once per process."""
    global _loaded
    with _lock:
        if _loaded is None:
            prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
            run, helper = (prototype(address) for address in cache.load(_texts()))
            _loaded = Native(run, helper)
        return _loaded


def texts_to_load() -> list[str]:
    """The executor's code as kernel texts, until the process has it: to be loaded beside others."""
    return [] if _loaded else _texts()


def _texts() -> list[str]:
    return [_text("run_plan"), _text("helper")]


def _text(function: str) -> str:
    """The executor's function as the text of a kernel, another one whenever its files change."""
    files = (Path(__file__).with_name(name).read_bytes() for name in NATIVE_FILES)
    version = blake2b(b"".join(files), digest_size=16).hexdigest()
    return f"from tilewright.runtime.native import {function} as kernel  # {version}\n"


def _pool(threads: int, native: Native) -> Pool:
    with _lock:
        if threads not in _pools:
            _pools[threads] = Pool(threads, native)
        return _pools[threads]


def _stop_all() -> None:
    for pool in _pools.values():
        pool.stop()


def _after_fork() -> None:
    """In a forked child: threads and held locks are gone, the code and the memory are there."""
    global _lock, _deep_stacks
    _lock = threading.Lock()
    _deep_stacks = _DeepStacks()
    for pool in _pools.values():
        pool.reset()


atexit.register(_stop_all)
with suppress(AttributeError):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_after_fork)
