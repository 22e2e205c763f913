"""Text: arrays of Python strings, on the host.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tilewright.ops.common import fail
from tilewright.ops.registry import host_op

Array = np.ndarray
_CASES: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}


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
    """Accents and stop words taken out, case changed, what is empty then dropped."""
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise fail(f"strings of shape {x.shape}, not [C] or [1, C]")
    change = _CASES.get(case_change_action)
    if change is None:
        raise fail(f"{case_change_action!r} is no change of case")
    words = (_plain(s) for s in x.ravel())
    if is_case_sensitive:
        changed = [change(w) for w in _without(words, stopwords or ())]
    else:
        changed = _without(map(change, words), map(change, stopwords or ()))
    kept = [w for w in changed if w] or [""]
    return np.array(kept, object).reshape((1, -1) if x.ndim == 2 else -1)


def _without(texts: Iterable[str], words: Iterable[str]) -> list[str]:
    """Each text without the given words."""
    gone = set(words)
    if not gone:
        return list(texts)
    return [" ".join(w for w in t.split(" ") if w not in gone) for t in texts]


def _plain(text: object) -> str:
    """The text without accents; a missing value is empty."""
    if isinstance(text, float):
        return ""
    letters = str(text)
    if letters.isascii():
        return letters
    apart = unicodedata.normalize("NFKD", letters)
    return "".join(c for c in apart if not unicodedata.combining(c))


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
    """How often each n-gram of the pool occurs in each row, weighted."""
    if x.ndim > 2 or mode not in ("TF", "IDF", "TFIDF"):
        raise fail(f"an operand of shape {x.shape}, mode {mode!r}")
    pool = list(pool_strings or pool_int64s or ())
    grams = _pool(pool, ngram_counts, ngram_indexes, min_gram_length, max_gram_length)
    rows = x.reshape(1, -1) if x.ndim < 2 else x
    counts = np.zeros((len(rows), max(ngram_indexes, default=-1) + 1), np.float32)
    for row, tokens in zip(counts, rows.tolist(), strict=True):
        for gram in _grams(tokens, min_gram_length, max_gram_length, max_skip_count):
            if gram in grams:
                row[grams[gram]] += 1
    if mode == "IDF":
        counts = (counts > 0).astype(np.float32)
    if mode != "TF" and weights:
        counts *= np.asarray(weights, np.float32)[: counts.shape[1]]
    return counts if x.ndim == 2 else counts[0]


Gram = tuple[object, ...]


def _pool(
    items: Sequence[object],
    counts: Sequence[int],
    indexes: Sequence[int],
    shortest: int,
    longest: int,
) -> dict[Gram, int]:
    """The column of each n-gram of the pool. `counts` says where the n-grams of each length
    begin."""
    columns: dict[Gram, int] = {}
    number = 0
    ends = [*counts[1:], len(items)]
    for length, (start, end) in enumerate(zip(counts, ends, strict=True), start=1):
        for first in range(start, end - length + 1, length):
            if shortest <= length <= longest:
                columns[tuple(items[first : first + length])] = indexes[number]
            number += 1
    return columns


def _grams(tokens: Sequence[object], shortest: int, longest: int, skips: int) -> Iterable[Gram]:
    """All n-grams of a row with up to `skips` tokens left out between neighbours; single tokens
    have no neighbours and count once.
    """
    for step in range(1, skips + 2):
        for length in range(max(shortest, 1 if step == 1 else 2), longest + 1):
            for first in range(len(tokens) - step * (length - 1)):
                yield tuple(tokens[first : first + step * length : step][:length])
