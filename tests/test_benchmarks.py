"""The README's figures are those of the files beside it, and stay in their places."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = "".join(
    f"# {name}\n<!-- figures: {name} -->\nold\n<!-- end of figures -->\n"
    for name in ("performance", "starts", "products", "machine code")
)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


report = script("report")


def engine(name: str, median: float, megabytes: float) -> dict[str, Any]:
    again = {"load": 0.25, "first": 0.5, "peak_bytes": megabytes * 1e6}
    return {"engine": name, "median": median, "again": again}


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    pair = [engine("tilewright", 0.004, 120), engine("onnxruntime", 0.01, 60)]
    found = {"engines": pair, "error": 2e-6, "ratio": 2.5}
    rows = [
        {"model": "a", "case": "", "threads": 1, "found": found},
        {"model": "a", "case": "", "threads": 2, "found": copy.deepcopy(found)},
        {"model": "b", "case": "n=2", "threads": 2, "found": {**found, "ratio": 0.75}},
        {"model": "c", "case": "", "threads": 1, "found": None},
    ]
    machine = {"processor": "P", "python": "3.11", "numba": "1", "onnxruntime": "2"}
    means = {"1": 2.5, "2": 1.37}
    everything = {"against": "onnxruntime", "machine": machine, "rows": rows, "means": means}
    (tmp_path / "performance.json").write_text(json.dumps(everything))
    sizes = [("BERT", (8, 9, 10), 2.0), ("odd", (1, 3, 7), 0.1), ("odd", (300, 300, 300), 0.6)]
    products = [
        {"label": label, "rows": m, "depth": k, "columns": n, "ratio": ratio, "peak": 0.5}
        | {"flops_rate": 4e9, "numpy_flops_rate": 2e9}
        for label, (m, k, n), ratio in sizes
    ]
    (tmp_path / "gemm.json").write_text(json.dumps([{"threads": 1, "products": products}]))
    compiled = [
        {"model": "a", "case": "", "architecture": name, "steps": 7, "distinct": 5, "seconds": 1.5}
        | {"machine": {"registers": 90, "spill_bytes": 8, "spilling": spilling, "tensor_cores": 2}}
        for name, spilling in (("sm_80", 0), ("sm_90a", 1))
    ]
    made = {"toolchain": {"nvJitLink": "13"}, "rows": compiled}
    (tmp_path / "cuda_sass.json").write_text(json.dumps(made))
    return tmp_path


def test_figures_come_into_their_places(figures: Path) -> None:
    text = report.filled(PAGE, figures)
    assert "old" not in text and text.count("<!-- end of figures -->") == 4
    assert "| a | 4 | 10 | 2.50 | 4 | 10 | 2.50 |" in text
    assert "| b n=2 |  |  |  | 4 | 10 | 0.75 |" in text
    assert "| **geometric mean** |  |  | **2.50** |  |  | **1.37** |" in text
    assert "error of any output is 2e-06" in text and "| c |" not in text
    assert "| a | 120 | 60 | 0.75 | 0.75 |" in text
    assert "| 8x9x10 | BERT | 1 | 4 | 2 | 2.00 | 50% |" in text
    assert "All 2 products" in text and "of the 1 from 10 MFLOP, with 1 thread," in text
    assert text.count("| a | 7 | 5 | 1.5 | 90 | 8 | 2 |") == 1
    assert "For sm_90a: 5 kernels of 1 model in 2 s, 1 of which spills registers." in text
    assert "For sm_80: 5 kernels of 1 model in 2 s, none of which spill registers." in text
    assert report.filled(text, figures) == text  # again: the same page


def test_a_page_without_places_is_refused(figures: Path) -> None:
    with pytest.raises(SystemExit, match="no place for figures: starts"):
        report.filled(PAGE.replace("figures: starts", "figures: begins"), figures)


def test_the_readme_shows_the_figures_that_were_measured() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.filled(page, ROOT / "docs") == page


def test_the_picture_shows_them_as_well() -> None:
    found = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))
    picture = (ROOT / "docs" / "performance.svg").read_text(encoding="utf-8")
    for name, measured in report.by_model(found).items():
        assert f">{name}<" in picture
        assert all(f">{m['ratio']:.2f}<" in picture for m in measured.values())


def test_architectures_are_exported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "torch.nn"):
        monkeypatch.setitem(sys.modules, name, FakeTorch(name))
    export = script("export")
    wanted = {"resnet50", "vit_base", "bert_base", "gpt2", "lstm_tagger", "diffusion_unet", "mlp"}
    assert wanted <= export.MODELS.keys()
    with pytest.raises(SystemExit):
        export.main(["no_such_architecture"])


class FakeTorch(ModuleType):
    """PyTorch as far as the script names it when it is loaded."""

    Tensor = Module = RNNBase = object
    nn: Any = type("nn", (), {"Module": object, "RNNBase": object})

    @staticmethod
    def no_grad() -> Any:
        return lambda function: function
