"""The command `tilewright` as a person meets it: what it prints, its exit codes, its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser

import tilewright
from tilewright.errors import InputError
from tilewright.explore import cli
from tilewright.explore.commands.base import Command
from tilewright.explore.feeds import read_arrays
from tilewright.explore.grouped import DOMAIN, grouped_model
from tilewright.explore.saved import save

DIGITS = str(Path(tilewright.__file__).parent / "explore" / "data" / "digits.onnx")
LOOP = """
<ir_version: 10, opset_import: ["" : 21]>
agraph (float[n, 8] x, bool c) => (float[n, 8] z)
{
  y = Exp (x)
  z = If (c) <
    then_branch = yes () => (float[n, 8] a) { a = Add (y, x) },
    else_branch = no () => (float[n, 8] b) { b = Sub (y, x) }
  >
}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TILEWRIGHT_THREADS", "1")


def saved(folder: Path, text: str) -> str:
    path = folder / "model.onnx"
    onnx.save(parser.parse_model(text), str(path))
    return str(path)


def as_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = cli.RIGHT) -> Any:
    capsys.readouterr()
    assert cli.main([*words, "--json", "-"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda c: c.name)
def test_every_command_explains_itself(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command.name, "--help"])
    told = capsys.readouterr().out
    assert end.value.code == 0 and "--json" in told
    assert (command.description or command.help).split()[0] in told


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.FAILED
    told = capsys.readouterr().out
    assert "first steps" in told and all(c.name in told for c in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "nothing.onnx"], "there is no file nothing.onnx"),
        (["run", __file__], "not an ONNX model"),
        (["run", DIGITS, "--dim", "rows=2"], "it has batch"),
        (["run", DIGITS, "--shape", "image=1x2"], "must have shape"),
        (["run", DIGITS, "--dim", "batch=1,2"], "one case"),
        (["run", DIGITS, "--input", "a.txt"], "not a readable .txt file"),
        (["run", DIGITS, "--output", "a.onnx"], ".npz file or a folder"),
        (["inspect", DIGITS, "--kernel", "k99"], "there are k0_"),
        (["inspect", DIGITS, "--kernel", "k1", "--level", "sass"], "has no sass"),
        (["explain", DIGITS, "conv1"], "names like it are 'conv10'"),
        (["export", DIGITS, "model.txt"], "does not end in .onnx"),
        (["export", DIGITS, DIGITS], "--force writes over it"),
        (["bench", DIGITS, "--gemm"], "give a model, or --gemm"),
        (["support", "nothing.onnx"], "there is no file"),
    ],
)  # fmt: skip
def test_errors_are_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == cli.FAILED
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and error.startswith("error: ")


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["run"],
        ["run", DIGITS, "--dim", "batch"],
        ["run", DIGITS, "--dim", "batch=two"],
        ["run", DIGITS, "--repeat", "0"],
        ["profile", DIGITS, "--seconds", "soon"],
        ["profile", DIGITS, "--trace", "model.onnx"],
        ["bench", DIGITS, "--against", "nothing"],
        ["cache", "burn"],
    ],
)
def test_words_that_mean_nothing_end_with_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == cli.FAILED and "usage: tilewright" in capsys.readouterr().err


def test_a_traceback_only_if_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*unused: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("tilewright.explore.commands.run.feeds_of", broken)
    assert cli.main(["run", DIGITS]) == cli.FAILED
    assert "Traceback" not in (told := capsys.readouterr().err) and "RuntimeError: a bug" in told
    assert cli.main(["--traceback", "run", DIGITS]) == cli.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_a_run_again_on_saved_inputs_gives_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, outputs = str(tmp_path / "in.npz"), str(tmp_path / "out.npz")
    words = ["run", DIGITS, "--dim", "batch=3"]
    first = as_json(capsys, *words, "--save-inputs", inputs, "--output", outputs)
    assert first["outputs"]["probabilities"]["shape"] == [3, 10]
    for kind in ("npy", "pb", "npz"):
        folder = tmp_path / kind
        found = as_json(
            capsys, "run", DIGITS, "--input", inputs, "--output", str(folder), "--format", kind
        )
        assert found["outputs"] == first["outputs"]
        (path,) = folder.iterdir()
        (again,) = read_arrays([str(path)], ["probabilities"]).values()
        assert np.array_equal(again, np.load(outputs)["probabilities"])


