"""The tables in which kernels look up what the trees of a forest say about a row of features.

A walk takes the same step at every record, whatever the node: to the record's child, plus one if
the row's value in the record's column is at most the threshold. So two children lie side by side,
and a leaf is its own child behind a test that always fails. All kinds of tests and both ways of a
missing value (a NaN, which fails every test) are brought into this form: by negating feature and
threshold, by exchanging the children, and a test for equality becomes two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.errors import UnsupportedError
from tilewright.ops.forest import AT_LEAST, EQUAL, GREATER, LESS, UNEQUAL, Leaves, Nodes

MOST_LEVELS = 10_000
MOST_ENTRIES = 1 << 27


@dataclass(frozen=True)
class Forest:
    """Records of nodes, a root and the most steps of each tree, and what leaves add.

    Rows are tested in `features`, negated where `negated` says so; `column` counts through these.
    The last leaf stands for none: its entries weigh `absent`, as do those that other leaves lack.
    The last record but one is that leaf.
    """

    features: np.ndarray
    negated: np.ndarray
    column: np.ndarray
    threshold: np.ndarray
    child: np.ndarray
    leaf: np.ndarray  # the leaf that a record is, if it is one
    roots: np.ndarray
    depth: np.ndarray
    targets: np.ndarray  # [leaf, entry]
    weights: np.ndarray  # [leaf, entry]


@dataclass(frozen=True)
class _Tests:
    """Interior nodes that test `value <= threshold`, the value negated or not; a NaN fails.

    `child[:, 1]` is the branch taken when the test holds; leaves count on behind these nodes.
    """

    feature: np.ndarray
    negated: np.ndarray
    threshold: np.ndarray
    child: np.ndarray


@dataclass(frozen=True)
class _Places:
    """Where records lie: that of each root, the first child's of each node, and which node or leaf
    each record is.
    """

    roots: np.ndarray
    children: np.ndarray
    source: np.ndarray


def tables(nodes: Nodes, leaves: Leaves, roots: np.ndarray, absent: float) -> Forest:
    """The tables of a checked forest; `roots` count through interior nodes, then leaves."""
    tests, before = _plain_tests(nodes), len(nodes.feature)
    n = len(tests.feature)
    distinct, tree = np.unique(
        np.where(roots < before, roots, roots - before + n), return_inverse=True
    )
    owner, level, depth = _levels(tests.child, distinct)
    order = np.argsort(depth, kind="stable")  # trees that are walked at a time are alike
    rank = np.argsort(order)
    distinct, depth = distinct[order], depth[order]
    owner, tree = np.where(owner < 0, owner, rank[owner]), np.sort(rank[tree])
    places = _places(tests.child, distinct, owner, level, n + leaves.count)
    inner, record = places.source < n, np.arange(len(places.source))
    node = places.source[inner]
    tested = tests.feature[node] * 2 + tests.negated[node]
    used, column = np.unique(tested, return_inverse=True)
    targets, weights = _entries(leaves, absent)
    return Forest(
        features=used // 2,
        negated=used % 2 == 1,
        column=_placed(inner, column, np.zeros_like(record)).astype(np.int32),
        threshold=_placed(inner, tests.threshold[node], np.full(len(record), np.nan)).astype(
            tests.threshold.dtype
        ),
        child=_placed(inner, places.children[node], _own(record)).astype(np.int32),
        leaf=np.where(inner, 0, places.source - n).astype(np.int32),
        roots=places.roots[tree].astype(np.int32),
        depth=depth[tree].astype(np.int32),
        targets=targets.astype(np.int32),
        weights=weights,
    )


def _own(record: np.ndarray) -> np.ndarray:
    """Each record as its own child, except the last one: the number after a child is a record."""
    own: np.ndarray = np.minimum(record, len(record) - 2)
    return own


def _placed(where: np.ndarray, values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`others`, with `values` in the places of `where`."""
    result = others.copy()
    result[where] = values
    return result


