"""Edits of running kernels: right ones run from then on, wrong ones are refused with the place of
the first difference, and whatever they do stays in a child process."""

from __future__ import annotations

import gc
import threading
import warnings
from html import unescape
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from edit_samples import (
    GATHERED,
    REPEATED,
    ROOTS,
    SCALED,
    SUMS,
    compiled,
    floats,
    model_of,
    replaced,
)
from tilewright.runtime import check_kernel
from tilewright.runtime.cuda.plan import PlannedLaunch
from tilewright.runtime.plan import PlannedKernel

LOOP = "    for i0 in range"


def roots(size: int = 4096) -> tuple[tw.CompiledModel, np.ndarray[Any, Any]]:
    x = floats(size, dtype=np.float64)
    return compiled(ROOTS, x), x


def absolute(kernel: PlannedKernel) -> str:
    """The roots of squares in a faster way."""
    text = replaced(kernel.source, "sqrt_f64((p0[i0] * p0[i0]))", "abs(p0[i0])")
    return replaced(text, "from tilewright_kernels.cpu.math import sqrt_f64\n", "")


def scaled(size: int = 1000) -> tuple[tw.CompiledModel, np.ndarray[Any, Any]]:
    x = floats(size)
    return compiled(SCALED, x), x


def test_a_right_edit_runs_and_is_told() -> None:
    model, x = roots()
    (kernel,) = model.kernels
    verdict = kernel.edit(absolute(kernel))
    np.testing.assert_array_equal(model(x), np.abs(x))
    assert kernel.origin == "edited" and "abs(p0[i0])" in kernel.source
    assert kernel is model.kernels[0] and "(edited)" in str(model.explain())
    assert verdict.speedup > 1 and verdict.error < 1e-15 and verdict.places == 1
    for text in (str(verdict), unescape(verdict._repr_mimebundle_()["text/html"])):
        assert "interpreter" in text and "the model's own data" in text and "ulps" in text
    assert "abs" not in kernel.generated


def test_the_verdict_is_shown_by_rich() -> None:
    console = pytest.importorskip("rich.console").Console(record=True, width=200)
    model, _ = scaled()
    console.print(model.kernels[0].edit(model.kernels[0].source + "# the same\n"))
    assert "speedup" in console.export_text()


def test_an_edit_can_be_taken_back() -> None:
    model, x = roots()
    (kernel,) = model.kernels
    generated, before = kernel.source, model(x)
    kernel.edit(absolute(kernel))
    kernel.reset()
    assert kernel.source == generated and kernel.origin == "generated"
    np.testing.assert_array_equal(model(x), before)


def test_a_wrong_edit_is_refused_with_the_first_difference() -> None:
    model, x = scaled()
    (kernel,) = model.kernels
    before, generated = model(x), kernel.source
    wrong = replaced(
        kernel.source,
        LOOP,
        "    if task * chunk <= 37 < task * chunk + chunk:\n        p2[37] = p1[0]\n" + LOOP,
    )
    wrong = replaced(wrong, "p2[i0] = (", "if i0 == 37:\n            continue\n        p2[i0] = (")
    with pytest.raises(tw.EditRefused, match=r"p2\[37\]: wanted .*, got 1?\.?") as refused:
        kernel.edit(wrong)
    assert refused.value.buffer == "p2" and refused.value.index == (37,)
    assert float(refused.value.wanted) != float(refused.value.got)
    assert "p2 is" in str(refused.value)
    np.testing.assert_array_equal(model(x), before)
    assert kernel.source == generated and kernel.origin == "generated"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p2[i0] =", "p2[i0 + 1] =", "writes outside of p2|got nothing"),
        ("p2[i0] =", "p2[i0 - 1] =", "writes outside of p2|got nothing|wanted"),
        ("p2[i0] =", "p2[i0 + (1 << 44)] =", "crashed .SIGSEGV"),
        ("p2[i0] =", "p0[i0] = p0[i0] + to_f32(1.0)\n        p2[i0] =", "writes to p0"),
        ("min(task * chunk + chunk, n0)", "min(task * chunk + chunk, n0 - 1)", "got nothing"),
        ("min(task * chunk + chunk, n0)", "n0 + 1", "writes outside of p2|wanted"),
        ("task * chunk,", "task * chunk + 1,", "got nothing"),
        ("integer(args, 4)", "1000", None),
        ("* p1[0]", "* to_f32(1.5)", "wanted"),
        ("exp_f32(p0[i0])", "exp_f32(min(p0[i0], to_f32(10.0)))", "wanted -?inf, got -?[0-9]"),
        ("exp_f32(p0[i0])", "exp_f32(p0[i0] * to_f32(1.00001))", "wanted"),
    ],
)
def test_what_edits_do_wrong(old: str, new: str, message: str | None) -> None:
    """One number that the generator lifted may be written into the edit: it is for these shapes."""
    model, x = scaled()
    (kernel,) = model.kernels
    before = model(x)
    text = "from tilewright_kernels.cpu.casts import to_f32\n" + replaced(kernel.source, old, new)
    if message is None:
        kernel.edit(text)
        np.testing.assert_allclose(model(floats(500)), np.exp(floats(500)) * 1.5, rtol=1e-6)
        assert [k.origin for k in model.kernels] == ["edited", "generated"]
    else:
        with pytest.raises(tw.EditRefused, match=message):
            kernel.edit(text)
    np.testing.assert_array_equal(model(x), before)


