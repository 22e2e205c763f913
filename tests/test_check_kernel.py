"""What is compared before a changed kernel runs: schedules that are legal are right, sources with
one thing changed are wrong, and the pieces of the comparison see what they are for."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import tilewright as tw
from edit_samples import GATHERED, REPEATED, SUMS, compiled, floats
from tilewright.dtypes import DType
from tilewright.loops.interpret import interpret
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Block,
    Buffer,
    Const,
    For,
    Kernel,
    Load,
    Space,
    Store,
    Var,
    index_const,
    walk,
)
from tilewright.loops.sample import (
    choose,
    interpret_iterations,
    shaken,
    summed_terms,
    work,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.runtime import sandbox
from tilewright.runtime.check_kernel import Question, answer
from tilewright.runtime.plan import PlannedKernel
from tilewright.runtime.tolerance import Tolerance, differing, distance, moved
from tilewright.runtime.trial import Code, Memory, drawn, footprint, poison, shaped
from tilewright.schedule import directives as d

MODELS: dict[str, tuple[str, tuple[np.ndarray[Any, Any], ...]]] = {
    "products": (SUMS, (floats(9, 7), floats(7, 20))),
    "softmax": (REPEATED, (floats(6, 8),)),
    "gather": (GATHERED, (floats(6, 5), np.array([1, -6, 5, 0]))),
    "map": (
        "g (float[a,b,c] x, float[c] z) => (float[b,a,c] y) {"
        " t = Transpose<perm=[1,0,2]>(x) e = Tanh(t) y = Add(e, z) }",
        (floats(3, 4, 18), floats(18)),
    ),
    "halves": (
        "g (float16[n,30] x) => (float16[n,30] y) { a = Exp(x) y = Mul(a, x) }",
        (floats(4, 30, dtype=np.float16),),
    ),
    "quantised": (
        "g (uint8[n,12] x, uint8[12,5] w) => (int32[n,5] y) { y = MatMulInteger(x, w) }",
        (
            np.arange(36, dtype=np.uint8).reshape(3, 12),
            np.arange(60, dtype=np.uint8).reshape(12, 5),
        ),
    ),
}
_made: dict[str, tw.CompiledModel] = {}


def model_named(name: str) -> tw.CompiledModel:
    text, arrays = MODELS[name]
    if name not in _made:
        _made[name] = compiled(text, *arrays)
    return _made[name]


def loop_names(kernel: PlannedKernel) -> list[str]:
    meaning = kernel.site.plan().made[kernel.site.number].meaning  # type: ignore[union-attr]
    return [n.axis for n in walk(meaning.body) if isinstance(n, For)]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, int, list[Any]]:
    """A kernel of a model, and directives that may or may not be legal for it."""
    name = draw(st.sampled_from(sorted(MODELS)))
    kernels = model_named(name).kernels
    number = draw(st.integers(0, len(kernels) - 1))
    axis = st.sampled_from([*loop_names(kernels[number])] or ["none"])
    inner = st.builds(lambda a: f"{a}_i", axis)
    one = st.one_of(
        st.builds(d.Block, axis, st.integers(2, 9), st.booleans()),
        st.builds(d.Swap, axis, axis),
        st.builds(d.Merge, axis, axis),
        st.builds(d.Bake, axis),
        st.builds(d.Tensorize, inner, st.just("") | inner),
    )
    steps = draw(st.lists(one, max_size=4))
    return name, number, [*steps, *draw(st.lists(st.builds(d.Bind, axis), max_size=2))]


@settings(max_examples=25)
@given(requests())
def test_legal_schedules_are_accepted_and_right(request: tuple[str, int, list[Any]]) -> None:
    name, number, steps = request
    model, arrays = model_named(name), MODELS[name][1]
    kernel = model.kernels[number]
    wanted = model(*arrays)
    legal: list[Any] = []
    for step in steps:  # those that are legal one after the other
        try:
            kernel.reschedule([*legal, step])
        except tw.ScheduleError:
            event("refused")
            continue
        legal.append(step)
        event("accepted")
    try:
        got = model(*arrays)
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(got, wanted, rtol=2e-3 if got.itemsize == 2 else 1e-5)
        else:
            np.testing.assert_array_equal(got, wanted)
        assert not legal or kernel.origin == "rescheduled"
    finally:
        kernel.reset()


PLACE = re.compile(r"p(\d)\[([^\]]*i\d[^\]]*)\]")


def mutants(kernel: PlannedKernel) -> list[str]:
    """Sources with one place changed so that the result changes: an index of a global buffer, the
    end of the range of tasks, a stored value."""
    source = kernel.source
    found = []
    for m in PLACE.finditer(source):
        found.append(f"{source[: m.start(2)]}({m[2]} + 1){source[m.end(2) :]}")
        found.append(f"{source[: m.start(2)]}({m[2]}) * 0{source[m.end(2) :]}")
    found += [
        source.replace("chunk, n0)", "chunk, n0 - 1)"),
        source.replace("range(task * chunk,", "range(task * chunk + 1,"),
        source.replace("range(task * chunk,", "range(0 * chunk,").replace(
            "min(task * chunk + chunk, n0)", "chunk"
        ),
    ]
    stores = re.finditer(r"^( +p\d\[.*\]) = (.*)$", source, re.MULTILINE)
    found += [f"{source[: m.start(2)]}-({m[2]}){source[m.end(2) :]}" for m in stores]
    return [text for text in found if text != source]


@settings(max_examples=25)
@given(st.data())
def test_mutants_are_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["products", "softmax", "gather", "map"]))
    model, arrays = model_named(name), MODELS[name][1]
    number = data.draw(st.integers(0, len(model.kernels) - 1))
    kernel, wanted = model.kernels[number], model(*arrays)
    text = data.draw(st.sampled_from(mutants(kernel)))
    try:
        with pytest.raises((tw.EditRefused, tw.CompileError)) as refused:
            kernel.edit(text)
        event(type(refused.value).__name__)
        assert kernel.origin == "generated"
    finally:
        kernel.reset()
    np.testing.assert_array_equal(model(*arrays), wanted)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_generated_kernels_are_as_they_mean(name: str) -> None:
    """Nothing is refused or doubted that is as generated, on any kind of data."""
    for kernel in model_named(name).kernels:
        verdict = kernel.edit(kernel.source + "# the same\n")
        kernel.reset()
        told = "; ".join(verdict.checked)
        assert verdict.error == 0 and "by the interpreter" in told and "differs" not in told


# -- pieces


def dies(watch: sandbox.Watch) -> None:
    watch.tell("while it tried")
    os.abort()


def test_a_child_that_dies_says_how() -> None:
    assert sandbox.call(lambda watch: {"a": [1, 2]}, 5) == {"a": [1, 2]}
    with pytest.raises(sandbox.Crashed, match=r"crashed .SIGABRT. while it tried"):
        sandbox.call(dies, 5)
    with pytest.raises(sandbox.Crashed, match="exit code 3"):
        sandbox.call(lambda watch: os._exit(3), 5)
    with pytest.raises(sandbox.Crashed, match="did not end within 0 s"):
        sandbox.call(lambda watch: time.sleep(30), 0.2)
    with pytest.raises(RuntimeError, match=r"(?s)failed of itself.*ZeroDivisionError"):
        sandbox.call(lambda watch: 1 // 0, 5)


def test_a_child_is_limited() -> None:
    def task(watch: sandbox.Watch) -> None:
        with watch.limited(0.2):
            time.sleep(0.01)
        time.sleep(0.4)
        with watch.limited(0.2):
            time.sleep(5)

    start = time.monotonic()
    with pytest.raises(sandbox.Crashed, match="did not end in time"):
        sandbox.call(task, 60)
    assert time.monotonic() - start < 30


def test_children_leave_nothing_behind() -> None:
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for _ in range(5):
        sandbox.call(lambda watch: None, 5)
    if before:
        assert len(set(os.listdir("/proc/self/fd"))) <= len(before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_guard_zones_notice_writes() -> None:
    b = Buffer("b", DType.F32, (5,))
    for loose in (frozenset[str](), frozenset(("b",))):
        memory = Memory([b], {"b": poison(b)}, loose, np.random.default_rng(0))
        array = memory.arrays["b"]
        assert array.ctypes.data % 64 == (4 if loose else 0)
        array[:] = 1
        assert memory.spilled() is None
        outside = np.lib.stride_tricks.as_strided(array, (6,), (4,))
        outside[5] = 1.5
        assert memory.spilled() == "b"


def test_elements_lie_where_strides_say() -> None:
    b = Buffer("b", DType.I32, (2, 3), (8, 2))
    assert footprint(b) == 13 and footprint(Buffer("e", DType.I32, (0, 3))) == 1
    flat = np.arange(13, dtype=np.int32)
    np.testing.assert_array_equal(shaped(b, flat), [[0, 2, 4], [8, 10, 12]])


def test_what_is_not_to_be_written_must_stay() -> None:
    b = Buffer("b", DType.F32, (2,), (2,))
    nothing = poison(b)
    want, allowed = nothing.copy(), np.zeros(3)
    want[[0, 2]] = [1, np.nan]
    got = want.copy()
    assert not differing(got, want, nothing, allowed).any()
    for place, value in [(0, nothing[0]), (0, 1.5), (1, 1), (1, np.nan), (2, 1), (2, nothing[2])]:
        got = want.copy()
        got[place] = value
        assert np.flatnonzero(differing(got, want, nothing, np.full(3, 0.1))).tolist() == [place]
    got = want.copy()
    got[0] = 1.05
    assert not differing(got, want, nothing, np.full(3, 0.1)).any()


@given(st.lists(st.floats(width=32), min_size=1, max_size=9), st.floats(width=32))
def test_distances(values: list[float], other: float) -> None:
    a, b = np.array(values, np.float32), np.full(len(values), other, np.float32)
    assert not distance(a, a).any()
    far = distance(a, b)
    assert (far >= 0).all() and not np.isnan(far).any()
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    np.testing.assert_array_equal(far == 0, same)


def test_large_integers_are_compared_exactly() -> None:
    a = np.array([2**62, 2**62], np.int64)
    assert distance(a, a + [0, 1]).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_tolerance_grows_with_the_terms_and_sees_cancellation(dtype: Any) -> None:
    kind = {2: DType.F16, 4: DType.F32, 8: DType.F64}[np.dtype(dtype).itemsize]
    kind = DType.BF16 if dtype is ml_dtypes.bfloat16 else kind
    b = Buffer("y", kind, (2,))
    x = np.array([1000.0, -999.5], np.float64).astype(dtype)

    def run(contents: Any) -> Any:
        wide = contents["x"].astype(np.float64)
        return {"y": np.array([wide.sum(), wide[0] - wide[0]]).astype(dtype)}

    found = []
    for terms in (1, 10_000):
        tolerance = Tolerance([b], terms)
        tolerance.measure({"x": x}, run({"x": x}), run, np.random.default_rng(0))
        found.append(tolerance.of(b))
    assert found[0][0] < found[1][0] and found[1][1] < 1e-3
    if np.dtype(dtype).itemsize > 2:
        assert found[1][0] > 100 * abs(float(x.sum())) * np.finfo(dtype).eps


def test_moves_are_of_the_size_that_is_asked_for() -> None:
    x = floats(1000)
    for together in (True, False):
        far = moved({"x": x}, 1e-4, np.random.default_rng(0), together)["x"] / x - 1
        assert 0.9e-4 < np.sqrt(np.mean(far**2)) < 1.1e-4
        assert (np.unique(np.sign(far)).size == 1) is together


def summing(rows: int, terms: int) -> Kernel:
    x, y = Buffer("p0", DType.F32, (rows, terms)), Buffer("p1", DType.F32, (rows,))
    total = Buffer("t", DType.F32, (), space=Space.LOCAL)
    r, k = Var("r"), Var("k")
    add = Accumulate(total, (), ScalarOp.ADD, Load(x, (r, k)))
    body = Block(
        (
            Store(total, (), Const(0.0, DType.F32)),
            For("k", index_const(terms), add),
            Store(y, (r,), Apply(ScalarOp.EXP, (Load(total, ()),))),
        )
    )
    loop = For("r", index_const(rows), Alloc(total, body))
    return Kernel("k", (x, y), loop, frozenset(("p1",)))


def test_the_interpreter_takes_what_time_allows() -> None:
    kernel, random = summing(50, 20), np.random.default_rng(0)
    assert summed_terms(kernel) == 20
    whole = work(kernel.body)
    assert len(choose(kernel, 2 * whole, random)) == 50
    some = choose(kernel, whole / 5, random)
    assert 5 <= len(some) <= 12 and len({c["r"] for c in some}) == len(some)
    assert choose(kernel, 3, random) == []
    x = floats(50, 20)
    arrays = {"p0": x, "p1": np.full(50, np.nan, np.float32)}
    interpret_iterations(kernel, some, arrays)
    seen = [c["r"] for c in some]
    np.testing.assert_allclose(arrays["p1"][seen], np.exp(x.sum(1))[seen], rtol=1e-5)
    assert np.isnan(np.delete(arrays["p1"], seen)).all()


def test_shaken_kernels_are_a_little_wrong() -> None:
    kernel = summing(3, 2)
    x, near, far = floats(3, 2), np.zeros(3, np.float32), np.zeros(3, np.float32)
    interpret(kernel, {"p0": x, "p1": near})
    interpret(shaken(kernel, np.random.default_rng(0), 64), {"p0": x, "p1": far})
    assert (near != far).any()
    np.testing.assert_allclose(near, far, rtol=1e-4)


def test_integers_are_drawn_where_they_are_allowed() -> None:
    x, i = Buffer("p0", DType.F32, (7,)), Buffer("p1", DType.I64, (300,))
    y = Buffer("p2", DType.F32, (300,))
    a = Var("a")
    checked = Apply(ScalarOp.CHECK, (Load(i, (a,)) + 3, index_const(7)))
    body = For("a", index_const(300), Store(y, (a,), Load(x, (checked,))))
    kernel = Kernel("k", (x, i, y), body, frozenset(("p2",)))
    contents = drawn(kernel, np.random.default_rng(0))
    assert set(contents) == {"p0", "p1"} and set(contents["p1"].tolist()) == set(range(-3, 4))
    ranged = Buffer("p1", DType.I64, (300,), values=(2, 4))
    plain = For("a", index_const(300), Store(y, (a,), Load(x, (Load(ranged, (a,)),))))
    kernel = Kernel("k", (x, ranged, y), plain, frozenset(("p2",)))
    assert set(drawn(kernel, np.random.default_rng(0))["p1"].tolist()) == {2, 3, 4}


def test_loops_that_differ_from_what_was_generated_are_told() -> None:
    """A bug of the generator is not held against an edit, but it is said."""
    model = model_named("map")
    kernel = model.kernels[0]
    plan, k = kernel.site.plan(), kernel.site.number
    made = plan.made[k]
    step = plan.table.steps[k]
    code = Code(step.address, made.emitted.numbers, made.emitted.iterations, False)

    def doubled(n: Any) -> Any:
        return Apply(ScalarOp.ADD, (n, n))

    body = made.meaning.body
    loops = []
    while isinstance(body, For):
        loops.append(body)
        body = body.body
    assert isinstance(body, Store)
    wrong: Any = Store(body.buffer, body.index, doubled(body.value))
    for loop in reversed(loops):
        wrong = For(loop.axis, loop.extent, wrong)
    meaning = Kernel(made.meaning.name, made.meaning.params, wrong, made.meaning.outputs)
    finding = answer(Question(meaning, code, code))
    assert finding.difference is None
    assert any("the generated kernel differs from its loops" in c for c in finding.checked)
