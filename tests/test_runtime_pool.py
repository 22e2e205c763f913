"""Plans run each task exactly once, whoever runs them and however many threads help."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from runtime_samples import COUNT, NOTHING, run_python
from tilewright.options import Options, available_cores
from tilewright.runtime import pool as pool_module
from tilewright.runtime.cache import KernelCache
from tilewright.runtime.layout import BELL, SLEEPERS
from tilewright.runtime.pool import Executor, Plan

DEEP = """\
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from runtime_intrinsics import put

WORD = ir.IntType(64)
PAGES = 128
WORDS_OF_PAGE = 512


@intrinsic
def through_the_stack(typing, value):
    # Writes to each of 512 KB worth of pages; the place of the load is not known to LLVM.
    def emit(context, builder, signature, values):
        area = builder.alloca(ir.ArrayType(WORD, PAGES * WORDS_OF_PAGE))
        for page in range(PAGES):
            place = builder.gep(area, [WORD(0), WORD(page * WORDS_OF_PAGE)])
            builder.store(builder.add(values[0], WORD(page)), place)
        page = builder.mul(values[0], WORD(WORDS_OF_PAGE))
        return builder.load(builder.gep(area, [WORD(0), page]))

    return types.int64(types.int64), emit


def kernel(task, args):
    put(args, task, through_the_stack(task))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> KernelCache:
    return KernelCache(Options(cache_dir=tmp_path_factory.mktemp("cache")))


