"""Folders of kernels: dumped, changed by hand, and used in place of the generated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from edit_samples import SCALED, compiled, floats, model_of, replaced
from runtime_samples import run_python
from tilewright.runtime import check_kernel, revisions
from tilewright.runtime.check_kernel import Finding, Question
from tilewright.runtime.overrides import read_overrides, refuse_overrides

X = floats(40)
WANTED = np.exp(X) * np.float32(1.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the only kernel of a model, dumped."""
    compiled(SCALED, X, dump=tmp_path / "kernels")
    return tmp_path / "kernels"


def the_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def change(file: Path, old: str, new: str) -> None:
    file.write_text(replaced(file.read_text(), old, new))


def overridden(folder: Path, **options: Any) -> tw.CompiledModel:
    return compiled(SCALED, X, override=folder, **options)


def test_an_unchanged_folder_says_nothing(folder: Path) -> None:
    assert read_overrides(folder) == {}
    assert overridden(folder).kernels[0].origin == "generated"


def test_a_changed_source_is_used(folder: Path) -> None:
    file = the_file(folder)
    change(file, "(exp_f32(p0[i0]) * p1[0])", "p1[0] * exp_f32(p0[i0])")
    model = overridden(folder)
    (kernel,) = model.kernels
    assert kernel.origin == f"overridden by {file.name}" and "= p1[0] *" in kernel.source
    assert f"(overridden by {file.name})" in str(model.explain())
    np.testing.assert_allclose(model(X), WANTED, rtol=1e-6)
    model(floats(41))
    assert [k.origin for k in model.kernels] == [kernel.origin] * 2
    kernel.reset()
    assert [k.origin for k in model.kernels] == ["generated"] * 2


def test_a_changed_schedule_is_used(folder: Path) -> None:
    file = the_file(folder)
    change(file, "# schedule  ", "# schedule  Block('row0', 8, overlap=True), ")
    (kernel,) = overridden(folder).kernels
    assert kernel.origin.startswith("overridden") and "Block" in kernel.schedule[0]
    text = file.read_text()
    first = next(line for line in text.splitlines() if line.startswith("# schedule"))
    file.write_text(text.replace(first, "# schedule  as lowered"))
    (kernel,) = overridden(folder).kernels
    assert kernel.origin.startswith("overridden") and kernel.schedule == ()


def test_the_environment_names_the_folder(folder: Path) -> None:
    change(the_file(folder), "(exp_f32(p0[i0]) * p1[0])", "p1[0] * exp_f32(p0[i0])")
    code = (
        "import numpy as np, tilewright as tw\n"
        "from edit_samples import SCALED, floats, model_of\n"
        "m = tw.compile(model_of(SCALED)); m(floats(40)); print(m.kernels[0].origin)"
    )
    assert "overridden by" in run_python(code, TILEWRIGHT_OVERRIDE=str(folder))


def test_a_changed_file_is_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(the_file(folder), "(exp_f32(p0[i0]) * p1[0])", "(p1[0] * exp_f32(p0[i0]))  # once")
    asked: list[Question] = []
    answer = check_kernel.answer

    def counted(question: Question) -> Finding:
        asked.append(question)
        return answer(question)

    monkeypatch.setattr(revisions, "answer", counted)
    cache = folder.parent / "cache"
    for _ in range(2):
        assert "overridden" in overridden(folder, cache_dir=cache).kernels[0].origin
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("* p1[0]", "+ p1[0]", tw.EditRefused, r"p2\[0\]: wanted .*, got .* on random arrays"),
        ("p2[i0] =", "p2[i0 + (1 << 44)] =", tw.EditRefused, "crashed"),
        ("p2[i0] =", "p2[i0] = =", tw.CompileError, "line 12: "),
        ("# schedule  ", "# schedule  Blocks('row0', 8), ", tw.ScheduleError, "not a directive"),
        ("# schedule  ", "# schedule  Block('row9', 8), ", tw.ScheduleError, "no loop over row9"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    folder: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    file = the_file(folder)
    change(file, old, new)
    with pytest.raises(error, match=message) as refused:
        overridden(folder)
    assert str(refused.value).startswith(f"{file}: ")
    if isinstance(refused.value, tw.EditRefused):
        assert refused.value.file == file
    assert compiled(SCALED, X).kernels[0].origin == "generated"


def test_a_file_changed_in_both_ways_is_refused(folder: Path) -> None:
    change(the_file(folder), "# schedule  ", "# schedule  Block('row0', 8), ")
    change(the_file(folder), "p2[i0] =", "p2[i0 + 0] =")
    with pytest.raises(tw.EditRefused, match="both changed"):
        overridden(folder)


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(tw.InputError, match="is not there"):
        tw.compile(model_of(SCALED), options=tw.Options(override=tmp_path / "none"))


def test_a_dump_into_the_same_folder_keeps_what_was_written(folder: Path) -> None:
    change(the_file(folder), "# schedule  ", "# schedule  Block('row0', 8), ")
    text = the_file(folder).read_text()
    for _ in range(2):
        (kernel,) = overridden(folder, dump=folder).kernels
        assert kernel.origin.startswith("overridden") and the_file(folder).read_text() == text


def test_overriding_kernels_of_a_gpu_is_an_error(folder: Path) -> None:
    model = compiled(SCALED, X)
    refuse_overrides(folder, [model.kernels[0].source])
    change(the_file(folder), "* p1[0]", "* p1[0] ")
    with pytest.raises(tw.UnsupportedError, match="only kernels for the CPU"):
        refuse_overrides(folder, [model.kernels[0].source])