@given(
    names=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4, unique=True),
    kind=st.sampled_from(["npy", "pb", "npz"]),
)
def test_names_of_a_model_are_no_paths(
    names: list[str], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = [n.encode("utf-8", "ignore").decode() or "a" for n in names]
    folder = tmp_path_factory.mktemp("out")
    inner = folder / "inner"
    inner.mkdir()
    save(str(inner), {n: np.arange(3) for n in ("../up", "/etc/x", "file", *names)}, kind)
    assert os.listdir(folder) == ["inner"]
    assert all(p.is_file() for p in inner.iterdir())


def test_arrays_come_from_files_of_three_kinds(tmp_path: Path) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "b.npz", b=a + 1)
    (tmp_path / "c.pb").write_bytes(numpy_helper.from_array(a + 2, "c").SerializeToString())
    (tmp_path / "x=y.npy").write_bytes((tmp_path / "a.npy").read_bytes())
    found = read_arrays(
        [f"a={tmp_path}/a.npy", f"{tmp_path}/b.npz", f"{tmp_path}/c.pb", f"d={tmp_path}/c.pb"]
    )
    assert {n: v[0, 0] for n, v in found.items()} == {"a": 0, "b": 1, "c": 2, "d": 2}
    assert read_arrays([f"{tmp_path}/x=y.npy"], ["only"]).keys() == {"only"}
    with pytest.raises(InputError, match="which input it is"):
        read_arrays([f"{tmp_path}/a.npy"], ["one", "two"])
    (tmp_path / "bad.pb").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="not a readable"):
        read_arrays([f"{tmp_path}/bad.pb"])


def test_inspect_shows_every_level_of_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "inspect", DIGITS, "--kernels")
    assert found["opsets"] == {"ai.onnx": 21} and found["nodes"]["Conv"] == 4
    name = next(k["name"] for k in found["kernels"] if "Conv" in k["operators"])
    texts = {
        level: as_json(capsys, "inspect", DIGITS, "--kernel", name, "--level", level)["text"]
        for level in ("source", "loops", "schedule", "llvm", "assembly")
    }
    assert "def kernel(task, args):" in texts["source"]
    assert "parallel row" in texts["loops"] and "Tensorize(" in texts["schedule"]
    assert "define" in texts["llvm"] and ".globl" in texts["assembly"]


def test_explain_answers_about_everything(capsys: pytest.CaptureFixture[str]) -> None:
    whole = as_json(capsys, "explain", DIGITS)
    assert whole["stages"][0]["kernels"]
    assert as_json(capsys, "explain", DIGITS, "k0")["kernel"]["name"].startswith("k0")
    assert as_json(capsys, "explain", DIGITS, "conv0")["status"] == "is compiled"
    assert as_json(capsys, "explain", DIGITS, "conv0", "relu2")["shared"]


def test_profile_measures(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "profile", DIGITS, "--seconds", "0.01")
    assert found["seconds"] > 0 and len(found["steps"]) > 3


@pytest.mark.parametrize("against", ["reference", "onnxruntime"])
def test_verify_holds_outputs_and_nodes_against_others(
    against: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if against == "onnxruntime":
        pytest.importorskip("onnxruntime")
    found = as_json(capsys, "verify", DIGITS, "--nodes", "--cases", "2", "--against", against)
    assert found["right"] and len(found["errors"]) == 2
    assert len(found["nodes"]) == 17 and all(n["error"] < 1e-5 for n in found["nodes"])


def test_verify_finds_the_node_that_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tilewright.explore import oracle

    def other(model: onnx.ModelProto, feeds: Any, every: bool) -> dict[str, Any]:
        values = oracle.reference(model, feeds, every)
        return {n: v * 1.5 if n in ("y", "z") else v for n, v in values.items()}

    monkeypatch.setitem(oracle.ORACLES, "reference", other)
    path = saved(
        tmp_path,
        """
        <ir_version: 10, opset_import: ["" : 21]>
        agraph (float[n, 4] x) => (float[n, 4] z)
        { a = Exp (x)  y = Abs (a)  z = Sqrt (y) }
        """,
    )
    found = as_json(capsys, "verify", path, "--nodes", code=cli.WRONG)
    wrong = {n["node"] for n in found["nodes"] if n["error"] > 1e-3}
    assert not found["right"] and "y" in wrong and "a" not in wrong


def test_verify_goes_into_nodes_with_graphs_inside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, "verify", saved(tmp_path, LOOP), "--nodes")
    assert [n["op_type"] for n in found["nodes"]] == ["Exp", "If"]
    assert all(n["error"] is not None and n["error"] < 1e-5 for n in found["nodes"])


