"""Native code that nobody has checked runs in a child process: what it does there stays there."""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

HAS_FORK = hasattr(os, "fork")
LINE = b"\n"


class Crashed(Exception):
    """The child has ended by itself; the message says how, and what it was doing."""


@dataclass
class Watch:
    """What a task in the child tells: what it is `doing`, and how long that may take."""

    tell: Callable[[str], None] = field(default=lambda doing: None)

    def limited(self, seconds: float) -> Limit:
        """Within this context the child ends after so many seconds, even in native code."""
        return Limit(seconds if HAS_FORK else 0.0)


class Limit:
    """An alarm."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *error: object) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


def call(task: Callable[[Watch], Any], seconds: float) -> Any:
    """What `task` returns (as JSON would have it), computed in a child process.

    The child is a copy of this process with one thread, which shares its memory until it writes.
    Crashed if it dies, or takes longer than `seconds`. Where processes cannot be copied, the task
    runs here.
    """
    if not HAS_FORK:
        return json.loads(json.dumps(task(Watch())))
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside other threads
        child = os.fork()
    if child == 0:
        _in_child(task, write)
    os.close(write)
    try:
        content, in_time = _read_all(read, time.monotonic() + seconds)
    finally:
        os.close(read)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # has ended by itself, or is not wanted any more
        _, status = os.waitpid(child, 0)
    *told, last = content.split(LINE)
    doing = told[-1].decode() if told else "at its start"
    if in_time and last:
        kind, _, body = last.partition(b" ")
        if kind == b"done":
            return json.loads(body)
        raise RuntimeError(f"a check failed of itself:\n{json.loads(body)}")
    raise Crashed(_reason(status, in_time, seconds, doing))


def _reason(status: int, in_time: bool, seconds: float, doing: str) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if not in_time:
        return f"it did not end within {seconds:.0f} s {doing}"
    if number == signal.SIGALRM:
        return f"it did not end in time {doing}"
    name = signal.Signals(number).name if number else f"exit code {os.WEXITSTATUS(status)}"
    return f"it crashed ({name}) {doing}"


def _read_all(source: int, until: float) -> tuple[bytes, bool]:
    """Everything up to the end, and whether it came before that time."""
    content = bytearray()
    while (left := until - time.monotonic()) > 0:
        if not select.select([source], [], [], left)[0]:
            break
        part = os.read(source, 1 << 16)
        if not part:
            return bytes(content), True
        content += part
    return bytes(content), False


def _in_child(task: Callable[[Watch], Any], answers: int) -> None:
    """Runs the task and ends the process."""
    code = 1
    try:
        _quieten()
        watch = Watch(lambda doing: _write(answers, doing.encode() + LINE))
        try:
            answer = b"done " + json.dumps(task(watch)).encode()
        except Exception:
            answer = b"error " + json.dumps(traceback.format_exc()).encode()
        _write(answers, answer)
        code = 0
    finally:
        os._exit(code)


def _quieten() -> None:
    """The child dies of what kills it, and says nothing to the terminal."""
    faulthandler.disable()
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGALRM", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
