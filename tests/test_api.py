"""The public API: compile, the callable model, its inputs, its reports, and ONNX's backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, parser, save

import tilewright as tw
from tilewright import backend
from tilewright.runtime.cuda.toolchain import TO_RUN, find_toolchain

EVALUATED = tw.Options(interpret=True)
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
TEXT = """affine (float[n,4] x, float[n,4] z) => (float[n,4] y, float[n,4] d)
<float[4] w = {1,2,3,4}> {
  a = Mul(x, w)
  y = Add(a, z)
  d = Sub(a, z)
}"""
DEFAULTED = """g (float[n] x, float[1] w) => (float[n] y) <float[1] w = {3}> { y = Mul(x, w) }"""


def model_of(text: str = TEXT) -> ModelProto:
    return parser.parse_model(HEADER + text)


@pytest.fixture
def model() -> tw.CompiledModel:
    return tw.compile(model_of(), options=EVALUATED)


def arrays(rows: int = 2) -> dict[str, np.ndarray]:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    return {"x": x, "z": x + 1}


def test_run_returns_outputs_by_name(model: tw.CompiledModel) -> None:
    feeds = arrays()
    outputs = model.run(feeds)
    assert list(outputs) == ["y", "d"]
    np.testing.assert_allclose(outputs["y"], feeds["x"] * [1, 2, 3, 4] + feeds["z"])


def test_a_call_takes_positions_and_names(model: tw.CompiledModel) -> None:
    feeds = arrays()
    y, d = model(feeds["x"], z=feeds["z"])
    np.testing.assert_array_equal(y, model.run(feeds)["y"])
    np.testing.assert_array_equal(d, model.run(feeds)["d"])
    with pytest.raises(tw.InputError, match="by position and by name: x"):
        model(feeds["x"], feeds["z"], x=feeds["x"])
    with pytest.raises(tw.InputError, match="3 inputs given, the model has 2"):
        model(feeds["x"], feeds["z"], feeds["z"])


def test_models_come_as_path_bytes_and_message(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(model_of(), str(path))
    for source in (path, str(path), path.read_bytes(), model_of()):
        assert tw.compile(source, options=EVALUATED).run(arrays())["y"].shape == (2, 4)


def test_inputs_and_outputs_are_described(model: tw.CompiledModel) -> None:
    assert [str(i) for i in model.inputs] == ["x: tensor float32(n, 4)", "z: tensor float32(n, 4)"]
    assert [o.name for o in model.outputs] == ["y", "d"]
    assert model.inputs[0].shape == ("n", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": None}, "must be an array, not None"),
        ({"zz": np.zeros(1)}, "no input 'zz' .did you mean 'z'"),
        ({"z": np.zeros((2, 4))}, "dtype float32, but has float64"),
        ({"z": np.zeros((2, 5), np.float32)}, r"must have shape \(n, 4\), not \(2, 5\)"),
        ({"z": np.zeros(4, np.float32)}, r"must have shape \(n, 4\), not \(4,\)"),
        ({"z": np.zeros((3, 4), np.float32)}, "dimension 'n' is 2 in input 'x', but 3 in 'z'"),
        ({"z": [[1, 2, 3, 4], [1, 2]]}, "not of equal lengths"),
        ({"z": [["a"] * 4] * 2}, "must have dtype float32"),
        ({"z": object()}, "must be an array, not a object"),
    ],
)
def test_wrong_inputs_say_what_was_expected(
    model: tw.CompiledModel, change: dict[str, Any], message: str
) -> None:
    model.run(arrays())
    with pytest.raises(tw.InputError, match=message):
        model.run({**arrays(), **change})


def test_missing_inputs_are_named(model: tw.CompiledModel) -> None:
    with pytest.raises(tw.InputError, match="missing: 'z'"):
        model.run({"x": arrays()["x"]})


class Exchanged:
    """An array that is reached by DLPack only."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def unaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    return np.frombuffer(raw.data, x.dtype, offset=1).reshape(x.shape)


@pytest.mark.parametrize(
    "same",
    [
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
        unaligned,
        Exchanged,
    ],
)
def test_inputs_of_any_form_mean_the_same(model: tw.CompiledModel, same: Any) -> None:
    feeds = arrays()
    expected = model.run(feeds)["y"]
    for _ in range(2):
        np.testing.assert_array_equal(model.run({**feeds, "x": same(feeds["x"])})["y"], expected)


