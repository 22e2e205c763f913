"""Parts for the tests of the harness: cases that end in every way."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from gpu_parts.part import Figures, Part, Setting, Unavailable


def require() -> None:
    """Needs nothing."""


def bench(setting: Setting) -> list[str]:
    """What cases of one process share: those that it ran."""
    return []


def _run(shared: Any, case: str) -> Figures:
    shared.append(case)
    match case:
        case "raises":
            raise ValueError("a value of no use")
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hangs":
            time.sleep(60)
        case "unavailable":
            raise Unavailable("nobody has one")
        case "wrong":
            return {"wrong": "off by one"}
        case "printing":
            print("this is no answer")
    return {"shared": list(shared), "huge": float("inf")}


def _broken(setting: Setting) -> list[str]:
    raise RuntimeError("no cases today")


ENDINGS = ["first", "raises", "second", "crashes", "hangs", "printing", "wrong", "unavailable"]
PARTS = {
    "endings": Part("endings", "all ways to end", lambda setting: ENDINGS, _run, 3.0),
    "broken": Part("broken", "no cases", _broken, _run),
    "slow": Part("slow", "takes long", lambda setting: ["a", "hangs", "b"], _run, 100.0),
    "last": Part("last", "comes last", lambda setting: ["one", "two"], _run),
}
