"""How plans cut work into tasks, small work not at all, and for which of them helpers wake up."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

import tilewright as tw
from tilewright.runtime import pool
from tilewright.runtime.plan import Plan, work


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "available_cores", lambda: 2)


def plan_of_product(rows: int, depth: int, columns: int) -> Plan:
    """The plan of a matrix product, which has run."""
    random = np.random.default_rng(0)
    w = random.standard_normal((depth, columns)).astype(np.float32)
    x = random.standard_normal((rows, depth)).astype(np.float32)
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[{rows},{depth}] x, float[{depth},{columns}] w) => (float[{rows},{columns}] y) {{
      y = MatMul(x, w)
    }}"""
    model = parser.parse_model(text)
    compiled = tw.compile(model, threads=2)
    y = compiled.run({"x": x, "w": w})["y"]
    np.testing.assert_allclose(y, x.astype(np.float64) @ w, atol=1e-3)
    (segment,) = compiled._main.segments()
    assert isinstance(segment.runner, Plan)
    return segment.runner


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "cut", "brief"),
    [
        (1, 96, 128, False, True),
        (1, 1536, 128, True, True),
        (32, 96, 64, False, True),
        (512, 512, 512, True, False),
    ],
)
def test_products(rows: int, depth: int, columns: int, cut: bool, brief: bool) -> None:
    """A row times a matrix waits for its loads, so it is cut where a product of more rows with as
    many multiplications is not."""
    plan = plan_of_product(rows, depth, columns)
    assert (plan.kernels[-1].tasks > 1) is cut
    assert plan.table.is_brief is brief


def test_one_row_is_dearer() -> None:
    narrow, square = plan_of_product(1, 4096, 64), plan_of_product(64, 64, 64)
    assert work(narrow.kernels[-1].kernel) > 1.5 * work(square.kernels[-1].kernel)