def test_numbers_are_inputs_where_they_fit() -> None:
    scalar = "g (int8 i, float f) => (int8 j, float h) { j = Neg(i) h = Neg(f) }"
    model = tw.compile(model_of(scalar), options=EVALUATED)
    outputs = model.run({"i": 3, "f": 2})
    assert (outputs["j"], outputs["h"]) == (-3, -2)
    assert outputs["j"].dtype == np.int8
    for wrong in ({"i": 300, "f": 0}, {"i": 1.5, "f": 0}, {"i": np.int16(3), "f": 0}):
        with pytest.raises(tw.InputError, match="input 'i'"):
            model.run(wrong)


def test_defaults_may_be_left_out() -> None:
    model = tw.compile(model_of(DEFAULTED), options=EVALUATED)
    x = np.ones(2, np.float32)
    assert [i.has_default for i in model.inputs] == [False, True]
    for _ in range(2):
        np.testing.assert_array_equal(model.run({"x": x})["y"], [3, 3])
        np.testing.assert_array_equal(model.run({"x": x, "w": x[:1]})["y"], [1, 1])


def test_warmup_makes_what_a_call_needs(model: tw.CompiledModel) -> None:
    model.warmup([{"x": (2, 4), "z": (2, 4)}, {"x": (3, 4), "z": np.zeros((3, 4), np.float32)}])
    assert model.cache_info().signatures == 2
    model.run(arrays(3))
    assert model.cache_info().signatures == 2


def test_reports_are_for_people_and_programs(model: tw.CompiledModel) -> None:
    assert not model.explain().stages
    model.run(arrays())
    report = model.explain()
    assert "stage 0 of 'affine' for (float32[2, 4], float32[2, 4])" in str(report)
    assert json.loads(report.to_json())["stages"][0]["then"] == report.stages[0].then


def test_support_tells_before_compiling() -> None:
    odd = model_of("g (float[n] x) => (float[n] y) { z = NonZero(x) y = odd.Thing(x) }")
    odd.opset_import.append(helper.make_opsetid("odd", 1))
    report = tw.support(odd)
    assert [n.op_type for n in report.unknown] == ["Thing"]
    assert "odd.Thing" in str(report)
    assert {n["op_type"] for n in json.loads(report.to_json())} >= {"Thing"}
    with pytest.raises(tw.UnsupportedError, match=r"odd\.Thing"):
        tw.compile(odd)


def test_other_targets_are_refused() -> None:
    with pytest.raises(tw.UnsupportedError, match="target 'quantum' is not supported"):
        tw.compile(model_of(), target="quantum")


def test_importing_is_cheap_and_public_names_exist() -> None:
    code = "import sys, tilewright; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert all(hasattr(tw, name) for name in tw.__all__)


def test_a_second_process_needs_no_compiler(tmp_path: Path) -> None:
    """Kernels and executor come from the disk, in a process that never imports Numba."""
    save(model_of(), tmp_path / "m.onnx")
    code = (
        "import sys, numpy, tilewright\n"
        "model = tilewright.compile('m.onnx', threads=2)\n"
        "model(*numpy.ones((2, 3, 4), 'float32'))\n"
        "print('numba' in sys.modules)"
    )
    environment = {**os.environ, "TILEWRIGHT_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    shown = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert shown == ["True", "False"]


def test_backend_runs_models_and_nodes() -> None:
    feeds = arrays()
    rep = backend.prepare(model_of(), "CPU", options=EVALUATED)
    y, _ = rep.run([feeds["x"], feeds["z"]])
    np.testing.assert_array_equal(y, feeds["x"] * [1, 2, 3, 4] + feeds["z"])
    node = helper.make_node("Add", ["a", "b"], ["c"])
    (c,) = backend.run_node(node, [np.float32(1), np.float32(2)], options=EVALUATED)
    assert c == 3
    assert backend.supports_device("CPU")
    assert backend.supports_device("CUDA") is find_toolchain().has(TO_RUN)
    with pytest.raises(tw.InputError, match="1 inputs given, the model has 2"):
        rep.run([feeds["x"]])


def test_backend_leaves_out_defaults() -> None:
    rep = backend.prepare(model_of(DEFAULTED), options=EVALUATED)
    x = np.ones(2, np.float32)
    np.testing.assert_array_equal(rep.run([x])[0], [3, 3])
    np.testing.assert_array_equal(rep.run([x, x[:1]])[0], [1, 1])
