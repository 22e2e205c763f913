"""Graphs and memory as pictures: nothing overlaps, nothing is lost, a thousand kernels as well."""

from __future__ import annotations

import time
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import tilewright as tw
from page_checks import SVG, check_picture
from tilewright.explore.flow import INNER, INPUT, OUTPUT, Flow, Step, Value, flow
from tilewright.explore.graph_picture import can_fold, graph_picture
from tilewright.explore.layers import LONGEST, lay_out
from tilewright.explore.memory_picture import live, memory_picture, spans
from tilewright.explore.model_view import MOST_WHOLE, _graph
from tilewright.explore.page_html import html
from tilewright.explore.pages import Page, Part
from tilewright.explore.repeats import LEAST_SAVED, repeats
from tilewright.schedule.cost import Cost

RENDER_SECONDS = 10.0  # of a thousand kernels: far above what it takes, as others use the machine

edges = st.integers(2, 40).flatmap(
    lambda n: st.lists(
        st.tuples(st.integers(0, n - 2), st.integers(1, n - 1)).filter(lambda e: e[0] < e[1]),
        max_size=2 * n,
    ).map(lambda found: (n, found))
)


@given(edges, st.integers(0, 3))
@settings(max_examples=60)
def test_layers_point_down_and_nodes_do_not_overlap(
    graph: tuple[int, list[tuple[int, int]]], wide: int
) -> None:
    count, found = graph
    widths = {n: 50.0 + 40.0 * (n % (wide + 1)) for n in range(count)}
    layout = lay_out(widths, found, 10.0, 5.0)
    assert layout.x.keys() == layout.layer.keys() == widths.keys()
    assert all(layout.layer[a] < layout.layer[b] for a, b in found)
    for a, b in combinations(widths, 2):
        if layout.layer[a] == layout.layer[b]:
            least = (widths[a] + widths[b]) / 2 + 10.0
            assert abs(layout.x[a] - layout.x[b]) >= least - 1e-6
    for e in set(found):
        crossed = layout.layer[e[1]] - layout.layer[e[0]]
        if crossed > LONGEST:
            assert e in layout.long and e not in layout.bends
        else:
            assert len(layout.bends[e]) == crossed - 1
            between = range(layout.layer[e[0]] + 1, layout.layer[e[1]])
            assert [at for _, at in layout.bends[e]] == list(between)


def test_a_chain_is_drawn_straight() -> None:
    layout = lay_out(dict.fromkeys(range(9), 100.0), [(n, n + 1) for n in range(8)], 10.0, 5.0)
    assert len({round(x, 6) for x in layout.x.values()}) == 1


def test_few_lines_cross() -> None:
    """Two chains side by side stay side by side, whatever their order at first."""
    pairs = [(0, 3), (1, 2), (2, 5), (3, 4), (4, 7), (5, 6)]
    layout = lay_out(dict.fromkeys(range(8), 100.0), pairs, 10.0, 5.0)
    left = [layout.x[n] for n in (0, 3, 4, 7)]
    right = [layout.x[n] for n in (1, 2, 5, 6)]
    assert len({a < b for a, b in zip(left, right, strict=True)}) == 1


@given(st.lists(st.integers(0, 3), max_size=60))
def test_repeats_are_real_and_do_not_overlap(items: list[int]) -> None:
    found, end = repeats(items), 0
    for r in found:
        assert r.start >= end and r.count >= 2 and r.saved >= LEAST_SAVED
        end = r.end
        first = items[r.start : r.start + r.period]
        assert items[r.start : r.end] == first * r.count
    assert end <= len(items)


@given(st.lists(st.integers(), min_size=2, max_size=6, unique=True), st.integers(4, 12))
def test_layers_of_a_model_are_found(layer: list[int], count: int) -> None:
    items = [-1000001, *layer * count, -1000002]
    (found,) = repeats(items)
    assert (found.start, found.period, found.count) == (1, len(layer), count)


# -- graphs made by hand


def fake(k: int, source: str) -> Any:
    return SimpleNamespace(
        name=f"k{k}_op", graph="Op", source=source, tasks=4, nodes=(f"node{k}",), measured=None,
        cost=Cost(1e6 * (1 + k % 7), 1e5, 1e5), kernel=source,
    )  # fmt: skip


