"""Where the elements of values lie in memory: convolutions find channels side by side."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

import tilewright
from tilewright.runtime.model import CompiledModel

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
JOINED = """g (float[1,1024,32] a, float[1,1024,32] b, float[24,64,1,1] w) => (float[1,24,32,32] y)
<int64[4] shape = {1,32,32,32}> {
    at = Transpose<perm = [0,2,1]>(a)  bt = Transpose<perm = [0,2,1]>(b)
    ai = Reshape(at, shape)  bi = Reshape(bt, shape)
    e = Exp(bi)  x = Concat<axis = 1>(ai, e)
    y = Conv(x, w)
}"""


def compiled(text: str) -> CompiledModel:
    return tilewright.compile(parser.parse_model(HEADER + text), threads=1)


def test_what_only_convolutions_read_has_its_channels_innermost() -> None:
    rng = np.random.default_rng(0)
    feeds = {
        "a": rng.standard_normal((1, 1024, 32), np.float32),
        "b": rng.standard_normal((1, 1024, 32), np.float32),
        "w": rng.standard_normal((24, 64, 1, 1), np.float32),
    }
    model = compiled(JOINED)
    got = model.run(feeds)["y"]
    x = np.concatenate([feeds["a"], np.exp(feeds["b"])], 2)[0]
    want = (x @ feeds["w"].reshape(24, 64).T).T.reshape(1, 24, 32, 32)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    images = [b for k in model.kernels for b in k.kernel.params if b.shape == (1, 64, 32, 32)]
    assert images and all(b.strides and b.strides[1] == 1 for b in images)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_few_columns_of_constants_are_on_tiles(rows: int, columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = rng.standard_normal((50, columns), np.float32)
    listed = ", ".join(map(repr, weight.ravel().tolist()))
    model = compiled(
        f"g (float[n,50] x) => (float[n,{columns}] y) <float[50,{columns}] w = {{{listed}}}>"
        "{ y = MatMul(x, w) }"
    )
    x = rng.standard_normal((rows, 50), np.float32)
    np.testing.assert_allclose(model.run({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-4)
    whole = rows * columns * 50 >= 256
    assert any("matmul" in k.source for k in model.kernels if "Pack" not in k.name) == whole


def test_padded_images_of_bytes_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        HEADER + "g (uint8[1,256,16,16] x, int8[8,256,3,3] w) => (int32[1,8,16,16] y)"
        "{ y = ConvInteger<pads = [8,8,8,8], dilations = [8,8]>(x, w) }"
    )
    x = rng.integers(0, 256, (1, 256, 16, 16), np.uint8)
    w = rng.integers(-128, 128, (8, 256, 3, 3), np.int8)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    del model.graph.input[1]
    padded = np.pad(x.astype(np.int32), ((0, 0), (0, 0), (8, 8), (8, 8)))
    want = sum(
        np.einsum(
            "oc,nchw->nohw", w[:, :, i, j].astype(np.int32), padded[:, :, r : r + 16, s : s + 16]
        )
        for i, r in enumerate((0, 8, 16))
        for j, s in enumerate((0, 8, 16))
    )
    np.testing.assert_array_equal(tilewright.compile(model, threads=1).run({"x": x})["y"], want)
