"""Text: arrays of Python strings, on the host.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tilewright.ops.common import fail
from tilewright.ops.registry import host_op

Array = np.ndarray


@host_op("StringConcat")
def string_concat(x: Array, y: Array) -> Array:
    """Each pair of strings joined, the operands broadcast."""
    return np.asarray(np.add(x.astype(object), y.astype(object)), object)


@host_op("RegexFullMatch")
def regex_full_match(x: Array, *, pattern: str) -> Array:
    """Whether each whole string matches the pattern."""
    compiled = re.compile(pattern)
    return _each(x, lambda s: compiled.fullmatch(s) is not None, np.bool_)


@host_op("StringSplit")
def string_split(
    x: Array, *, delimiter: str | None = None, maxsplit: int | None = None
) -> tuple[Array, Array]:
    """The pieces of each string, padded with empty ones to equal number, and how many it has."""
    limit = -1 if maxsplit is None else maxsplit
    pieces = [str(s).split(delimiter or None, limit) for s in x.ravel()]
    counts = np.array([len(p) for p in pieces], np.int64)
    most = int(counts.max(initial=0))
    table = np.full((len(pieces), most), "", object)
    for row, p in zip(table, pieces, strict=True):
        row[: len(p)] = p
    return table.reshape(*x.shape, most), counts.reshape(x.shape)


@host_op("StringNormalizer")
def string_normalizer(
    x: Array,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "",
    stopwords: Sequence[str] | None = None,
) -> Array:
    """The strings that are no stop words, case changed; an empty one if none is left.

    https://onnx.ai/onnx/operators/onnx__StringNormalizer.html
    """
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise fail(f"strings of shape {x.shape}, not [C] or [1, C]")
    change = _CASES.get(case_change_action)
    if change is None:
        raise fail(f"{case_change_action!r} is no change of case")
    compared = str if is_case_sensitive else _lower
    gone = {compared(w) for w in stopwords or ()}
    kept = [change(w) for w in map(str, x.ravel()) if compared(w) not in gone]
    return np.array(kept or [""], object).reshape((1, -1) if x.ndim == 2 else -1)


def _lower(text: str) -> str:
    return _letter_by_letter(str.lower, text)


def _upper(text: str) -> str:
    return _letter_by_letter(str.upper, text)


def _letter_by_letter(change: Callable[[str], str], text: str) -> str:
    """Each letter changed, unless that makes it several, as in ONNX Runtime: Python makes SS of a
    sharp s.
    """
    changed = ((letter, change(letter)) for letter in text)
    return "".join(new if len(new) == 1 else old for old, new in changed)


_CASES: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": _lower, "UPPER": _upper}


def _each(x: Array, function: Callable[[str], object], dtype: type[np.generic]) -> Array:
    return np.array([function(str(s)) for s in x.ravel()], dtype).reshape(x.shape)


@host_op("TfIdfVectorizer")
def tf_idf_vectorizer(
    x: Array,
    *,
    mode: str,
    min_gram_length: int,
    max_gram_length: int,
    max_skip_count: int,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] | None = None,
    pool_strings: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Array:
    """How often each n-gram of the pool occurs in each row (TF), the weight of each that does
    (IDF), or the product (TFIDF). A weight belongs to a place in the pool, as does a column.

    https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html
    """
    if x.ndim not in (1, 2) or mode not in ("TF", "IDF", "TFIDF"):
        raise fail(f"an operand of shape {x.shape}, mode {mode!r}")
    pool = _pool(list(pool_strings or pool_int64s or ()), ngram_counts)
    terms = _terms(pool, ngram_indexes, None if mode == "TF" else weights)
    rows = x.reshape(1, -1) if x.ndim < 2 else x
    totals = np.zeros((len(rows), max(ngram_indexes, default=-1) + 1), np.float32)
    for row, tokens in zip(totals, rows.tolist(), strict=True):
        for gram in _grams(tokens, min_gram_length, max_gram_length, max_skip_count):
            if (term := terms.get(gram)) is not None:
                column, worth = term
                row[column] = worth if mode == "IDF" else row[column] + worth
    return totals if x.ndim == 2 else totals[0]


Gram = tuple[object, ...]


def _terms(
    pool: Sequence[Gram], columns: Sequence[int], weights: Sequence[float] | None
) -> dict[Gram, tuple[int, float]]:
    """The column of each n-gram, and what its occurrence is worth: 1 without weights."""
    worths = list(weights or [1.0] * len(pool))
    if not len(columns) == len(worths) == len(pool) or min(columns, default=0) < 0:
        raise fail(f"{len(columns)} columns and {len(worths)} weights for {len(pool)} n-grams")
    return dict(zip(pool, zip(columns, worths, strict=True), strict=True))


def _pool(items: Sequence[object], counts: Sequence[int]) -> list[Gram]:
    """The n-grams in their order. `counts` says where those of each length begin."""
    grams: list[Gram] = []
    ends = [*counts[1:], len(items)]
    for length, (start, end) in enumerate(zip(counts, ends, strict=True), start=1):
        if not 0 <= start <= end <= len(items) or (end - start) % length:
            raise fail(f"the pool's items {start} to {end} are no {length}-grams")
        grams += [tuple(items[k : k + length]) for k in range(start, end, length)]
    return grams


def _grams(tokens: Sequence[object], shortest: int, longest: int, skips: int) -> Iterable[Gram]:
    """All n-grams of a row with up to `skips` tokens left out between neighbours; single tokens
    have no neighbours and count once.
    """
    for step in range(1, skips + 2):
        for first in range(len(tokens)):
            for length in range(max(shortest, 1 if step == 1 else 2), longest + 1):
                if first + step * (length - 1) < len(tokens):
                    yield tuple(tokens[first : first + step * length : step])
