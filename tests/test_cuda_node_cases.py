"""ONNX's cases for operators on an emulated GPU: some of them, or all with `--all-node-cases`."""

from __future__ import annotations

import gc
import re
import warnings
from functools import cache
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

import tilewright as tw
from cuda_harness import needs_compiler
from emulated_device import EmulatedDevice, compile_for
from test_onnx_suite import IMPOSSIBLE

ONE_IN = 48
HALF_TOLERANCE = 2e-2  # of values that ONNX's reference rounds after every operator
PATTERN = re.compile("|".join(p.replace("_cpu", "") for p in IMPOSSIBLE))
NEEDS_PILLOW = "test_image_decoder"


@cache
def cases() -> dict[str, Any]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # expected values are computed here, infinities too
        found = collect_testcases(None)
    return {c.name: c for c in found if not PATTERN.match(c.name) and NEEDS_PILLOW not in c.name}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = list(cases())
    if not metafunc.config.getoption("--all-node-cases"):
        names = [n for n in names if crc32(n.encode()) % ONE_IN == 0]
    metafunc.parametrize("name", names)


@needs_compiler
@pytest.mark.filterwarnings("ignore:no part of:RuntimeWarning")
def test_case(name: str) -> None:
    device = EmulatedDevice()
    run_case(compile_for(device, cases()[name].model), cases()[name])
    gc.collect()  # Numba's errors hold frames
    assert not device.allocations


def run_case(model: tw.CompiledModel, case: Any) -> None:
    """The model returns what the case expects."""
    inputs = [i.name for i in case.model.graph.input]
    for given, wanted in case.data_sets:
        feeds = dict(zip(inputs, map(_plain, given), strict=False))
        outputs = list(model.run(feeds).values())
        for want, got in zip(map(_plain, wanted), outputs, strict=True):
            _compare(want, got, case.rtol, case.atol)


def _plain(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _compare(want: Any, got: Any, rtol: float, atol: float) -> None:
    if isinstance(want, list):
        for w, g in zip(want, got, strict=True):
            _compare(w, g, rtol, atol)
    elif want is not None:
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if want.dtype.kind in "fV" and want.dtype.names is None:
            least = HALF_TOLERANCE if want.dtype.itemsize < 4 else 0.0
            a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
            np.testing.assert_allclose(a, b, rtol=max(rtol, least), atol=max(atol, least, 1e-6))
        else:
            np.testing.assert_array_equal(got, want)
