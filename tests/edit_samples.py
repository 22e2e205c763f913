"""Small models whose kernels the tests of edits change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, parser

import tilewright as tw

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
ROOTS = "g (double[n] x) => (double[n] y) { s = Mul(x, x) y = Sqrt(s) }"
SCALED = "g (float[n] x) => (float[n] y) <float c = {1.5}> { e = Exp(x) y = Mul(e, c) }"
SUMS = """g (float[n,k] x, float[k,m] w) => (float[n,m] y) {
  p = MatMul(x, w)
  y = Relu(p)
}"""
GATHERED = "g (float[r,c] x, int64[n] i) => (float[n,c] y) { y = Gather(x, i) }"
REPEATED = """g (float[n,8] x) => (float[n,8] y) <float c = {2}> {
  a = Softmax(x)
  b = Exp(x)
  d = Softmax(b)
  y = Add(a, d)
}"""


def model_of(text: str) -> ModelProto:
    return parser.parse_model(HEADER + text)


def compiled(text: str, *arrays: np.ndarray[Any, Any], **options: Any) -> tw.CompiledModel:
    """The model, after a call on the arrays."""
    model = tw.compile(model_of(text), options=tw.Options(**{"threads": 2, **options}))
    model(*arrays)
    return model


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def replaced(source: str, old: str, new: str) -> str:
    """The source with one place changed, which must be there."""
    assert old in source, source
    return source.replace(old, new, 1)


def saved(text: str, path: Path) -> Path:
    path.write_bytes(model_of(text).SerializeToString())
    return path
