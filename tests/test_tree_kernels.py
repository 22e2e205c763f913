"""Forests against a plain walk over their nodes: every kind of test, missing values, all shapes of
trees and numbers of rows, by the interpreter and by kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import tilewright as tw
from operator_oracle import own
from tilewright.errors import UnsupportedError
from tilewright.ops import tree_tables
from tilewright.ops.tree_walk import LOCAL_BYTES

ML = "ai.onnx.ml"
MEMBER = 6
TINY = 5e-324
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, math.inf, -math.inf, math.nan, TINY, -TINY, 3e38]
Attributes = dict[str, Any]


class Grown:
    """Random trees in the newer encoding: nodes of which either side may be a leaf."""

    def __init__(
        self,
        random: np.random.Generator,
        trees: int,
        depth: int,
        *,
        features: int = 3,
        targets: int = 1,
        modes: tuple[int, ...] = (0,),
        missing: bool = False,
        dtype: Any = np.float32,
        share: bool = False,
    ) -> None:
        self.random, self.features, self.targets, self.modes = random, features, targets, modes
        self.missing, self.dtype, self.share = missing, dtype, share
        self.nodes: list[list[Any]] = []  # feature, threshold, mode, missing, children, leaf flags
        self.leaves: list[tuple[int, float]] = []
        self.members: list[list[float]] = []
        self.roots = [self._node(depth) for _ in range(trees)]

    def _value(self) -> float:
        if self.random.random() < 0.5:
            return float(self.dtype(self.random.choice(SPECIAL)))
        return float(self.dtype(self.random.standard_normal()))

    def _node(self, depth: int) -> int:
        at = len(self.nodes)
        self.nodes.append([])
        sides = [self._side(depth - 1) for _ in range(2)]
        mode = int(self.random.choice(self.modes))
        self.nodes[at] = [
            int(self.random.integers(self.features)),
            self._value(),
            mode,
            int(self.missing and self.random.random() < 0.5),
            [s[0] for s in sides],
            [s[1] for s in sides],
        ]
        return at

    def _side(self, depth: int) -> tuple[int, int]:
        if depth <= 0 or self.random.random() < 0.2:
            if not (self.share and self.leaves and self.random.random() < 0.5):
                target = int(self.random.integers(self.targets))
                self.leaves.append((target, float(self.random.integers(-8, 8)) / 4))
                return len(self.leaves) - 1, 1
            return int(self.random.integers(len(self.leaves))), 1
        return self._node(depth), 0

    def attributes(self, **more: Any) -> Attributes:
        """What the operator takes; sets of members are drawn here, in the order of nodes."""
        columns = list(zip(*self.nodes, strict=True))
        self.members = [
            [self._value() for _ in range(self.random.integers(0, 4))]
            for m in columns[2]
            if m == MEMBER
        ]
        self.members = [[v for v in s if not math.isnan(v)] for s in self.members]
        given = {
            "nodes_featureids": list(columns[0]),
            "nodes_splits": np.array(columns[1], self.dtype),
            "nodes_modes": np.array(columns[2], np.uint8),
            "nodes_falsenodeids": [c[0] for c in columns[4]],
            "nodes_truenodeids": [c[1] for c in columns[4]],
            "nodes_falseleafs": [c[0] for c in columns[5]],
            "nodes_trueleafs": [c[1] for c in columns[5]],
            "leaf_targetids": [t for t, _ in self.leaves],
            "leaf_weights": np.array([w for _, w in self.leaves], self.dtype),
            "tree_roots": self.roots,
            "n_targets": self.targets,
            **more,
        }
        if self.missing:
            given["nodes_missing_value_tracks_true"] = list(columns[3])
        if self.members:
            flat = [v for s in self.members for v in (*s, math.nan)]
            given["membership_values"] = np.array(flat, self.dtype)
        return given

    def rows(self, count: int) -> np.ndarray:
        """Rows whose values lie on thresholds, right beside them and anywhere."""
        near = np.array([n[1] for n in self.nodes] + SPECIAL, self.dtype)
        with np.errstate(all="ignore"):
            sides = [
                near,
                np.nextafter(near, self.dtype(np.inf)),
                np.nextafter(near, self.dtype(-np.inf)),
            ]
        return self.random.choice(np.concatenate(sides), (count, self.features))

    def walked(self, x: np.ndarray, aggregate: int = 1) -> np.ndarray:
        """The operator's result by its definition."""
        sets = iter(self.members)
        members = [next(sets) if n[2] == MEMBER else [] for n in self.nodes]
        result = np.zeros((len(x), self.targets), self.dtype)
        for row, values in enumerate(x):
            found: list[list[float]] = [[] for _ in range(self.targets)]
            for root in self.roots:
                at, leaf = root, 0
                while not leaf:
                    feature, t, mode, missing, child, leaves = self.nodes[at]
                    side = _passes(float(values[feature]), t, mode, missing, members[at])
                    at, leaf = child[side], leaves[side]
                found[self.leaves[at][0]].append(self.leaves[at][1])
            result[row] = [self._combined(v, aggregate) if v else 0 for v in found]
        return result

    def _combined(self, found: list[float], aggregate: int) -> float:
        if aggregate > 1:
            return min(found) if aggregate == 2 else max(found)
        return sum(found) / (1 if aggregate else len(self.roots))


def _passes(v: float, t: float, mode: int, missing: int, members: list[float]) -> bool:
    if math.isnan(v) and missing:
        return True
    return [v <= t, v < t, v >= t, v > t, v == t, v != t, v in members][mode]


