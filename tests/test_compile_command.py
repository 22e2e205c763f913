"""The command `tilewright compile`: kernels that are there before the first call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import tilewright as tw
from cuda_harness import ARCHITECTURES, needs_compiler
from emulated_device import EmulatedDevice, compile_for
from tilewright import driver
from tilewright.driver import compile_in
from tilewright.errors import DeviceError
from tilewright.explore import cli, precompile
from tilewright.explore.commands import compile as commands
from tilewright.explore.screen import PlainScreen
from tilewright.options import Options
from tilewright.runtime.cuda import workshop
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.offline import OfflineDevice, check_architecture
from tilewright.runtime.cuda.toolchain import Toolchain

DIGITS = Path(tw.__file__).parent / "explore" / "data" / "digits.onnx"
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'

# What the second stage gets depends on the data of the first.
FOUND = """g (float[2,3] x) => (float y, int64[2,n] i) {
    i = NonZero(x) d = Cast<to = 1>(i) y = ReduceSum<keepdims = 0>(d)
}"""
# Random indices are not so negative that the first stage finds the rows that the second counts.
INDEXED = """g (float[10] x, int64[2] i) => (int64[1,n] y)
    <int64[1] most = {100}> { j = Add(i, most) r = Gather(x, j) y = NonZero(r) }"""


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel cache of the test's own, so that it can count what is new."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(cli, "open_screen", PlainScreen)
    return tmp_path / "kernels"


def saved(folder: Path, text: str, name: str = "model") -> str:
    path = folder / f"{name}.onnx"
    onnx.save(parser.parse_model(HEADER + text), path)
    return str(path)


def run(*words: str) -> int:
    return cli.main(["compile", *words, "--jobs", "1"])


def rows_of(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[dict[str, Any]]:
    """The rows of the command's JSON."""
    assert run(*words, "--json", "-") == code
    rows: list[dict[str, Any]] = json.loads(capfd.readouterr().out)["rows"]
    return rows


def caches(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """The kernel caches that a module makes from now on."""
    made: list[Any] = []
    original = getattr(module, name)

    def make(options: Options) -> Any:
        made.append(original(options))
        return made[-1]

    monkeypatch.setattr(module, name, make)
    return made


def test_the_processor_here(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = rows_of(capfd, str(DIGITS))
    assert (row["model"], row["architecture"], row["reason"]) == ("digits", "cpu", "")
    assert row["compiled"] >= row["distinct"] > 0 and row["machine"] is None
    (again,) = rows_of(capfd, str(DIGITS))
    assert (again["distinct"], again["compiled"]) == (row["distinct"], 0)
    used = caches(monkeypatch, driver, "KernelCache")
    tw.compile(str(DIGITS)).run({"image": np.zeros((1, 1, 8, 8), np.float32)})
    (stats,) = [cache.stats() for cache in used]
    assert stats.compiled == 0 and stats.disk >= row["distinct"]


@needs_compiler
def test_two_architectures(capfd: pytest.CaptureFixture[str]) -> None:
    words = (str(DIGITS), "--target", "cuda", "--arch", *ARCHITECTURES)
    rows = rows_of(capfd, *words)
    assert [row["architecture"] for row in rows] == list(ARCHITECTURES)
    for row in rows:
        assert row["compiled"] == row["distinct"] > 0 and row["steps"] >= row["distinct"]
        assert row["machine"]["spill_bytes"] == 0 and 0 < row["machine"]["registers"] <= 255
    assert not any(row["compiled"] for row in rows_of(capfd, *words))


@needs_compiler
def test_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(str(DIGITS), "--target", "cuda", "--arch", "sm_80") == cli.RIGHT
    shown = capfd.readouterr().out
    assert "digits for sm_80: " in shown
    head = next(line for line in shown.splitlines() if line.startswith("model"))
    assert len(head) <= 100 and head.split()[-3:] == ["spilled", "local", "mma"]


@needs_compiler
def test_a_machine_with_the_gpu_finds_every_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CudaKernelCache(Options(cache_dir=tmp_path))
    ahead = precompile.offline_workshop(Options(cache_dir=tmp_path), "sm_90a", cache)
    feeds = {"image": np.zeros((3, 1, 8, 8), np.float32)}
    compile_in(ahead, str(DIGITS)).warmup(feeds)
    assert cache.stats().compiled > 0
    device = EmulatedDevice()
    assert device.architecture == "sm_90a"
    used = caches(monkeypatch, workshop, "CudaKernelCache")
    compile_for(device, str(DIGITS), Options(cache_dir=tmp_path)).warmup(feeds)
    (stats,) = [cache.stats() for cache in used]
    assert (stats.compiled, stats.disk) == (0, cache.stats().compiled)


@needs_compiler
def test_stages_after_the_first_are_reached(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (saved(tmp_path, FOUND), "--target", "cuda", "--arch", "sm_90a")
    (row,) = rows_of(capfd, *words)
    assert row["stages"] == 2 and row["distinct"] >= 1 and row["unplanned"] == ""
    assert run(*words) == cli.RIGHT
    shown = capfd.readouterr().out
    assert "other data may\n  need other kernels" in shown
    assert "the host computes 'i' (NonZero)" in shown


@pytest.mark.parametrize("target", ["cpu", pytest.param("cuda", marks=needs_compiler)])
def test_random_data_that_leads_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], target: str
) -> None:
    words = ["--target", "cuda", "--arch", "sm_90a"] if target == "cuda" else []
    path = saved(tmp_path, INDEXED)
    (row,) = rows_of(capfd, path, *words, code=cli.WRONG)
    assert "out of range" in row["unplanned"] and row["reason"] == ""
    np.savez(tmp_path / "indices.npz", i=np.array([2, 5]) - 100)
    (row,) = rows_of(capfd, path, *words, "--input", str(tmp_path / "indices.npz"))
    assert row["unplanned"] == ""


def test_one_failure_does_not_cost_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    first, second = rows_of(capfd, str(broken), str(DIGITS), code=cli.FAILED)
    assert "broken.onnx" in first["reason"] and second["reason"] == ""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("of our own making")

    monkeypatch.setattr(precompile, "_plan", fail)
    (row,) = rows_of(capfd, str(DIGITS), code=cli.FAILED)
    assert row["reason"] == "ZeroDivisionError: of our own making"


@needs_compiler
@pytest.mark.parametrize("architecture", ["sm_90", "sm_70", "90", "sm_9x"])
def test_architectures_that_no_gpu_asks_for(
    architecture: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(str(DIGITS), "--target", "cuda", "--arch", architecture) == cli.FAILED
    assert architecture in capfd.readouterr().err


def test_words_that_do_not_fit(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(str(DIGITS), "--arch", "sm_90a") == cli.FAILED
    assert "--arch is of --target cuda" in capfd.readouterr().err
    monkeypatch.setattr(commands, "find_toolchain", lambda: Toolchain(()))
    assert run(str(DIGITS), "--target", "cuda") == cli.FAILED
    assert "say for which with --arch" in capfd.readouterr().err


@needs_compiler
def test_nothing_runs_on_a_device_that_is_not_here() -> None:
    check_architecture("sm_90a")
    device = OfflineDevice("sm_90a")
    refused = "compiled without a GPU"
    with pytest.raises(DeviceError, match=refused):
        device.read(device.allocate(8).address, np.zeros(2, np.float32))
    for act in (device.launches([]).start, device.launches([]).timed):
        with pytest.raises(DeviceError, match=refused):
            act()