def made(reads: list[list[int]], sources: list[str]) -> Flow:
    """Kernel k writes value k + 1 and reads some before it; value 0 is the input."""
    found = Flow("float32[4]", arenas=[1 << 20], is_complete=True)
    found.values.append(Value("x", "float32 4", 16, INPUT, 0))
    for k, (wanted, source) in enumerate(zip(reads, sources, strict=True)):
        kernel = fake(k, source)
        step = Step(kernel.name, ("MatMul", "Softmax"), kernel.nodes, 0, kernel, 0, wanted, [k + 1])
        found.steps.append(step)
        found.values.append(Value(f"v{k}", f"float32 4×{k + 1}", 64, INNER, 0, 64 * k, [k]))
        for v in wanted:
            found.values[v].readers.append(k)
    found.values[-1].kind, found.values[-1].outputs = OUTPUT, ["y"]
    return found


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    return [
        tuple(float(r.attrib[k]) for k in ("x", "y", "width", "height"))  # type: ignore[misc]
        for r in check_picture(svg).iter(f"{SVG}rect")
        if r.attrib["class"] in ("step", "host", "value")
    ]


def check_apart(found: list[tuple[float, float, float, float]]) -> None:
    for (x0, y0, w0, h0), (x1, y1, w1, h1) in combinations(found, 2):
        apart = x0 + w0 <= x1 or x1 + w1 <= x0 or y0 + h0 <= y1 or y1 + h1 <= y0
        assert apart, ((x0, y0, w0, h0), (x1, y1, w1, h1))


def names(svg: str) -> list[str]:
    return [str(t.text) for t in check_picture(svg).iter(f"{SVG}text")]


