"""Sums of products, in floats and in quantised integers, against ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright.ops.contrib
import tilewright.ops.integer_contraction  # noqa: F401  (registers the operators)
from operator_oracle import check, normal, own
from tilewright.dtypes import DType
from tilewright.errors import OperatorError, UnsupportedError
from tilewright.loops.ir import Apply, Load
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.registry import find
from tilewright.ops.tensor import Compute, placeholder


def integers(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    low, high = (0, 255) if dtype == np.uint8 else (-128, 127)
    random = np.random.default_rng(seed)
    return np.asarray(random.integers(low, high, shape, dtype, endpoint=True))


SHAPES = [
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (6, 3, 4)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((2, 0), (0, 4)),
]


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check("MatMul", [normal(*a), normal(*b, seed=1)])


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int64, np.uint32])
def test_matmul_types(dtype: Any) -> None:
    a, b = (np.abs(normal(3, 4, seed=k) * 10).astype(dtype) for k in (0, 1))
    check("MatMul", [a, b.T.copy()])


@pytest.mark.parametrize(("a", "b"), [((2, 3), (4, 5)), ((), (3,)), ((2, 2, 3), (3, 3, 4))])
def test_matmul_refuses(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(OperatorError):
        own("MatMul", [normal(*a), normal(*b)])


def test_contractions_are_products_of_two_loads() -> None:
    """The form that the scheduler looks for."""
    a, b = (placeholder((2, 3, 3), DType.F32) for _ in range(2))
    matmul, einsum = find("", "MatMul"), find("", "Einsum")
    assert matmul is not None and einsum is not None
    for made in (matmul(a, b), einsum(a, b, equation="bij,bkj->bik")):
        assert isinstance(made, Compute) and made.reduction is not None
        assert isinstance(made.body, Apply) and made.body.op is ScalarOp.MUL
        assert all(isinstance(e, Load) for e in made.body.args)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("c", [None, (), (4,), (2, 1), (2, 4)])
def test_gemm(trans_a: int, trans_b: int, c: tuple[int, ...] | None) -> None:
    a, b = normal(*(3, 2) if trans_a else (2, 3)), normal(*(4, 3) if trans_b else (3, 4), seed=1)
    addend = None if c is None else normal(*c, seed=2)
    check("Gemm", [a, b, addend], transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)
    check("Gemm", [a, b, addend], transA=trans_a, transB=trans_b)


EQUATIONS = [
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("ij,jk", [(2, 3), (3, 4)]),
    ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
    ("...ij,...jk->...ik", [(5, 2, 3), (5, 3, 4)]),
    ("...ij,...jk", [(1, 2, 3), (5, 3, 4)]),
    ("i,i", [(3,), (3,)]),
    ("i,j->ij", [(3,), (4,)]),
    ("ij->ji", [(2, 3)]),
    ("ij->", [(2, 3)]),
    ("ii->i", [(3, 3)]),
    ("ii", [(3, 3)]),
    ("...ii->...i", [(2, 3, 3)]),
    ("bii,ij->bj", [(2, 3, 3), (3, 4)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
    ("i,j,k->", [(2,), (3,), (4,)]),
    ("ab,cd->", [(2, 3), (4, 5)]),
    ("bi,bj,ijk->bk", [(2, 3), (2, 4), (3, 4, 5)]),
    (" i j , j k -> i k ", [(2, 3), (3, 4)]),
    ("Aa,aB->AB", [(2, 3), (3, 4)]),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    check("Einsum", [normal(*s, seed=k) for k, s in enumerate(shapes)], equation=equation)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (4, 5)]),
        ("ij,jk->iz", [(2, 3), (3, 4)]),
        ("ij->ii", [(2, 3)]),
        ("ij", [(2, 3, 4)]),
        ("i.j->ij", [(2, 3)]),
        ("i,j", [(2,)]),
        ("......->", [(2,)]),
        ("i->...i", [(2,)]),
    ],
)
def test_einsum_refuses(equation: str, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(OperatorError):
        own("Einsum", [normal(*s) for s in shapes], equation=equation)


LABELS = st.lists(st.sampled_from("abcd"), min_size=0, max_size=3, unique=True).map("".join)


@settings(max_examples=30, deadline=None)
@given(LABELS, LABELS, st.randoms(use_true_random=False))
def test_einsum_like_numpy(left: str, right: str, random: Any) -> None:
    extents = dict(zip("abcd", (2, 3, 4, 5), strict=True))
    found = sorted(set(left + right))
    out = "".join(random.sample(found, random.randint(0, len(found))))
    arrays = [normal(*(extents[c] for c in t), seed=len(t)) for t in (left, right)]
    equation = f"{left},{right}->{out}"
    wanted = np.einsum(equation, *arrays)
    np.testing.assert_allclose(
        own("Einsum", arrays, equation=equation)[0], wanted, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("left", [np.uint8, np.int8])
@pytest.mark.parametrize("right", [np.uint8, np.int8])
@pytest.mark.parametrize("points", ["none", "tensor", "column"])
def test_matmul_integer(left: Any, right: Any, points: str) -> None:
    a, b = integers(2, 3, 5, dtype=left), integers(5, 4, dtype=right, seed=1)
    zeros: list[np.ndarray | None] = [None, None]
    if points != "none":
        zeros = [
            integers(dtype=left, seed=2),
            integers(*((4,) if points == "column" else ()), dtype=right, seed=3),
        ]
    check("MatMulInteger", [a, b, *zeros])


def scale(*shape: int, seed: int = 5) -> np.ndarray:
    return np.asarray(np.abs(normal(*shape, seed=seed)) * 0.01 + 0.001, np.float32)


@pytest.mark.parametrize("columns", [False, True])
def test_qlinear_matmul(columns: bool) -> None:
    a, b = integers(2, 3, 6), integers(6, 4, dtype=np.int8, seed=1)
    each = (4,) if columns else ()
    left = [a, scale(), integers(seed=2)]
    right = [b, scale(*each, seed=6), integers(*each, dtype=np.int8, seed=3)]
    check("QLinearMatMul", [*left, *right, scale(seed=7) * 3, integers(seed=4)], tolerance=0)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_qlinear_conv(channels: bool, bias: bool) -> None:
    x, w = integers(1, 4, 6, 5), integers(6, 2, 3, 3, dtype=np.int8, seed=1)
    each = (6,) if channels else ()
    operands = [x, scale(), integers(seed=2), w, scale(*each, seed=6), np.zeros(each, np.int8)]
    operands += [scale(seed=7) * 3, integers(seed=4)]
    if bias:
        operands.append(np.arange(-300, 300, 100, dtype=np.int32))
    check("QLinearConv", operands, tolerance=0, group=2, pads=[1, 0, 1, 1], strides=[2, 1])


def test_conv_integer() -> None:
    x, w = integers(1, 3, 5, 5), integers(4, 3, 2, 2, seed=1)
    check("ConvInteger", [x, w, integers(seed=2), integers(seed=3)], pads=[1, 1, 0, 0])


def test_padding_of_a_quantised_convolution_is_the_zero_point() -> None:
    x, w, zero = np.full((1, 1, 3, 3), 7, np.uint8), integers(1, 1, 3, 3), np.array(7, np.uint8)
    assert not own("ConvInteger", [x, w, zero], pads=[1, 1, 1, 1])[0].any()


def test_quantised_floats_are_left_to_others() -> None:
    with pytest.raises(UnsupportedError):
        own("MatMulInteger", [normal(2, 2), normal(2, 2)])


MS = "com.microsoft"


@pytest.mark.parametrize("op", ["Gelu", "FastGelu", "QuickGelu"])
def test_gelu(op: str) -> None:
    check(op, [normal(3, 8) * 3], domain=MS)


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_gelu_of_a_sum(op: str) -> None:
    check(op, [normal(3, 8), normal(8, seed=1)], domain=MS)


@pytest.mark.parametrize("trans", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_fused_matmul(trans: tuple[int, int]) -> None:
    a, b = (
        normal(*(5, 4, 3) if trans[0] else (5, 3, 4)),
        normal(*(5, 6, 4) if trans[1] else (5, 4, 6)),
    )
    check("FusedMatMul", [a, b], domain=MS, alpha=0.25, transA=trans[0], transB=trans[1])


def test_fused_matmul_with_transposed_batches() -> None:
    a, b = normal(3, 2, 5, 4), normal(2, 5, 4, 6)
    check("FusedMatMul", [a, b], domain=MS, transBatchA=1, transA=0)


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("extra", [False, True])
def test_skip_layer_normalization(simple: bool, extra: bool) -> None:
    op = "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization"
    rows = [normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(8, seed=2)]
    more = [normal(8, seed=3)] if not simple else []
    check(op, [*rows, *more, *([normal(8, seed=4)] if extra else [])], domain=MS, epsilon=1e-5)


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip"])
def test_fused_conv(activation: str) -> None:
    more: dict[str, Any] = {
        "LeakyRelu": {"activation_params": [0.1]},
        "Clip": {"activation_params": [-0.5, 1.0]},
    }.get(activation, {})
    operands = [normal(1, 3, 6, 6), normal(4, 3, 3, 3, seed=1), normal(4, seed=2)]
    check("FusedConv", operands, domain=MS, activation=activation, **more)


def test_fused_gemm() -> None:
    operands = [normal(2, 3), normal(4, 3, seed=1), normal(4, seed=2)]
    check("FusedGemm", operands, domain=MS, activation="Relu", transB=1, alpha=0.5)


def test_products_of_quantised_matrices_as_floats() -> None:
    a, b = normal(3, 8), integers(8, 4, dtype=np.int8, seed=1)
    check(
        "DynamicQuantizeMatMul",
        [a, b, scale(), np.array(0, np.int8), normal(4, seed=3)],
        domain=MS,
        tolerance=1e-4,
    )
    quantised = [integers(3, 8), b, scale(), scale(seed=6), integers(seed=2), np.array(0, np.int8)]
    check("MatMulIntegerToFloat", quantised, domain=MS, tolerance=1e-4)


def test_quantisation_of_the_microsoft_domain() -> None:
    x, zero = normal(2, 4), np.array(100, np.uint8)
    check("QuantizeLinear", [x, scale(), zero], domain=MS)
    check("DequantizeLinear", [integers(2, 4), scale(4), integers(4, seed=3)], domain=MS, axis=1)


def test_empty_sums_are_zero() -> None:
    assert own("MatMul", [normal(2, 0), normal(0, 3)])[0].tolist() == [[0.0] * 3] * 2
    assert math.isclose(float(own("Einsum", [normal(0), normal(0)], equation="i,i->")[0]), 0.0)
