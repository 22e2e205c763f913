"""What the README shows is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cuda_kernels import lowered
from tilewright.codegen.cuda import emit_cuda
from tilewright.dtypes import DType
from tilewright.ops.activations import gelu
from tilewright.ops.common import elementwise
from tilewright.ops.contraction import matmul
from tilewright.ops.tensor import placeholder
from tilewright.schedule.cuda import choose_cuda_schedule

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "(3, 10)" in shown and "def kernel(task, args):" in shown


def test_kernel_compiles() -> None:
    from tilewright.runtime.objects import compile_kernel

    assert compile_kernel(blocks("python")[1], "readme").startswith(b"\x7fELF")


def test_cuda_kernel_is_the_one_that_is_made() -> None:
    x, w, b = (placeholder(s, DType.F32) for s in ((512, 768), (768, 3072), (3072,)))
    added = elementwise(lambda p, q: p + q, matmul(x, w), b)
    kernels, _ = lowered([x, w, b], [gelu(added)])
    (made,) = [emit_cuda(choose_cuda_schedule(k)) for k in kernels]
    assert (made.blocks, made.threads) == (384, 256)
    assert ast.dump(ast.parse(made.text)) == ast.dump(ast.parse(blocks("python")[2]))


def test_operator_is_the_one_in_the_source() -> None:
    (operator,) = blocks("py")
    activations = ROOT / "compiler" / "tilewright" / "ops" / "activations.py"
    assert operator in activations.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    missing = [t for t in targets if not (ROOT / t).exists()]
    assert not missing
    named = re.findall(r"`((?:tests|compiler|kernels)/[\w/.]+)`", text)
    assert not [n for n in named if not (ROOT / n).exists()]


def test_the_way_of_a_matmul_is_there() -> None:
    rows = re.findall(r"^\| `([\w/.]+\.py)` \| `(\w+)` \|", README, re.MULTILINE)
    assert len(rows) > 10
    for file, name in rows:
        assert re.search(rf"^(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), name
