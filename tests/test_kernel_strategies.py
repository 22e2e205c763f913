"""Every strategy on random shapes: its kernels by the interpreter, and compiled, against the
expressions as they stand. Convolutions, bytes and trees have files of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from interpreted import Array, Model
from tilewright.loops.ir import Expr
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.contraction import gemm, matmul
from tilewright.ops.evaluate import evaluate
from tilewright.ops.normalization import (
    group_normalization,
    instance_normalization,
    layer_normalization,
    rms_normalization,
)
from tilewright.ops.recurrent import gru, lstm, rnn
from tilewright.ops.softmax import log_softmax, softmax
from tilewright.ops.tensor import Tensor, compute

pytestmark = pytest.mark.avx2

FEW = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = st.sampled_from([np.float32, np.float32, np.float64])
small = st.integers(1, 9)


def random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def check(model: Model, *outputs: Tensor) -> Counter[str]:
    """All agree up to the order of sums, and what is not finite is where it should be."""
    (interpreted, seen), compiled = model.interpreted(*outputs), model.compiled(*outputs)
    for k, t in enumerate(outputs):
        want = evaluate(t, model.arrays)
        size = np.abs(want[np.isfinite(want)]).max(initial=1)
        tolerance = size * (1e-11 if want.dtype == np.float64 else 3e-5)
        for got in (interpreted[k], compiled[k]):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
    for name in seen:
        event(f"{name}: {bool(seen[name])}")
    return seen


@FEW
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    sizes=st.tuples(st.integers(1, 19), st.integers(0, 21), st.integers(1, 35)),
    shared=st.tuples(st.booleans(), st.booleans()),
    known=st.booleans(),
    infinite=st.booleans(),
    dtype=DTYPES,
)
def test_products(
    batch: list[int],
    sizes: tuple[int, int, int],
    shared: tuple[bool, bool],
    known: bool,
    infinite: bool,
    dtype: Any,
) -> None:
    m, k, n = sizes
    a = random(*([] if shared[0] else batch), m, k, dtype=dtype)
    b = random(*([] if shared[1] else batch), k, n, seed=1, dtype=dtype)
    if infinite and k:
        a[..., -1, 0], b[..., 0, -1] = np.inf, np.nan
    model = Model(of_bytes=False)
    y = matmul(model.given(a), model.given(b, known))
    addend = model.given(random(n, seed=2, dtype=dtype), True)
    check(model, compute(y.shape, lambda *i: y[i] * 0.5 + addend[i[-1]]))


@FEW
@given(
    sizes=st.tuples(st.integers(1, 19), st.integers(1, 21), st.integers(1, 35)),
    transposed=st.tuples(st.booleans(), st.booleans()),
    scaled=st.tuples(st.sampled_from([1.0, -0.5]), st.sampled_from([1.0, 2.0])),
    c=st.sampled_from(["none", "row", "column", "whole"]),
    known=st.booleans(),
)
def test_gemm(
    sizes: tuple[int, int, int],
    transposed: tuple[bool, bool],
    scaled: tuple[float, float],
    c: str,
    known: bool,
) -> None:
    m, k, n = sizes
    a = random(*((k, m) if transposed[0] else (m, k)))
    b = random(*((n, k) if transposed[1] else (k, n)), seed=1)
    model, shape = Model(of_bytes=False), {"row": (n,), "column": (m, 1), "whole": (m, n)}.get(c)
    left, right = model.given(a), model.given(b, known)
    added = model.given(random(*shape, seed=2), known) if shape else None
    how = partial(gemm, alpha=scaled[0], beta=scaled[1])
    check(model, how(left, right, added, transA=int(transposed[0]), transB=int(transposed[1])))


NORMS: dict[str, Callable[..., Any]] = {
    "layer": layer_normalization,
    "rms": rms_normalization,
    "instance": instance_normalization,
    "group": group_normalization,
    "softmax": softmax,
    "log softmax": log_softmax,
}


@pytest.mark.parametrize("name", NORMS)
@FEW
@given(
    shape=st.lists(small, min_size=2, max_size=3),
    last=st.integers(1, 40),
    data=st.data(),
    residual=st.booleans(),
    dtype=DTYPES,
)
def test_norms(
    name: str, shape: list[int], last: int, data: Any, residual: bool, dtype: Any
) -> None:
    x = random(*shape, last, dtype=dtype)
    model, kind = Model(of_bytes=False), name.split()[-1]
    t = model.given(x)
    given_x = compute(x.shape, lambda *i: t[i] * 2.0 + t[i]) if residual else t
    axis = data.draw(st.integers(-x.ndim, -1))
    how: dict[str, Any] = {} if kind in ("instance", "group") else {"axis": axis}
    width = x.shape[axis:] if kind in ("layer", "rms") else x.shape[1:2]
    rest = [random(*width, seed=k, dtype=dtype) for k in range(2 if kind != "rms" else 1)]
    if kind == "group":
        how["num_groups"] = data.draw(
            st.sampled_from([g for g in range(1, shape[1] + 1) if shape[1] % g == 0])
        )
    operands = [] if kind == "softmax" else [model.given(v, True) for v in rest]
    made = NORMS[name](given_x, *operands, **how)
    y = made[0] if isinstance(made, tuple) else made
    after = compute(y.shape, lambda *i: y[i] + given_x[i]) if residual else y
    check(model, after)


@FEW
@given(
    outer=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    queries=st.integers(1, 13),
    keys=st.integers(1, 35),
    depth=st.integers(4, 13),
    values=st.integers(4, 21),
    masked=st.booleans(),
    transposed=st.booleans(),
)
def test_attention(
    outer: tuple[int, int],
    queries: int,
    keys: int,
    depth: int,
    values: int,
    masked: bool,
    transposed: bool,
) -> None:
    model = Model(of_bytes=False)
    q = model.given(random(*outer, queries, depth))
    k = model.given(random(*outer, *((keys, depth) if transposed else (depth, keys)), seed=1))
    v = model.given(random(*outer, keys, values, seed=2))
    columns = k
    if transposed:
        columns = compute((*outer, depth, keys), lambda *i: k[(*i[:2], i[3], i[2])])
    product = matmul(q, columns)
    mask = random(queries, keys, seed=3)
    mask[:, 1:] = np.where(mask[:, 1:] > 0.5, -np.inf, mask[:, 1:])
    added = model.given(mask)

    def score(*i: Expr) -> Expr:
        value = product[i] * 0.25
        return value + added[i[2:]] if masked else value

    check(model, matmul(softmax(compute(product.shape, score)), v))


RECURRENT: dict[str, tuple[Callable[..., Any], int]] = {
    "RNN": (rnn, 1),
    "LSTM": (lstm, 4),
    "GRU": (gru, 3),
}


@pytest.mark.parametrize("name", RECURRENT)
@FEW
@given(
    steps=st.integers(1, 4),
    batch=st.integers(1, 5),
    inputs=st.integers(1, 9),
    hidden=st.integers(1, 13),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    ragged=st.booleans(),
    known=st.booleans(),
)
def test_recurrences(
    name: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    direction: str,
    ragged: bool,
    known: bool,
) -> None:
    function, gates = RECURRENT[name]
    ways, width, model = 1 + (direction == "bidirectional"), gates * hidden, Model(of_bytes=False)
    x = model.given(random(steps, batch, inputs))
    w = model.given(random(ways, width, inputs, seed=1) / 3, known)
    r = model.given(random(ways, width, hidden, seed=2) / 3, known)
    b = model.given(random(ways, 2 * width, seed=3), known)
    lengths = np.random.default_rng(batch).integers(1, steps + 1, batch).astype(np.int32)
    rest = [model.given(lengths) if ragged else None, model.given(random(ways, batch, hidden))]
    made = function(x, w, r, b, *rest, hidden_size=hidden, direction=direction)
    check(model, *made)


@FEW
@given(
    rows=st.integers(1, 11),
    depth=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    columns=st.integers(4, 21),
    turned=st.booleans(),
    known=st.booleans(),
)
def test_products_over_two_axes(
    rows: int, depth: tuple[int, int], columns: int, turned: bool, known: bool
) -> None:
    """As after heads of attention: the operand steps through both axes as through one, or not."""
    model, (outer, inner) = Model(of_bytes=False), depth
    x = model.given(random(rows, *(depth[::-1] if turned else depth)))
    w = model.given(random(outer * inner, columns, seed=1), known)

    def element(r: Expr, c: Expr, h: Expr, d: Expr) -> Expr:
        return x[(r, d, h) if turned else (r, h, d)] * w[h * inner + d, c]

    check(model, compute((rows, columns), element, reduce=ScalarOp.ADD, over=depth))
