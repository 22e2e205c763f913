"""Operators on the host: selections and sorting, sequences, optional values, text, spectra; against
NumPy and Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, parser

import tilewright
from operator_evaluation import expression, same
from strategies import random_array, shapes
from tilewright.dtypes import DType
from tilewright.errors import OperatorError, UnsupportedError
from tilewright.ops.evaluate import evaluate
from tilewright.ops.registry import find, find_host
from tilewright.ops.tensor import Tensor, placeholder

Array = np.ndarray
FEW = settings(max_examples=20, deadline=None)
DTYPES = (DType.F32, DType.F64, DType.F16, DType.I64, DType.U8, DType.BOOL)


def host(name: str, *operands: Any, **attributes: Any) -> Any:
    """What the host makes of arrays, lists and None."""
    function = find_host("", name)
    assert function is not None, name
    return function(*operands, **attributes)


def compiled(name: str, *arrays: Array | None, **attributes: Any) -> Array:
    """The only result of an expression, by whole-array evaluation.

    What is no expression is the host's, as it is in a model.
    """
    try:
        made = expression(name, *arrays, **attributes)
    except UnsupportedError:
        return np.asarray(host(name, *arrays, **attributes))
    assert isinstance(made, Tensor)
    return evaluate(made, {f"x{k}": a for k, a in enumerate(arrays) if a is not None})


def text(*strings: str) -> Array:
    return np.array(strings, object)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """An array of rank up to 5 in which values come more than once."""
    shape, dtype = draw(shapes()), draw(st.sampled_from(DTYPES))
    return np.round(2 * random_array(draw(st.integers(0, 9)), shape, DType.F32)).astype(dtype.numpy)


# -- selections


@FEW
@given(arrays())
def test_nonzero(x: Array) -> None:
    same(host("NonZero", x), np.stack(np.nonzero(x)).astype(np.int64))


def test_nonzero_of_a_number_has_no_rows() -> None:
    assert host("NonZero", np.array(3.0)).shape == (0, 1)
    assert host("NonZero", np.array(0.0)).shape == (0, 0)


@FEW
@given(st.data(), arrays())
def test_compress(data: st.DataObject, x: Array) -> None:
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    most = x.size if axis is None else x.shape[axis]
    condition = np.array(data.draw(st.lists(st.booleans(), max_size=min(most, 9))), bool)
    same(host("Compress", x, condition, axis=axis), np.compress(condition, x, axis))


@FEW
@given(st.data(), arrays(), st.sampled_from([0, 1]))
def test_unique(data: st.DataObject, x: Array, in_order: int) -> None:
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    values, first, inverse, counts = host("Unique", x, axis=axis, sorted=in_order)
    whole = x.ravel() if axis is None else x
    same(np.take(whole, first, axis or 0), values)
    same(np.take(values, inverse, axis or 0), whole)
    same(np.bincount(inverse), counts)
    if in_order:
        same(values, np.unique(x, axis=axis))
    else:
        assert list(first) == sorted(first)


def test_unique_strings() -> None:
    values, first, inverse, counts = host("Unique", text("b", "a", "b"))
    assert values.tolist() == ["a", "b"] and first.tolist() == [1, 0]
    assert inverse.tolist() == [1, 0, 1] and counts.tolist() == [1, 2]


@FEW
@given(st.data(), arrays(), st.sampled_from([0, 1]))
def test_of_equal_elements_the_first_are_the_top(
    data: st.DataObject, x: Array, largest: int
) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    k = data.draw(st.integers(0, x.shape[axis]))
    values, indices = host("TopK", x, i64(k), axis=axis, largest=largest)
    keys = x.astype(np.float64) * (-1 if largest else 1)
    wanted = np.take(np.argsort(keys, axis=axis, kind="stable"), range(k), axis)
    same(indices, wanted.astype(np.int64))
    same(values, np.take_along_axis(x, wanted, axis))


@pytest.mark.parametrize("largest", [0, 1])
def test_the_top_of_long_rows(largest: int) -> None:
    x = np.random.default_rng(0).integers(0, 50, (3, 2000)).astype(np.float32)
    x[1, 7] = np.nan
    values, indices = host("TopK", x, i64(5), largest=largest)
    keys = np.where(np.isnan(x), np.inf, x) * (-1 if largest else 1)
    same(indices, np.argsort(keys, axis=-1, kind="stable")[:, :5])
    same(values, np.take_along_axis(x, indices, -1))


def test_no_more_than_there_are() -> None:
    for k in (-1, 4):
        with pytest.raises(OperatorError):
            host("TopK", np.zeros(3), i64(k))


# -- sequences and optional values


@FEW
@given(st.lists(st.integers(0, 9)), st.data())
def test_sequences_are_pythons_lists(numbers: list[int], data: st.DataObject) -> None:
    items = [np.array(v) for v in numbers]
    sequence = host("SequenceConstruct", *items)
    assert sequence == items and host("SequenceLength", sequence) == len(items)
    at = data.draw(st.integers(-len(items), len(items)))
    new = np.array(10)
    place = at + len(items) if at < 0 else at
    wanted = [*items[:place], new, *items[place:]]
    assert host("SequenceInsert", sequence, new, np.array(at)) == wanted
    assert host("SequenceInsert", sequence, new) == [*items, new]
    assert host("SequenceAt", wanted, np.array(place)) is new
    assert host("SequenceErase", wanted, np.array(place)) == items
    assert host("SequenceErase", [*items, new]) == items
    assert sequence == items, "operands are left as they are"


def test_sequences_end_somewhere() -> None:
    for at in (-3, 2):
        with pytest.raises(OperatorError):
            host("SequenceAt", [np.zeros(1)] * 2, np.array(at))
    with pytest.raises(OperatorError):
        host("SequenceErase", [])
    with pytest.raises(OperatorError):
        host("SequenceInsert", [], np.zeros(1), np.array(1))
    assert host("SequenceEmpty", dtype=DType.I64.onnx) == []


@FEW
@given(st.data(), arrays())
def test_join_undoes_split(data: st.DataObject, x: Array) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    n = x.shape[axis]
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    parts = host("SplitToSequence", x, np.diff([0, *cuts, n]), axis=axis)
    for part, wanted in zip(parts, np.split(x, cuts, axis), strict=True):
        same(part, wanted)
    same(host("ConcatFromSequence", parts, axis=axis), x)
    slices = host("SplitToSequence", x, axis=axis, keepdims=0)
    assert len(slices) == n
    same(host("ConcatFromSequence", slices, axis=axis, new_axis=1), x)
    length = data.draw(st.integers(1, n))
    same(
        host("SplitToSequence", x, np.array(length), axis=axis)[0], np.take(x, range(length), axis)
    )


def test_parts_that_do_not_add_up() -> None:
    for split in (i64(1, 1), i64(4, -1), np.array(0)):
        with pytest.raises(OperatorError):
            host("SplitToSequence", np.zeros(3), split)
    with pytest.raises(OperatorError):
        host("ConcatFromSequence", [], axis=0)


def test_optional_values() -> None:
    value = [np.zeros(2)]
    assert host("Optional", value) is value and host("Optional") is None
    assert host("OptionalHasElement", value) and not host("OptionalHasElement", None)
    assert host("OptionalGetElement", value) is value
    with pytest.raises(OperatorError):
        host("OptionalGetElement", None)


SEQUENCE = "seq(float[n])"
ROWS = [np.arange(3, dtype=np.float32), np.zeros(2, np.float32)]
WORD = [np.array(["a", "é"], object)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (SEQUENCE, ROWS),
        (SEQUENCE, []),
        ("seq(string[n])", WORD),
        ("optional(float[n])", ROWS[0]),
        ("optional(float[n])", None),
        (f"optional({SEQUENCE})", ROWS),
        (f"optional({SEQUENCE})", []),
        (f"optional({SEQUENCE})", None),
    ],
)
def test_identity_of_what_is_no_tensor(kind: str, value: Any) -> None:
    """Twice, so that one result is both read and handed out."""
    graph = f"g ({kind} x) => ({kind} y, {kind} z) {{ y = Identity(x) z = Identity(y) }}"
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {graph}')
    for result in tilewright.compile(model).run({"x": value}).values():
        assert type(result) is type(value)
        np.testing.assert_equal(result, value)
        if isinstance(value, list):
            assert result is not value
            assert not any(np.shares_memory(a, b) for a in result for b in value)
        elif value is not None:
            assert not np.shares_memory(result, value)


# -- text


def test_strings_are_joined_and_matched() -> None:
    joined = host("StringConcat", text("a", "b"), text("x").reshape(1, 1))
    assert joined.tolist() == [["ax", "bx"]]
    found = host("RegexFullMatch", text("tile", "tiles", ""), pattern="t.*e")
    same(found, np.array([True, False, False]))


@FEW
@given(st.lists(st.text("ab ,", max_size=8), max_size=6), st.sampled_from([None, ",", "ab"]))
def test_split_strings_are_padded(strings: list[str], delimiter: str | None) -> None:
    pieces, counts = host("StringSplit", text(*strings), delimiter=delimiter)
    wanted = [s.split(delimiter) for s in strings]
    assert counts.tolist() == [len(w) for w in wanted]
    for row, w in zip(pieces, wanted, strict=True):
        assert row[: len(w)].tolist() == w and not any(row[len(w) :])
    limited, most = host("StringSplit", text("a b c"), maxsplit=1)
    assert limited.tolist() == [["a", "b c"]] and most.tolist() == [2]


def test_strings_are_normalised() -> None:
    words = text("Monday", "tuesday", "MONDAY")
    plain = host("StringNormalizer", words, case_change_action="LOWER")
    assert plain.tolist() == ["monday", "tuesday", "monday"]
    stop: dict[str, Any] = {"stopwords": ["monday"], "case_change_action": "UPPER"}
    assert host("StringNormalizer", words, **stop).tolist() == ["TUESDAY"]
    exact = {"stopwords": ["MONDAY"], "is_case_sensitive": 1}
    assert host("StringNormalizer", words, **exact).tolist() == ["Monday", "tuesday"]
    nothing = host("StringNormalizer", words[:1].reshape(1, 1), **stop)
    assert nothing.tolist() == [[""]]


def runtimes(name: str, x: Array, target: int, **attributes: Any) -> Array:
    """What ONNX Runtime makes of the operator."""
    source = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(name, ["x"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", source, x.shape)],
        [helper.make_tensor_value_info("y", target, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    [result] = session.run(None, {"x": x})
    return np.asarray(result)


WORDS = ("Éa", "é b", "b", "", "É", "B", "straße", "ΑΣ", "ǅ")


@pytest.mark.parametrize("stopwords", [["b"], ["É", ""], list(WORDS)])
@pytest.mark.parametrize("is_case_sensitive", [0, 1])
@pytest.mark.parametrize("case_change_action", ["NONE", "LOWER", "UPPER"])
def test_strings_are_normalised_as_in_onnx_runtime(
    case_change_action: str, is_case_sensitive: int, stopwords: list[str]
) -> None:
    attributes: dict[str, Any] = {
        "case_change_action": case_change_action,
        "is_case_sensitive": is_case_sensitive,
        "stopwords": stopwords,
        "locale": "C.UTF-8",
    }
    for shape in ((-1,), (1, -1)):
        words = text(*WORDS).reshape(shape)
        made = host("StringNormalizer", words, **attributes)
        wanted = runtimes("StringNormalizer", words, TensorProto.STRING, **attributes)
        assert made.tolist() == wanted.tolist()


@pytest.mark.parametrize("columns", [(2, 0, 1, 3, 4), (0, 0, 1, 6, 1)])
@pytest.mark.parametrize("weights", [None, [10.0, 20.0, 30.0, 40.0, 50.0]])
@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
def test_weights_belong_to_places_in_the_pool(
    mode: str, weights: list[float] | None, columns: tuple[int, ...]
) -> None:
    tokens = i64(1, 2, 3, 2, 1, 3, 3, 1, 9, 2, 1, 3)
    for shortest, skips, shape in ((1, 0, (-1,)), (2, 0, (2, -1)), (1, 2, (3, -1))):
        attributes: dict[str, Any] = {
            "mode": mode,
            "min_gram_length": shortest,
            "max_gram_length": 2,
            "max_skip_count": skips,
            "ngram_counts": [0, 3],
            "ngram_indexes": columns,
            "pool_int64s": [1, 2, 3, 3, 2, 2, 1],
            "weights": weights,
        }
        made = host("TfIdfVectorizer", tokens.reshape(shape), **attributes)
        same(
            made,
            runtimes("TfIdfVectorizer", tokens.reshape(shape), TensorProto.FLOAT, **attributes),
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": [1.0]},
        {"ngram_indexes": [0, 1]},
        {"ngram_indexes": [0, 1, -1]},
        {"ngram_counts": [0, 4]},
        {"ngram_counts": [0, 1, 2]},
    ],
)
def test_pools_that_do_not_fit(wrong: dict[str, Any]) -> None:
    attributes: dict[str, Any] = {
        "mode": "TFIDF",
        "min_gram_length": 1,
        "max_gram_length": 2,
        "max_skip_count": 0,
        "ngram_counts": [0, 1],
        "ngram_indexes": [0, 1, 2],
        "pool_int64s": [1, 2, 3, 4, 5],
    }
    assert host("TfIdfVectorizer", i64(1, 2), **attributes).tolist() == [1, 0, 0]
    with pytest.raises(OperatorError):
        host("TfIdfVectorizer", i64(1, 2), **{**attributes, **wrong})


@pytest.mark.parametrize("skips", [0, 1, 5])
def test_grams_are_counted(skips: int) -> None:
    tokens = [[1, 1, 3, 3, 3, 7, 8, 6, 7, 5, 6, 8], [2, 3, 5, 4, 5, 6, 7, 8, 6, 7, 6, 6]]
    pool = [2, 3, 5, 4, 5, 6, 7, 8, 6, 7]
    grams = [(2,), (3,), (5,), (4,), (5, 6), (7, 8), (6, 7)]
    counts = host(
        "TfIdfVectorizer",
        np.array(tokens),
        mode="TF",
        min_gram_length=1,
        max_gram_length=2,
        max_skip_count=skips,
        ngram_counts=(0, 4),
        ngram_indexes=tuple(range(7)),
        pool_int64s=tuple(pool),
    )
    wanted = [[occurrences(row, g, skips) for g in grams] for row in tokens]
    same(counts, np.array(wanted, np.float32))


def occurrences(tokens: list[int], gram: tuple[int, ...], skips: int) -> int:
    """How often a gram stands in a row, with equal gaps of up to `skips` tokens."""
    steps = range(1, skips + 2) if len(gram) > 1 else range(1, 2)
    rows = [tuple(tokens[a::s][: len(gram)]) for s in steps for a in range(len(tokens))]
    return rows.count(gram)


# -- spectra


@FEW
@given(st.data(), shapes(1, 3), st.sampled_from([1, 2]))
def test_transforms_are_numpys(data: st.DataObject, shape: tuple[int, ...], parts: int) -> None:
    x = random_array(0, (*shape, parts))
    axis = data.draw(st.integers(0, len(shape) - 1))
    n = data.draw(st.integers(1, 12))
    signal = x[..., 0] + 1j * x[..., 1] if parts == 2 else x[..., 0]
    for inverse, function in ((0, np.fft.fft), (1, np.fft.ifft)):
        made = compiled("DFT", x, np.array(n), np.array(axis), inverse=inverse)
        close(made, pairs(function(signal, n, axis)))
    if parts == 1:
        half = compiled("DFT", x, np.array(n), np.array(axis), onesided=1)
        close(half, pairs(np.fft.rfft(signal, n, axis)))
        back = compiled("DFT", half, np.array(n), np.array(axis), inverse=1, onesided=1)
        close(back, np.fft.irfft(np.fft.rfft(signal, n, axis), n, axis)[..., None])


def pairs(z: Array) -> Array:
    return np.stack([z.real, z.imag], axis=-1)


def close(actual: Array, wanted: Array) -> None:
    assert actual.shape == wanted.shape and actual.dtype == np.float32
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


def test_long_transforms_are_numpys_own() -> None:
    x = random_array(0, (1, 4096, 1))
    definition = find("", "DFT")
    assert definition is not None
    with pytest.raises(UnsupportedError):
        definition(placeholder(x.shape, DType.F32))
    made = host("DFT", x)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, pairs(np.fft.fft(x[..., 0])), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("windowed", [False, True])
def test_frames_slide(windowed: bool) -> None:
    signal, window = random_array(1, (2, 37, 1)), np.hanning(8).astype(np.float32)
    made = compiled("STFT", signal, np.array(5), window if windowed else None, np.array(8))
    frames = np.stack([signal[:, a : a + 8, 0] for a in range(0, 30, 5)], axis=1)
    close(made, pairs(np.fft.rfft(frames * window if windowed else frames)))


@pytest.mark.parametrize(
    ("name", "function"),
    [("HannWindow", np.hanning), ("BlackmanWindow", np.blackman)],
)
def test_windows(name: str, function: Any) -> None:
    for n in (2, 7, 16):
        close(compiled(name, np.array(n), periodic=0), function(n))
        close(compiled(name, np.array(n)), function(n + 1)[:-1])


def test_triangles_cover_the_spectrum() -> None:
    edges = np.array(0.0, np.float32), np.array(4096.0, np.float32)
    made = compiled("MelWeightMatrix", np.array(8), np.array(64), np.array(8192), *edges)
    assert made.shape == (33, 8) and made.dtype == np.float32
    assert (made >= 0).all() and (made.max(axis=0) == 1).all()
    assert list(made.argmax(axis=0)) == sorted(made.argmax(axis=0))
