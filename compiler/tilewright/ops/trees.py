"""Tree ensembles of ai.onnx.ml, in both of its encodings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import cast, fail, select
from tilewright.ops.forest import (
    MEMBER,
    MODES,
    Leaves,
    Lookup,
    Nodes,
    checked,
    integers,
    within,
)
from tilewright.ops.registry import op
from tilewright.ops.scores import binary_scores, labels_of, post_transformed
from tilewright.ops.tensor import Tensor, compute, constant
from tilewright.ops.tree_tables import Forest, tables
from tilewright.ops.tree_walk import Walk, walk_type

AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


class NodeAttributes(TypedDict, total=False):
    """The attributes that describe trees in the older encoding, as ONNX names them."""

    nodes_falsenodeids: Sequence[int]
    nodes_featureids: Sequence[int]
    nodes_hitrates: Sequence[float] | None
    nodes_hitrates_as_tensor: np.ndarray | None
    nodes_missing_value_tracks_true: Sequence[int] | None
    nodes_modes: Sequence[str]
    nodes_nodeids: Sequence[int]
    nodes_treeids: Sequence[int]
    nodes_truenodeids: Sequence[int]
    nodes_values: Sequence[float] | None
    nodes_values_as_tensor: np.ndarray | None


@op("TreeEnsemble", "ai.onnx.ml")
def tree_ensemble(
    x: Tensor,
    *,
    nodes_splits: np.ndarray,
    nodes_featureids: Sequence[int],
    nodes_modes: np.ndarray,
    nodes_truenodeids: Sequence[int],
    nodes_falsenodeids: Sequence[int],
    nodes_trueleafs: Sequence[int],
    nodes_falseleafs: Sequence[int],
    leaf_targetids: Sequence[int],
    leaf_weights: np.ndarray,
    tree_roots: Sequence[int],
    aggregate_function: int = 1,
    membership_values: np.ndarray | None = None,
    n_targets: int | None = None,
    nodes_hitrates: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    post_transform: int = 0,
) -> Tensor:
    """The aggregate over all trees of the leaf that each row reaches.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html
    """
    if not 0 <= aggregate_function < len(AGGREGATES) or not 0 <= post_transform < len(TRANSFORMS):
        raise fail(
            f"aggregate_function {aggregate_function} or post_transform {post_transform} is unknown"
        )
    features = _features(x)
    dtype = walk_type(x)
    mode = integers("nodes_modes", nodes_modes)
    n = mode.size
    child = [integers("children", ids, n) for ids in (nodes_falsenodeids, nodes_truenodeids)]
    is_leaf = [
        integers("leaf flags", flags, n) != 0 for flags in (nodes_falseleafs, nodes_trueleafs)
    ]
    nodes = Nodes(
        feature=integers("nodes_featureids", nodes_featureids, n),
        threshold=_floats("nodes_splits", nodes_splits, dtype, n),
        mode=mode,
        missing=_flags(nodes_missing_value_tracks_true, n),
        child=np.stack(child, axis=1),
        child_is_leaf=np.stack(is_leaf, axis=1),
    )
    target = integers("leaf_targetids", leaf_targetids)
    weight = _floats("leaf_weights", leaf_weights, dtype, target.size)
    leaves = Leaves(target.size, np.arange(target.size), target, weight)
    count = int(target.max(initial=0)) + 1 if n_targets is None else n_targets
    aggregate = AGGREGATES[aggregate_function]
    roots = integers("tree_roots", tree_roots)
    within("tree_roots", roots, n)
    sets = _sets(membership_values)
    nodes = checked(nodes, leaves, roots, features, count, sets)
    forest = tables(nodes, leaves, roots, _absent(aggregate))
    scores = _aggregated(x, forest, count, aggregate, x.dtype if x.dtype.is_float else dtype)
    return post_transformed(scores, TRANSFORMS[post_transform])


@op("TreeEnsembleRegressor", "ai.onnx.ml")
def tree_ensemble_regressor(
    x: Tensor,
    *,
    aggregate_function: str = "SUM",
    base_values: Sequence[float] | None = None,
    base_values_as_tensor: np.ndarray | None = None,
    n_targets: int | None = None,
    post_transform: str = "NONE",
    target_ids: Sequence[int] = (),
    target_nodeids: Sequence[int] = (),
    target_treeids: Sequence[int] = (),
    target_weights: Sequence[float] | None = None,
    target_weights_as_tensor: np.ndarray | None = None,
    **nodes: Unpack[NodeAttributes],
) -> Tensor:
    """The aggregate over all trees of the leaf that each row reaches, plus base values.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleRegressor.html
    """
    if aggregate_function not in AGGREGATES:
        raise fail(f"aggregate_function {aggregate_function!r} is unknown")
    targets = integers("target_ids", target_ids)
    count = int(targets.max(initial=0)) + 1 if n_targets is None else n_targets
    weights = _either(target_weights_as_tensor, target_weights)
    entries = _Entries(target_treeids, target_nodeids, targets, weights)
    forest = _classic(x, entries, count, aggregate_function, **nodes)
    scores = _aggregated(x, forest, count, aggregate_function, walk_type(x))
    scores = _with_base(scores, _either(base_values_as_tensor, base_values))
    result = post_transformed(scores, post_transform)
    return (
        result
        if result.dtype is DType.F32
        else compute(result.shape, lambda *i: cast(DType.F32, result[i]))
    )


@op("TreeEnsembleClassifier", "ai.onnx.ml")
def tree_ensemble_classifier(
    x: Tensor,
    *,
    base_values: Sequence[float] | None = None,
    base_values_as_tensor: np.ndarray | None = None,
    class_ids: Sequence[int] = (),
    class_nodeids: Sequence[int] = (),
    class_treeids: Sequence[int] = (),
    class_weights: Sequence[float] | None = None,
    class_weights_as_tensor: np.ndarray | None = None,
    classlabels_int64s: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    post_transform: str = "NONE",
    **nodes: Unpack[NodeAttributes],
) -> tuple[Tensor, Tensor]:
    """The label with the greatest sum over all trees, and the sums after the transform.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleClassifier.html
    """
    if classlabels_strings or not classlabels_int64s or len(classlabels_int64s) < 2:
        raise UnsupportedError("a tree classifier without at least two integer labels")
    ids, classes = integers("class_ids", class_ids), len(classlabels_int64s)
    weights = _either(class_weights_as_tensor, class_weights)
    entries = _Entries(class_treeids, class_nodeids, ids, weights)
    forest = _classic(x, entries, classes, "SUM", **nodes)
    single = classes == 2 and np.unique(ids).size == 1
    scores = _aggregated(x, forest, classes, "SUM", walk_type(x))
    base = _either(base_values_as_tensor, base_values)
    if single:
        positive = bool(np.asarray(weights).min(initial=0.0) >= 0)
        return binary_scores(
            scores, int(ids[0]), base, positive, post_transform, classlabels_int64s
        )
    scores = _with_base(scores, base)
    narrow = compute(scores.shape, lambda *i: cast(DType.F32, scores[i]))
    return labels_of(narrow, classlabels_int64s), post_transformed(narrow, post_transform)


def _features(x: Tensor) -> int:
    if x.rank != 2:
        raise fail(f"a tree ensemble needs a matrix, not an operand of shape {x.shape}")
    return x.shape[1]


def _either(
    tensor: np.ndarray | None, values: Sequence[float] | None
) -> np.ndarray | Sequence[float]:
    """An attribute that exists as a tensor and as a list."""
    return tensor if tensor is not None and tensor.size else values if values is not None else ()


def _floats(name: str, values: object, dtype: DType, size: int) -> np.ndarray:
    array = np.asarray(values).astype(dtype.numpy).ravel()
    if array.size != size:
        raise fail(f"{name} has {array.size} entries where {size} are expected")
    return array


def _flags(values: Sequence[int] | None, size: int) -> np.ndarray:
    if values is None or len(values) == 0:
        return np.zeros(size, np.bool_)
    flags: np.ndarray = integers("nodes_missing_value_tracks_true", values, size) != 0
    return flags


def _sets(values: np.ndarray | None) -> list[np.ndarray]:
    """The sets of a list in which each one ends with a NaN."""
    if values is None or values.size == 0:
        return []
    flat = values.ravel()
    ends = np.flatnonzero(np.isnan(flat))
    sets = [flat[a:b] for a, b in zip([0, *(ends + 1)], [*ends, flat.size], strict=True)]
    return sets if sets[-1].size else sets[:-1]


def _absent(aggregate: str) -> float:
    """The weight that changes nothing."""
    return {"MIN": math.inf, "MAX": -math.inf}.get(aggregate, 0.0)


@dataclass(frozen=True)
class _Entries:
    """What leaves add, in the older encoding: tree, node, target and weight of each entry."""

    trees: Sequence[int]
    nodes: Sequence[int]
    targets: np.ndarray
    weights: np.ndarray | Sequence[float]


@dataclass(frozen=True)
class _Numbering:
    """The nodes of the older encoding, leaves among them, which have identifiers of their own."""

    trees: np.ndarray
    lookup: Lookup
    mode: np.ndarray
    is_leaf: np.ndarray

    @classmethod
    def of(cls, trees: Sequence[int], ids: Sequence[int], modes: Sequence[str]) -> _Numbering:
        numbers = {name: k for k, name in enumerate((*MODES, "LEAF"))}
        mode = np.array([numbers.get(m, len(numbers)) for m in modes], np.int64)
        within("nodes_modes", mode, len(numbers))
        if (mode == MEMBER).any():
            raise fail("this encoding of trees has no sets")
        own = [integers("node identifiers", v, mode.size) for v in (trees, ids)]
        return cls(own[0], Lookup.of(*own), mode, mode == numbers["LEAF"])

    @property
    def inner(self) -> np.ndarray:
        """The interior nodes."""
        return np.flatnonzero(~self.is_leaf)

    @property
    def number(self) -> np.ndarray:
        """Of each node, among the leaves or the interior nodes."""
        leaf = self.is_leaf
        return np.where(leaf, np.cumsum(leaf) - 1, np.cumsum(~leaf) - 1)

    @property
    def roots(self) -> np.ndarray:
        """Each tree's first node, counted through interior nodes and leaves."""
        first = np.unique(self.trees, return_index=True)[1]
        roots: np.ndarray = self.number[first] + self.is_leaf[first] * len(self.inner)
        return roots

    def children(self, ids: Sequence[int]) -> np.ndarray:
        """The nodes that the identifiers of the interior nodes' children mean."""
        inner = self.inner
        wanted = integers("children", ids, self.mode.size)[inner]
        return self.lookup.find(self.trees[inner], wanted)

    def leaves(self, entries: _Entries, dtype: DType) -> Leaves:
        """The leaves with their entries; an error if an entry belongs to no leaf."""
        size = entries.targets.size
        ids = (integers("leaf identifiers", v, size) for v in (entries.trees, entries.nodes))
        at = self.lookup.find(*ids)
        if not self.is_leaf[at].all():
            raise fail("a weight belongs to a node that is no leaf")
        weight = _floats("leaf weights", entries.weights, dtype, size)
        return Leaves(int(self.is_leaf.sum()), self.number[at], entries.targets, weight)


