"""Our tests on the GPU: what instructions do, and all else that pytest's mark `gpu` selects.

Each file runs in a pytest of its own; of the file whose tests are many and long, each test does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from gpu_parts.part import Figures, Setting

if TYPE_CHECKING:
    from gpu_parts.bench import Bench

ROOT = Path(__file__).resolve().parent.parent.parent
LONG = "tests/test_cuda_gpu_cases.py"
LIMIT = 570.0
SHOWN = 8  # failures
WORDS = ["-q", "-p", "no:cacheprovider", "-m", "gpu"]


def collected(*paths: str) -> list[str]:
    """The tests that want a GPU, by their identifiers."""
    found = _pytest(["--collect-only", *WORDS, *paths], 240)
    names = [line for line in found.stdout.splitlines() if "::" in line]
    if found.returncode or not names:
        raise RuntimeError(f"pytest collects nothing: {found.stdout[-500:]}{found.stderr[-500:]}")
    return names


def files(setting: Setting) -> list[str]:
    """Files with such tests."""
    there = dict.fromkeys(n.partition("::")[0] for n in collected("tests"))
    return [name for name in there if name != LONG]


def nodes(setting: Setting) -> list[str]:
    return collected(LONG)


def run(bench: Bench, case: str) -> Figures:
    """A file, or one test."""
    return run_tests([*WORDS, case])


def run_tests(words: Sequence[str]) -> Figures:
    """What became of tests; wrong if one failed, or none ran."""
    with tempfile.TemporaryDirectory(prefix="tilewright-gpu-") as folder:
        report = Path(folder, "report.xml")
        found = _pytest([*words, f"--junitxml={report}"], LIMIT)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {found.returncode}: {found.stderr[-1500:]}")
        return summary(ElementTree.parse(report).getroot())


def summary(report: ElementTree.Element) -> Figures:
    """Counts and failures, of a report in JUnit's format."""
    cases = list(report.iter("testcase"))
    failed = {
        f"{case.get('classname')}::{case.get('name')}": (trouble.get("message") or "")[:300]
        for case in cases
        for trouble in (*case.iter("failure"), *case.iter("error"))
    }
    skipped = [s.get("message") or "" for case in cases for s in case.iter("skipped")]
    passed = len(cases) - len(failed) - len(skipped)
    wrong = f"{len(failed)} failed: {', '.join(list(failed)[:SHOWN])}" if failed else ""
    if not passed and not failed:
        wrong = f"nothing ran: {'; '.join(sorted(set(skipped))[:3])}"
    return {
        "passed": passed,
        "failed": len(failed),
        "skipped": sorted(set(skipped)),
        "failures": failed,
        "slowest": max((float(c.get("time") or 0) for c in cases), default=0.0),
        "wrong": wrong,
    }


def _pytest(words: Sequence[str], limit: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit,
    )
