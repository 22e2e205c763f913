"""ONNX's own suite for backends, every case of it, against the arrays that come with the cases."""

from __future__ import annotations

import unittest
import warnings
from typing import Any

import onnx.backend.test
from onnx import ModelProto

from tilewright.backend import TilewrightBackend, TilewrightRep

# Patterns of cases that cannot pass, each with the reason.
IMPOSSIBLE = {
    r"test_bernoulli.*": "the expected values come from another random number generator",
    r"test_gradient_of_.*": "Gradient belongs to training; no other backend runs it either",
    r"test_attention_4d_causal_fp16.*": "expected values that are rounded after every operator; "
    "those here are nearer to the exact ones, by more than the tolerance",
    r"test_loop16_seq_none_cpu": "the suite asks for the length of a scalar in a list",
    r"test_scan_sum_cpu": "Scan of opset 8, with a batch axis that newer opsets have not",
}

SMALL_TYPES = "float8, types below eight bits, and text"
# Operators that may run on ONNX's reference implementation, each with what it has to do there.
REFERENCE = {
    "Cast": SMALL_TYPES,
    "CastLike": SMALL_TYPES,
    "DequantizeLinear": SMALL_TYPES,
    "QuantizeLinear": SMALL_TYPES,
    "Equal": "text",
    "Identity": "optionals",
    "OptionalGetElement": "optionals",
    "OptionalHasElement": "optionals",
    "ImageDecoder": "files of images",
    "Dropout": "training, with a mask from a generator",
    "Adagrad": "training",
    "Adam": "training",
    "Momentum": "training",
    "Det": "a determinant is no loop nest",
    "DFT": "lengths that depend on data",
}


class _Checked(TilewrightRep):
    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        results = super().run(inputs, **kwargs)
        for stage in self.model.explain().fallbacks:
            operator = stage.then.rpartition("(")[2].rstrip(")")
            assert operator in REFERENCE, f"{stage.then} for {stage.reason}"
        return results


class _Backend(TilewrightBackend):
    """Refuses what ran on the reference implementation although it should have a definition."""

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> TilewrightRep:
        return _Checked(super().prepare(model, device, **kwargs).model)


def _suite() -> dict[str, type[unittest.TestCase]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # expected values are computed here, infinities too
        suite = onnx.backend.test.BackendTest(_Backend, __name__)
    for pattern in IMPOSSIBLE:
        suite.xfail(pattern)
    cases: dict[str, type[unittest.TestCase]] = suite.test_cases
    for case in cases.values():
        for name in [n for n in vars(case) if n.endswith("_cuda")]:
            delattr(case, name)
    return cases


globals().update(_suite())
