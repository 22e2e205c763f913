"""A kernel is compiled once: per text, per process, per folder."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

import tilewright_kernels
from runtime_samples import COUNT, NOTHING, constant, run_python
from tilewright.errors import CompileError
from tilewright.options import Options
from tilewright.runtime import workers
from tilewright.runtime.cache import CacheStats, KernelCache, environment_fields, fingerprint
from tilewright.runtime.store import StoredObject

BAD = "def kernel(task, args):\n    undefined_name()\n"


def new_cache(folder: Path, compile_workers: int | None = 0) -> KernelCache:
    return KernelCache(Options(cache_dir=folder, compile_workers=compile_workers))


def call(address: int) -> list[int]:
    """The table of a `constant` kernel after task 1."""
    words = (ctypes.c_int64 * 3)()
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(address)
    kernel(1, ctypes.addressof(words))
    return list(words)


def counts(cache: KernelCache) -> tuple[int, int, int]:
    stats = cache.stats()
    return stats.memory, stats.disk, stats.compiled


def test_each_source_is_counted(tmp_path: Path) -> None:
    first = new_cache(tmp_path)
    one, two, again = first.load([constant(1), constant(2), constant(1)])
    assert (call(one), call(two), again) == ([0, 1, 0], [0, 2, 0], one)
    assert counts(first) == (0, 0, 2)
    assert first.load([constant(2)]) == [two]
    assert counts(first) == (1, 0, 2)
    second = new_cache(tmp_path)
    second.load([constant(1)])
    assert counts(second) == (0, 1, 0)
    assert second.stats().seconds > 0
    assert KernelCache(Options()).stats() == CacheStats()


def test_second_process_needs_no_numba(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from runtime_samples import constant\n"
        "from tilewright.runtime.cache import default_cache\n"
        "from tilewright.runtime.pool import Executor\n"
        "default_cache().load([constant(n) for n in range(3)])\n"
        "Executor(2)\n"
        "print('numba' in sys.modules, default_cache().stats().compiled)\n"
    )
    environment = {"TILEWRIGHT_CACHE_DIR": str(tmp_path)}
    cold, warm = run_python(code, **environment), run_python(code, **environment)
    assert cold.startswith("True") and warm == "False 0\n"


def test_damaged_entries_are_compiled_again(tmp_path: Path) -> None:
    new_cache(tmp_path).load([constant(7)])
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-10])
    cache = new_cache(tmp_path)
    assert call(cache.load([constant(7)])[0]) == [0, 7, 0]
    assert counts(cache) == (0, 0, 1)


def test_entry_whose_symbols_are_missing_is_compiled_again(tmp_path: Path) -> None:
    text = constant(70)
    broken = new_cache(tmp_path)
    broken.store.put(broken._key(text), StoredObject(b"code", "s", ("no_such_symbol",)))
    cache = new_cache(tmp_path)
    assert call(cache.load([text])[0]) == [0, 70, 0]
    assert counts(cache) == (0, 0, 1)


def test_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert call(new_cache(blocked).load([constant(8)])[0]) == [0, 8, 0]


def test_bad_kernel_is_reported_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    for _ in range(2):
        with pytest.raises(CompileError, match="undefined_name"):
            cache.load([constant(9), BAD])
    assert call(cache.load([constant(9)])[0]) == [0, 9, 0]
    assert counts(cache) == (0, 1, 0)


def run_threads(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_compile_a_text_once(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    results: list[list[int]] = []
    texts = [constant(n) for n in range(20, 26)]

    def forwards() -> None:
        results.append(cache.load(texts))

    def backwards() -> None:
        results.append(cache.load(texts[::-1])[::-1])

    run_threads([forwards, backwards] * 3)
    assert len(results) == 6 and all(result == results[0] for result in results)
    assert cache.stats().compiled == 6


def test_another_threads_error_is_not_mine(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    good = constant(30)
    outcomes: list[object] = []

    def failing() -> None:
        with pytest.raises(CompileError):
            cache.load([good, BAD])

    def working() -> None:
        outcomes.append(call(cache.load([good])[0]))

    run_threads([failing, working, failing, working])
    assert outcomes == [[0, 30, 0]] * 2


def test_progress_counts_what_is_compiled(tmp_path: Path) -> None:
    new_cache(tmp_path).load([constant(40)])
    seen: list[tuple[int, int]] = []
    new_cache(tmp_path).load(
        [constant(40), constant(41), constant(42)], lambda done, total: seen.append((done, total))
    )
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_key_has_named_fields() -> None:
    fields = KernelCache(Options()).key_fields(COUNT)
    assert fields["text"] == COUNT
    assert {"abi", "cpu", "features", "numba", "llvmlite", "python", "kernels"} < set(fields)


def test_key_depends_on_the_target() -> None:
    code = "from tilewright.runtime.cache import environment_fields as e\nprint(e()['features'])\n"
    assert run_python(code, NUMBA_CPU_FEATURES="+avx2") == "+avx2\n"


def test_fingerprint_changes_with_any_kernels_file(tmp_path: Path) -> None:
    copy = tmp_path / "tilewright_kernels"
    shutil.copytree(next(iter(tilewright_kernels.__path__)), copy)
    (copy / "cpu").mkdir(exist_ok=True)
    before = fingerprint(copy)
    assert before == fingerprint(copy)
    added = copy / "cpu" / "added.py"
    added.write_text("x = 1\n")
    with_file = fingerprint(copy)
    added.write_text("x = 2\n")
    with_change = fingerprint(copy)
    added.rename(copy / "cpu" / "moved.py")
    assert len({before, with_file, with_change, fingerprint(copy)}) == 4


def test_changed_kernels_file_changes_the_key(tmp_path: Path) -> None:
    copy = tmp_path / "tilewright_kernels"
    shutil.copytree(next(iter(tilewright_kernels.__path__)), copy)
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from tilewright.runtime.cache import environment_fields as e\n"
        "print(e()['kernels'])\n"
    )
    before = run_python(code)
    (copy / "another.py").write_text("")
    assert run_python(code) != before
    assert before.strip() == environment_fields()["kernels"]


def test_workers_give_the_same_kernels(tmp_path: Path) -> None:
    cache = new_cache(tmp_path, compile_workers=1)
    values = range(100, 160)
    addresses = cache.load([constant(n) for n in values])
    assert [call(address)[1] for address in addresses] == list(values)
    assert cache.stats().compiled == len(values)


def answers_of(
    jobs: int, worker: str, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]
) -> tuple[list[bytes | None], int]:
    """Objects from one worker that runs `worker`, and how many were compiled here."""
    here = 0

    def compile_here(text: str, symbol: str) -> bytes:
        nonlocal here
        here += 1
        gate.wait(0.2)
        return f"{text} {symbol}".encode()

    def fake(target: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", worker], stdin=pipe, stdout=pipe)

    gate = threading.Event()
    monkeypatch.setattr(workers, "_start_worker", fake)
    objects: list[bytes | None] = [None] * jobs
    numbered = [(f"text{n}", f"symbol{n}") for n in range(jobs)]
    workers.compile_all(numbered, 1, fields, compile_here, objects.__setitem__)
    return objects, here


WORKER = """
import json, sys
from tilewright.runtime.workers import read_frame, write_frame
write_frame(sys.stdout.buffer, json.dumps({"cpu": "mine"}).encode())
for turn in range(1000):
    job = read_frame(sys.stdin.buffer)
    if job is None: break
    text, symbol = json.loads(job)
    ANSWER