@given(st.data())
@settings(max_examples=20)
def test_every_kernel_has_a_box_of_its_own(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    reads = [data.draw(st.lists(st.integers(max(0, k - 6), k), min_size=1, max_size=3, unique=True))
             for k in range(count)]  # fmt: skip
    found = made(reads, [str(k) for k in range(count)])
    svg, _, _ = graph_picture(found, None, folds=True)
    check_apart(boxes(svg))
    assert {f"k{k}" for k in range(count)} | {"y"} <= set(names(svg))


def test_layers_that_repeat_are_drawn_once() -> None:
    reads = [[k] for k in range(62)]
    sources = ["first", *["a", "b", "c"] * 20, "last"]
    found = made(reads, sources)
    assert can_fold(found)
    folded, _, _ = graph_picture(found, None, folds=True)
    shown = names(folded)
    assert "20 times" in shown and {"k0", "k1 ×20", "k2 ×20", "k3 ×20", "k61"} <= set(shown)
    assert "then k3" in shown  # where the first one of a period reads from, from the second on
    assert len(boxes(folded)) == 2 + 5
    check_apart(boxes(folded))
    whole, _, _ = graph_picture(found, None, folds=False)
    assert len(boxes(whole)) == 2 + 62


def test_a_thousand_kernels_are_drawn_in_little_time_and_apart() -> None:
    random = np.random.default_rng(0)
    reads = [
        sorted({k, *map(int, random.integers(max(0, k - 30), k + 1, random.integers(0, 3)))})
        for k in range(1000)
    ]
    found = made(reads, [str(k) for k in range(1000)])
    start = time.perf_counter()
    text = html(Page("thousand", (), (Part("graph", _graph(found, None)),)))
    assert time.perf_counter() - start < RENDER_SECONDS
    svg, width, height = graph_picture(found, None, folds=True)
    assert svg.split(">", 1)[1] in text
    check_apart(boxes(svg))
    assert {f"k{k}" for k in range(1000)} <= set(names(svg))
    assert 0.3 < width / height < 8  # a picture that can be looked at as a whole


def test_huge_graphs_are_drawn_folded_only() -> None:
    count = MOST_WHOLE + 4
    found = made([[k] for k in range(count)], ["a", "b"] * (count // 2))
    text = html(Page("huge", (), (Part("graph", _graph(found, None)),)))
    assert len(text) < 60_000 and f"{count // 2} times" in text


# -- graphs and memory of models


BLOCK = 16


def network(blocks: int) -> bytes:
    """Equal blocks with a residual connection."""
    nodes, constants = [], []
    random, current = np.random.default_rng(0), "x"
    for k in range(blocks):
        for half, (rows, columns) in (("a", (BLOCK, 32)), ("b", (32, BLOCK))):
            weights = random.standard_normal((rows, columns)).astype(np.float32)
            constants.append(numpy_helper.from_array(weights, f"{half}{k}"))
        nodes += [
            helper.make_node("MatMul", [current, f"a{k}"], [f"p{k}"], f"first{k}"),
            helper.make_node("Relu", [f"p{k}"], [f"q{k}"]),
            helper.make_node("MatMul", [f"q{k}", f"b{k}"], [f"r{k}"]),
            helper.make_node("Add", [f"r{k}", current], [f"s{k}"]),
        ]
        current = f"s{k}"
    infos = [helper.make_tensor_value_info(n, 1, ["n", BLOCK]) for n in ("x", current)]
    graph = helper.make_graph(nodes, "net", infos[:1], infos[1:], constants)
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def found() -> Flow:
    compiled = tw.compile(network(6), threads=1)
    compiled.run({"x": np.ones((40, BLOCK), np.float32)})
    (path,) = compiled.paths()
    return flow(compiled, path)


def test_the_flow_of_a_model_is_that_of_its_kernels(found: Flow) -> None:
    assert found.is_complete and found.signature == "float32[40, 16]"
    for k, step in enumerate(found.steps):
        assert step.name.startswith(f"k{k}_")
        assert step.reads or k == 0
    assert [v.name for v in found.values if v.kind == INPUT] == ["x"]
    (output,) = (v for v in found.values if v.kind == OUTPUT)
    assert output.outputs == ["s5"] and output.shape == "float32 40×16"
    for v, value in enumerate(found.values):
        assert all(v in found.steps[k].writes for k in value.writers)
        assert all(v in found.steps[k].reads for k in value.readers)
        assert all(w < r for w in value.writers for r in value.readers)
        assert (value.kind == INNER) == (value.offset is not None)
    products = [s for s in found.steps if "MatMul" in s.operators]
    assert products and all(s.weights == 4 * BLOCK * 32 for s in products)


def test_equal_blocks_of_a_model_are_folded(found: Flow) -> None:
    svg, _, _ = graph_picture(found, None, folds=True)
    assert any(n.endswith(" times") for n in names(svg))


def test_buffers_that_are_needed_at_once_do_not_share_memory(found: Flow) -> None:
    lying = spans(found, 0)
    assert lying
    for a, b in combinations(lying, 2):
        together = a.first <= b.last and b.first <= a.last
        x, y = a.value.offset or 0, b.value.offset or 0
        assert not together or x + a.value.nbytes <= y or y + b.value.nbytes <= x
    size = found.arenas[0]
    assert all((s.value.offset or 0) + s.value.nbytes <= size for s in lying)
    kernels = len(found.kernels(0))
    needed = live(lying, kernels)
    assert needed == [
        sum(s.value.nbytes for s in lying if s.first <= k <= s.last) for k in range(kernels)
    ]
    assert 0 < max(needed) <= size


def test_the_picture_of_memory_has_every_buffer(found: Flow) -> None:
    svg, width = memory_picture(found, 0)
    rects = list(check_picture(svg).iter(f"{SVG}rect"))
    assert len(rects) == len(spans(found, 0)) and width > 100


def test_stages_around_a_host_step_are_connected() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[8] x) => (int64[1,k] w, float[8] z) {
      y = Relu(x)
      w = NonZero(y)
      z = Exp(y)
    }"""
    from onnx import parser

    compiled = tw.compile(parser.parse_model(text), threads=1)
    compiled.run({"x": np.arange(8, dtype=np.float32)})
    (path,) = compiled.paths()
    made = flow(compiled, path)
    (host,) = (s for s in made.steps if s.kernel is None)
    assert host.operators == ("NonZero",)
    assert len(path) == len(made.arenas) > 1
    outputs = sorted(n for v in made.values for n in v.outputs)
    assert outputs == ["w", "z"]
    where = next(v for v in made.values if "w" in v.outputs)
    assert [made.steps[k] for k in where.writers] == [host]
    svg, _, _ = graph_picture(made, None, folds=True)
    assert {"w", "z", "x"} <= set(names(svg))
