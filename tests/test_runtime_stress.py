"""No plan waits for ever, whatever happens to its threads; most run in a process of their own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from runtime_samples import run_python
from test_runtime_pool import Counting
from tilewright.options import Options
from tilewright.runtime.cache import KernelCache
from tilewright.runtime.pool import Executor

MEET = """\
from tilewright.runtime.native import load, pause, store

PATIENCE = 50_000_000


def kernel(task, args):
    store(args, task, 1)
    left = PATIENCE
    while load(args, 1 - task) == 0 and left > 0:
        pause()
        left -= 1
    store(args, 2 + task, left)
"""

PREPARED = """\
import os, signal, sys, threading, time
import tilewright.runtime.pool as pool
from test_runtime_pool import Counting
from tilewright.runtime.cache import default_cache
pool.available_cores = lambda: 4
executor = pool.Executor(4)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cache(folder: Path) -> KernelCache:
    return KernelCache(Options(cache_dir=folder))


def in_process(code: str, folder: Path) -> None:
    """Runs the code with a prepared executor of four threads; a hang is a failure."""
    run_python(PREPARED + code, TILEWRIGHT_CACHE_DIR=str(folder))


def test_helpers_come_whether_asleep_or_awake(folder: Path) -> None:
    """Two tasks that wait for each other, so that only two threads together can end both early."""
    in_process(
        "from test_runtime_stress import MEET\n"
        "from test_runtime_pool import ctypes, prepare, table\n"
        "[meet] = default_cache().load([MEET])\n"
        "words = (ctypes.c_int64 * 4)()\n"
        "steps = table([(meet, 2, ctypes.addressof(words))])\n"
        "plan = prepare(executor, steps)\n"
        "for wait in [0.0, 0.0, 0.02, 1e-5, 0.05, 3e-5, 0.01, 1e-4] * 5:\n"
        "    time.sleep(wait)\n"
        "    words[:] = [0] * 4\n"
        "    plan()\n"
        "    assert words[2] > 0 and words[3] > 0\n",
        folder,
    )


def test_many_callers_and_many_tiny_plans(folder: Path) -> None:
    in_process(
        "plans = [Counting(executor, default_cache(), repeat) for repeat in (1, 2, 3, 1) * 2]\n"
        "threads = [threading.Thread(target=plan.run, args=(1500,)) for plan in plans]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "assert all(plan.is_exact() for plan in plans)\n",
        folder,
    )


def test_signals_interrupt_sleepers_without_harm(folder: Path) -> None:
    in_process(
        "seen = []\n"
        "signal.signal(signal.SIGALRM, lambda *unused: seen.append(1))\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)\n"
        "plan = Counting(executor, default_cache())\n"
        "for _ in range(300):\n"
        "    plan.run(5)\n"
        "    time.sleep(1e-4)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "assert plan.is_exact() and seen\n",
        folder,
    )


def test_exit_while_other_threads_run_plans(folder: Path) -> None:
    code = (
        "def forever(plan):\n"
        "    while True:\n"
        "        plan.run(1)\n"
        "for _ in range(3):\n"
        "    plan = Counting(executor, default_cache())\n"
        "    threading.Thread(target=forever, args=(plan,), daemon=True).start()\n"
        "time.sleep(0.05)\n"
    )
    for _ in range(3):
        in_process(code, folder)


def test_a_child_forked_while_helpers_sleep_gets_its_own(folder: Path) -> None:
    in_process(
        "plan = Counting(executor, default_cache())\n"
        "plan.run(5)\n"
        "for wait in (0.0, 0.02):\n"
        "    time.sleep(wait)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        plan.run(50)\n"
        "        time.sleep(0.01)\n"
        "        plan.run(50)\n"
        "        sys.exit(0 if plan.is_exact() else 1)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "plan.run(50)\n"
        "assert plan.is_exact()\n",
        folder,
    )


def test_a_warm_executor_of_several_threads_needs_no_numba(folder: Path) -> None:
    in_process("Counting(executor, default_cache()).run(1)\n", folder)
    in_process(
        "plan = Counting(executor, default_cache())\n"
        "plan.run(20)\n"
        "assert plan.is_exact() and 'numba' not in sys.modules\n",
        folder,
    )


def test_without_a_futex_the_answers_are_the_same(tmp_path: Path) -> None:
    code = (
        "import tilewright.runtime.futex as futex\n"
        "futex.FUTEX = False\n" + PREPARED + "plan = Counting(executor, default_cache())\n"
        "for wait in [0.0, 1e-4, 1e-2] * 5:\n"
        "    time.sleep(wait)\n"
        "    plan.run(20)\n"
        "assert plan.is_exact()\n"
        "time.sleep(0.1)\n"
        "before = time.process_time()\n"
        "time.sleep(0.2)\n"
        "assert time.process_time() - before < 0.05\n"
    )
    run_python(code, TILEWRIGHT_CACHE_DIR=str(tmp_path))


def test_one_thread_starts_no_helper(cache: KernelCache) -> None:
    before = threading.active_count()
    counting = Counting(Executor(1, cache), cache)
    counting.run(10)
    assert counting.is_exact() and threading.active_count() == before


def test_one_core_is_enough(folder: Path) -> None:
    in_process(
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "plans = [Counting(executor, default_cache()) for _ in range(3)]\n"
        "threads = [threading.Thread(target=plan.run, args=(200,)) for plan in plans]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "assert all(plan.is_exact() for plan in plans)\n",
        folder,
    )
