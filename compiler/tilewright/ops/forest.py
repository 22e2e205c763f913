"""Forests of decision trees, from either of ONNX's encodings, checked so that walking them is safe.

Every path has an end because no node has two parents. The tables that kernels read are made in
tree_tables.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.ops.common import fail

MODES = (
    "BRANCH_LEQ",
    "BRANCH_LT",
    "BRANCH_GTE",
    "BRANCH_GT",
    "BRANCH_EQ",
    "BRANCH_NEQ",
    "BRANCH_MEMBER",
)
LEAST_EQUAL, LESS, AT_LEAST, GREATER, EQUAL, UNEQUAL, MEMBER = range(7)


@dataclass(frozen=True)
class Leaves:
    """What leaves add: the leaf, the target and the weight of each entry."""

    count: int
    leaf: np.ndarray
    target: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Nodes:
    """Interior nodes: their tests and children; a child counts from the first leaf if it is one."""

    feature: np.ndarray
    threshold: np.ndarray
    mode: np.ndarray
    missing: np.ndarray
    child: np.ndarray
    child_is_leaf: np.ndarray


def integers(name: str, values: object, size: int | None = None) -> np.ndarray:
    """An attribute as int64, of the given size."""
    array = np.asarray(() if values is None else values).astype(np.int64).ravel()
    if size is not None and array.size != size:
        raise fail(f"{name} has {array.size} entries where {size} are expected")
    return array


def within(name: str, values: np.ndarray, extent: int) -> None:
    """An error unless all values are in 0 .. extent-1."""
    if values.size and (values.min() < 0 or values.max() >= extent):
        raise fail(f"{name} must lie between 0 and {extent - 1}")


def checked(
    nodes: Nodes,
    leaves: Leaves,
    roots: np.ndarray,
    features: int,
    targets: int,
    members: Sequence[np.ndarray] = (),
) -> Nodes:
    """The nodes, without tests for membership, of a forest that is sound. `roots` count through
    interior nodes and leaves; `members` has the set of each node that tests for membership, in
    their order.
    """
    n = len(nodes.feature)
    within("nodes_featureids", nodes.feature, features)
    within("node modes", nodes.mode, len(MODES))
    within("leaf targets", leaves.target, targets)
    within("tree roots", roots, n + leaves.count)
    within("leaves of nodes", nodes.child[nodes.child_is_leaf], leaves.count)
    within("children of nodes", nodes.child[~nodes.child_is_leaf], n)
    _check_one_parent(nodes, roots)
    sets = np.flatnonzero(nodes.mode == MEMBER)
    if len(sets) != len(members):
        raise fail(f"{len(sets)} nodes test for membership, but there are {len(members)} sets")
    return _with_sets(nodes, sets, members)


def _check_one_parent(nodes: Nodes, roots: np.ndarray) -> None:
    """No interior node is a child twice, or a child and a root: then no walk from a root comes
    back.
    """
    n = len(nodes.feature)
    inner = nodes.child[~nodes.child_is_leaf]
    references = np.bincount(inner, minlength=n)
    references[np.unique(roots[roots < n])] += 1
    if references.size and references.max() > 1:
        raise fail(f"node {int(references.argmax())} of the trees is reached in two ways")


def _with_sets(nodes: Nodes, sets: np.ndarray, members: Sequence[np.ndarray]) -> Nodes:
    """Tests for membership become chains of tests for equality, the later ones behind all nodes."""
    if not len(sets):
        return nodes
    table = {k: list(getattr(nodes, k)) for k in Nodes.__dataclass_fields__}
    for node, values in zip(sets.tolist(), members, strict=True):
        otherwise, leaf = nodes.child[node, 0], nodes.child_is_leaf[node, 0]
        chain = [node, *range(len(table["feature"]), len(table["feature"]) + len(values) - 1)]
        for position, at in enumerate(chain):
            last = position + 1 == len(chain)
            if at == len(table["feature"]):
                for column in table.values():
                    column.append(column[node])
            table["mode"][at] = EQUAL
            table["threshold"][at] = values[position] if len(values) else np.nan
            table["child"][at] = np.array(
                [otherwise if last else chain[position + 1], nodes.child[node, 1]]
            )
            table["child_is_leaf"][at] = np.array([last and leaf, nodes.child_is_leaf[node, 1]])
    return Nodes(**{k: np.array(v, getattr(nodes, k).dtype) for k, v in table.items()})


@dataclass(frozen=True)
class Lookup:
    """Finds nodes by the identifiers of their tree and within it."""

    trees: np.ndarray
    low: int
    span: int
    order: np.ndarray
    keys: np.ndarray

    @staticmethod
    def of(trees: np.ndarray, ids: np.ndarray) -> Lookup:
        """The nodes that have these identifiers, each pair once."""
        known = np.unique(trees)
        low = int(ids.min(initial=0))
        span = int(ids.max(initial=0)) - low + 1
        if span * max(len(known), 1) >= 1 << 62:
            raise fail("node identifiers are out of range")
        keys = np.searchsorted(known, trees) * span + (ids - low)
        order = np.argsort(keys, kind="stable")
        if (np.diff(keys[order]) == 0).any():
            raise fail("two nodes of a tree have the same identifier")
        return Lookup(known, low, span, order, keys[order])

    def find(self, trees: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The positions of nodes; an error if one does not exist."""
        tree = np.searchsorted(self.trees, trees)
        wanted = tree * self.span + (ids - self.low)
        at = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
        known = (ids >= self.low) & (ids < self.low + self.span) & (tree < len(self.trees))
        if wanted.size and not (known.all() and (self.keys[at] == wanted).all()):
            raise fail("a tree refers to a node that does not exist")
        if wanted.size and (self.trees[tree] != trees).any():
            raise fail("a weight refers to a tree that does not exist")
        found: np.ndarray = self.order[at]
        return found