def test_an_edit_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_kernel, "HANG_SECONDS", 0.5)
    model, x = scaled()
    (kernel,) = model.kernels
    before = model(x)
    text = replaced(
        kernel.source,
        LOOP,
        "    while p0[0] != p2[0] or p0[0] != 12345:\n        p2[0] = p0[0]\n" + LOOP,
    )
    with pytest.raises(tw.EditRefused, match="did not end in time on random arrays"):
        kernel.edit(text)
    np.testing.assert_array_equal(model(x), before)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p2[i0] =", "p2[i0] = =", r"^line 12: .*SyntaxError"),
        ("exp_f32(p0", "unheard_of(p0", r"(?s)^line 12: .*'unheard_of' is not defined"),
        ("    n0 = integer(args, 4)", "    n0 = [1, 2][task]", "may raise an exception"),
        ("def kernel", "def colonel", "KeyError: 'kernel'"),
        ("    n0 =", "    raise ValueError('x')\n    n0 =", r"^line 9: "),
    ],
)
def test_what_does_not_compile_says_where(old: str, new: str, message: str) -> None:
    model, x = scaled()
    (kernel,) = model.kernels
    before = model(x)
    with pytest.raises(tw.CompileError, match=message):
        kernel.edit(replaced(kernel.source, old, new))
    np.testing.assert_array_equal(model(x), before)
    assert kernel.origin == "generated"


def test_tasks_must_be_right_by_themselves() -> None:
    """An edit that lets one task do all the work is right alone, and races beside the others."""
    model, x = scaled()
    (kernel,) = model.kernels
    text = replaced(
        kernel.source,
        "p2[i0] = (exp_f32(p0[i0]) * p1[0])",
        "p2[i0] = (p2[i0 - i0 // chunk * chunk] * p1[0]) if i0 < 0 else (exp_f32(p0[i0]) * p1[0])",
    )
    kernel.edit(text)
    last = replaced(
        kernel.generated,
        LOOP,
        "    if task * chunk + chunk < n0:\n        p2[task * chunk] = p0[0]\n        return\n"
        "    chunk, task = n0, 0\n" + LOOP,
    )
    with pytest.raises(tw.EditRefused):
        kernel.edit(last)
    np.testing.assert_allclose(model(x), np.exp(x) * 1.5, rtol=1e-6)