"""


@pytest.mark.parametrize(
    ("answer", "fields", "all_here"),
    [
        ("write_frame(sys.stdout.buffer, f'\\0{text} {symbol}'.encode())", {"cpu": "mine"}, False),
        ("write_frame(sys.stdout.buffer, f'\\0{text} {symbol}'.encode())", {"cpu": "x"}, True),
        ("write_frame(sys.stdout.buffer, b'\\1no')", {"cpu": "mine"}, True),
        ("sys.exit(1)", {"cpu": "mine"}, True),
        ("sys.stdout.buffer.write(b'\\xff\\0\\0\\0half'); sys.exit()", {"cpu": "mine"}, True),
    ],
    ids=["works", "other environment", "fails", "dies", "dies in an answer"],
)
def test_worker_costs_at_most_its_job(
    answer: str, fields: dict[str, str], all_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, here = answers_of(8, WORKER.replace("ANSWER", answer), monkeypatch, fields)
    assert objects == [f"text{n} symbol{n}".encode() for n in range(8)]
    assert here == 8 if all_here else here < 8


def test_error_in_a_worker_is_raised_here(tmp_path: Path) -> None:
    cache = new_cache(tmp_path, compile_workers=1)
    texts = [constant(n) for n in range(200, 212)]
    with pytest.raises(CompileError, match="undefined_name"):
        cache.load([*texts, BAD])


def test_worker_count_fits_the_work() -> None:
    assert workers.worker_count(20, 8) == 0
    assert workers.worker_count(1000, 1) == 0
    assert workers.worker_count(40, 2) == 1
    assert workers.worker_count(1000, 8) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_goes_on(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    [known] = cache.load([constant(300)])
    cache._known["in flight in a thread of the parent"] = Future()
    child = os.fork()
    if child == 0:
        good = "in flight in a thread of the parent" not in cache._known
        good = good and cache.load([constant(300)]) == [known]
        good = good and call(cache.load([constant(301)])[0]) == [0, 301, 0]
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_to_load(tmp_path: Path) -> None:
    assert new_cache(tmp_path).load([]) == []
    assert len(new_cache(tmp_path).load([NOTHING])) == 1
