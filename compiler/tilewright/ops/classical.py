"""The small operators of ai.onnx.ml: feature preparation, linear models and support vector
regression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Expr, apply, index_const
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, checked_index, elementwise, fail, maximum, select
from tilewright.ops.registry import host_op, op
from tilewright.ops.scores import labels_of, post_transformed
from tilewright.ops.tensor import Tensor, compute, constant

ML = "ai.onnx.ml"


@op("Scaler", ML)
def scaler(
    x: Tensor, *, offset: Sequence[float] | None = None, scale: Sequence[float] | None = None
) -> Tensor:
    """(x - offset) * scale, each one value or one for each feature; the result is float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_Scaler.html
    """
    shift, factor = (_per_feature(v, x, d) for v, d in ((offset, 0.0), (scale, 1.0)))
    return compute(x.shape, lambda *i: (cast(DType.F32, x[i]) - shift[i[-1]]) * factor[i[-1]])


def _per_feature(values: Sequence[float] | None, x: Tensor, default: float) -> Tensor:
    """One float32 for each element of the last dimension."""
    array = np.asarray(values if values is not None and len(values) else [default], np.float32)
    if x.rank == 0 or array.size not in (1, x.shape[-1]):
        raise fail(f"{array.size} values do not fit an operand of shape {x.shape}")
    return constant(np.broadcast_to(array, x.shape[-1:]).copy())


@op("Normalizer", ML)
def normalizer(x: Tensor, *, norm: str = "MAX") -> Tensor:
    """Each row divided by its norm; a row of zeros stays zero.

    https://onnx.ai/onnx/operators/onnx_aionnxml_Normalizer.html
    """
    if x.rank == 0 or norm not in ("MAX", "L1", "L2"):
        raise fail(f"norm {norm!r} of an operand of shape {x.shape}")

    def term(*i: Expr) -> Expr:
        value = cast(DType.F32, x[i])
        return value * value if norm == "L2" else apply(ScalarOp.ABS, value)

    monoid = ScalarOp.MAX if norm == "MAX" else ScalarOp.ADD
    total = compute(x.shape[:-1], term, reduce=monoid, over=x.shape[-1:])

    def element(*i: Expr) -> Expr:
        size: Expr = total[i[:-1]]
        size = apply(ScalarOp.SQRT, size) if norm == "L2" else size
        return cast(DType.F32, x[i]) / maximum(size, 1e-30)

    return compute(x.shape, element)


@op("Binarizer", ML)
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    """One where x exceeds the threshold, else zero.
    https://onnx.ai/onnx/operators/onnx_aionnxml_Binarizer.html
    """
    limit: float = threshold if x.dtype.is_float else math.floor(threshold)
    return elementwise(lambda e: cast(x.dtype, e > limit), x)


@op("Imputer", ML)
def imputer(
    x: Tensor,
    *,
    imputed_value_floats: Sequence[float] | None = None,
    imputed_value_int64s: Sequence[int] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Tensor:
    """x with one value (or NaN) replaced, by a value for each feature or one for all.

    https://onnx.ai/onnx/operators/onnx_aionnxml_Imputer.html
    """
    values = imputed_value_floats if x.dtype.is_float else imputed_value_int64s
    replaced = replaced_value_float if x.dtype.is_float else replaced_value_int64
    if not values or x.rank == 0 or len(values) not in (1, x.shape[-1]):
        raise fail(f"imputed values do not fit an operand of shape {x.shape}")
    table = constant(np.broadcast_to(np.asarray(values), x.shape[-1:]).copy(), x.dtype)

    def element(*i: Expr) -> Expr:
        value = x[i]
        missing = apply(ScalarOp.ISNAN, value) if math.isnan(replaced) else value.eq(replaced)
        return select(missing, table[i[-1]], value)

    return compute(x.shape, element)


@op("ArrayFeatureExtractor", ML)
def array_feature_extractor(x: Tensor, y: Tensor) -> Tensor:
    """The elements of the last dimension that y names.

    https://onnx.ai/onnx/operators/onnx_aionnxml_ArrayFeatureExtractor.html
    """
    if x.rank == 0 or not y.dtype.is_integer:
        raise fail(f"features of an operand of shape {x.shape} by {y.dtype.name} indices")
    if y.rank > 1 and y.size != y.shape[-1]:
        raise UnsupportedError(f"feature indices of shape {y.shape}")
    lead = x.shape[:-1] or (1,)

    def element(*i: Expr) -> Expr:
        at = y[(*[index_const(0)] * (y.rank - 1), i[-1])] if y.rank else y[()]
        rest = i[:-1] if x.rank > 1 else ()
        return x[(*rest, checked_index(at, x.shape[-1], wrap=False))]

    return compute((*lead, y.size), element)


@op("FeatureVectorizer", ML)
def feature_vectorizer(*operands: Tensor, inputdimensions: Sequence[int] | None = None) -> Tensor:
    """The operands' features side by side as float32, each cut or filled with zeros to its
    dimension.

    https://onnx.ai/onnx/operators/onnx_aionnxml_FeatureVectorizer.html
    """
    if not operands or any(t.rank not in (1, 2) for t in operands):
        raise fail("FeatureVectorizer needs vectors or matrices")
    widths = [t.shape[1] if t.rank == 2 else 1 for t in operands]
    wanted = list(inputdimensions or widths)
    if len(wanted) != len(operands) or min(wanted) < 0 or len({t.shape[0] for t in operands}) != 1:
        raise fail(f"operands of shapes {[t.shape for t in operands]} and dimensions {wanted}")

    def element(n: Expr, c: Expr) -> Expr:
        value: Expr | None = None
        first = sum(wanted)
        for t, width, taken in reversed(list(zip(operands, widths, wanted, strict=True))):
            first -= taken
            at = c - first
            inside = (at >= 0) & (at < min(width, taken))
            load = t[n, at] if t.rank == 2 else t[n]
            value = select(inside, cast(DType.F32, load), 0.0 if value is None else value)
        assert value is not None
        return value

    return compute((operands[0].shape[0], sum(wanted)), element)


@op("OneHotEncoder", ML)
def one_hot_encoder(
    x: Tensor,
    *,
    cats_int64s: Sequence[int] | None = None,
    cats_strings: Sequence[str] | None = None,
    zeros: int = 1,
) -> Tensor:
    """One in a new last dimension where x is that category; all zeros where it is none.

    https://onnx.ai/onnx/operators/onnx_aionnxml_OneHotEncoder.html
    """
    if not cats_int64s or x.dtype is DType.STRING or not zeros:
        raise UnsupportedError("OneHotEncoder of strings, or without zeros for other values")
    table = constant(np.array(cats_int64s, np.int64))
    return compute(
        (*x.shape, table.size),
        lambda *i: cast(DType.F32, cast(DType.I64, x[i[:-1]]).eq(table[i[-1]])),
    )


def _linear(x: Tensor, coefficients: np.ndarray, intercepts: Sequence[float] | None) -> Tensor:
    """x @ coefficients.T + intercepts in float32; x is a matrix or one row."""
    depth = x.shape[-1]
    weights = constant(coefficients)
    rows = x.shape[:-1] or (1,)
    narrow = x if x.dtype is DType.F32 else elementwise(lambda e: cast(DType.F32, e), x)

    def element(n: Expr, j: Expr, k: Expr) -> Expr:
        return (narrow[n, k] if x.rank == 2 else narrow[k]) * weights[j, k]

    scores = compute((*rows, weights.shape[0]), element, reduce=ScalarOp.ADD, over=[depth])
    if not intercepts:
        return scores
    if len(intercepts) != weights.shape[0]:
        raise fail(f"{len(intercepts)} intercepts for {weights.shape[0]} scores")
    offset = constant(np.asarray(intercepts, np.float32))
    return compute(scores.shape, lambda n, j: scores[n, j] + offset[j])


def _matrix(values: Sequence[float] | None, x: Tensor) -> np.ndarray:
    """Coefficients as rows as long as x has features."""
    array = np.asarray(values or (), np.float32)
    if x.rank not in (1, 2) or not x.shape[-1] or not array.size or array.size % x.shape[-1]:
        raise fail(f"{array.size} coefficients do not fit an operand of shape {x.shape}")
    return array.reshape(-1, x.shape[-1])


@op("LinearRegressor", ML)
def linear_regressor(
    x: Tensor,
    *,
    coefficients: Sequence[float] | None = None,
    intercepts: Sequence[float] | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> Tensor:
    """x @ coefficients + intercepts.
    https://onnx.ai/onnx/operators/onnx_aionnxml_LinearRegressor.html
    """
    matrix = _matrix(coefficients, x)
    if matrix.shape[0] != targets:
        raise fail(f"coefficients for {matrix.shape[0]} targets, not {targets}")
    return post_transformed(_linear(x, matrix, intercepts), post_transform)


@op("LinearClassifier", ML)
def linear_classifier(
    x: Tensor,
    *,
    coefficients: Sequence[float],
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    intercepts: Sequence[float] | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Tensor, Tensor]:
    """The label of the greatest score, and the scores; two classes may share one score as its
    negative and itself.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LinearClassifier.html
    """
    if not classlabels_ints or len(classlabels_ints) < 2:
        raise UnsupportedError("a linear classifier without at least two integer labels")
    scores = _linear(x, _matrix(coefficients, x), intercepts)
    if scores.shape[1] == 1 and len(classlabels_ints) == 2:
        one = scores
        scores = compute((one.shape[0], 2), lambda n, c: select(c.eq(0), -one[n, 0], one[n, 0]))
    return labels_of(scores, classlabels_ints), post_transformed(scores, post_transform)


@op("SVMRegressor", ML)
def svm_regressor(
    x: Tensor,
    *,
    coefficients: Sequence[float] | None = None,
    kernel_params: Sequence[float] | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: Sequence[float] | None = None,
    support_vectors: Sequence[float] | None = None,
) -> Tensor:
    """A weighted sum of kernels between each row and the support vectors, plus rho.

    https://onnx.ai/onnx/operators/onnx_aionnxml_SVMRegressor.html
    """
    if x.rank != 2:
        raise fail(f"SVMRegressor needs a matrix, not an operand of shape {x.shape}")
    kernels: Tensor = x if x.dtype is DType.F32 else elementwise(lambda e: cast(DType.F32, e), x)
    if n_supports > 0:
        vectors = _matrix(support_vectors, x)
        if vectors.shape[0] != n_supports:
            raise fail(f"{vectors.shape[0]} support vectors where {n_supports} are expected")
        kernels = _kernels(kernels, vectors, kernel_type, [*(kernel_params or ()), 0.0, 0.0, 0.0])
    weights = _matrix(coefficients, kernels)
    if weights.shape[0] != 1:
        raise fail(f"coefficients for {weights.shape[0]} results, not one")
    scores = _linear(kernels, weights, list(rho or (0.0,))[:1])
    if one_class:
        return compute(scores.shape, lambda *i: select(scores[i] > 0, 1.0, -1.0))
    return post_transformed(scores, post_transform)


def _kernels(x: Tensor, vectors: np.ndarray, kind: str, parameters: Sequence[float]) -> Tensor:
    """[row, support vector]: the kernel between the two."""
    gamma, offset, degree = parameters[:3]
    if kind == "RBF":
        table = constant(vectors)

        def square(n: Expr, j: Expr, k: Expr) -> Expr:
            difference = x[n, k] - table[j, k]
            return difference * difference

        shape = (x.shape[0], vectors.shape[0])
        distance = compute(shape, square, reduce=ScalarOp.ADD, over=[x.shape[1]])
        return elementwise(lambda e: apply(ScalarOp.EXP, e * -gamma), distance)
    product = _linear(x, vectors, None)
    match kind:
        case "LINEAR":
            return product
        case "POLY":
            return elementwise(lambda e: apply(ScalarOp.POW, e * gamma + offset, degree), product)
        case "SIGMOID":
            return elementwise(lambda e: apply(ScalarOp.TANH, e * gamma + offset), product)
    raise fail(f"kernel_type {kind!r} is unknown")


@host_op("LabelEncoder", ML)
def label_encoder(
    x: np.ndarray,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: np.ndarray | None = None,
    keys_floats: Sequence[float] | None = None,
    keys_int64s: Sequence[int] | None = None,
    keys_strings: Sequence[str] | None = None,
    keys_tensor: np.ndarray | None = None,
    values_floats: Sequence[float] | None = None,
    values_int64s: Sequence[int] | None = None,
    values_strings: Sequence[str] | None = None,
    values_tensor: np.ndarray | None = None,
) -> np.ndarray:
    """Each element replaced by the value beside its key, or by the default.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html
    """
    keys = next(
        (k for k in (keys_floats, keys_int64s, keys_strings, keys_tensor) if k is not None), ()
    )
    choices: list[tuple[Sequence[object] | np.ndarray | None, object, object]] = [
        (values_floats, default_float, np.float32),
        (values_int64s, default_int64, np.int64),
        (values_strings, default_string, np.object_),
        (values_tensor, None, None),
    ]
    values, default, dtype = next(c for c in choices if c[0] is not None)
    if isinstance(values, np.ndarray):
        dtype, default = (
            values.dtype,
            default_tensor.ravel()[0] if default_tensor is not None else -1,
        )
        default = "_Unused" if default_tensor is None and values.dtype.kind in "OSU" else default
    table = {_key(k): v for k, v in zip(_items(keys), _items(values), strict=True)}
    found = [table.get(_key(e), default) for e in _items(x)]
    return np.array(found, dtype).reshape(x.shape)  # type: ignore[call-overload,no-any-return]


def _items(values: object) -> list[object]:
    array = np.asarray(values)
    kept: list[object] = array.ravel().tolist()
    return kept


def _key(value: object) -> object:
    """All NaNs are one key; text is text however it is held."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.decode() if isinstance(value, bytes) else value
