"""An engine's process as its parent sees it: started, asked, ended."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tilewright.errors import TilewrightError


class EngineError(TilewrightError):
    """An engine cannot be started, cannot run the model, or gives no answer."""


class Engine:
    """The process that Python makes of `words`; a context, at whose end it is no more."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        limit: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.limit = name, limit
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        paths = os.pathsep.join(os.path.abspath(p) for p in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        )
        self.hello: dict[str, Any] = {}

    def __enter__(self) -> Engine:
        try:
            self.hello = self._read()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def ask(self, question: str, **details: Any) -> dict[str, Any]:
        """The answer; EngineError if there is none."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            print(json.dumps({"ask": question, **details}), file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self.limit)
        if not ready:
            raise EngineError(f"{self.name}: no answer within {self.limit:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"{self.name}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            raise EngineError(f"{self.name}: {answer['failure']}")
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return f"the process ended with code {code}" + (f": {lines[-1]}" if lines else "")
