"""Operators that give elements other indices: each is an index map, which fusion reads through.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.loops.ir import Expr, Operand, index_const
from tilewright.ops.common import (
    broadcast_index,
    broadcast_shape,
    fail,
    normalize_axis,
    reshape_to,
    select,
    view,
)
from tilewright.ops.registry import op
from tilewright.ops.tensor import Tensor, compute, known_ints


@op("Reshape")
def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    dims = known_ints(shape)
    if not allowzero:
        if any(d == 0 and k >= x.rank for k, d in enumerate(dims)):
            raise fail(f"a 0 in shape {dims} has no dimension of the operand to copy")
        dims = [x.shape[k] if d == 0 else d for k, d in enumerate(dims)]
    if dims.count(-1) > 1 or any(d < -1 for d in dims):
        raise fail(f"shape {dims} is not a shape")
    if -1 in dims:
        rest = prod(d for d in dims if d != -1)
        if rest == 0 or x.size % rest:
            raise fail(f"{x.size} elements cannot take the shape {dims}")
        dims[dims.index(-1)] = x.size // rest
    return reshape_to(x, dims)


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    if not -x.rank <= axis <= x.rank:
        raise fail(f"axis {axis} is out of range for rank {x.rank}")
    at = axis % x.rank if axis < 0 else axis
    return reshape_to(x, (prod(x.shape[:at]), prod(x.shape[at:])))


@op("Squeeze")
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    if axes is None:
        return reshape_to(x, [n for n in x.shape if n != 1])
    gone = {normalize_axis(a, x.rank) for a in known_ints(axes)}
    if any(x.shape[a] != 1 for a in gone):
        raise fail(f"axes {sorted(gone)} of shape {x.shape} are not all 1")
    return reshape_to(x, [n for k, n in enumerate(x.shape) if k not in gone])


@op("Unsqueeze")
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    given = known_ints(axes)
    rank = x.rank + len(given)
    new = {normalize_axis(a, rank) for a in given}
    if len(new) != len(given):
        raise fail(f"axes {given} name a dimension twice")
    rest = iter(x.shape)
    return reshape_to(x, [1 if k in new else next(rest) for k in range(rank)])


@op("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    order = list(perm) if perm is not None else list(reversed(range(x.rank)))
    if sorted(order) != list(range(x.rank)):
        raise fail(f"perm {order} is no permutation of {x.rank} dimensions")
    if order == list(range(x.rank)):
        return x
    place = [order.index(k) for k in range(x.rank)]
    return view(x, [x.shape[p] for p in order], lambda *i: [i[p] for p in place])


@op("Expand")
def expand(x: Tensor, shape: Tensor) -> Tensor:
    target = broadcast_shape(x.shape, known_ints(shape))
    return x if target == x.shape else view(x, target, lambda *i: broadcast_index(i, x.shape))


@op("Tile")
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    times = known_ints(repeats)
    if len(times) != x.rank or any(t < 0 for t in times):
        raise fail(f"repeats {times} do not fit rank {x.rank}")
    if all(t == 1 for t in times):
        return x
    shape = [n * t for n, t in zip(x.shape, times, strict=True)]
    if not prod(shape):
        return compute(shape, lambda *i: 0, dtype=x.dtype)
    return view(x, shape, lambda *i: [_turn(v, n, t) for v, n, t in zip(i, x.shape, times)])


def _turn(i: Expr, n: int, times: int) -> Expr:
    """The index in a dimension of n elements that is repeated."""
    if times == 1:
        return i
    return index_const(0) if n == 1 else i % n


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = _image(x)
    b = blocksize
    if c % (b * b):
        raise fail(f"{c} channels cannot be cut into blocks of {b}x{b}")
    k = c // (b * b)
    if mode == "DCR":
        return view(
            x,
            (n, k, h * b, w * b),
            lambda *i: [i[0], (i[2] % b * b + i[3] % b) * k + i[1], i[2] // b, i[3] // b],
        )
    return view(
        x,
        (n, k, h * b, w * b),
        lambda *i: [i[0], i[1] * (b * b) + i[2] % b * b + i[3] % b, i[2] // b, i[3] // b],
    )


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = _image(x)
    b = blocksize
    if h % b or w % b:
        raise fail(f"{h}x{w} cannot be cut into blocks of {b}x{b}")

    def index(*i: Expr) -> list[Expr]:
        channel, block = (
            (i[1] % c, i[1] // c) if mode == "DCR" else (i[1] // (b * b), i[1] % (b * b))
        )
        return [i[0], channel, i[2] * b + block // b, i[3] * b + block % b]

    return view(x, (n, c * b * b, h // b, w // b), index)


def _image(x: Tensor) -> tuple[int, int, int, int]:
    if x.rank != 4:
        raise fail(f"rank 4 is expected, not {x.rank}")
    n, c, h, w = x.shape
    return n, c, h, w


@op("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    if x.rank < 2:
        raise fail(f"a matrix is expected, not rank {x.rank}")
    shift: Operand = k[[0] * k.rank] if k is not None else 0

    def element(*i: Expr) -> Operand:
        ahead = i[-1] - i[-2]
        keep = ahead >= shift if upper else ahead <= shift
        return select(keep, x[i], 0)

    return compute(x.shape, element)