def compiled(given: Attributes, dtype: Any) -> Any:
    """A model of one TreeEnsemble."""
    attributes = {
        k: numpy_helper.from_array(v, k) if isinstance(v, np.ndarray) else v
        for k, v in given.items()
    }
    node = helper.make_node("TreeEnsemble", ["x"], ["y"], domain=ML, **attributes)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = helper.make_tensor_value_info("x", kind, ["n", None])
    y = helper.make_tensor_value_info("y", kind, ["n", None])
    graph = helper.make_graph([node], "g", [x], [y])
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(ML, 5)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return tw.compile(model, threads=2)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    trees=st.integers(1, 5),
    depth=st.integers(1, 5),
    targets=st.integers(1, 3),
    modes=st.sets(st.integers(0, MEMBER), min_size=1).map(sorted).map(tuple),
    missing=st.booleans(),
    share=st.booleans(),
    dtype=st.sampled_from((np.float32, np.float64)),
    aggregate=st.integers(0, 3),
    count=st.integers(1, 9),
)
def test_any_forest_is_a_walk(
    seed: int,
    trees: int,
    depth: int,
    targets: int,
    modes: tuple[int, ...],
    missing: bool,
    share: bool,
    dtype: Any,
    aggregate: int,
    count: int,
) -> None:
    forest = Grown(
        np.random.default_rng(seed),
        trees,
        depth,
        targets=targets,
        modes=modes,
        missing=missing,
        dtype=dtype,
        share=share,
    )
    given_ = forest.attributes(aggregate_function=aggregate)
    x = forest.rows(count)
    actual = own("TreeEnsemble", [x], domain=ML, **given_)[0]
    np.testing.assert_allclose(actual, forest.walked(x, aggregate), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 45, 1000])
def test_kernels_walk_any_number_of_rows(count: int, dtype: Any) -> None:
    random = np.random.default_rng(count)
    forest = Grown(
        random, 21, 6, features=5, targets=2, modes=(0, 1, 2, 3, 4, 5), missing=True, dtype=dtype
    )
    model = compiled(forest.attributes(), dtype)
    x = forest.rows(count)
    for _ in range(2):
        np.testing.assert_allclose(model(x), forest.walked(x), rtol=1e-6)


@pytest.mark.parametrize("aggregate", [0, 2, 3])
def test_kernels_aggregate(aggregate: int) -> None:
    forest = Grown(np.random.default_rng(aggregate), 5, 3, targets=3, modes=(0, 6))
    model = compiled(forest.attributes(aggregate_function=aggregate), np.float32)
    x = forest.rows(20)
    np.testing.assert_allclose(model(x), forest.walked(x, aggregate), rtol=1e-6)


@pytest.mark.parametrize("aggregate", [0, 1, 2, 3])
@pytest.mark.parametrize(("trees", "count"), [(61, 16), (97, 40), (1000, 1)])
def test_tasks_share_the_trees_of_few_rows(trees: int, count: int, aggregate: int) -> None:
    forest = Grown(np.random.default_rng(trees), trees, 2, targets=2, missing=True)
    model = compiled(forest.attributes(aggregate_function=aggregate), np.float32)
    x = forest.rows(count)
    np.testing.assert_allclose(model(x), forest.walked(x, aggregate), rtol=1e-5, atol=1e-5)
    assert len(model.kernels[0].kernel.outputs) == 1
    (partial,) = (
        b for b in model.kernels[0].kernel.params if b.name in model.kernels[0].kernel.outputs
    )
    assert len(partial.shape) == 3 and partial.shape[0] > 1


def test_a_long_path() -> None:
    """One side of each node is a leaf, so that the walk takes as many steps as there are nodes."""
    forest = Grown(np.random.default_rng(0), 1, 1)
    length = 70
    forest.nodes = [[0, float(k), 0, 0, [k + 1, k], [0, 1]] for k in range(length)]
    forest.nodes[-1][4:] = [[length, length - 1], [1, 1]]
    forest.leaves = [(0, float(k)) for k in range(length + 1)]
    forest.roots = [0]
    x = np.linspace(-1, length + 1, 40, dtype=np.float32)[:, None].repeat(3, axis=1)
    np.testing.assert_array_equal(compiled(forest.attributes(), np.float32)(x), forest.walked(x))


def test_a_tree_may_come_twice() -> None:
    forest = Grown(np.random.default_rng(1), 2, 3)
    forest.roots = [forest.roots[0], forest.roots[1], forest.roots[0]]
    x = forest.rows(5)
    np.testing.assert_allclose(
        own("TreeEnsemble", [x], domain=ML, **forest.attributes())[0], forest.walked(x)
    )


def test_more_features_than_scratch_holds() -> None:
    features = LOCAL_BYTES // 8 + 5
    random = np.random.default_rng(0)
    forest = Grown(random, 1, 1, features=features, dtype=np.float64)
    forest.nodes = [
        [k, float(random.standard_normal()), 0, 0, [2 * k, 2 * k + 1], [1, 1]]
        for k in range(features)
    ]
    forest.leaves = [(0, float(w)) for w in random.integers(-4, 4, 2 * features)]
    forest.roots = list(range(features))
    x = random.standard_normal((3, features))
    model = compiled(forest.attributes(), np.float64)
    np.testing.assert_allclose(model(x), forest.walked(x), rtol=1e-9)


def test_trees_that_are_too_deep_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = Grown(np.random.default_rng(2), 1, 5)
    monkeypatch.setattr(tree_tables, "MOST_LEVELS", 2)
    with pytest.raises(UnsupportedError, match="more than 2 levels"):
        own("TreeEnsemble", [forest.rows(1)], domain=ML, **forest.attributes())