def test_export_groups_nodes_of_kernels_and_keeps_the_meaning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.onnx")
    found = as_json(capsys, "export", DIGITS, out)
    assert ["Conv", "Relu"] in found["functions"].values()
    proto = onnx.load(out)
    onnx.checker.check_model(proto, full_check=True)
    assert {f.domain for f in proto.functions} == {DOMAIN}
    x = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    (want,) = tilewright.compile(DIGITS).run({"image": x}).values()
    (got,) = tilewright.compile(proto).run({"image": x}).values()
    assert np.allclose(got, want, atol=1e-6)
    assert cli.main(["export", DIGITS, out]) == cli.FAILED
    assert cli.main(["export", DIGITS, out, "--plain", "--force"]) == cli.RIGHT
    assert not onnx.load(out).functions


def test_kernels_that_wait_for_each_other_are_taken_apart() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        agraph (float[n, 4] x) => (float[n, 4] d, float[n, 4] e)
        { a = Exp (x)  b = Abs (a)  c = Neg (x)  d = Add (b, c)  e = Sub (c, a) }
    """)
    graph = tilewright.compile(model).graph
    label = {n.outputs[0]: n.label for n in graph.nodes}
    kernels = [
        ("one", [label["a"], label["d"]]),  # b stands between them
        ("two", [label["b"], label["c"]]),
    ]
    made = grouped_model(graph, kernels)
    onnx.checker.check_model(made)
    assert {f.name for f in made.functions} < {"one", "two"}
    owner = {n.name or n.output[0]: [p.value for p in n.metadata_props] for n in made.graph.node}
    assert any(owner.values())
    x = np.random.default_rng(0).random((3, 4), np.float32)
    for got, want in zip(
        tilewright.compile(made).run({"x": x}).values(),
        tilewright.compile(model).run({"x": x}).values(),
        strict=True,
    ):
        assert np.array_equal(got, want)


def test_support_names_what_nothing_can_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert as_json(capsys, "support", DIGITS)[DIGITS][0]["how"] == "compiled"
    node = helper.make_node("Nothing", ["x"], ["y"], domain="somewhere")
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [node], "g", [value], [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])]
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("somewhere", 1)]
    path = str(tmp_path / "unknown.onnx")
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    found = as_json(capsys, "support", path, code=cli.WRONG)
    assert found[path][0]["how"] == "unknown"


def test_the_cache_is_shown_and_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(capsys, "cache")["entries"] == 0
    assert cli.main(["run", DIGITS]) == cli.RIGHT
    size = as_json(capsys, "cache", "size")
    assert size["kinds"]["kernels for the CPU"] > 3 and size["bytes"] > 1000
    rows = as_json(capsys, "cache", "list", "--all")["list"]
    assert len(rows) == size["entries"] and {"cpu", "numba"} <= rows[0]["fields"].keys()
    assert as_json(capsys, "cache", "clear")["deleted"] == size["entries"]
    assert as_json(capsys, "cache")["entries"] == 0


def test_bench_takes_several_engines(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    words = ["bench", DIGITS, "--seconds", "0.1", "--threads", "1"]
    found = as_json(capsys, *words, "--against", "onnxruntime,reference")
    assert [rows["against"] for rows in found] == ["onnxruntime", "reference"]


def test_shells_get_a_completion(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert cli.main(["--completion", "bash"]) == cli.RIGHT
    told = capsys.readouterr().out
    assert all(c.name in told for c in cli.COMMANDS) and "--against" in told


def test_output_that_nobody_reads_to_the_end_is_no_error() -> None:
    command = [sys.executable, "-m", "tilewright.explore.cli", "explain", DIGITS]
    paths = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait()
