"""Tables of a forest of decision trees, from either of ONNX's encodings, checked so that walking
them is safe.

Interior nodes come first, then leaves, which are their own children: a walk may take more steps
than its path is long. Every path has an end because no node has two parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.errors import UnsupportedError
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
EQUAL, MEMBER = 4, 6
MOST_LEVELS = 10_000
MOST_ENTRIES = 1 << 27


@dataclass(frozen=True)
class Forest:
    """Node tables (`children[:, 1]` is the branch taken when the test holds), tree tables and leaf
    tables.
    """

    feature: np.ndarray
    threshold: np.ndarray
    mode: np.ndarray
    missing: np.ndarray  # whether a NaN passes the test
    children: np.ndarray
    roots: np.ndarray
    depth: np.ndarray  # tests on the longest path of each tree
    targets: np.ndarray  # [leaf, entry]
    weights: np.ndarray  # [leaf, entry]; entries that a leaf lacks weigh `absent`

    @property
    def interior(self) -> int:
        return len(self.feature) - len(self.targets)


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


def build(
    nodes: Nodes,
    leaves: Leaves,
    roots: np.ndarray,
    features: int,
    targets: int,
    absent: float,
    members: Sequence[np.ndarray] = (),
) -> Forest:
    """The tables. `roots` count through interior nodes and leaves; `members` has the set of each
    node that tests for membership, in their order.
    """
    n = len(nodes.feature)
    within("nodes_featureids", nodes.feature, features)
    within("node modes", nodes.mode, len(MODES))
    within("leaf targets", leaves.target, targets)
    within("tree roots", roots, n + leaves.count)
    within("leaves of nodes", nodes.child[nodes.child_is_leaf], leaves.count)
    within("children of nodes", nodes.child[~nodes.child_is_leaf], n)
    _check_one_parent(nodes, roots)
    costs = np.ones(n, np.int64)
    sets = np.flatnonzero(nodes.mode == MEMBER)
    if len(sets) != len(members):
        raise fail(f"{len(sets)} nodes test for membership, but there are {len(members)} sets")
    costs[sets] = [max(len(m), 1) for m in members]
    depth = _depths(nodes, roots, costs)
    wide = _with_sets(nodes, sets, members)
    return _tables(wide, n, leaves, roots, depth, absent)


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


def _depths(nodes: Nodes, roots: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The tests on the longest path of each tree, a node counting `costs`."""
    depth = np.zeros(len(roots), np.int64)
    tree = np.flatnonzero(roots < len(nodes.feature))
    at, length = roots[tree], np.zeros(len(tree), np.int64)
    for _ in range(MOST_LEVELS):
        if not at.size:
            return depth
        length = length + costs[at]
        np.maximum.at(depth, tree, length)
        below = ~nodes.child_is_leaf[at]
        tree, length = (np.repeat(v, 2)[below.ravel()] for v in (tree, length))
        at = nodes.child[at][below]
    raise UnsupportedError(f"a tree of more than {MOST_LEVELS} levels")


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


def _tables(
    nodes: Nodes, before: int, leaves: Leaves, roots: np.ndarray, depth: np.ndarray, absent: float
) -> Forest:
    n, count = len(nodes.feature), leaves.count
    own = n + np.arange(count, dtype=np.int64)
    children = np.concatenate([nodes.child + nodes.child_is_leaf * n, np.stack([own, own], axis=1)])
    targets, weights = _entries(leaves, absent)

    def padded(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.zeros(count, values.dtype)])

    return Forest(
        feature=padded(nodes.feature).astype(np.int32),
        threshold=padded(nodes.threshold),
        mode=padded(nodes.mode).astype(np.int32),
        missing=padded(nodes.missing),
        children=children.astype(np.int32),
        roots=np.where(roots >= before, roots - before + n, roots).astype(np.int32),
        depth=depth.astype(np.int32),
        targets=targets.astype(np.int32),
        weights=weights,
    )


def _entries(leaves: Leaves, absent: float) -> tuple[np.ndarray, np.ndarray]:
    """Targets and weights by leaf, each row as long as the longest."""
    counts = np.bincount(leaves.leaf, minlength=leaves.count)
    most = max(int(counts.max(initial=0)), 1)
    if leaves.count * most > MOST_ENTRIES:
        raise UnsupportedError(f"{leaves.count} leaves with up to {most} weights each")
    order = np.argsort(leaves.leaf, kind="stable")
    row = leaves.leaf[order]
    position = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    targets = np.zeros((leaves.count, most), np.int64)
    weights = np.full((leaves.count, most), absent, leaves.weight.dtype)
    targets[row, position] = leaves.target[order]
    weights[row, position] = leaves.weight[order]
    return targets, weights


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
