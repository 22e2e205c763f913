"""The machine that figures are of: its GPU as the driver describes it, and versions."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tilewright.explore.doctor import diagnose

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("tilewright", "numpy", "numba", "llvmlite", "numba-cuda", "cuda-bindings", "onnx")
RIVALS = ("torch", "cupy-cuda13x", "timm", "torchvision", "transformers", "nvidia-cudnn-cu13")
QUERY = {
    "gpu": "name",
    "driver": "driver_version",
    "memory": "memory.total",
    "clock_limit": "clocks.max.sm",
    "memory_clock_limit": "clocks.max.mem",
    "power_limit": "power.limit",
}
NOW = {"clock": "clocks.sm", "temperature": "temperature.gpu", "power": "power.draw"}


def describe() -> dict[str, Any]:
    """Everything that a reader of the figures asks about."""
    found = diagnose()
    return {
        "gpu": "none",
        **query(QUERY),
        "processor": found.processor.get("model", ""),
        "cores": found.processor.get("cores", ""),
        "python": platform.python_version(),
        "versions": {n: v for n in (*PACKAGES, *RIVALS) if (v := _version(n))},
        "cuda": found.cuda,
        "missing": found.missing,
        "revision": _revision(),
    }


def query(names: dict[str, str]) -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing where there is no nvidia-smi."""
    words = ["nvidia-smi", f"--query-gpu={','.join(names.values())}", "--format=csv,noheader"]
    text = _output([*words, "--id=0"])
    values = [v.strip() for v in text.split(",")]
    return dict(zip(names, values)) if len(values) == len(names) else {}


def _revision() -> str:
    """The commit of the sources, or their fingerprint in a copy without history."""
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    if commit:
        changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "-uno", "compiler"])
        return commit + ("+" if changed else "")
    from tilewright.runtime.cache import kernels_fingerprint

    return f"kernels {kernels_fingerprint()[:12]}"


def _output(words: list[str]) -> str:
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
