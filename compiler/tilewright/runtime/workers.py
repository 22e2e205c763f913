"""Compilation side by side: worker processes on pipes, and this process as one more worker.

Processes from `multiprocessing` would run the user's script again unless it has a main guard, fork
is unsafe beside helper threads, and threads share Numba's lock. So a worker is a plain
`python -m tilewright._worker TARGET`, which reads jobs from its standard input and answers on its
standard output, both as frames: a 32-bit length, then that many bytes.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import IO

COMPILED = b"\0"  # the first byte of an answer; then comes the object
FAILED = b"\1"
FEW = 20  # a worker needs about a second before it compiles anything
JOBS_WORTH_A_WORKER = 10
MOST_WORKERS = 16
SILENCE = 120.0  # seconds without any answer; then the remaining jobs are compiled here

Job = tuple[str, str]  # text, symbol
Compile = Callable[[str, str], bytes]
Deliver = Callable[[int, bytes], None]


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame; None where the stream ends."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    (length,) = struct.unpack("<I", head)
    body = stream.read(length)
    return body if len(body) == length else None


def write_frame(stream: IO[bytes], body: bytes) -> None:
    """Sends one frame at once."""
    stream.write(struct.pack("<I", len(body)) + body)
    stream.flush()


def worker_count(jobs: int, cores: int) -> int:
    """How many workers are worth their start beside this process."""
    if jobs <= FEW or not sys.executable or getattr(sys, "frozen", False):
        return 0
    return min(cores - 1, jobs // JOBS_WORTH_A_WORKER, MOST_WORKERS)


def compile_all(
    jobs: Sequence[Job],
    workers: int,
    environment: Mapping[str, str],
    compile_here: Compile,
    deliver: Deliver,
    target: str = "cpu",
) -> None:
    """Every job's object has been given to `deliver(index, object)`, in this thread, in any order.

    A worker whose `environment` (the fields of the cache key) differs from ours is not used. What
    a worker fails to compile is compiled again here, where its error belongs.
    """
    team = _Team(jobs, environment, target)
    try:
        team.start(workers)
        team.work(compile_here, deliver)
    finally:
        team.dismiss()


class _Team:
    """The jobs of one call, the worker processes and one thread that serves each of them."""

    def __init__(self, jobs: Sequence[Job], environment: Mapping[str, str], target: str) -> None:
        self._jobs = jobs
        self._environment = dict(environment)
        self._target = target
        self._untaken: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[int, bytes | None]] = queue.SimpleQueue()
        self._workers: list[tuple[subprocess.Popen[bytes], threading.Thread]] = []
        for index in range(len(jobs)):
            self._untaken.put(index)

    def start(self, workers: int) -> None:
        for _ in range(workers):
            with suppress(OSError):  # fewer workers, same result
                process = _start_worker(self._target)
                server = threading.Thread(target=self._serve, args=(process,), daemon=True)
                self._workers.append((process, server))
                server.start()

    def work(self, compile_here: Compile, deliver: Deliver) -> None:
        """Compiles untaken jobs here until none is left, and what workers do not answer."""
        waiting = set(range(len(self._jobs)))
        while waiting:
            index, data = self._next(waiting)
            if index in waiting:
                deliver(index, compile_here(*self._jobs[index]) if data is None else data)
                waiting.remove(index)

    def dismiss(self) -> None:
        """All workers have ended; one that was still compiling is killed."""
        for process, _ in self._workers:
            process.kill()
        for process, server in self._workers:
            process.wait()
            server.join()

    def _next(self, waiting: Collection[int]) -> tuple[int, bytes | None]:
        """A job with its object, or with None: to be compiled here."""
        with suppress(queue.Empty):
            return self._answers.get_nowait()
        with suppress(queue.Empty):
            return self._untaken.get_nowait(), None
        with suppress(queue.Empty):
            return self._answers.get(timeout=SILENCE)
        return min(waiting), None

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        """Hands jobs to one worker until there are no more, or the worker is of no use."""
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError, ValueError), process.stdin as jobs, process.stdout as answers:
            greeting = read_frame(answers)
            if greeting is None or json.loads(greeting) != self._environment:
                return
            while self._exchange(jobs, answers):
                pass

    def _exchange(self, jobs: IO[bytes], answers: IO[bytes]) -> bool:
        """One job to a worker and its answer back; whether there may be another."""
        try:
            index = self._untaken.get_nowait()
        except queue.Empty:
            return False
        answer: bytes | None = None
        try:
            write_frame(jobs, json.dumps(self._jobs[index]).encode())
            answer = read_frame(answers)
        finally:
            compiled = answer is not None and answer.startswith(COMPILED)
            self._answers.put((index, answer[1:] if answer and compiled else None))
        return answer is not None


def _start_worker(target: str) -> subprocess.Popen[bytes]:
    """A worker for this target that finds the same modules as this process."""
    paths = [os.path.abspath(path) for path in sys.path]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",  # a stray file in the current folder must not shadow a module
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tilewright._worker", target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
