"""Models, kernels and profiles show themselves: whole, well formed, harmless, and only if asked."""

from __future__ import annotations

import io
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, parser

import tilewright as tw
from cuda_harness import needs_compiler
from emulated_device import EmulatedDevice, compile_for
from page_checks import check_page, check_picture, pictures
from runtime_samples import run_python
from tilewright.explore import highlight
from tilewright.explore.kernel_view import changed_lines
from tilewright.explore.page_html import MOST_TABS, html
from tilewright.explore.page_text import plain
from tilewright.explore.pages import Choice, Code, Page, Part, Table, Text, amount, nbytes, time
from tilewright.explore.theme import DARK, LIGHT
from tilewright.explore.views import page
from tilewright.runtime.display import Displayed

DIGITS = Path(tw.__file__).parent / "explore" / "data" / "digits.onnx"
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
EVIL = "</title><script>alert('x')</script>&\"\x00\x1b"
LOOP = """g (int64 n, float[8] x, float[8] step) => (float[8] last, int64[k,r] where) {
  yes = Constant<value_int = 1>()
  go = Cast<to = 9>(yes)
  last = Loop(n, go, x) <body = b (int64 i, bool c, float[8] v) => (bool d, float[8] w) {
    d = Identity(c)
    w = Add(v, step)
  }>
  where = NonZero(last)
}"""


def model(text: str) -> ModelProto:
    return parser.parse_model(HEADER + text)


