"""The process that measures the cases of a part.

`python -m gpu_parts.worker MODULE PART SETTING`:
MODULE has the table PARTS and a function `bench` from a setting to what cases run on.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from typing import Any

from gpu_parts.part import Part, Setting, Unavailable
from gpu_parts.record import as_data
from tilewright.explore.process import serve


class Worker:
    """Answers `run`. What a case needs is made when the first one runs."""

    def __init__(self, part: Part, setting: Setting, module: Any) -> None:
        self._part, self._setting, self._module = part, setting, module

    @functools.cached_property
    def _bench(self) -> Any:
        return self._module.bench(self._setting)

    def run(self, case: str) -> dict[str, Any]:
        """Figures, the reason why there can be none, or the failure and where it happened."""
        start = time.perf_counter()
        try:
            answer: dict[str, Any] = {"figures": as_data(self._part.run(self._bench, case))}
        except Unavailable as reason:
            answer = {"unavailable": str(reason)}
        except Exception as error:
            text = f"{type(error).__name__}: {error}".strip()
            answer = {"failed": text, "details": traceback.format_exc(limit=-12)}
        return {**answer, "wall": time.perf_counter() - start}


def start(module: str, name: str, setting: str) -> tuple[Worker, dict[str, Any]]:
    """The part; says hello with its cases."""
    loaded: Any = import_module(module)
    part: Part = loaded.PARTS[name]
    found = Setting.from_json(setting)
    return Worker(part, found, loaded), {"cases": list(part.cases(found))}


if __name__ == "__main__":
    os.setpgid(0, 0)  # whoever ends it ends what it started
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    serve(functools.partial(start, *sys.argv[1:4]))