def _classic(
    x: Tensor,
    entries: _Entries,
    count: int,
    aggregate: str,
    *,
    nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (),
    nodes_hitrates: Sequence[float] | None = None,
    nodes_hitrates_as_tensor: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Sequence[int] = (),
    nodes_treeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    nodes_values: Sequence[float] | None = None,
    nodes_values_as_tensor: np.ndarray | None = None,
) -> Forest:
    """The forest of the older encoding."""
    features, dtype, n = _features(x), walk_type(x), len(nodes_modes)
    numbering = _Numbering.of(nodes_treeids, nodes_nodeids, nodes_modes)
    inner = numbering.inner
    below = [numbering.children(ids) for ids in (nodes_falsenodeids, nodes_truenodeids)]
    child = np.stack(below, axis=1)
    values = _either(nodes_values_as_tensor, nodes_values)
    nodes = Nodes(
        feature=integers("nodes_featureids", nodes_featureids, n)[inner],
        threshold=_floats("nodes_values", values, dtype, n)[inner],
        mode=numbering.mode[inner],
        missing=_flags(nodes_missing_value_tracks_true, n)[inner],
        child=numbering.number[child],
        child_is_leaf=numbering.is_leaf[child],
    )
    leaves = numbering.leaves(entries, dtype)
    nodes = checked(nodes, leaves, numbering.roots, features, count)
    return tables(nodes, leaves, numbering.roots, _absent(aggregate))


