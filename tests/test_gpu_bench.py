"""The measurements that want a GPU: every ending of a case is a row, and the cases run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import parser

import gpu
from cuda_harness import needs_compiler
from emulated_device import EmulatedDevice
from gpu_parts import agreement, ceilings, halves, matmul, memory, models, overhead
from gpu_parts.bench import HEADER, Bench, checked, error_of
from gpu_parts.hardware import summary
from gpu_parts.part import Setting, Unavailable
from gpu_parts.parts import PARTS
from gpu_parts.record import Record, Row
from gpu_parts.tables import headline, sections
from gpu_parts.timing import HostClock, in_turns
from tilewright.runtime.cuda.ceilings import Effort
from tilewright.runtime.cuda.toolchain import TO_RUN, find_toolchain

Rows = dict[str, dict[str, Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "figures" / "gpu.json"


@pytest.fixture
def command(path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command with parts that end in every way."""
    tests = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", str(tests), prepend=":")

    def run(*words: str) -> int:
        return gpu.main(["--module", "fake_gpu_parts", "--json", str(path), *words])

    return run


def rows_of(path: Path, part: str) -> Rows:
    found = json.loads(path.read_text())["runs"][-1]["rows"]
    return {r["case"]: r for r in found if r["part"] == part}


def test_every_ending_is_a_row(
    command: Callable[..., int], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--only", "endings", "broken", "last") == gpu.FAILURE
    rows = rows_of(path, "endings")
    assert list(rows) == [
        *("first", "raises", "second", "crashes"),
        *("hangs", "printing", "wrong", "unavailable"),
    ]
    status = {name: row["status"] for name, row in rows.items()}
    assert {n for n, s in status.items() if s == "done"} == {"first", "second", "printing"}
    assert status["unavailable"] == "unavailable"
    assert rows["unavailable"]["reason"] == "nobody has one"
    assert rows["raises"]["reason"] == "ValueError: a value of no use"
    assert "fake_gpu_parts.py" in rows["raises"]["details"]
    assert "SIGSEGV" in rows["crashes"]["reason"] or "-11" in rows["crashes"]["reason"]
    assert "3" in rows["hangs"]["reason"] and 2.9 < rows["hangs"]["wall"] < 10
    assert rows["wrong"]["reason"] == "off by one"
    assert rows["first"]["figures"]["huge"] is None  # JSON has no infinity
    # After a failure the next case has a process of its own.
    assert rows["second"]["figures"]["shared"] == ["second"]
    assert "no cases today" in rows_of(path, "broken")[""]["reason"]
    assert [r["figures"]["shared"] for r in rows_of(path, "last").values()] == [
        ["one"],
        ["one", "two"],
    ]
    shown = capsys.readouterr().out
    assert "raises: FAILED: ValueError" in shown
    assert "6 failed" not in shown and "5 failed" in shown


def test_a_run_is_resumed(command: Callable[..., int], path: Path) -> None:
    assert command("--only", "endings:[frs]*", "last:one") == gpu.FAILURE
    before = rows_of(path, "endings")
    assert set(before) == {"first", "raises", "second"}
    assert command("--resume", "--only", "endings:[frs]*", "last") == gpu.FAILURE
    after = rows_of(path, "endings")
    assert after["first"] == before["first"] and after["raises"]["wall"] != before["raises"]["wall"]
    assert set(rows_of(path, "last")) == {"one", "two"}
    assert len(json.loads(path.read_text())["runs"]) == 1
    assert command("--only", "last:two") == 0
    assert len(json.loads(path.read_text())["runs"]) == 2


def test_time_ends_a_run(
    command: Callable[..., int], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--minutes", "0.14", "--only", "slow", "last") == gpu.UNFINISHED
    assert set(rows_of(path, "slow")) == {"a"}  # what time ended is no failure
    assert "no time for 3 (slow:hangs, slow:b, last" in capsys.readouterr().out


def test_the_list(
    command: Callable[..., int], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--list", "--only", "last:o*") == 0
    assert capsys.readouterr().out == "last: comes last\n  last:one\n"
    assert not path.exists()


def test_what_cannot_be_measured_is_told(
    command: Callable[..., int], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--only", "none") == gpu.UNUSABLE
    assert "no such part: none; there are endings" in capsys.readouterr().err
    path.parent.mkdir()
    path.write_text('{"runs": []}')
    assert command("--resume") == gpu.UNUSABLE
    assert "has no run to go on with" in capsys.readouterr().err
    path.write_text('{"runs": [{"date": "", "machine": {"gpu": "another"}, "rows": []}]}')
    assert command("--resume") == gpu.UNUSABLE
    assert "is of the gpu 'another'" in capsys.readouterr().err


HAS_GPU = all(find_toolchain().part(name).is_there for name in TO_RUN)


@pytest.mark.skipif(HAS_GPU, reason="a GPU is here")
def test_no_gpu_is_told_before_anything_is_written(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--json", str(path)]) == gpu.UNUSABLE
    assert "CUDA cannot be used to run models" in capsys.readouterr().err
    assert not path.exists()


# -- the parts, on an emulated GPU


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Everything is tiny: an emulator runs it."""
    setting = Setting(scale=1 / 128, seconds=0, turns=1, compiled="")
    device = EmulatedDevice()
    effort = Effort(steps=2, buffer_bytes=1 << 14, kernels=2)
    return Bench(setting, device, HostClock(device), effort=effort)


CASES = {
    "tiles": ["square 4096 rows wgmma 128x128", "bert up turned mma 64x64"],
    "matmul": [
        "square 8192 f16",
        "square 8192 bf16",
        "odd f32",
        "one token f16",
        "bert one int8",
        "square 4096 tf32",
        "square 8192 int8",
    ],
    "memory": memory.cases(Setting()),
    "overhead": overhead.cases(Setting())[:2],
    "attention": ["bert f16", "gpt2 f32", "long bf16"],
    "conv": [
        "stem 7x7 x1 f32",
        "28 3x3 x1 f16",
        "depthwise x1 f32",
        "shrink 1x1 x1 f16",
        "7 3x3 x1 tf32",
        "7 3x3 x1 int8",
        "depthwise x1 int8",
    ],
    "ceilings": ceilings.cases(Setting()),
}


@needs_compiler
@pytest.mark.parametrize(("part", "case"), [(p, c) for p, cs in CASES.items() for c in cs])
def test_cases_are_right_and_measured(bench: Bench, part: str, case: str) -> None:
    assert case in PARTS[part].cases(bench.setting)
    figures = PARTS[part].run(bench, case)
    assert not figures.get("wrong")
    assert headline(Row(part, case, "done", 1.0, figures))
    seconds = figures.get("seconds", {})
    assert all(s > 0 for s in seconds.values())
    assert json.dumps(figures)


MODEL = """
g (float[2,3,8,8] x, int64[2] i) => (float[2,4] y)
<float[4,3,3,3] w, float[4] b, float zero>
{
    a = Conv(x, w, b)
    c = Clip(a, zero)
    d = GlobalAveragePool(c)
    e = Flatten(d)
    f = Cast<to = 1>(i)
    axis = Constant<value_ints = [1]>()
    h = Unsqueeze(f, axis)
    big = Constant<value_float = 1000000.0>()
    j = Min(h, big)
    y = Add(e, j)
}
"""


def small_model() -> onnx.ModelProto:
    model = parser.parse_model(HEADER + MODEL)
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((4, 3, 3, 3)),
        "b": rng.standard_normal(4),
        "zero": np.zeros(()),
    }
    del model.graph.initializer[:]
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model


@needs_compiler
def test_models_beside_the_processor_and_without_another_library(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(models=str(tmp_path), seconds=0, turns=1)
    monkeypatch.setattr(bench, "setting", setting)
    assert agreement.cases(setting) == [agreement.NONE]
    with pytest.raises(Unavailable, match="make models"):
        agreement.run(bench, agreement.NONE)
    onnx.save(small_model(), str(tmp_path / "small.onnx"))
    assert agreement.cases(setting) == ["small"]
    found = agreement.run(bench, "small")
    assert not found["wrong"] and found["error"] < 1e-5 and found["kernels"] >= 2
    for kind in ("f32", "tf32", "f16", "bf16"):
        figures = models.run(bench, f"small {kind}")
        assert figures["kernels"] >= 2 and figures["steps"] and not figures["crossings"]
        assert headline(Row("models", f"small {kind}", "done", 1.0, figures))
    with pytest.raises(Unavailable, match="neither PyTorch"):
        models.run(bench, "absent f32")


@needs_compiler
def test_precisions_are_options(bench: Bench) -> None:
    """Tensor cores multiply float32 only where TF32 is asked for."""
    for kind in ("f32", "tf32"):
        figures = matmul.run(bench, f"square 8192 {kind}")
        assert not figures["wrong"]
        assert ("MmaTile" in str(figures["schedules"])) == (kind == "tf32")


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_models_of_halves(kind: str) -> None:
    model = halves.to_halves(small_model(), kind)
    onnx.checker.check_model(model, full_check=True)
    code = halves.KINDS[kind][0]
    assert {t.data_type for t in model.graph.initializer} == {code}
    assert [v.type.tensor_type.elem_type for v in model.graph.input] == [
        code,
        onnx.TensorProto.INT64,
    ]
    held = {n.output[0]: n for n in model.graph.node}
    assert held["f"].attribute[0].i == code
    large = onnx.numpy_helper.to_array(held["big"].attribute[0].t).astype(np.float64)
    assert np.isfinite(large) and large > 6e4
    if kind == "f16":
        assert large == 65504
    quantised = parser.parse_model(
        HEADER + "g (float[n] x) => (uint8[n] y) {"
        " s = Constant<value_float = 0.5>() y = QuantizeLinear(x, s) }"
    )
    with pytest.raises(ValueError, match="QuantizeLinear"):
        halves.to_halves(quantised, kind)


def test_ratios_are_those_of_turns() -> None:
    ticks = {"a": iter([1.0, 1.0, 1.0, 2.0, 4.0]), "b": iter([1.0, 1.0, 3.0, 6.0, 8.0])}
    names: dict[Any, str] = {}

    def clock(call: Any, count: int) -> float:
        return next(ticks[names[call]])

    calls: dict[str, Any] = {"tilewright": lambda: "a", "other": lambda: "b"}
    names.update({calls["tilewright"]: "a", calls["other"]: "b"})
    times = in_turns(clock, calls, Setting(turns=3))
    assert times.seconds == {"tilewright": 2.0, "other": 6.0}
    assert times.ratios == {"other": 3.0}


def test_an_error_beyond_the_tolerance_is_wrong() -> None:
    got, want = np.array([1.0, 2.5]), np.array([1.0, 2.0])
    assert error_of(got, want) == 0.25
    assert not checked(0.25, 0.3)["wrong"] and "2.5e-01" in checked(0.25, 0.1)["wrong"]
    assert checked(float("nan"), 0.1)["wrong"]


def test_what_became_of_tests() -> None:
    text = (
        '<s><testcase classname="t" name="a" time="2"/><testcase classname="t" name="b">'
        '<failure message="no"/></testcase><testcase classname="t" name="c">'
        '<skipped message="old GPU"/></testcase></s>'
    )
    found = summary(ElementTree.fromstring(text))
    assert (found["passed"], found["failed"], found["slowest"]) == (1, 1, 2.0)
    assert found["skipped"] == ["old GPU"] and found["wrong"] == "1 failed: t::b"
    skipped = '<s><testcase name="c"><skipped message="old GPU"/></testcase></s>'
    assert summary(ElementTree.fromstring(skipped))["wrong"] == "nothing ran: old GPU"


def test_tables_of_a_run(path: Path) -> None:
    record = Record.begin(
        path, "2026-01-01", {"gpu": "G", "driver": "1", "versions": {"torch": "2"}}
    )
    rate = {"rate": 5e14, "kernel_ratio": 0.8}
    record.add(Row("ceilings", "tensor f16", "done", 1.0, {"rate": 1e15, "device": {}}))
    record.add(Row("matmul", "square f16", "done", 1.0, rate))
    record.add(Row("memory", "softmax", "done", 1.0, {"rate": 3e12, "of_copy": 0.95}))
    seconds = {"seconds": {"tilewright": 0.002}, "ratios": {"torch": 2.0}, "kernels": 3}
    record.add(Row("models", "m f16", "done", 1.0, seconds))
    record.add(Row("models", "n f16", "failed", 1.0, reason="broken"))
    text = "".join(sections(json.loads(path.read_text())["runs"][-1]))
    assert "Measured on G, driver 1, torch 2." in text
    assert "| square f16 | 500.0 | 50% | 0.80 |" in text
    assert "| softmax | 3,000 | 95% |" in text
    assert "| m f16 | 3 | 2 | 2.00 |  |" in text and "n f16" not in text
    assert "2.00 times as fast as torch (geometric mean of 1)" in text
