"""Pins: changes of kernels that later sessions find, as far as they are still right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from edit_samples import ROOTS, SCALED, compiled, floats, replaced, saved
from runtime_samples import run_python
from tilewright.explore import cli
from tilewright.runtime import check_kernel, pins, revisions
from tilewright.runtime.check_kernel import Finding, Question

LATER = """
import json, sys
import numpy as np
import tilewright as tw
model = tw.compile(PATH)
x = np.linspace(-3, 3, SIZE)
y = model(x)
print(json.dumps([
    bool(np.array_equal(y, np.abs(x))), model.kernels[0].origin, model.kernels[0].source,
    str(model.explain())]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def faster(folder: Path, size: int = 64) -> tw.CompiledModel:
    """Roots of squares, edited."""
    model = compiled(ROOTS, floats(size, dtype=np.float64), cache_dir=folder)
    (kernel,) = model.kernels
    text = replaced(kernel.source, "sqrt_f64((p0[i0] * p0[i0]))", "abs(p0[i0])")
    kernel.edit(replaced(text, "from tilewright_kernels.cpu.math import sqrt_f64\n", ""))
    return model


def pin_faster(folder: Path) -> None:
    model = faster(folder)
    model.kernels[0].pin()


def later(folder: Path, tmp_path: Path, size: int = 64) -> tuple[bool, str, str, str]:
    """What another process makes of the model: whether it is right, its kernel's origin and
    source, and its report."""
    path = saved(ROOTS, tmp_path / "roots.onnx")
    code = LATER.replace("PATH", repr(str(path))).replace("SIZE", str(size))
    right, origin, source, report = json.loads(
        run_python(code, TILEWRIGHT_CACHE_DIR=str(folder), TILEWRIGHT_THREADS="1")
    )
    return right, origin, source, report


def again(folder: Path, size: int = 64) -> tw.CompiledModel:
    return compiled(ROOTS, floats(size, dtype=np.float64), cache_dir=folder)


def test_a_pinned_edit_is_there_in_another_process(folder: Path, tmp_path: Path) -> None:
    model = faster(folder)
    assert model.kernels[0].origin == "edited"
    assert later(folder, tmp_path)[1] == "generated"
    model.kernels[0].pin()
    assert model.kernels[0].origin == "pinned edit"
    right, origin, source, report = later(folder, tmp_path)
    assert right and origin == "pinned edit" and "abs(" in source and "(pinned edit)" in report
    assert later(folder, tmp_path, size=65)[1] == "generated"
    model.kernels[0].reset()
    assert later(folder, tmp_path)[1] == "generated"


def test_a_pinned_schedule_is_for_loops_of_its_structure(folder: Path) -> None:
    x = floats(30)
    model = compiled(SCALED, x, cache_dir=folder)
    model.kernels[0].reschedule("Block('row0', 7, overlap=True)")
    model.kernels[0].pin()
    other = compiled(SCALED, x, cache_dir=folder)
    (kernel,) = other.kernels
    assert kernel.origin == "pinned schedule" and "factor=7" in str(kernel.schedule)
    np.testing.assert_array_equal(other(x), model(x))
    other(floats(31))
    assert [k.origin for k in other.kernels] == ["pinned schedule", "generated"]
    kernel.edit(kernel.source + "# the same\n")
    kernel.pin()
    latest = compiled(SCALED, x, cache_dir=folder)
    (third,) = latest.kernels
    assert third.origin == "pinned edit" and third.source.endswith("# the same\n")
    assert len(pins(tw.Options(cache_dir=folder))) == 2
    third.reset()
    assert not len(pins(tw.Options(cache_dir=folder)))


def test_pins_for_every_shape_are_checked_for_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = faster(folder)
    model(floats(70, dtype=np.float64))
    model.kernels[0].pin(every_shape=True)
    assert [k.origin for k in model.kernels] == ["pinned edit"] * 2
    asked: list[Question] = []
    answer = check_kernel.answer

    def counted(question: Question) -> Finding:
        asked.append(question)
        return answer(question)

    monkeypatch.setattr(revisions, "answer", counted)
    other = again(folder, 64)
    assert not asked
    other(floats(99, dtype=np.float64))
    other(floats(99, dtype=np.float64))
    assert len(asked) == 1 and [k.origin for k in other.kernels] == ["pinned edit"] * 2
    assert again(folder, 99).kernels[0].origin == "pinned edit" and len(asked) == 1


def test_an_edit_that_knows_its_shape_is_not_for_every_shape(folder: Path) -> None:
    model = compiled(SCALED, floats(50), cache_dir=folder)
    (kernel,) = model.kernels
    kernel.edit(replaced(kernel.source, "n0 = integer(args, 4)", "n0 = 50"))
    kernel.pin(every_shape=True)
    other = compiled(SCALED, floats(60), cache_dir=folder)
    assert other.kernels[0].origin == "generated"
    assert "is stale: the kernel would be wrong: p2[50]: wanted" in str(other.explain())
    np.testing.assert_allclose(other(floats(60)), np.exp(floats(60)) * 1.5, rtol=1e-6)
    assert compiled(SCALED, floats(50), cache_dir=folder).kernels[0].origin == "pinned edit"


def test_after_an_upgrade_pins_are_checked_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin_faster(folder)
    asked: list[Question] = []
    answer = check_kernel.answer

    def counted(question: Question) -> Finding:
        asked.append(question)
        return answer(question)

    monkeypatch.setattr(revisions, "answer", counted)
    assert again(folder).kernels[0].origin == "pinned edit" and not asked
    monkeypatch.setattr("tilewright.runtime.pinned._library", lambda: "another version")
    assert again(folder).kernels[0].origin == "pinned edit" and len(asked) == 1
    assert again(folder).kernels[0].origin == "pinned edit" and len(asked) == 1


def test_a_pin_that_is_wrong_by_now_is_stale(folder: Path) -> None:
    pin_faster(folder)
    kept = pins(tw.Options(cache_dir=folder))
    (pin,) = kept
    kept.add(replace(pin, change=pin.change.replace("abs(", "(-1.0) * abs(")))
    model = again(folder)
    assert model.kernels[0].origin == "generated"
    assert f"pin {pin.name} of k0_mul_sqrt is stale" in str(model.explain())
    assert "wanted" in str(model.explain())


def test_a_pin_for_another_source_of_these_loops_is_stale(folder: Path) -> None:
    pin_faster(folder)
    kept = pins(tw.Options(cache_dir=folder))
    (pin,) = kept
    kept.clear()
    kept.add(replace(pin, text=pin.text + "# of an older version\n"))
    model = again(folder)
    assert model.kernels[0].origin == "generated"
    assert "is stale: another source is generated by now" in str(model.explain())


def test_damaged_pins_count_as_none(folder: Path) -> None:
    pin_faster(folder)
    files = [p for p in (folder / "pins").rglob("*") if p.is_file()]
    assert len(files) == 1
    files[0].write_bytes(files[0].read_bytes()[:-3])
    assert again(folder).kernels[0].origin == "generated"


def test_what_is_as_generated_cannot_be_pinned(folder: Path) -> None:
    model = again(folder)
    with pytest.raises(tw.InputError, match="nothing to pin"):
        model.kernels[0].pin()


def test_sweeps_leave_pins_alone(folder: Path) -> None:
    model = faster(folder)
    model.kernels[0].pin()
    small = compiled(ROOTS, floats(9, dtype=np.float64), cache_dir=folder, cache_bytes=1)
    assert small.kernels
    assert len(pins(tw.Options(cache_dir=folder))) == 1


def test_pins_are_listed_and_cleared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(folder))
    assert cli.main(["pins"]) == 0 and "no kernel is pinned" in capsys.readouterr().out
    pin_faster(folder)
    (pin,) = pins()
    assert cli.main(["pins"]) == 0
    shown = capsys.readouterr().out
    assert pin.name in shown and "source of k0_mul_sqrt" in shown
    assert cli.main(["pins", "--clear", "zzz"]) == 0 and len(pins()) == 1
    assert cli.main(["pins", "--clear", pin.name]) == 0
    assert "1 pins taken back" in capsys.readouterr().out and not len(pins())
    assert again(folder).kernels[0].origin == "generated"


def test_keys_are_the_same_in_every_process() -> None:
    """Also for kernels with functions whose meaning is written in Python."""
    code = (
        "import numpy as np, tilewright as tw\n"
        "from edit_samples import compiled, floats\n"
        "from tilewright.runtime.pinned import structure_key\n"
        "m = compiled('g (float[n] x) => (float[n] y) { y = Sigmoid(x) }', floats(5))\n"
        "print(structure_key(m.kernels[0].kernel))"
    )
    assert run_python(code, PYTHONHASHSEED="1") == run_python(code, PYTHONHASHSEED="2")
