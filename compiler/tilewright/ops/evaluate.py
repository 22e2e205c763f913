"""Tensor expressions on arrays, whole arrays at a time: how constants fold, and an oracle for
tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np

from tilewright.loops.interpret import apply_scalar, convert, poisoned, run_statement
from tilewright.loops.ir import Apply, Cast, Const, Expr, Load, Select, Var, dtype_of, makes_checks
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.tensor import Compute, Constant, NestOutput, Tensor, sources

MAX_POINTS = 1 << 22  # points evaluated at once; more are done in slices of the outermost axis


def evaluate(tensor: Tensor, arrays: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """The elements of a tensor, its placeholders being `arrays` by name."""
    env: dict[str, np.ndarray] = dict(arrays or {})
    with np.errstate(all="ignore"):
        return _evaluate(tensor, env)


def _evaluate(tensor: Tensor, env: dict[str, np.ndarray]) -> np.ndarray:
    for t in _order(tensor, env):
        if isinstance(t, Constant):
            env[t.name] = t.value
        elif isinstance(t, Compute):
            env[t.name] = _compute(t, env)
        elif isinstance(t, NestOutput):
            outputs = t.nest[0].outputs
            env.update({o.name: poisoned(o.shape, o.dtype) for o in outputs})
            run_statement(t.nest[0].body, {}, env)
        else:
            raise KeyError(f"no array for {t.name}")
    return env[tensor.name]


def _order(tensor: Tensor, env: Mapping[str, np.ndarray]) -> list[Tensor]:
    """The tensors still to be evaluated, producers first."""
    done: dict[str, Tensor] = {}
    stack: list[tuple[Tensor, bool]] = [(tensor, False)]
    while stack:
        t, ready = stack.pop()
        if t.name in done or t.name in env:
            continue
        if ready:
            done[t.name] = t
        else:
            stack.append((t, True))
            stack.extend((s, False) for s in sources(t))
    return list(done.values())


def _compute(t: Compute, env: Mapping[str, np.ndarray]) -> np.ndarray:
    extents = dict(zip(t.axes, t.shape, strict=True))
    reduced = t.reduction.axes if t.reduction else ()
    extents.update(reduced)
    out = np.empty(t.shape, t.dtype.numpy)
    points = int(np.prod(list(extents.values()), dtype=np.int64))
    if out.size == 0:
        return out
    if not t.shape:
        out[()] = _block(t, extents, env)
        return out
    parts = max(1, min(t.shape[0], -(-points // MAX_POINTS)))
    step = -(-t.shape[0] // parts)
    for start in range(0, t.shape[0], step):
        end = min(start + step, t.shape[0])
        out[start:end] = _block(t, {**extents, t.axes[0]: (start, end)}, env)
    return out


def _block(t: Compute, extents: Mapping[str, Any], env: Mapping[str, np.ndarray]) -> np.ndarray:
    spans = [e if isinstance(e, tuple) else (0, e) for e in extents.values()]
    shape = tuple(b - a for a, b in spans)
    grid = {
        name: np.arange(a, b).reshape([-1 if k == j else 1 for j in range(len(shape))])
        for k, (name, (a, b)) in enumerate(zip(extents, spans, strict=True))
    }
    value = np.broadcast_to(np.asarray(_expr(t.body, grid, env)), shape)
    if t.reduction is None:
        return value
    axes = tuple(range(len(t.shape), len(shape)))
    return _reduce(t.reduction.op, value, axes)


def _reduce(op: ScalarOp, value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    ufunc = op.meaning
    assert isinstance(ufunc, np.ufunc)
    dtype = value.dtype if op in (ScalarOp.ADD, ScalarOp.MUL) else None
    if any(value.shape[a] == 0 for a in axes) and op in (ScalarOp.MAX, ScalarOp.MIN):
        kind = value.dtype.kind
        limit = -np.inf if kind == "f" else np.iinfo(value.dtype).min if kind in "iu" else False
        other = np.inf if kind == "f" else np.iinfo(value.dtype).max if kind in "iu" else True
        return ufunc.reduce(value, axis=axes, initial=limit if op is ScalarOp.MAX else other)  # type: ignore[no-any-return]
    return ufunc.reduce(value, axis=axes, dtype=dtype) if axes else value  # type: ignore[no-any-return]


def _expr(e: Expr, grid: Mapping[str, np.ndarray], env: Mapping[str, np.ndarray]) -> Any:
    match e:
        case Const(value=value, dtype=dtype):
            return dtype.compute.numpy.type(value)
        case Var(name=name):
            return grid[name]
        case Load(buffer=b, index=index):
            value = env[b.name][_index(index, b.shape, grid, env)]
            return value.astype(np.float32) if b.dtype.compute is not b.dtype else value
        case Cast(dtype=dtype, arg=arg):
            return convert(_expr(arg, grid, env), dtype_of(arg), dtype)
        case Select(condition=c, then=then, otherwise=otherwise):
            chosen = _expr(c, grid, env)
            if np.all(chosen):
                return _expr(then, grid, env)
            sides = _where(chosen, then, grid, env), _where(~chosen, otherwise, grid, env)
            return np.where(chosen, *sides)
        case Apply(op=op, args=args):
            return apply_scalar(op, dtype_of(args[0]), [_expr(a, grid, env) for a in args])
        case _:
            assert_never(e)


def _where(
    wanted: np.ndarray, e: Expr, grid: Mapping[str, np.ndarray], env: Mapping[str, np.ndarray]
) -> Any:
    """The expression where it is wanted; elsewhere bad data is not reported."""
    if not makes_checks(e):
        return _expr(e, grid, env)
    shape = np.broadcast_shapes(np.shape(wanted), *(g.shape for g in grid.values()))
    mask = np.broadcast_to(wanted, shape)
    places = {name: np.broadcast_to(g, shape)[mask] for name, g in grid.items()}
    result = np.zeros(shape, dtype_of(e).compute.numpy)
    result[mask] = _expr(e, places, env)
    return result


def _index(
    index: tuple[Expr, ...],
    shape: tuple[int, ...],
    grid: Mapping[str, np.ndarray],
    env: Mapping[str, np.ndarray],
) -> tuple[Any, ...]:
    """Positions on the grid; where a guard will discard the element, any position inside will
    do."""
    return tuple(
        np.clip(_expr(i, grid, env), 0, max(n - 1, 0)) for i, n in zip(index, shape, strict=True)
    )
