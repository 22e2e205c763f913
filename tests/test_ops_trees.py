"""Tree ensembles and the other operators of ai.onnx.ml against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.numpy_helper
import pytest

import tilewright.ops.classical
import tilewright.ops.trees  # noqa: F401  (registers the operators)
from operator_oracle import check, normal, own, runtime
from tilewright.errors import OperatorError, UnsupportedError
from tilewright.ops.forest import MODES

ML = "ai.onnx.ml"
FEATURES = 4
Attributes = dict[str, Any]


def grown(
    trees: int, depth: int, modes: list[str], seed: int = 0, missing: bool = False
) -> tuple[Attributes, list[tuple[int, int]]]:
    """Random trees in the older encoding, and (tree, node) of each leaf."""
    random = np.random.default_rng(seed)
    rows: list[tuple[int, int, int, float, str, int, int, int]] = []
    leaves: list[tuple[int, int]] = []

    def grow(tree: int, level: int, numbers: list[int]) -> int:
        node = len(numbers)
        numbers.append(node)
        place = len(rows)
        rows.append((tree, node, 0, 0.0, "LEAF", 0, 0, 0))
        if level == 0 or (level < depth and random.random() < 0.25):
            leaves.append((tree, node))
            return node
        yes, no = (grow(tree, level - 1, numbers) for _ in range(2))
        mode = modes[random.integers(len(modes))]
        value = float(np.float32(np.round(random.standard_normal(), 1)))
        feature, flag = int(random.integers(FEATURES)), int(missing and random.random() < 0.5)
        rows[place] = (tree, node, feature, value, mode, yes, no, flag)
        return node

    for tree in range(trees):
        grow(tree, depth, [])
    names = "treeids nodeids featureids values modes truenodeids falsenodeids"
    columns = [list(c) for c in zip(*rows, strict=True)]
    attributes: dict[str, Any] = {
        f"nodes_{n}": c for n, c in zip(names.split(), columns, strict=False)
    }
    if missing:
        attributes["nodes_missing_value_tracks_true"] = columns[7]
    return attributes, leaves


def weighted(
    prefix: str,
    leaves: list[tuple[int, int]],
    targets: int,
    every: bool,
    seed: int = 1,
    positive: bool = False,
) -> Attributes:
    """Random leaf weights: one for each leaf, or one for each leaf and target."""
    random = np.random.default_rng(seed)
    entries = [
        (*leaf, t)
        for leaf in leaves
        for t in (range(targets) if every else [int(random.integers(targets))])
    ]
    weights: np.ndarray = random.standard_normal(len(entries)).astype(np.float32)
    weights = np.abs(weights) / 10 if positive else weights
    where, at, what = (list(c) for c in zip(*entries, strict=True))
    return {
        f"{prefix}_treeids": where,
        f"{prefix}_nodeids": at,
        f"{prefix}_ids": what,
        f"{prefix}_weights": [float(w) for w in weights],
    }


def rows(count: int, seed: int = 2, missing: bool = False) -> np.ndarray:
    x: np.ndarray = np.round(normal(count, FEATURES, seed=seed), 1)
    if missing:
        x[np.random.default_rng(seed).random(x.shape) < 0.2] = np.nan
    return x


SAME, MIXED = ["BRANCH_LEQ"], list(MODES[:-1])


@pytest.mark.parametrize("modes", [SAME, ["BRANCH_LT"], MIXED])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_regressor(modes: list[str], every: bool, aggregate: str) -> None:
    nodes, leaves = grown(3, 3, modes)
    weights = weighted("target", leaves, 2 if every else 1, every)
    more: dict[str, Any] = {"n_targets": 2 if every else 1, "aggregate_function": aggregate}
    check("TreeEnsembleRegressor", [rows(19)], domain=ML, **nodes, **weights, **more)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
def test_regressor_transforms(transform: str) -> None:
    nodes, leaves = grown(2, 2, SAME)
    weights = weighted("target", leaves, 3, True)
    more: dict[str, Any] = {
        "n_targets": 3,
        "base_values": [0.5, -0.25, 1.0],
        "post_transform": transform,
    }
    check("TreeEnsembleRegressor", [rows(5)], domain=ML, **nodes, **weights, **more)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int32])
def test_regressor_types(dtype: Any) -> None:
    """ONNX Runtime has no integers here; float32 holds these exactly."""
    nodes, leaves = grown(2, 3, SAME)
    weights = weighted("target", leaves, 1, False)
    x = np.round(rows(7) * 3)
    wanted = runtime("TreeEnsembleRegressor", [x], 1, ML, n_targets=1, **nodes, **weights)[0]
    actual = own(
        "TreeEnsembleRegressor", [x.astype(dtype)], 1, ML, n_targets=1, **nodes, **weights
    )[0]
    np.testing.assert_allclose(actual, wanted, rtol=1e-6)


@pytest.mark.parametrize("modes", [SAME, MIXED])
def test_missing_values(modes: list[str]) -> None:
    nodes, leaves = grown(4, 3, modes, missing=True)
    weights = weighted("target", leaves, 1, False)
    check(
        "TreeEnsembleRegressor",
        [rows(20, missing=True)],
        domain=ML,
        n_targets=1,
        **nodes,
        **weights,
    )


def test_trees_of_different_depth_and_a_lone_leaf() -> None:
    nodes, leaves = grown(1, 5, SAME)
    for name, value in zip(list(nodes), (7, 0, 0, 0.0, "LEAF", 0, 0), strict=True):
        nodes[name].append(value)
    weights = weighted("target", [*leaves, (7, 0)], 1, False)
    check("TreeEnsembleRegressor", [rows(6)], domain=ML, n_targets=1, **nodes, **weights)


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_classifier(transform: str) -> None:
    nodes, leaves = grown(3, 3, SAME)
    weights = weighted("class", leaves, 3, True)
    more: dict[str, Any] = {"classlabels_int64s": [7, 3, 5], "post_transform": transform}
    check("TreeEnsembleClassifier", [rows(12)], 2, domain=ML, opset=3, **nodes, **weights, **more)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
def test_binary_classifier_with_one_score(positive: bool, transform: str) -> None:
    nodes, leaves = grown(3, 3, SAME)
    weights = weighted("class", leaves, 1, False, positive=positive)
    more: dict[str, Any] = {
        "classlabels_int64s": [4, 9],
        "post_transform": transform,
        "base_values": [0.1],
    }
    check("TreeEnsembleClassifier", [rows(12)], 2, domain=ML, opset=3, **nodes, **weights, **more)


def test_text_labels_are_left_to_others() -> None:
    nodes, leaves = grown(1, 2, SAME)
    weights = weighted("class", leaves, 2, True)
    with pytest.raises(UnsupportedError):
        own(
            "TreeEnsembleClassifier",
            [rows(2)],
            2,
            domain=ML,
            classlabels_strings=("a", "b"),
            **nodes,
            **weights,
        )


def ensemble(modes: list[int], dtype: Any = np.float32) -> Attributes:
    """Two trees in the newer encoding: three tests and four leaves, then one and two."""
    return {
        "nodes_splits": np.array([0.2, -0.3, 0.5, 0.1], dtype),
        "nodes_featureids": [0, 1, 2, 3],
        "nodes_modes": np.array(modes, np.uint8),
        "nodes_truenodeids": [1, 0, 2, 4],
        "nodes_falsenodeids": [2, 1, 3, 5],
        "nodes_trueleafs": [0, 1, 1, 1],
        "nodes_falseleafs": [0, 1, 1, 1],
        "leaf_targetids": [0, 1, 0, 1, 1, 0],
        "leaf_weights": np.array([5.0, -2.0, 3.0, 0.25, 1.5, -4.0], dtype),
        "tree_roots": [0, 3],
        "n_targets": 2,
    }


def as_proto(attributes: Attributes) -> Attributes:
    return {
        k: onnx.numpy_helper.from_array(v, k) if isinstance(v, np.ndarray) else v
        for k, v in attributes.items()
    }


@pytest.mark.parametrize("modes", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 2, 3, 1], [4, 5, 0, 3]])
@pytest.mark.parametrize("aggregate", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ensemble(modes: list[int], aggregate: int, dtype: Any) -> None:
    given = {**ensemble(modes, dtype), "aggregate_function": aggregate}
    x = rows(9).astype(dtype)
    wanted = runtime("TreeEnsemble", [x], 1, ML, 5, **as_proto(given))
    np.testing.assert_allclose(
        own("TreeEnsemble", [x], domain=ML, **given)[0], wanted[0], rtol=1e-6
    )


def reference(x: np.ndarray, given: Attributes, sets: list[set[float]]) -> np.ndarray:
    """A direct reading of the specification for ensembles that sum."""
    modes, compare = given["nodes_modes"], ["le", "lt", "ge", "gt", "eq", "ne"]
    order = {int(node): k for k, node in enumerate(np.flatnonzero(modes == 6))}

    def passes(node: int, value: Any) -> bool:
        if modes[node] == 6:
            return float(value) in sets[order[node]]
        return bool(getattr(value, f"__{compare[modes[node]]}__")(given["nodes_splits"][node]))

    result = np.zeros((len(x), given["n_targets"]), x.dtype)
    for n, row in enumerate(x):
        for node in given["tree_roots"]:
            leaf = False
            while not leaf:
                side = "true" if passes(node, row[given["nodes_featureids"][node]]) else "false"
                leaf = bool(given[f"nodes_{side}leafs"][node])
                node = given[f"nodes_{side}nodeids"][node]
            result[n, given["leaf_targetids"][node]] += given["leaf_weights"][node]
    return result


def test_membership() -> None:
    given = ensemble([6, 0, 6, 6])
    values = [0.5, 1.0, 2.0, np.nan, 0.25, np.nan, np.nan]
    x = np.random.default_rng(3).choice(np.array([0.25, 0.5, 1.0, 2.0], np.float32), (30, 4))
    actual = own(
        "TreeEnsemble", [x], domain=ML, membership_values=np.array(values, np.float32), **given
    )
    np.testing.assert_allclose(actual[0], reference(x, given, [{0.5, 1.0, 2.0}, {0.25}, set()]))


BROKEN: list[tuple[str, Any]] = [
    ("nodes_truenodeids", [0, 0, 2, 4]),  # the root is its own child
    ("nodes_truenodeids", [2, 0, 2, 4]),  # two ways to a node
    ("nodes_truenodeids", [9, 0, 2, 4]),
    ("nodes_truenodeids", [1, 6, 2, 4]),
    ("nodes_truenodeids", [1, -1, 2, 4]),
    ("nodes_truenodeids", [1, 0, 2]),
    ("nodes_featureids", [0, 1, 2, 4]),
    ("nodes_featureids", [0, 1, 2, -1]),
    ("leaf_targetids", [0, 1, 0, 2, 1, 0]),
    ("leaf_targetids", [0, 1, 0]),
    ("tree_roots", [0, 4]),
    ("tree_roots", [0, 1]),
    ("tree_roots", [-1]),
    ("nodes_modes", np.array([0, 0, 0, 7], np.uint8)),
    ("nodes_modes", np.array([0, 0, 0, 6], np.uint8)),
    ("nodes_splits", np.zeros(3, np.float32)),
    ("n_targets", 0),
    ("aggregate_function", 4),
    ("post_transform", -1),
]


@pytest.mark.parametrize(("name", "value"), BROKEN)
def test_broken_tables_are_refused(name: str, value: Any) -> None:
    with pytest.raises(OperatorError):
        own("TreeEnsemble", [rows(2)], domain=ML, **{**ensemble([0] * 4), name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("truenodeids", 99),
        ("nodeids", 1),
        ("modes", "BRANCH_MEMBER"),
        ("modes", "SIDEWAYS"),
        ("featureids", 4),
    ],
)
def test_broken_nodes_are_refused(name: str, value: Any) -> None:
    nodes, leaves = grown(2, 2, SAME)
    nodes[f"nodes_{name}"][0] = value
    with pytest.raises(OperatorError):
        own(
            "TreeEnsembleRegressor",
            [rows(2)],
            domain=ML,
            n_targets=1,
            **nodes,
            **weighted("target", leaves, 1, False),
        )


def test_weights_of_no_leaf_are_refused() -> None:
    nodes, leaves = grown(2, 2, SAME)
    for wrong in ((0, 0), (5, 0), (0, 77)):
        weights = weighted("target", [*leaves, wrong], 1, False)
        with pytest.raises(OperatorError):
            own("TreeEnsembleRegressor", [rows(2)], domain=ML, n_targets=1, **nodes, **weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_scaler(dtype: Any) -> None:
    x = (normal(3, 4) * 5).astype(dtype)
    check("Scaler", [x], domain=ML, offset=[0.5, 1.0, 0.0, -1.0], scale=[2.0, 1.0, 0.5, 3.0])
    check("Scaler", [x], domain=ML, offset=[0.5], scale=[2.0])


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm: str) -> None:
    check("Normalizer", [np.abs(normal(3, 5))], domain=ML, norm=norm)


def test_binarizer() -> None:
    check("Binarizer", [normal(3, 5)], domain=ML, threshold=0.25)


def test_imputer() -> None:
    x = np.array([[1.0, np.nan], [np.nan, -2.0]], np.float32)
    more: dict[str, Any] = {
        "replaced_value_float": float("nan"),
        "imputed_value_floats": [5.0, 6.0],
    }
    check("Imputer", [x], domain=ML, **more)
    whole: dict[str, Any] = {"replaced_value_int64": 3, "imputed_value_int64s": [9]}
    check("Imputer", [np.array([[3, 1], [2, 3]], np.int64)], domain=ML, **whole)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_array_feature_extractor(shape: tuple[int, ...]) -> None:
    check("ArrayFeatureExtractor", [normal(*shape), np.array([4, 0, 0], np.int64)], domain=ML)


def test_feature_vectorizer() -> None:
    operands = [normal(2, 3), normal(2, 1, seed=1), normal(2, 2, seed=2)]
    check("FeatureVectorizer", operands, domain=ML, inputdimensions=[3, 1, 2])


def test_one_hot_encoder() -> None:
    check("OneHotEncoder", [np.array([[3, 1], [7, 2]], np.int64)], domain=ML, cats_int64s=[1, 2, 3])


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_linear_models(transform: str) -> None:
    numbers = [float(v) for v in normal(12, seed=4)]
    more: dict[str, Any] = {
        "coefficients": numbers,
        "intercepts": [0.1, 0.2, 0.3],
        "post_transform": transform,
    }
    check("LinearRegressor", [normal(5, 4)], domain=ML, targets=3, **more)
    check("LinearClassifier", [normal(5, 4)], 2, domain=ML, classlabels_ints=[4, 5, 6], **more)


def test_linear_classifier_of_two_classes_with_one_score() -> None:
    more: dict[str, Any] = {
        "coefficients": [0.5, -1.0, 2.0],
        "intercepts": [0.1],
        "classlabels_ints": [0, 1],
    }
    check("LinearClassifier", [normal(9, 3)], 2, domain=ML, post_transform="LOGISTIC", **more)


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "POLY", "SIGMOID"])
def test_svm_regressor(kernel: str) -> None:
    more: dict[str, Any] = {
        "kernel_type": kernel,
        "kernel_params": [0.3, 0.5, 2.0],
        "n_supports": 6,
        "support_vectors": [float(v) for v in normal(18, seed=3)],
        "coefficients": [float(v) for v in normal(6, seed=4)],
        "rho": [0.2],
    }
    check("SVMRegressor", [normal(5, 3)], domain=ML, tolerance=1e-4, **more)


def test_label_encoder() -> None:
    text = np.array([["b", "a"], ["c", "b"]], object)
    more: dict[str, Any] = {
        "keys_strings": ["a", "b"],
        "values_int64s": [10, 20],
        "default_int64": -7,
    }
    check("LabelEncoder", [text], domain=ML, **more)
    floats: dict[str, Any] = {
        "keys_floats": [1.5, float("nan")],
        "values_floats": [2.0, 3.0],
        "default_float": 9.0,
    }
    check("LabelEncoder", [np.array([1.5, np.nan, 4.0], np.float32)], domain=ML, **floats)
