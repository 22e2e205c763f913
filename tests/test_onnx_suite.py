"""ONNX's own suite for backends, every case of it, against the arrays that come with the cases."""

from __future__ import annotations

import unittest
from typing import Any

import onnx.backend.test
from onnx import ModelProto

from tilewright.backend import TilewrightBackend, TilewrightRep

# Patterns of cases that cannot pass, each with the reason.
IMPOSSIBLE = {
    r"test_bernoulli.*": "the expected values come from another random number generator",
    r"test_gradient_of_.*": "Gradient belongs to training; no other backend runs it either",
    r"test_attention_4d_causal_fp16.*": "the expected values are rounded after every operator; ours "
    "are nearer to the exact ones, by more than the tolerance",
    r"test_scan_sum_cpu": "Scan of opset 8, with a batch axis that newer opsets have not",
}

# Operators that may run on ONNX's reference implementation.
REFERENCE: frozenset[str] = frozenset()


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
    suite = onnx.backend.test.BackendTest(_Backend, __name__)
    suite.exclude(r".*_cuda")
    for pattern in IMPOSSIBLE:
        suite.xfail(pattern)
    cases: dict[str, type[unittest.TestCase]] = suite.test_cases
    return cases


globals().update(_suite())
