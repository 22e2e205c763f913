"""Tensor expressions: what an operator *means*, element by element. Shape, dtype and loops all
follow from it.

A Tensor is a buffer that is known by its identity: a Placeholder (a value from outside), a
Constant (whose
elements are known now), a Compute (each element is an expression, or a reduction of one) or the
result of a Nest
(a loop nest written by hand, for recurrences and scatters that no element-wise rule can say).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tilewright.dtypes import DType, from_numpy
from tilewright.loops.ir import (
    Buffer,
    Const,
    Expr,
    Load,
    Operand,
    Stmt,
    Var,
    as_expr,
    dtype_of,
    index_const,
    strides_of,
    walk,
)
from tilewright.loops.scalars import ScalarOp

LINE_BYTES = 64  # of the cache

_fresh = itertools.count()


@dataclass(frozen=True, eq=False)
class Tensor(Buffer):
    """A value of the graph with a known shape and element type."""

    def __getitem__(self, index: Operand | Sequence[Operand]) -> Load:
        """The element at `index`: one expression or int for each dimension."""
        given = index if isinstance(index, (tuple, list)) else (index,)
        if len(given) != len(self.shape):
            raise IndexError(f"{len(given)} indices for a tensor of rank {len(self.shape)}")
        return Load(self, tuple(as_expr(i, DType.I64) for i in given))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Placeholder(Tensor):
    """A value that comes from outside: a graph input, or the result of an earlier part of the
    plan."""


class Elements:
    """The elements of a constant. They need not be in memory while they can be had again."""

    def __init__(self, array: np.ndarray) -> None:
        self._held: np.ndarray | None = array
        self._seen = weakref.ref(array)
        self._again: Callable[[], np.ndarray] | None = None

    @property
    def array(self) -> np.ndarray:
        """All of them; computed again if they were given up and nobody else holds them."""
        array = self._held
        if array is None:
            array = self._seen()
        if array is None:
            assert self._again is not None, "given up with a way to have them again"
            array = self._again()
            self._held, self._seen = array, weakref.ref(array)
        return array

    def give_up(self, again: Callable[[], np.ndarray]) -> None:
        """Holds the elements no longer; `again` computes the very same ones."""
        self._again, self._held = again, None


@dataclass(frozen=True, eq=False)
class Constant(Tensor):
    """A value whose elements are known now."""

    elements: Elements = field(default_factory=lambda: Elements(np.zeros(())))

    @property
    def value(self) -> np.ndarray:
        """The elements as an array."""
        return self.elements.array


@dataclass(frozen=True)
class Reduction:
    """Combine `body` over `axes` (name and extent, outermost first) with the monoid `op`."""

    op: ScalarOp
    axes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Compute(Tensor):
    """element[axes] = body, or the reduction of body. `channels_last` asks for that order in
    memory, `lines` of a sum of products of bytes that both of them lie along the sum."""

    axes: tuple[str, ...] = ()
    body: Expr = field(default_factory=lambda: index_const(0))
    reduction: Reduction | None = None
    channels_last: bool = False
    lines: bool = False
    exact: bool = False  # a sum of whole numbers, which no rearrangement may round
    op: str = ""  # the operators it computes, for names and explanations
    node: str = ""  # the node it came from, for messages
    inside: tuple[str, ...] = ()  # the nodes that are computed inside its body

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that it computes, its own last."""
        return tuple(n for n in dict.fromkeys((*self.inside, self.node)) if n)


@dataclass(frozen=True, eq=False)
class Nest:
    """A loop nest written by hand: `body` stores every element of its outputs and reads `inputs`.

    Buffers in `body` are the Tensors themselves. `parallel` names outermost axes whose iterations
    are independent.
    """

    body: Stmt
    outputs: tuple[NestOutput, ...] = ()
    op: str = ""
    node: str = ""


@dataclass(frozen=True, eq=False)
class NestOutput(Tensor):
    """One result of a Nest; `nest` holds it in a list so that the two can be built together."""

    nest: list[Nest] = field(default_factory=list)


def footprint(t: Tensor) -> int:
    """Elements from the first of t to its last in memory, gaps included; at least one."""
    if not t.size:
        return 1
    return 1 + sum((n - 1) * s for n, s in zip(t.shape, strides_of(t), strict=True))


