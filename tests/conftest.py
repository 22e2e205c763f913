"""Settings of the whole suite: how long properties search, where kernels are cached, golden texts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="accept today's texts as golden")


def pytest_configure(config: pytest.Config) -> None:
    """One kernel cache for all workers of a run, not the user's."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if "TILEWRIGHT_CACHE_DIR" not in os.environ:
        name = f"tilewright-tests-{run}" if run else tempfile.mkdtemp(prefix="tilewright-tests-")
        os.environ["TILEWRIGHT_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / name)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compare a text with the one that was accepted for this test."""
    path = GOLDEN / f"{request.node.name}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden text {path.name}: run `make golden` and review it"
        assert text == path.read_text()

    return check
