"""Recognising convolutions: sums of products of weights and a window of an image, whatever
operator they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tilewright.dtypes import DType
from tilewright.loops.affine import Linear, linear
from tilewright.loops.ir import (
    Apply,
    Cast,
    Const,
    Expr,
    Load,
    Node,
    Select,
    Var,
    rewrite,
    walk,
)
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.window import conjuncts
from tilewright.ops.common import select
from tilewright.ops.tensor import Compute, Tensor
from tilewright.ops.windows import Window, guard


@dataclass(frozen=True)
class Convolution:
    """result[n, g * share + o, out...] is the sum over i, k... of image[n, g * inputs + i,
    at(out, k)...] * weights[g * share + o, i, k...], g being one of `groups`."""

    result: Compute
    image: Tensor
    dims: tuple[Window, ...]
    groups: int
    inputs: int
    image_factor: Expr  # as they stand in the body, so that casts are kept
    weight_factor: Expr

    @property
    def batch(self) -> int:
        return self.result.shape[0]

    @property
    def outputs(self) -> int:
        return self.result.shape[1]

    @property
    def taps(self) -> int:
        """Elements of the window in one channel."""
        return prod(d.kernel for d in self.dims)

    def pixel(self, *index: Expr) -> Expr:
        """An element of the image, in the type of the sum."""
        return _at(self.image_factor, index)

    def pixel_or_zero(
        self, n: Expr, c: Expr, positions: Sequence[Expr], dims: Sequence[Window] = ()
    ) -> Expr:
        """The same, where positions may lie outside; `dims` if they reach further than the
        window."""
        value, condition = self.pixel(n, c, *positions), guard(dims or self.dims, positions)
        return value if condition is None else select(condition, value, 0)

    @property
    def exact(self) -> bool:
        """Whether the sums are of whole numbers and must stay that."""
        return self.result.exact

    @property
    def weight_sources(self) -> list[Tensor]:
        """The constants or computed tensors that the weights are."""
        return [
            n.buffer
            for n in walk(self.weight_factor)
            if isinstance(n, Load) and isinstance(n.buffer, Tensor)
        ]

    def weight(self, *index: Expr) -> Expr:
        """A weight, in the type of the sum."""
        return _at(self.weight_factor, index)


def find_convolution(t: Tensor) -> Convolution | None:
    """The convolution that t is, if it is one over one or more spatial dimensions in a float
    type."""
    if not isinstance(t, Compute) or t.reduction is None or t.reduction.op is not ScalarOp.ADD:
        return None
    if t.dtype not in (DType.F32, DType.F64) or t.rank < 3:
        return None
    match t.body:
        case Apply(op=ScalarOp.MUL, args=(x, w)):
            return _matched(t, x, w)
    return None


def _matched(t: Compute, x: Expr, w: Expr) -> Convolution | None:
    conditions: list[Expr] = []
    while isinstance(x, Select) and isinstance(x.otherwise, Const) and not x.otherwise.value:
        conditions += conjuncts(x.condition)
        x = x.then
    image, weights = _load(x), _load(w)
    if image is None or weights is None or t.reduction is None:
        return None
    reduced = [a for a, _ in t.reduction.axes]
    if len(reduced) != t.rank - 1 or len(image.index) != t.rank:
        return None
    if not _is_var(weights.index, (t.axes[1], *reduced)) or image.index[0] != Var(t.axes[0]):
        return None
    found = _groups(t, image.index[1], reduced[0], weights.buffer.shape[1])
    dims = [
        _window(t, image.buffer.shape[k], i, t.axes[k], reduced[k - 1])
        for k, i in enumerate(image.index)
        if k > 1
    ]
    windows = tuple(d for d in dims if d is not None)
    if found is None or len(windows) < len(dims) or not isinstance(image.buffer, Tensor):
        return None
    if not _guards_fit(conditions, image.index[2:], windows):
        return None
    return Convolution(t, image.buffer, windows, *found, x, w)


def _load(e: Expr) -> Load | None:
    match e:
        case Load():
            return e
        case Cast(arg=Load() as load):
            return load
    return None


def _is_var(index: Sequence[Expr], names: Sequence[str]) -> bool:
    return len(index) == len(names) and all(i == Var(n) for i, n in zip(index, names, strict=True))


def _groups(t: Compute, channel: Expr, inner: str, inputs: int) -> tuple[int, int] | None:
    """Number of groups and channels in each, from the channel that is read."""
    oc, ic = Var(t.axes[1]), Var(inner)
    if channel == ic:
        return 1, inputs
    form = linear(channel, {})
    rest = form.without(inner) if inputs > 1 else form
    if inputs > 1 and form.coefficient(inner) != 1:
        return None
    match rest:
        case Linear(terms=((atom, c),), constant=0) if c == inputs:
            pass
        case _:
            return None
    if atom == oc:
        return t.shape[1], inputs
    match atom:
        case Apply(op=ScalarOp.FLOORDIV, args=(a, Const(value=share))) if a == oc:
            return t.shape[1] // int(share), inputs
    return None


def _window(t: Compute, extent: int, position: Expr, out: str, kernel: str) -> Window | None:
    assert t.reduction is not None
    form = linear(position, {})
    stride, dilation = form.coefficient(out), form.coefficient(kernel)
    rest = form.without(out).without(kernel)
    size, taps = t.shape[t.axes.index(out)], dict(t.reduction.axes)[kernel]
    if rest.terms or rest.constant > 0 or stride < 1 or (taps > 1 and dilation < 1):
        return None
    last = (size - 1) * stride + (taps - 1) * dilation + rest.constant
    after = max(0, last - extent + 1)
    return Window(extent, taps, stride, max(1, dilation), -rest.constant, after, size)


def _guards_fit(
    conditions: Sequence[Expr], positions: Sequence[Expr], dims: Sequence[Window]
) -> bool:
    """Whether the conditions are those of the windows, no more and no less."""
    expected = guard(dims, positions)
    return set(conditions) == set(conjuncts(expected) if expected is not None else ())


def _at(factor: Expr, index: Sequence[Expr]) -> Expr:
    def rule(n: Node) -> Node | None:
        return Load(n.buffer, tuple(index)) if isinstance(n, Load) else None

    return rewrite(factor, rule)  # type: ignore[return-value]