def _plain_tests(nodes: Nodes) -> _Tests:
    """All tests as comparisons of one kind.

    Where a missing value passes the test, the test is for the opposite, which a NaN fails. To be
    less than a number is to be at most the number before it.
    """
    n, mode, t = len(nodes.feature), nodes.mode, nodes.threshold
    equality = np.flatnonzero((mode == EQUAL) | (mode == UNEQUAL))
    total = n + len(equality)
    child = nodes.child + nodes.child_is_leaf * total
    unequal = mode == UNEQUAL  # not equal, a NaN among them
    child[unequal] = child[unequal][:, ::-1]
    missing = nodes.missing & ~unequal
    strict = ((mode == LESS) | (mode == GREATER)) ^ missing
    negated = (mode == AT_LEAST) | (mode == GREATER)
    negated ^= missing
    negated[equality] = False
    threshold = _limits(np.where(negated, -t, t), strict)
    threshold[missing & np.isnan(t)] = np.inf  # nothing but a NaN passes
    second = child[equality]
    child[equality, 1] = np.arange(n, total)
    child = np.concatenate([child, second])
    opposite = np.concatenate([missing, missing[equality]])
    child[opposite] = child[opposite][:, ::-1]
    return _Tests(
        feature=np.concatenate([nodes.feature, nodes.feature[equality]]),
        negated=np.concatenate([negated, np.ones(len(equality), np.bool_)]),
        threshold=np.concatenate([threshold, _limits(-t[equality], strict[equality])]),
        child=child,
    )


def _limits(t: np.ndarray, strict: np.ndarray) -> np.ndarray:
    """The greatest numbers that are at most, or less than, t; NaN where there is none."""
    below = np.where(np.isneginf(t), np.nan, np.nextafter(t, np.array(-np.inf, t.dtype)))
    limits: np.ndarray = np.where(strict, below, t).astype(t.dtype)
    return limits


def _levels(child: np.ndarray, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each interior node its tree, or -1, and its greatest distance from the root; for each
    tree the tests on its longest path.
    """
    n = len(child)
    owner, level = np.full(n, -1), np.zeros(n, np.int64)
    depth = np.zeros(len(roots), np.int64)
    at = roots[roots < n]
    owner[at] = np.flatnonzero(roots < n)
    for step in range(MOST_LEVELS):
        if not at.size:
            return owner, level, depth
        level[at] = step
        depth[owner[at]] = step + 1
        below, trees = child[at].ravel(), np.repeat(owner[at], 2)
        inner = below < n
        owner[below[inner]] = trees[inner]
        at = np.unique(below[inner])
    raise UnsupportedError(f"a tree of more than {MOST_LEVELS} levels")


def _places(
    child: np.ndarray, roots: np.ndarray, owner: np.ndarray, level: np.ndarray, nothing: int
) -> _Places:
    """Places for a pair of records below each node, tree by tree and level by level, each tree's
    root before them; records that are nothing are the leaf of that number.
    """
    seen = np.flatnonzero(owner >= 0)
    trees = np.concatenate([np.arange(len(roots)), owner[seen]])
    levels = np.concatenate([np.full(len(roots), -1), level[seen]])
    pair = np.empty(len(trees), np.int64)
    pair[np.lexsort((levels, trees))] = np.arange(len(trees))
    children = np.zeros(len(child), np.int64)
    children[seen] = pair[len(roots) :] * 2
    root_records = pair[: len(roots)] * 2
    source = np.full(2 * len(trees) + 2, nothing)
    source[root_records] = roots
    source[children[seen]] = child[seen, 0]
    source[children[seen] + 1] = child[seen, 1]
    return _Places(root_records, children, source)


def _entries(leaves: Leaves, absent: float) -> tuple[np.ndarray, np.ndarray]:
    """Targets and weights by leaf, each row as long as the longest; one leaf more has none."""
    counts = np.bincount(leaves.leaf, minlength=leaves.count + 1)
    most = max(int(counts.max()), 1)
    if len(counts) * most > MOST_ENTRIES:
        raise UnsupportedError(f"{leaves.count} leaves with up to {most} weights each")
    order = np.argsort(leaves.leaf, kind="stable")
    row = leaves.leaf[order]
    position = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    targets = np.zeros((len(counts), most), np.int64)
    weights = np.full((len(counts), most), absent, leaves.weight.dtype)
    targets[row, position] = leaves.target[order]
    weights[row, position] = leaves.weight[order]
    return targets, weights
