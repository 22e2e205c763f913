"""Options come from the environment, and refuse what they cannot mean."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

import tilewright
from tilewright import options
from tilewright.errors import InputError
from tilewright.options import Options, available_cores

VARIABLES = ("THREADS", "CACHE_DIR", "WORKERS", "DEBUG", "DUMP", "TF32")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"TILEWRIGHT_{name}", raising=False)


def test_empty_environment_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Options.from_environment() == Options()
    monkeypatch.setenv("TILEWRIGHT_THREADS", " ")
    assert Options.from_environment() == Options()


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("3", "~/kernels", "0", "2", "out", "1"), strict=True):
        monkeypatch.setenv(f"TILEWRIGHT_{name}", value)
    assert Options.from_environment() == Options(
        threads=3,
        cache_dir=Path(os.path.expanduser("~/kernels")),
        compile_workers=0,
        debug=2,
        dump=Path("out"),
        tf32=True,
    )


@pytest.mark.parametrize("value", ["many", "0", "-1", "1.5"])
def test_threads_must_be_a_positive_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_THREADS", value)
    with pytest.raises(InputError, match=r"(?i)threads"):
        Options.from_environment()


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="cache_bytes"):
        Options(cache_bytes=-1)
    with pytest.raises(InputError, match="compile_workers"):
        Options(compile_workers=-1)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("?", None)],
)
def test_container_quota_limits_the_cores(
    quota: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(options, "CPU_QUOTA", file)
    unlimited = available_cores()
    file.write_text(quota)
    assert available_cores() == (cores or unlimited)


def test_kernels_are_dumped_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2, 3] x) => (float[2, 3] y)'
    options = Options(dump=tmp_path / "new" / "folder", debug=3, threads=1)
    model = tilewright.compile(parser.parse_model(text + "{ y = Exp(x) }"), options=options)
    model(np.zeros((2, 3), np.float32))
    (kernel,) = model.kernels
    (file,) = (tmp_path / "new" / "folder").iterdir()
    page = file.read_text()
    assert page.endswith(kernel.source) and "# graph     Exp" in page and "exp(p0[" in page
    assert compile(page, file.name, "exec")
    shown = capsys.readouterr().err
    assert kernel.source in shown and "kernels from disk" in shown