class NeedsValue(Exception):
    """An operator needs the elements of `tensor` to know its result's shape; they are not known
    yet."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(
            f"the elements of a {tensor.dtype.name} tensor of shape {tensor.shape} are needed"
        )
        self.tensor = tensor


def constant(value: object, dtype: DType | None = None) -> Constant:
    """A tensor with the given elements (array, number or nested list)."""
    array = np.asarray(value) if dtype is None else np.asarray(value, dtype.numpy)
    return Constant(
        f"c{next(_fresh)}", dtype or from_numpy(array.dtype), array.shape, elements=Elements(array)
    )


def columns(*fields: np.ndarray) -> tuple[Constant, ...]:
    """Arrays of one length as columns of one table of records: what belongs together shares a cache
    line. Columns of integers may be indices, their limits are known.
    """
    kinds = [(f"f{k}", f.dtype) for k, f in enumerate(fields)]
    packed = np.dtype(kinds, align=True).itemsize
    size = 1 << (packed - 1).bit_length()
    names, formats = zip(*kinds, strict=True)
    offsets = [np.dtype(kinds, align=True).fields[n][1] for n in names]  # type: ignore[index]
    record = np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}  # type: ignore[call-overload]
    )
    raw = np.zeros(len(fields[0]) * size + LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    table = raw[start : start + len(fields[0]) * size].view(record)
    for name, f in zip(names, fields, strict=True):
        table[name] = f
    return tuple(_column(table[name]) for name in names)


def _column(values: np.ndarray) -> Constant:
    made = indices(values) if values.dtype.kind == "i" else constant(values)
    return replace(made, strides=(values.strides[0] // values.itemsize,))


def indices(values: np.ndarray) -> Constant:
    """A constant of integers whose limits are known, so that its elements may be indices."""
    limits = (int(values.min()), int(values.max())) if values.size else None
    return replace(constant(values), values=limits)


def placeholder(shape: Sequence[int], dtype: DType, name: str = "") -> Placeholder:
    """A value from outside."""
    return Placeholder(name or f"x{next(_fresh)}", dtype, tuple(shape))


def known(tensor: Tensor) -> np.ndarray:
    """The elements of a tensor; NeedsValue if they are not known yet."""
    if not isinstance(tensor, Constant):
        raise NeedsValue(tensor)
    return tensor.value


def known_ints(tensor: Tensor) -> list[int]:
    """The elements of an integer tensor as a flat list; NeedsValue if they are not known yet."""
    return [int(v) for v in known(tensor).ravel()]


def compute(
    shape: Sequence[int],
    element: Callable[..., Operand],
    *,
    dtype: DType | None = None,
    reduce: ScalarOp | None = None,
    over: Sequence[int] = (),
    channels_last: bool = False,
) -> Compute:
    """A tensor by its elements: `element` gets one Var per output axis, then one per extent in
    `over`.

    With `reduce`, the element is the reduction over those extents. A plain number as the element
    needs `dtype`.
    """
    n = next(_fresh)
    axes = tuple(f"i{n}_{k}" for k in range(len(shape)))
    reduced = tuple((f"r{n}_{k}", int(e)) for k, e in enumerate(over))
    body = as_expr(element(*map(Var, axes), *(Var(a) for a, _ in reduced)), dtype or DType.F32)
    reduction = Reduction(reduce, reduced) if reduce is not None else None
    sizes = tuple(int(s) for s in shape)
    return Compute(
        f"t{n}",
        dtype_of(body),
        sizes,
        axes=axes,
        body=body,
        reduction=reduction,
        channels_last=channels_last,
    )


def nest(
    outputs: Sequence[tuple[Sequence[int], DType]], body: Callable[..., Stmt], op: str = ""
) -> tuple[NestOutput, ...]:
    """Tensors that a hand-written loop nest fills: `body` gets them and returns the statement that
    stores them."""
    made = tuple(NestOutput(f"t{next(_fresh)}", d, tuple(s), nest=[]) for s, d in outputs)
    whole = Nest(body(*made), made, op)
    for t in made:
        t.nest.append(whole)
    return made


def fresh_axis(prefix: str = "a") -> str:
    """An axis name that nothing else uses."""
    return f"{prefix}{next(_fresh)}"


def sources(tensor: Tensor) -> list[Tensor]:
    """The tensors that the elements of `tensor` are computed from, each once, in order of first
    reading."""
    if isinstance(tensor, Compute):
        body: Expr | Stmt = tensor.body
    elif isinstance(tensor, NestOutput):
        body = tensor.nest[0].body
    else:
        return []
    own = {tensor.name} | (
        {t.name for t in tensor.nest[0].outputs} if isinstance(tensor, NestOutput) else set()
    )
    found = {
        n.buffer.name: n.buffer
        for n in walk(body)
        if isinstance(n, Load) and isinstance(n.buffer, Tensor) and n.buffer.name not in own
    }
    return list(found.values())


def stamp(results: Iterable[Tensor | None], operands: Iterable[Tensor], op: str, node: str) -> None:
    """Note on everything between operands and results which operator and node it came from.

    The only change that is ever made to a tensor, and before anyone else has seen it.
    """
    seen = {t.name for t in operands}
    stack: list[Tensor] = [t for t in results if t is not None]
    while stack:
        t = stack.pop()
        owner: Compute | Nest | None = (
            t.nest[0] if isinstance(t, NestOutput) else t if isinstance(t, Compute) else None
        )
        if t.name in seen or owner is None or owner.node:
            continue
        seen.add(t.name)
        object.__setattr__(owner, "op", owner.op or op)
        object.__setattr__(owner, "node", node)
        stack.extend(sources(t))


def scalar(value: float | int | bool, dtype: DType) -> Const:
    """A constant of the given type, for use inside an element expression."""
    made = as_expr(value, dtype)
    assert isinstance(made, Const)
    return made