def _aggregated(x: Tensor, forest: Forest, targets: int, aggregate: str, dtype: DType) -> Tensor:
    """[row, target]: the sum, mean, least or greatest of the weights of the leaves that the row
    reaches; zero for a target that none of these has.
    """
    if targets < 1:
        raise fail(f"{targets} targets")
    if x.shape[0] == 0 or not len(forest.roots):
        return compute((x.shape[0], targets), lambda *i: 0, dtype=dtype)
    monoid = {"MIN": ScalarOp.MIN, "MAX": ScalarOp.MAX}.get(aggregate, ScalarOp.ADD)
    start = _absent(aggregate)
    total = Walk(x, forest, targets, monoid, start).result(dtype)
    if aggregate == "SUM":
        return total
    if aggregate == "AVERAGE":
        return compute(total.shape, lambda *i: total[i] / len(forest.roots))
    return compute(total.shape, lambda *i: select(total[i].eq(start), 0, total[i]))


def _with_base(scores: Tensor, base: np.ndarray | Sequence[float]) -> Tensor:
    """The scores plus base values, one for each target or one for all."""
    values = np.asarray(base).ravel()
    if values.size == 0:
        return scores
    if values.size not in (1, scores.shape[1]):
        raise fail(f"{values.size} base values for {scores.shape[1]} targets")
    table = constant(np.broadcast_to(values, scores.shape[1:]).copy(), scores.dtype)
    return compute(scores.shape, lambda n, t: scores[n, t] + table[t])
