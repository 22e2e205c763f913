"""The command `tilewright bench`: both engines, the same inputs, honest errors and exit codes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

import tilewright
from tilewright.errors import InputError
from tilewright.explore import cli, compare, gemm, many, process
from tilewright.explore.compare import Request, array_error, largest_error
from tilewright.explore.engines import Engine, EngineError
from tilewright.explore.feeds import Wanted, make_feeds
from tilewright.explore.many import Row, Rows
from tilewright.explore.picture import picture
from tilewright.explore.process import flatten
from tilewright.explore.screen import PlainScreen

ROOT = Path(__file__).parent.parent
DIGITS = str(Path(tilewright.__file__).parent / "explore" / "data" / "digits.onnx")
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
QUICK = ("--threads", "1", "--seconds", "0.05")

ROWS = "g (float[rows,4] x, int64[2] i) => (float[2,4] y) { y = Gather(x, i) }"
NOISE = "g (float[3] x) => (float[3] y) { n = RandomNormalLike(x) y = Add(x, n) }"
TEXT = "g (string[2] s) => (string[2] t) { t = Identity(s) }"


def saved(folder: Path, text: str) -> str:
    path = folder / "model.onnx"
    onnx.save(parser.parse_model(HEADER + text), path)
    return str(path)


def bench(*words: str) -> int:
    return cli.main(["bench", *words])


def test_the_command_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"tilewright": "tilewright.explore.cli:main"}


def test_a_model_on_two_engines(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    words = ("--shape", "image=3x1x8x8", "--memory", "--json", "-")
    assert bench(DIGITS, *QUICK, *words) == cli.RIGHT
    shown = json.loads(capfd.readouterr().out)
    (row,) = shown["rows"]
    found = row["found"]
    assert row["model"] == "digits" and row["right"] and 0 <= found["error"] < 1e-4
    assert found["inputs"] == {"image": "float32[3, 1, 8, 8]"}
    assert [e["engine"] for e in found["engines"]] == ["tilewright", "onnxruntime"]
    for e in found["engines"]:
        assert 0 < e["least"] <= e["median"] and e["calls"] >= found["turns"] >= 3
        for start in (e, e["again"]):
            assert start["first"] > 0 and start["load"] > 0 and 10e6 < start["peak_bytes"] < 10e9
    assert found["ratio"] > 0 and shown["means"] == {"1": pytest.approx(found["ratio"])}
    assert shown["machine"]["cores"] >= 1 and shown["machine"]["onnxruntime"]


def test_the_table(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "open_screen", PlainScreen)
    assert bench(DIGITS, *QUICK, "--against", "reference") == cli.RIGHT
    shown = capfd.readouterr().out
    assert "image: float32[1, 1, 8, 8]" in shown and "times as fast as reference" in shown
    lines = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert "tilewright" in lines and "reference" in lines


def test_other_answers_are_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = (saved(tmp_path, NOISE), *QUICK, "--against", "reference")
    assert bench(*words, "--json", "-") == cli.WRONG
    assert not json.loads(capfd.readouterr().out)["rows"][0]["right"]


def test_inputs_from_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, ROWS)
    np.savez(tmp_path / "in.npz", i=np.array([5, 0]))
    words = (path, *QUICK, "--against", "reference", "--input", str(tmp_path / "in.npz"))
    assert bench(*words, "--dim", "rows=6", "--json", "-") == cli.RIGHT
    found = json.loads(capfd.readouterr().out)["rows"][0]["found"]
    assert found["inputs"] == {"x": "float32[6, 4]", "i": "int64[2]"}
    assert bench(*words, "--dim", "rows=3") == cli.FAILED  # index 5 is out of range
    shown = capfd.readouterr()
    assert shown.err.startswith("error: tilewright: ExecutionError: in 'y' (Gather)")
    assert "Traceback" not in shown.err and not shown.out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("nowhere.onnx",), "there is no file nowhere.onnx"),
        ((str(ROOT / "README.md"),), "not an ONNX model"),
        ((DIGITS, "--shape", "picture=1x1x8x8"), "no input 'picture', it has image"),
        ((DIGITS, "--dim", "rows=2"), "no dimension 'rows'"),
        ((DIGITS, "--input", str(ROOT / "README.md")), "not a readable .md file"),
        ((DIGITS, "--input", "nowhere.npz"), "not a readable .npz file"),
        ((DIGITS, "--shape", "image=1x1x2"), "image"),
        (("--gemm", DIGITS), "give a model, or --gemm"),
        ((), "give a model, or --gemm"),
    ],
)
def test_what_cannot_be_compared(
    words: tuple[str, ...], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bench(*words) == cli.FAILED
    shown = capfd.readouterr().err
    assert shown.startswith("error: ") and reason in shown and "Traceback" not in shown
    assert len(shown.splitlines()) <= 3


@pytest.mark.parametrize(
    "words",
    [
        ("--threads", "0"),
        ("--threads", "many"),
        ("--seconds", "-1"),
        ("--seconds", "nan"),
        ("--shape", "1x3"),
        ("--shape", "x=1xthree"),
        ("--shape", "x=-1"),
        ("--dim", "n=0"),
        ("--dim", "n=x"),
        ("--against", "nobody"),
        ("--json", DIGITS),
        ("--picture", "bars.png"),
    ],
)
def test_words_that_mean_nothing(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        bench(DIGITS, *words)
    assert end.value.code == cli.FAILED
    assert words[0] in capfd.readouterr().err


def test_shapes_on_the_command_line() -> None:
    parsed = cli.parser().parse_args(
        ["bench", "m", "--shape", "a=b=2x3", "--shape", "s=", "--dim", "n=4", "--dim", "k=5,6"]
    )
    assert dict(parsed.shape) == {"a=b": [[2, 3]], "s": [[]]}
    assert dict(parsed.dim) == {"n": [4], "k": [5, 6]}


# -- several models


def test_several_models_shapes_and_threads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "open_screen", PlainScreen)
    other = saved(tmp_path, "g (float[rows,4] x) => (float[rows,4] y) { y = Relu(x) }")
    figures, bars = tmp_path / "figures.json", tmp_path / "bars.svg"
    words = (other, "--against", "reference", "--seconds", "0.05", "--dim", "rows=2,3")
    files = ("--json", str(figures), "--picture", str(bars))
    assert bench(DIGITS, *words, "--threads", "1", "2", *files) == cli.RIGHT
    rows = json.loads(figures.read_text())["rows"]
    assert [(r["model"], r["case"], r["threads"]) for r in rows] == [
        *(("digits", "", threads) for threads in (1, 2)),
        *(("model", f"rows={n}", threads) for threads in (1, 2) for n in (2, 3)),
    ]
    assert rows[-1]["found"]["inputs"] == {"x": "float32[3, 4]"}
    assert "(geometric mean)" in capfd.readouterr().out
    assert len(bar_lengths(bars.read_text())) == len(rows)


def test_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    words = (*QUICK, "--against", "reference", "--json", "-")
    assert bench(str(broken), DIGITS, *words) == cli.FAILED
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [r["found"] is None for r in rows] == [True, False]
    assert "not an ONNX model" in rows[0]["reason"]


def test_a_name_that_no_model_has(tmp_path: Path) -> None:
    other = saved(tmp_path, ROWS)
    wanted = many.cases(
        [DIGITS, other], [1], {}, {"rows": [2]}, Request(model="", against="reference")
    )
    assert [request.dims for request, _ in wanted] == [{}, {"rows": 2}]
    with pytest.raises(InputError, match="no model has an input or a dimension 'lines'"):
        many.cases([DIGITS, other], [1], {}, {"lines": [2]}, Request(model="", against="reference"))


def row(model: str, threads: int, ratio: float) -> Row:
    engine = compare.EngineResult("tilewright", 1, 1, 1, 1, 1, 1)
    found = compare.Comparison(model, threads, {}, 0.0, ratio, 3, (engine, engine))
    return Row(model, "", threads, True, found)


def bar_lengths(svg: str) -> list[float]:
    ElementTree.fromstring(svg)
    return [
        float(w) for w in re.findall(r'<rect class="t\d" [^/]*width="([\d.]+)" height="8"', svg)
    ]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_bars_are_as_long_as_ratios(ratios: list[float]) -> None:
    rows = [row(f"<m{k}&>", 1, r) for k, r in enumerate(ratios)]
    missing = Row("missing", "", 1, False, None, "no")
    svg = picture(Rows("onnxruntime", {}, (*rows, missing)))
    lengths = bar_lengths(svg)
    assert len(lengths) == len(ratios)
    scale = max(lengths) / max(ratios)
    for length, ratio in zip(lengths, sorted(ratios, reverse=True)):
        assert length == pytest.approx(ratio * scale, abs=0.11)
    one = re.search(r'class="one" d="M([\d.]+) ', svg)
    assert one and float(one[1]) == pytest.approx(190 + scale, rel=0.02, abs=0.5)
    assert "missing" not in svg and "prefers-color-scheme: dark" in svg


def test_means_are_geometric() -> None:
    rows = (row("a", 1, 0.5), row("b", 1, 2.0), row("a", 2, 3.0))
    assert Rows("onnxruntime", {}, rows).means == pytest.approx({1: 1.0, 2: 3.0})


# -- inputs


def info(name: str, dtype: str | None, shape: Any, **more: Any) -> dict[str, Any]:
    base = {"name": name, "kind": "tensor", "dtype": dtype, "shape": shape, "has_default": False}
    return {**base, **more}


def feeds(*infos: Mapping[str, Any], **how: Any) -> dict[str, np.ndarray]:
    return make_feeds(infos, Wanted(**how))


def test_random_inputs() -> None:
    found = feeds(
        info("a", "float16", [2, "n", None]),
        info("b", "bfloat16", []),
        info("c", "uint8", ["n", "k"]),
        info("d", "bool", [40]),
        info("e", "float32", [3], has_default=True),
        dims={"n": 5},
        below=9,
    )
    assert {n: (a.dtype.name, a.shape) for n, a in found.items()} == {
        "a": ("float16", (2, 5, 1)),
        "b": ("bfloat16", ()),
        "c": ("uint8", (5, 1)),
        "d": ("bool", (40,)),
    }
    assert found["c"].max() < 9 and len(set(found["d"].tolist())) == 2
    assert np.abs(found["a"].astype(np.float32)).max() < 10


def test_given_shapes_and_arrays_win(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    infos = info("a", "int64", [9]), info("b", "float32", [9]), info("c", "float32", [])
    found = feeds(*infos, shapes={"b": [2, 3], "c": []}, arrays=[str(tmp_path / "a.npz")])
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"].shape == (2, 3) and found["c"].shape == ()


@pytest.mark.parametrize(
    "unknown",
    [
        info("s", "object", [2]),
        info("s", None, [2]),
        info("s", "float32", [2], kind="sequence"),
        info("s", "float32", None),
    ],
)
def test_inputs_that_cannot_be_drawn(unknown: Mapping[str, Any]) -> None:
    with pytest.raises(InputError, match="'s'"):
        feeds(unknown)


# -- results


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.25], [0.0], 0.25),
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([math.nan, 1.0], [0.0, 1.0], math.inf),
        ([0.0, 1.0], [math.nan, 1.0], math.inf),
        ([math.inf, 1.0], [math.inf, 2.0], 0.5),
        ([math.inf], [-math.inf], math.inf),
        ([1.0], [math.inf], math.inf),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], math.inf),
        ([1.0], [1], math.inf),
        ([True], [True], 0.0),
        (["a"], ["b"], math.inf),
        ([1.0], [[1.0]], math.inf),
        (np.zeros((0, 2)), np.zeros((0, 2)), 0.0),
    ],
)
def test_errors_of_arrays(got: Any, want: Any, error: float) -> None:
    assert array_error(np.asarray(got), np.asarray(want)) == error


def test_other_outputs_are_an_infinite_error() -> None:
    one = np.ones(1)
    assert largest_error({"a": one}, {"a": one, "b": one}) == math.inf
    assert largest_error({"a": one, "b": one * 2}, {"a": one, "b": one}) == 1
    assert largest_error({}, {}) == 0


def test_results_become_arrays() -> None:
    found = flatten("y", [np.ones(2), {"b": 1.5, "a": ["text"]}])
    assert {n: a.tolist() for n, a in found.items()} == {
        "y.length": 2,
        "y[0]": [1, 1],
        "y[1]['a'].length": 1,
        "y[1]['a'][0]": "text",
        "y[1]['b']": 1.5,
    }
    text = flatten("s", np.array(["a", "bc"], object))["s"]
    assert text.dtype.kind == "U"


def test_text_models_need_a_file_of_inputs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bench(saved(tmp_path, TEXT), *QUICK, "--against", "reference") == cli.FAILED
    assert "give --input" in capfd.readouterr().err


# -- processes


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"no: the process ended with code 1: .*no_such_module"):
        Engine("no", ["-m", "no_such_module"], 60).__enter__()


def test_a_process_that_is_silent_is_an_error() -> None:
    with (
        Engine("numpy", ["-m", gemm.__name__, "numpy", "1"], 60) as engine,
        pytest.raises(EngineError, match=r"no answer within 0\.01 s"),
    ):
        engine.limit = 0.01
        engine.ask("prepare", shape=[900, 900, 900])
    assert engine._process.returncode is not None


def test_peak_memory_grows_with_what_is_used() -> None:
    before = process.peak_bytes()
    block = np.ones(1 << 25)
    assert process.peak_bytes() >= before and process.peak_bytes() > block.nbytes


def test_another_engine_does_not_pay_for_this_package() -> None:
    code = f"import runpy, sys; runpy.run_path({process.__file__!r}); print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"tilewright", "onnx", "numba", "llvmlite"} & set(found.stdout.split())


# -- products


def test_products_of_matrices(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "NAMED_SHAPES", {"BERT": ((3, 5, 7),)})
    assert bench("--gemm", "--sizes", "1,17", "--threads", "1", "--json", "-") == cli.RIGHT
    (found,) = json.loads(capfd.readouterr().out)
    assert found["right"]
    shapes = [(p["rows"], p["depth"], p["columns"]) for p in found["products"]]
    assert shapes[0] == (3, 5, 7) and len(set(shapes)) == 9
    for p in found["products"]:
        assert p["error"] <= gemm.TOLERANCE
        assert min(p[name] for name in ("kernels", "ours", "numpy", "ratio")) > 0
        flops = 2 * p["rows"] * p["depth"] * p["columns"]
        assert p["flops_rate"] == pytest.approx(flops / p["ours"])
        assert p["peak"] == pytest.approx(p["flops_rate"] / found["peak_flops"])


def product(shape: tuple[int, int, int], ratio: float, error: float, label: str) -> gemm.Product:
    return gemm.Product(label, *shape, 1e-6, 5e-7, ratio * 1e-6, ratio, 1e9, 1e9, 0.1, error)


def test_the_table_of_products(capsys: pytest.CaptureFixture[str]) -> None:
    odd = [product((1, 2, n), n / 10, 0.0, "odd") for n in range(1, 41)]
    found = gemm.Products(1, 1e11, (product((9, 9, 9), 2.0, 0.0, "BERT"), *odd))
    assert found.right
    gemm.show(found, PlainScreen(), everything=False)
    shown = capsys.readouterr().out
    assert "9x9x9" in shown and "1x2x1 " in shown and "1x2x40" not in shown
    assert "below 1 for 9 of 40" in shown and "every product is right" in shown
    assert "below half of NumPy's speed: none" in shown
    gemm.show(found, PlainScreen(), everything=True)
    assert "1x2x40" in capsys.readouterr().out


def test_large_products_at_less_than_half_the_speed_show() -> None:
    small, slow = product((100, 100, 100), 0.1, 0.0, "odd"), product((200, 200, 200), 0.4, 0, "odd")
    found = gemm.Products(1, 1e11, (small, slow, product((200, 200, 200), 0.6, 0.0, "odd")))
    assert found.slow == (slow,)


@pytest.mark.parametrize("error", [1e-4, math.inf, math.nan])
def test_a_wrong_product_shows(error: float, capsys: pytest.CaptureFixture[str]) -> None:
    found = gemm.Products(1, 1e11, (product((9, 9, 9), 2.0, error, "BERT"),))
    assert not found.right
    gemm.show(found, PlainScreen(), everything=False)
    assert "WRONG: 9x9x9" in capsys.readouterr().out


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_errors_of_products(rows: int, depth: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, depth), np.float32)
    w = rng.standard_normal((depth, columns), np.float32)
    y = x @ w
    assert gemm.relative_error(y, x, w) <= 1e-6
    y[seed % rows, seed % columns] += 0.1 * np.float32(depth)
    assert gemm.relative_error(y, x, w) > gemm.TOLERANCE
    y[seed % rows, seed % columns] = np.nan
    assert gemm.relative_error(y, x, w) == math.inf


def test_large_weights_are_cycled() -> None:
    assert gemm.copies(100, 100) == 1
    size = 4 * 768 * 768
    assert gemm.copies(768, 768) * size >= gemm.CYCLED_BYTES > size
    assert compare.OURS in process.LOADERS


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_lines_of_json_say_the_same(value: object) -> None:
    assert json.loads(cli.json_lines(value)) == value


def test_a_line_to_each_row() -> None:
    assert cli.json_lines([{"a": 1, "b": [2]}, {}]) == '[\n {\n  "a": 1,\n  "b": [2]\n },\n {}\n]'
