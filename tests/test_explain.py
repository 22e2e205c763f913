"""Questions that a compiled model answers about its kernels, its nodes, and pairs of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import tilewright
from tilewright.errors import InputError
from tilewright.options import Options
from tilewright.runtime.cache import KernelCache
from tilewright.runtime.misses import why_compiled
from tilewright.runtime.store import Store, StoredObject

DIGITS = Path(tilewright.__file__).parent / "explore" / "data" / "digits.onnx"

CHAIN = """
<ir_version: 10, opset_import: ["" : 21]>
agraph (float[n, 32] x, float[32, 48] w) => (float[n, 48] z, float[n, 1] s)
{
  twice = Constant <value = float {2.0}> ()
  scaled = Mul (x, twice)
  product = MatMul (scaled, w)
  y = Relu (product)
  axes = Constant <value = int64[1] {1}> ()
  s = ReduceSum (y, axes)
  z = Tanh (y)
}
"""


def compiled(folder: Path, text: str = CHAIN) -> tilewright.CompiledModel:
    model = parser.parse_model(text)
    onnx.checker.check_model(model)
    return tilewright.compile(model, options=Options(threads=1, cache_dir=folder))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tilewright.CompiledModel]:
    model = compiled(tmp_path_factory.mktemp("cache"))
    x, w = np.ones((70, 32), np.float32), np.ones((32, 48), np.float32)
    model.run({"x": x, "w": w})
    yield model


def test_every_node_is_in_a_kernel_or_told_of() -> None:
    model = tilewright.compile(str(DIGITS))
    model.run({"image": np.zeros((2, 1, 8, 8), np.float32)})
    nodes = {n for k in model.kernels for n in k.nodes}
    assert nodes == {n.label for n in model.graph.nodes}
    for label in nodes:
        assert "is compiled" in str(model.explain(label))


def test_a_kernel_is_found_by_itself_by_its_number_and_by_its_name(
    chain: tilewright.CompiledModel,
) -> None:
    kernel = next(k for k in chain.kernels if "MatMul" in k.graph)
    short = kernel.name.partition("_")[0]
    told = {str(chain.explain(w)) for w in (kernel, kernel.name, short, f"s0.{short}")}
    assert len(told) == 1
    (text,) = told
    assert "'product' (MatMul), 'y' (Relu)" in text
    assert "rows fit the registers" in text and "Tensorize(" in text


def test_two_nodes_share_a_kernel_or_there_is_a_reason(chain: tilewright.CompiledModel) -> None:
    shared = chain.explain("product", "y")
    assert "share k" in str(shared) and shared.to_dict()["shared"]
    apart = chain.explain("scaled", "product")
    assert "repeated for every tile" in str(apart)
    assert chain.explain("product", "scaled").to_dict()["refusals"]
    far = str(chain.explain("scaled", "z"))
    assert "neither reads what the other computes" in far


def test_nodes_that_need_no_kernel_or_are_not_compiled_yet(tmp_path: Path) -> None:
    model = compiled(
        tmp_path,
        """
        <ir_version: 10, opset_import: ["" : 21]>
        agraph (float[n, 4] x) => (float[m] z, int64[1] count)
        { y = Identity (x)  flat = Constant <value = int64[1] {-1}> ()  z = Reshape (x, flat)
          shape = Shape (x) zero = Constant <value = int64[1] {0}> ()
          count = Gather (shape, zero) }
        """,
    )
    assert "not compiled yet" in str(model.explain("z"))
    model.run({"x": np.ones((3, 4), np.float32)})
    assert "known when the model is specialised" in str(model.explain("count"))


def test_names_that_nothing_has_are_refused_with_those_like_them(
    chain: tilewright.CompiledModel,
) -> None:
    with pytest.raises(InputError, match="names like it are 'product'"):
        chain.explain("prodct")


def test_explanations_are_json(chain: tilewright.CompiledModel) -> None:
    for found in (
        chain.explain(),
        chain.explain("k0"),
        chain.explain("y"),
        chain.explain("y", "z"),
    ):
        assert json.loads(found.to_json()) == json.loads(json.dumps(found.to_dict()))


def test_a_profile_adds_measured_times(tmp_path: Path) -> None:
    model = compiled(tmp_path)
    feeds = {"x": np.ones((70, 32), np.float32), "w": np.ones((32, 48), np.float32)}
    model.profile(feeds, seconds=0.01)
    assert all(k.seconds and k.limit for k in model.explain().stages[0].kernels)
    assert "of what the machine can do" in str(model.explain("k0"))


def test_why_a_kernel_was_compiled(tmp_path: Path) -> None:
    model = compiled(tmp_path)
    feeds = {"x": np.ones((70, 32), np.float32), "w": np.ones((32, 48), np.float32)}
    model.run(feeds)
    first = str(model.explain("k0"))
    assert "it was compiled" in first
    again = compiled(tmp_path)
    again.run(feeds)
    assert "it came from disk" in str(again.explain("k0"))


def test_the_field_that_differs_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 20)
    fields = {"text": "from a import b\nx = 1\ny = 2", "cpu": "znver5", "features": "+a,+b,+c"}

    def put(**changes: str) -> None:
        store.put(json.dumps({**fields, **changes}, sort_keys=True), StoredObject(b"", "s"))

    assert "no kernel for this machine" in why_compiled(fields, store)
    put()  # the kernel itself is not what it is compared with
    put(cpu="other", text="z")
    assert "no kernel for this machine" in why_compiled(fields, store)
    put(text="from c import d\nx = 1\ny = 3")
    assert "'y = 2' here, 'y = 3' there" in why_compiled(fields, store)
    put(cpu="skylake", features="+a,+c,+d")
    told = why_compiled(fields, store)
    assert "cpu is 'znver5', cached is 'skylake'" in told
    assert "features is '+b', cached is '+d'" in told
    put(features="+a,+c")
    assert why_compiled(fields, store) == "features is '+b', cached is ''"


def test_damaged_files_are_no_keys(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 20)
    store.put('{"text": "a"}', StoredObject(b"x", "s"))
    for number, content in enumerate((b"", b"TWOBJ", b"TWOBJ\1" + b"\xff" * 40)):
        (tmp_path / f"damaged{number}").write_bytes(content)
    found = list(store.entries())
    assert sorted(e.key for e in found) == ["", "", "", '{"text": "a"}']
    assert all(e.used > 0 for e in found) and sum(e.nbytes for e in found) > 40
    assert store.clear() == 4 and not list(store.entries())


def test_origins_are_kept_of_what_was_loaded(tmp_path: Path) -> None:
    text = "def kernel(task, args):\n    pass\n"
    first, second = (KernelCache(Options(cache_dir=tmp_path, compile_workers=0)) for _ in "ab")
    first.load([text])
    second.load([text])
    assert (first.origins[text], second.origins[text]) == ("compiled", "disk")
