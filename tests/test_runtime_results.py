"""Memory of results: what a caller still holds never changes, what is dropped is used again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, parser

import tilewright as tw
from tilewright.dtypes import DType
from tilewright.ops.tensor import compute, constant, placeholder
from tilewright.runtime.results import ALONE, LEAST_BYTES, MOST_LENT, Memory, Results, address_of

ROWS = LEAST_BYTES // 4 // 64
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
TEXT = """g (float[n,64] x) => (float[n,64] y, float[n,64] same, float[n,64] z, float[2] two)
<float[2] two = {1, 2}> { y = Neg(x) same = Identity(y) z = Identity(x) }"""


def model(text: str = "g (float[n,64] x) => (float[n,64] y) { y = Neg(x) }") -> tw.CompiledModel:
    made: ModelProto = parser.parse_model(HEADER + text)
    return tw.compile(made, threads=2)


def filled(value: float, rows: int = ROWS) -> np.ndarray:
    return np.full((rows, 64), value, np.float32)


def fresh(memory: Memory) -> np.ndarray:
    return memory.maker()()


def memory_of(nbytes: int = LEAST_BYTES) -> Memory:
    return Memory((nbytes // 4,), np.dtype(np.float32))


HOLDERS: list[Callable[[np.ndarray], Any]] = [
    lambda a: a,
    lambda a: a[5:, ::3],
    lambda a: a.T[1:].swapaxes(0, 1)[..., None],
    lambda a: a.ravel()[7:8],
    lambda a: a[None].view(np.int32),
    lambda a: a.data[2:],
    lambda a: np.from_dlpack(a),
    lambda a: [{"inside": a[:1]}],
    lambda a: a.base,
    lambda a: iter(a),
]


@pytest.mark.parametrize("hold", HOLDERS)
def test_what_is_held_in_any_way_is_not_used_again(hold: Callable[[np.ndarray], Any]) -> None:
    memory = Memory((ROWS, 64), np.dtype(np.float32))
    first = fresh(memory)
    place = address_of(first)
    held = hold(first)
    del first
    others = [fresh(memory) for _ in range(3)]
    assert place not in [address_of(a) for a in others]
    del held, others


def test_dropped_memory_is_used_again() -> None:
    run, x = model(), filled(1)
    places = set()
    for _ in range(5):
        y = run(x)
        places.add(address_of(y))
        del y
    assert len(places) == 1


def test_small_results_are_the_allocators() -> None:
    memory = memory_of(LEAST_BYTES - 4)
    assert fresh(memory).flags.owndata
    assert memory.nbytes == 0


def test_results_are_aligned_and_writable() -> None:
    made = fresh(memory_of())
    assert address_of(made) % 64 == 0
    assert made.flags.c_contiguous and made.flags.writeable


def test_one_spare_is_kept() -> None:
    memory = memory_of()
    held = [fresh(memory) for _ in range(5)]
    held.clear()
    one = fresh(memory)
    assert len(memory._lent) == 2  # the one in use and a spare
    assert memory.nbytes > 0
    del one


def test_the_watched_buffers_are_few() -> None:
    memory = memory_of()
    held = [fresh(memory) for _ in range(3 * MOST_LENT)]
    assert len(memory._lent) <= MOST_LENT
    assert len({address_of(a) for a in held}) == len(held)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 9)), max_size=40))
def test_held_results_never_change(steps: list[tuple[bool, int, int]]) -> None:
    """Results and views of them, held and dropped in any order."""
    memory = memory_of()
    held: list[tuple[np.ndarray, float]] = []
    for count, (keeps, place, kind) in enumerate(steps):
        made = fresh(memory)
        made.fill(count)
        view = made[kind::3] if kind % 2 else made
        del made
        if keeps:
            held.append((view, count))
        elif held:
            held.pop(place % len(held))
        del view
        for array, value in held:
            assert (array == value).all()


def test_threads_do_not_share_results() -> None:
    run = model()
    failures: list[str] = []

    def work(seed: int) -> None:
        held: list[tuple[np.ndarray, float]] = []
        for k in range(60):
            value = float(seed * 1000 + k)
            held.append((run(filled(value))[k % 7 :], value))
            if len(held) > 3:
                held.pop(k % 3)
            if any((array != -v).any() for array, v in held):
                failures.append(f"thread {seed}, call {k}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_copied_results_are_the_callers_own() -> None:
    run, x = model(TEXT), filled(3)
    for _ in range(3):
        y, same, z, two = run(x)
        assert (y == -3).all() and (same == -3).all() and (z == 3).all()
        np.testing.assert_array_equal(two, [1, 2])
        y.fill(7)
        z.fill(7)
        two.fill(7)
        assert (same == -3).all() and (x == 3).all()


def test_outputs_of_one_tensor_do_not_share_memory() -> None:
    x = placeholder((2,), DType.F32, "x")
    t = compute((2,), lambda i: x[i] + 1)
    results = Results([x], [t, constant(np.ones(3)), t, x])
    given_ = [np.array([5, 6], np.float32)]
    made = results.make()
    made[0][:] = 4
    first, ones, again, same = results.complete(made, given_)
    first[:] = ones[:] = 0
    np.testing.assert_array_equal(again, [4, 4])
    np.testing.assert_array_equal(same, [5, 6])
    assert same is not given_[0]
    np.testing.assert_array_equal(results.complete(results.make(), given_)[1], np.ones(3))


def unaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    return np.frombuffer(raw.data, x.dtype, offset=1).reshape(x.shape)


@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x[::-1].copy()[::-1],
        unaligned,
        lambda x: x.view(np.recarray),
    ],
)
def test_kernels_read_what_the_array_says(form: Callable[[np.ndarray], np.ndarray]) -> None:
    run, x = model(), np.arange(5 * 64, dtype=np.float32).reshape(5, 64)
    for _ in range(2):
        np.testing.assert_array_equal(run(x), -x)
        np.testing.assert_array_equal(run(form(x)), -x)
        np.testing.assert_array_equal(run.run({"x": form(x)})["y"], -x)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(()),
        np.zeros(0),
        np.zeros((3, 4))[1:, 2:],
        np.broadcast_to(np.float32(1), (3, 3)),
        np.arange(10)[::-1],
        np.array(["a", "b"], object),
        np.frombuffer(b"abcdefgh", np.uint8),
    ],
)
def test_addresses(array: np.ndarray) -> None:
    assert address_of(array) == array.ctypes.data


def test_references_are_counted_from_alone() -> None:
    """A buffer that nobody else has is alone; one name more, and it is not."""
    memory = memory_of()
    fresh(memory)
    spare = memory._spare()
    assert spare is not None
    memory._lent.append(spare)
    assert memory._spare() is None  # this function has it
    assert ALONE >= 1
