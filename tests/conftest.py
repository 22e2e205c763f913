"""Settings of the whole suite: how far properties search, the kernel cache, golden texts."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"
CACHE = "TILEWRIGHT_CACHE_DIR"
_temporary: list[str] = []

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=400
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="accept today's texts as golden")
    parser.addoption("--all-node-cases", action="store_true", help="all of ONNX's cases for CUDA")


def pytest_configure(config: pytest.Config) -> None:
    """One kernel cache for a whole run, and not the user's: workers inherit the variable."""
    if CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="tilewright-tests-")
        _temporary.append(os.environ[CACHE])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Deletes the cache in the process that made it."""
    while _temporary:
        shutil.rmtree(_temporary.pop(), ignore_errors=True)
        os.environ.pop(CACHE, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m golden` selects the tests that compare with golden texts."""
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker("golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compare a text with the one that was accepted for this test."""
    name = re.sub(r"\W+", "_", request.node.name).strip("_")
    path = GOLDEN / f"{name}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden text {path.name}: run `make golden` and review it"
        assert text == path.read_text(encoding="utf-8")

    return check