def gathered() -> tuple[tw.CompiledModel, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x, i = floats(6, 5), np.array([1, -6, 5, 0])
    return compiled(GATHERED, x, i), x, i


def test_indices_are_drawn_from_all_that_pass_the_checks() -> None:
    model, x, i = gathered()
    (kernel,) = model.kernels
    kernel.edit(kernel.source + "# the same\n")
    without = replaced(kernel.source, "((p1[i0] + n2) if (p1[i0] < 0) else p1[i0])", "p1[i0]")
    with pytest.raises(tw.EditRefused, match="reports bad data on random arrays"):
        kernel.edit(without)
    np.testing.assert_array_equal(model(x, i), x[i])


def test_checks_must_stay() -> None:
    model, x, i = gathered()
    (kernel,) = model.kernels
    unchecked = replaced(kernel.source, "    report(errors, i64(args, 0))\n", "")
    with pytest.raises(tw.EditRefused, match="does not report bad data"):
        kernel.edit(unchecked)
    with pytest.raises(tw.ExecutionError):
        model(x, i + 9)


def test_sums_may_be_reordered_and_nothing_else() -> None:
    x = floats(200, 37)
    model = compiled(REPEATED.replace("8", "37"), x)
    (kernel,) = (k for k in model.kernels if k.graph == "Softmax")
    backwards = replaced(kernel.source, "p1[i0 * n4 + i3])", "p1[i0 * n4 + 36 - i3])")
    verdict = kernel.edit(backwards)
    assert 0 < verdict.error < 1e-6 and "sqrt(37)" in verdict.tolerance
    (loop,) = (line for line in kernel.source.splitlines() if "for i3 in" in line)
    fewer = replaced(kernel.source, loop, "        for i3 in range(36):")
    almost = replaced(kernel.source, "a1 = to_f32(0.0)", "a1 = to_f32(0.0001)")
    for wrong in (fewer, almost):
        with pytest.raises(tw.EditRefused, match="wanted"):
            kernel.edit(wrong)


def test_products_may_be_scheduled_in_other_ways() -> None:
    x, w = floats(20, 300), floats(300, 40)
    model = compiled(SUMS, x, w)
    kernel = model.kernels[-1]
    assert kernel.reschedule([]).change == "rescheduled" and kernel.schedule == ()
    np.testing.assert_allclose(model(x, w), np.maximum(x @ w, 0), rtol=1e-4, atol=1e-4)
    kernel.edit(kernel.source + "# the same\n")
    assert kernel.origin == "rescheduled and edited"
    with pytest.raises(tw.ScheduleError, match="no loop over nowhere"):
        kernel.reschedule("Bake('nowhere')")
    with pytest.raises(tw.ScheduleError, match="block loops are of a GPU"):
        kernel.reschedule("Bind('row0', 'block')")
    with pytest.raises(tw.ScheduleError, match="for kernels on a GPU"):
        kernel.reschedule("Elements(64)")
    assert kernel.origin == "rescheduled and edited"
    kernel.reset()
    assert kernel.origin == "generated" and kernel.schedule


def test_all_plans_of_the_model_with_this_kernel_change() -> None:
    """Two plans with equal kernels, made before the edit, and one that is made after it."""
    text = "g (float[n] x, float[m] z) => (float[n] y) { y = Exp(x) }"
    x = floats(64)
    model = tw.compile(model_of(text), threads=1)
    for size in (3, 4):
        model(x, floats(size))
    first, second = model.kernels
    assert first.edit(first.source + "# the same\n").places == 2
    model(x, floats(5))
    assert [k.origin for k in model.kernels] == ["edited"] * 3
    second.reset()
    assert [k.origin for k in model.kernels] == ["generated"] * 3


def test_the_given_data_is_checked_too() -> None:
    """What is wrong for the caller's data alone is found with the caller's data."""
    model, x = scaled(50)
    (kernel,) = model.kernels
    wrong = replaced(kernel.source, "p2[i0] = (", "p2[i0] = p0[i0] if p0[i0] == 77 else (")
    kernel.edit(wrong)
    kernel.reset()
    with pytest.raises(tw.EditRefused, match=r"p2\[3\].* on the model's own data"):
        kernel.edit(wrong, {"x": np.where(np.arange(50) == 3, np.float32(77), x)})
    with pytest.raises(tw.InputError, match=r"do not lead to this kernel: .*float32\[50\]"):
        kernel.edit(wrong, {"x": floats(51)})
    assert model.kernels[0].origin == "generated"


def test_a_kernel_in_the_middle_sees_what_comes_before_it() -> None:
    x = floats(3, 8)
    model = compiled(REPEATED, x)
    before = model(x)
    for kernel in model.kernels:
        verdict = kernel.edit(kernel.source + "# the same\n", {"x": x})
        assert any("the model's own data" in c for c in verdict.checked)
    np.testing.assert_array_equal(model(x), before)


def test_runs_go_on_during_edits() -> None:
    model, x = roots(20_000)
    (kernel,) = model.kernels
    wanted = np.sqrt(x * x)
    generated, faster = kernel.source, absolute(kernel)
    wrong, stop, runs = [], threading.Event(), [0, 0]

    def call(k: int) -> None:
        while not stop.is_set():
            runs[k] += 1
            if not np.allclose(model(x), wanted, rtol=1e-12):
                wrong.append(k)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    try:
        for _ in range(3):
            kernel.edit(faster, {"x": x})
            with pytest.raises(tw.EditRefused):
                kernel.edit(replaced(generated, "p1[i0] =", "p1[i0] = 2.0 *"))
            model(floats(int(np.random.default_rng(runs[0]).integers(1, 99)), dtype=np.float64))
            kernel.reset()
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not wrong and min(runs) > 10


def test_edits_from_several_threads_take_turns() -> None:
    model, x = roots()
    (kernel,) = model.kernels
    sources = [absolute(kernel) + f"# {k}\n" for k in range(3)]
    threads = [threading.Thread(target=kernel.edit, args=(s,)) for s in sources]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert kernel.source in sources
    np.testing.assert_array_equal(model(x), np.abs(x))


def test_a_dropped_plan_is_told() -> None:
    model, _ = scaled()
    (kernel,) = model.kernels
    del model
    gc.collect()
    with pytest.raises(tw.InputError, match="was dropped"):
        kernel.edit(kernel.source)


def test_nothing_warns() -> None:
    model, _ = scaled()
    (kernel,) = model.kernels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel.edit(kernel.source + "# the same\n")


def test_kernels_of_a_gpu_cannot_be_changed() -> None:
    launch = object.__new__(PlannedLaunch)
    for change in (
        lambda: launch.edit(""),
        lambda: launch.reschedule(""),
        launch.pin,
        launch.reset,
    ):
        with pytest.raises(tw.UnsupportedError, match="only kernels for the CPU"):
            change()