def images(n: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).standard_normal((n, 1, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def digits() -> tw.CompiledModel:
    compiled = tw.compile(DIGITS, threads=2)
    compiled.profile(images(64))
    return compiled


def bundle(shown: Displayed) -> dict[str, str]:
    found = shown._repr_mimebundle_()
    assert set(found) == {"text/html", "text/plain"}
    check_page(found["text/html"])
    return found


def rich_text(shown: Any, width: int) -> str:
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    console.Console(width=width, file=out, highlight=False).print(shown)
    return out.getvalue()


def test_a_model_that_was_not_called_says_what_is_known_and_what_to_do() -> None:
    found = bundle(tw.compile(DIGITS, threads=1))
    for text in found.values():
        assert "No signature has been seen" in text and "model.warmup" in text
        assert "image" in text and "probabilities" in text and "float32" in text


def test_a_model_shows_its_graph_kernels_memory_and_cache(digits: tw.CompiledModel) -> None:
    found = bundle(digits)
    words = check_page(found["text/html"]).text
    for kernel in digits.kernels:
        assert kernel.name in words and kernel.name in found["text/plain"]
        assert f"{kernel.measured.share:.1%}" in words
    for part in ("graph", "kernels", "memory", "cache", "values", "kernels compiled"):
        assert part in words and part in found["text/plain"]
    graph, *_ = pictures(found["text/html"])
    shown = [t.text for t in check_picture(graph).iter() if t.text]
    assert {"image", "probabilities"} <= set(shown)
    for k, kernel in enumerate(digits.kernels):
        assert any(s == f"k{k}" or s.startswith(f"k{k} ×") for s in shown), shown
        assert kernel.graph.split("+")[0] in " ".join(shown)
    assert "float32 64×1×8×8" in shown


def test_times_of_a_graph_are_those_of_the_profile(digits: tw.CompiledModel) -> None:
    assert "measured time" in bundle(digits)["text/html"]
    fresh = tw.compile(DIGITS, threads=1)
    fresh.run(images(3))
    assert "measured time" not in bundle(fresh)["text/html"]


def test_a_model_with_host_steps_and_loops_is_shown() -> None:
    compiled = tw.compile(model(LOOP), threads=1)
    compiled.run({"n": np.int64(3), "x": np.ones(8, np.float32), "step": np.ones(8, np.float32)})
    words = check_page(bundle(compiled)["text/html"]).text
    assert "host" in words and "Loop" in words and "NonZero" in words
    interpreted = tw.compile(DIGITS, options=tw.Options(interpret=True, threads=1))
    interpreted.run(images(1))
    assert "evaluation" in check_page(bundle(interpreted)["text/html"]).text


def test_every_level_of_a_kernel_is_shown(digits: tw.CompiledModel) -> None:
    kernel = next(k for k in digits.kernels if len(k.schedule) > 3)
    found = bundle(kernel)
    words = re.sub(r"\n+", "\n", check_page(found["text/html"]).text)
    for part in ("source", "loops", "cost", "LLVM IR", "assembly", *map(str, kernel.schedule)):
        assert part in words
    flat = re.sub(r"\s+", "", unescape(re.sub(r"<[^>]*>", "", found["text/html"])))
    for text in (kernel.source, kernel.llvm, kernel.assembly, *(t for _, t in kernel.steps)):
        assert re.sub(r"\s+", "", text) in flat
    assert kernel.source.splitlines()[-1].strip() in found["text/plain"]
    assert "at least" in words and pictures(found["text/html"])
    assert 'class="h"' in found["text/html"]  # what directives changed


def test_text_does_not_compile_a_kernel_once_more(
    digits: tw.CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("tilewright.runtime.objects.kernel_levels", refuse)
    fresh = tw.compile(DIGITS, threads=1)
    fresh.run(images(2))
    assert "assembly" not in plain(page(fresh.kernels[0], below=False), 80)
    fresh.kernels[0].show(80)
    rich_text(fresh.kernels[0], 80)


def test_a_profile_shows_its_table_roofline_and_threads(digits: tw.CompiledModel) -> None:
    found = digits.profile(images(64))
    shown = bundle(found)
    words = check_page(shown["text/html"]).text
    assert found.summary.splitlines()[1] in words and "watching adds" in words
    for step in found:
        assert step.name in words
    roof = pictures(shown["text/html"])[0]
    circles = [e for e in check_picture(roof).iter() if e.tag.endswith("circle")]
    assert len(circles) == sum(1 for s in found if s.flops)
    assert ("threads" in words) == any(len(s.busy) > 1 for s in found)


def test_a_picture_of_a_profile_is_a_file_of_its_own(
    digits: tw.CompiledModel, tmp_path: Path
) -> None:
    path = tmp_path / "roofline.svg"
    digits.profile(images(8)).picture(path)
    text = path.read_text(encoding="utf-8")
    check_picture(text.partition("\n")[2])
    assert "prefers-color-scheme:dark" in text and "--tw-fg" in text


def test_names_cannot_do_harm() -> None:
    proto = model("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    proto.graph.name = proto.graph.node[0].name = EVIL
    proto.graph.input[0].name = proto.graph.node[0].input[0] = f"x{EVIL}"
    proto.graph.output[0].name = proto.graph.node[0].output[0] = f"y{EVIL}"
    compiled = tw.compile(proto, threads=1)
    feeds = {f"x{EVIL}": np.ones(4, np.float32)}
    for shown in (compiled, compiled.profile(feeds), compiled, *compiled.kernels):
        text = bundle(shown)["text/html"]
        assert "<script" not in text and "\x00" not in text and "\x1b" not in text
    assert "<script>alert('x')" in check_page(bundle(compiled)["text/html"]).text


@pytest.mark.parametrize("width", [80, 120])
def test_terminals(digits: tw.CompiledModel, width: int, capsys: Any) -> None:
    for shown in (digits, digits.profile(images(8))):
        shown.show(width)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= width
        assert digits.kernels[0].name[:5] in text
    lines = rich_text(digits, width).splitlines()
    assert max(map(len, lines)) <= width and any("k1_" in line for line in lines)
    kernel = digits.kernels[1]
    kernel.show(width)
    assert "def kernel(task, args):" in capsys.readouterr().out
    assert "def kernel(task, args):" in rich_text(kernel, width)


def test_columns_that_do_not_fit_are_named() -> None:
    t = Table(("name", *(f"column {k}" for k in range(12))), (("a" * 70, *"0123456789ab"),))
    text = plain(Page("title", (), (Part("part", (t,)),)), 80)
    assert max(map(len, text.splitlines())) <= 80
    shown = re.sub(r"\s+", " ", text)
    assert all(f"column {k}" in shown for k in range(12)) and "(wider:" in text


def test_text_without_pygments_and_rich(digits: tw.CompiledModel, monkeypatch: Any) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("pygments", "rich"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    kernel = digits.kernels[1]
    text = html(page(kernel, below=False))
    check_page(text)
    assert "def kernel(task, args):" in unescape(text) and 'class="k"' not in text
    kernel.show(100)


def test_highlighted_lines_are_whole() -> None:
    pytest.importorskip("pygments")
    source = '"""a\nb"""\nx = "<b>"  # c & d\n\n\ndef f():\n    return 1\n'
    lines = highlight.highlighted(source, highlight.PYTHON)
    assert [unescape(re.sub(r"<[^>]*>", "", line)) for line in lines] == source.splitlines()
    assert all(line.count("<span") == line.count("</span>") for line in lines)
    assert highlight.highlighted("a < b", "no such language") == ["a &lt; b"]


def test_marked_lines_are_those_that_changed() -> None:
    assert changed_lines("a\nb\nc", "a\nx\nb\nc\ny") == {1, 4}
    assert changed_lines("a\nb", "a\nb") == frozenset()


def test_more_parts_than_tabs_are_folds() -> None:
    many = tuple(str(k) for k in range(MOST_TABS + 1))
    blocks = tuple(Text(f"text {k}") for k in many)
    found = check_page(html(Page("t", (), (Part("p", (Choice(many, blocks),)),)), "key"))
    assert found.tags.count("details") == len(many)
    few = check_page(html(Page("t", (), (Part("p", (Choice(many[:3], blocks[:3], 2),)),)), "key"))
    assert [c for _, _, c in few.radios] == [True, False, False, True]


def test_long_sources_are_folded() -> None:
    code = Code("\n".join(map(str, range(500))), "python", "numbers", is_folded=True)
    text = html(Page("t", (), (Part("p", (code,)),)))
    assert "<details><summary>numbers (500 lines)" in text
    shown = plain(Page("t", (), (Part("p", (code,)),)), 80)
    assert "more lines" in shown and len(shown.splitlines()) < 100


def test_amounts() -> None:
    assert [amount(1.5e9), amount(999.0), amount(0.0)] == ["1.5 G", "999 ", "0 "]
    assert [nbytes(1024), time(2.5), time(2.5e-3), time(2.5e-6)] == [
        "1.02 kB",
        "2.5 s",
        "2.5 ms",
        "2.5 µs",
    ]


def contrast(one: str, other: str) -> float:
    """As the guidelines for accessible pages define it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_can_be_read_on_every_background(theme: str) -> None:
    colours = dict(re.findall(r"--tw-(\w+):(#\w+);", theme))
    for name in ("fg", "dim", "accent"):
        assert contrast(colours[name], colours["bg"]) >= 4.5, name
    for name in ("fg", "kw", "str", "com", "num", "fun"):
        assert contrast(colours[name], colours["soft"]) >= 4.5, name
    assert contrast(colours["fg"], colours["mark"]) >= 4.5
    for name in ("c0", "c1", "c2", "c3", "c4", "c5", "cost"):
        assert contrast(colours[name], colours["bg"]) >= 3, name


LAZY = """
import sys, numpy as np, tilewright as tw
compiled = tw.compile({path!r}, threads=1)
compiled.run({{"image": np.zeros((2, 1, 8, 8), np.float32)}})
compiled.profile({{"image": np.zeros((2, 1, 8, 8), np.float32)}}, seconds=0)
names = {{m.split(".")[0] for m in sys.modules}}
assert not names & {{"rich", "pygments", "IPython", "matplotlib", "networkx", "html"}}, names
assert not [m for m in sys.modules if m.startswith("tilewright.explore")]
compiled._repr_mimebundle_()
assert "tilewright.explore.views" in sys.modules
assert not names & {{"rich", "IPython", "matplotlib"}}
print("lazy")
"""


def test_nothing_is_imported_for_displays_until_one_is_wanted() -> None:
    assert run_python(LAZY.format(path=str(DIGITS))).strip() == "lazy"


@needs_compiler
def test_kernels_for_a_gpu_are_shown() -> None:
    text = (
        "g (float[n,64] x, float[64,48] a) => (float[n,48] y) { p = MatMul(x, a) y = Softmax(p) }"
    )
    compiled = compile_for(EmulatedDevice(), model(text))
    random = np.random.default_rng(0)
    compiled.run({n: random.random(s, np.float32) for n, s in (("x", (6, 64)), ("a", (64, 48)))})
    words = check_page(bundle(compiled)["text/html"]).text
    kernel: Any = compiled.kernels[0]
    assert f"{kernel.blocks} blocks of {kernel.threads} threads" in words
    shown = check_page(bundle(kernel)["text/html"]).text
    for part in ("PTX", "SASS", ".visible", "shared bytes of a block", "registers of a thread"):
        assert part in shown


@needs_compiler
def test_a_kernel_without_a_disassembler_is_shown_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = compile_for(EmulatedDevice(), model("g (float[9] x) => (float[9] y) {y = Relu(x)}"))
    compiled.run({"x": np.ones(9, np.float32)})
    monkeypatch.setattr("tilewright.runtime.cuda.kernel.disassembler_path", lambda: None)
    words = check_page(bundle(compiled.kernels[0])["text/html"]).text
    assert "pip install nvidia-cuda-nvdisasm" in words and ".visible" in words


def test_answers_are_shown_as_tables() -> None:
    compiled = tw.compile(str(DIGITS), threads=1)
    compiled.run({"image": np.zeros((2, 1, 8, 8), np.float32)})
    questions = [(), ("k1",), ("conv0",), ("conv0", "relu2"), ("conv0", "conv3")]
    for question in questions:
        answer: Any = compiled.explain(*question)
        found = bundle(answer)
        assert found["text/plain"] == str(answer)
        words = check_page(found["text/html"]).text
        assert str(answer).splitlines()[0].split()[0] in words
    assert "Tensorize" in check_page(bundle(compiled.explain("k1"))["text/html"]).text