@pytest.fixture
def four_threads(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """More threads than there may be cores, so that they are interrupted everywhere."""
    monkeypatch.setattr(pool_module, "available_cores", lambda: 4)
    return Executor(4, cache)


class Counting:
    """A plan in which every task adds 1 to its own counter, in mixed steps."""

    TASKS = 37

    def __init__(
        self, executor: Executor, cache: KernelCache, repeat: int = 5, brief: bool = False
    ) -> None:
        count, nothing = cache.load([COUNT, NOTHING])
        self.counters = (ctypes.c_int64 * self.TASKS)()
        args = ctypes.addressof(self.counters)
        steps = [(count, self.TASKS, args), (nothing, 3, 0), (count, 1, args), (nothing, 0, 0)]
        self.repeat = repeat
        self.runs = 0
        self.table = table(steps * repeat)
        self.plan = prepare(executor, self.table, brief)

    def run(self, times: int) -> None:
        for _ in range(times):
            self.plan()
        self.runs += times

    def is_exact(self) -> bool:
        once = self.runs * self.repeat
        return list(self.counters) == [2 * once] + [once] * (self.TASKS - 1)


def table(steps: Sequence[tuple[int, int, int]]) -> ctypes.Array[ctypes.c_int64]:
    words = [word for step in steps for word in step]
    return (ctypes.c_int64 * len(words))(*words)


def prepare(executor: Executor, words: ctypes.Array[ctypes.c_int64], brief: bool = False) -> Plan:
    steps = len(words) // 3
    last = max((s for s in range(steps) if words[3 * s + 1] > 1), default=-1)
    return executor.prepare(ctypes.addressof(words), steps, last, brief)


@pytest.mark.parametrize("threads", [1, 2, None])
def test_each_task_runs_once(cache: KernelCache, threads: int | None) -> None:
    counting = Counting(Executor(threads, cache), cache)
    counting.run(200)
    assert counting.is_exact()


def test_oversubscribed_pool_is_exact(cache: KernelCache, four_threads: Executor) -> None:
    counting = Counting(four_threads, cache)
    counting.run(300)
    assert counting.is_exact()


def test_concurrent_callers_are_exact(cache: KernelCache, four_threads: Executor) -> None:
    plans = [Counting(four_threads, cache) for _ in range(4)]
    threads = [threading.Thread(target=plan.run, args=(300,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(plan.is_exact() for plan in plans)


def test_run_takes_a_table(cache: KernelCache) -> None:
    [count] = cache.load([COUNT])
    counters = (ctypes.c_int64 * 5)()
    words = table([(count, 5, ctypes.addressof(counters))])
    Executor(2, cache).run(ctypes.addressof(words), 1, 0)
    Executor(1, cache).run(ctypes.addressof(words), 1, 0)
    assert list(counters) == [2] * 5


def test_threads_never_exceed_the_cores(cache: KernelCache) -> None:
    assert Executor(10_000, cache).threads == available_cores()
    assert Executor(None, cache).threads == available_cores()
    assert Executor(1, cache).threads == 1


def test_pools_are_shared(cache: KernelCache, four_threads: Executor) -> None:
    assert Executor(4, cache)._pool is four_threads._pool
    assert Executor(1, cache)._pool is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_runs_old_and_new_plans(cache: KernelCache, four_threads: Executor) -> None:
    old = Counting(four_threads, cache)
    old.run(20)
    stop = threading.Event()
    busy = Counting(four_threads, cache)

    def keep_running() -> None:
        while not stop.is_set():
            busy.run(1)

    background = threading.Thread(target=keep_running)
    background.start()
    statuses = [child_status(old, four_threads, cache) for _ in range(10)]
    stop.set()
    background.join()
    old.run(20)
    assert set(statuses) == {0}
    assert old.is_exact() and busy.is_exact()


def child_status(old: Counting, executor: Executor, cache: KernelCache) -> int:
    """Exit status of a forked child that runs an inherited plan and one of its own."""
    child = os.fork()
    if child == 0:
        own = Counting(executor, cache)
        old.run(20)
        own.run(20)
        helped = any(thread.name == "tilewright" for thread in threading.enumerate())
        os._exit(0 if old.is_exact() and own.is_exact() and helped else 1)
    return os.waitpid(child, 0)[1]


def test_exit_right_after_a_plan_is_clean(tmp_path: Path) -> None:
    code = (
        "import tilewright.runtime.pool as pool\n"
        "from test_runtime_pool import Counting\n"
        "from tilewright.runtime.cache import default_cache\n"
        "pool.available_cores = lambda: 4\n"
        "plan = Counting(pool.Executor(4), default_cache())\n"
        "plan.run(3)\n"
        "assert plan.is_exact()\n"
    )
    for _ in range(5):
        run_python(code, TILEWRIGHT_CACHE_DIR=str(tmp_path))


def test_idle_helpers_use_no_time(cache: KernelCache, four_threads: Executor) -> None:
    Counting(four_threads, cache).run(10)
    time.sleep(0.1)
    before = processor_seconds()
    time.sleep(0.3)
    assert processor_seconds() - before < 0.05


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.skipif(sys.platform != "linux", reason="helpers sleep in Python")
def test_brief_plans_let_helpers_sleep(
    cache: KernelCache, four_threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = four_threads._pool
    assert helpers is not None
    Counting(four_threads, cache).run(1)
    wait_until(lambda: helpers._words[SLEEPERS] == 3)
    counting = Counting(four_threads, cache, brief=True)
    monkeypatch.setattr(pool_module, "CLOSE_SECONDS", 0.0)
    rung = helpers._words[BELL]
    counting.run(2 * pool_module.STREAK)
    assert helpers._words[BELL] == rung
    monkeypatch.setattr(pool_module, "CLOSE_SECONDS", 60.0)
    counting.run(pool_module.STREAK - 1)
    assert helpers._words[BELL] == rung
    counting.run(1)
    assert helpers._words[BELL] > rung
    assert counting.is_exact()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


def test_kernels_may_use_much_stack(cache: KernelCache, four_threads: Executor) -> None:
    [deep] = cache.load([DEEP])
    results = (ctypes.c_int64 * 128)()
    words = table([(deep, 128, ctypes.addressof(results))])
    plan = prepare(four_threads, words)
    for _ in range(50):
        plan()
    assert list(results) == [2 * task for task in range(128)]


def test_stack_size_of_other_threads_is_left_alone(
    cache: KernelCache, four_threads: Executor
) -> None:
    Counting(four_threads, cache).run(1)
    assert threading.stack_size() == 0
