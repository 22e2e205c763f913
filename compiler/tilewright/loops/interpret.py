"""The slow, obvious meaning of the loop IR. Every pass and every generated kernel is tested
against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ExecutionError
from tilewright.loops.ir import (
    Accumulate,
    Alloc,
    Apply,
    Arrived,
    Barrier,
    Block,
    Box,
    Cast,
    Combine,
    Commit,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Kernel,
    Load,
    Mma,
    Select,
    Settle,
    Stages,
    Stmt,
    Store,
    Tile,
    Var,
    Wait,
    Wgmma,
    dtype_of,
)
from tilewright.loops.scalars import ScalarOp

Arrays = dict[str, np.ndarray]
Axes = dict[str, int]


def interpret(kernel: Kernel, arrays: Mapping[str, np.ndarray]) -> None:
    """Run the kernel on arrays (one to a parameter, by name), in place."""
    with np.errstate(all="ignore"):
        run_statement(kernel.body, {}, dict(arrays))


def run_statement(s: Stmt, axes: Axes, arrays: Arrays) -> None:
    """Run one statement with the given axis values and buffers."""
    match s:
        case Store(buffer=b, index=index, value=value):
            arrays[b.name][_at(index, axes, arrays)] = _value(value, axes, arrays)
        case Accumulate(buffer=b, index=index, op=op, value=value):
            at = _at(index, axes, arrays)
            old = _widen(arrays[b.name][at], b.dtype)
            arrays[b.name][at] = op.meaning(old, _value(value, axes, arrays))
        case For(axis=axis, extent=extent, body=body):
            for i in range(int(_value(extent, axes, arrays))):
                run_statement(body, {**axes, axis: i}, arrays)
        case If(condition=condition, body=body):
            if _value(condition, axes, arrays):
                run_statement(body, axes, arrays)
        case Block(stmts=stmts):
            for t in stmts:
                run_statement(t, axes, arrays)
        case Alloc(buffer=b, body=body):
            run_statement(body, axes, {**arrays, b.name: poisoned(b.shape, b.dtype)})
        case Tile(meaning=meaning) | Mma(meaning=meaning) | Wgmma(meaning=meaning):
            run_statement(meaning, axes, arrays)
        case Fetch(boxes=boxes):
            for box in boxes:
                run_statement(box, axes, arrays)
        case Box(meaning=meaning):
            run_statement(meaning, axes, arrays)
        case Barrier() | Commit() | Wait() | Stages() | Arrived() | Settle():
            pass
        case Combine():
            _combine(s, arrays[s.buffer.name])
        case _:
            assert_never(s)


def _combine(s: Combine, held: np.ndarray) -> None:
    """One after the other, in a type that the operation keeps."""
    for team in held.reshape(-1, s.width):
        total = team[0]
        for value in team[1:]:
            total = s.op.meaning(total, value)
        team[:] = total


def poisoned(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Memory in which a value that was never stored shows: NaN, or a bit pattern of alternating
    bits."""
    if dtype is DType.BOOL:
        return np.ones(shape, np.bool_)
    if dtype is DType.STRING:
        return np.full(shape, None, object)
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.full(count * dtype.itemsize, 0xFF if dtype.is_float else 0x55, np.uint8)
    return raw.view(dtype.numpy).reshape(shape)


def _at(index: tuple[Expr, ...], axes: Axes, arrays: Arrays) -> tuple[int, ...]:
    at = tuple(int(_value(i, axes, arrays)) for i in index)
    if any(i < 0 for i in at):
        raise IndexError(f"negative index {at}")
    return at


def _widen(value: Any, dtype: DType) -> Any:
    """Halves are computed on as float32."""
    return np.float32(value) if dtype.compute is not dtype else value


def _value(e: Expr, axes: Axes, arrays: Arrays) -> Any:
    match e:
        case Const(value=value, dtype=dtype):
            return dtype.compute.numpy.type(value)
        case Var(name=name):
            return np.int64(axes[name])
        case Load(buffer=b, index=index):
            return _widen(arrays[b.name][_at(index, axes, arrays)], b.dtype)
        case Cast(dtype=dtype, arg=arg):
            return convert(_value(arg, axes, arrays), dtype_of(arg), dtype)
        case Select(condition=condition, then=then, otherwise=otherwise):
            return _value(then if _value(condition, axes, arrays) else otherwise, axes, arrays)
        case Apply(op=op, args=args):
            return apply_scalar(op, dtype_of(args[0]), [_value(a, axes, arrays) for a in args])
        case _:
            assert_never(e)


def apply_scalar(op: ScalarOp, dtype: DType, values: list[Any]) -> Any:
    """op on values (scalars or arrays) of the given type, with its checks."""
    if op is ScalarOp.CHECK and np.any((values[0] < 0) | (values[0] >= values[1])):
        raise ExecutionError(
            f"index {np.asarray(values[0]).ravel()[:1]} is out of range for extent {values[1]}"
        )
    if (
        op in (ScalarOp.DIV, ScalarOp.MOD, ScalarOp.REM)
        and dtype.is_integer
        and np.any(values[1] == 0)
    ):
        raise ExecutionError("integer division by zero")
    result = op.meaning(*values)
    wanted = DType.BOOL if op.rule == "bool" else dtype.compute
    return np.asarray(result).astype(wanted.numpy)[()]


def convert(value: Any, source: DType, target: DType) -> Any:
    """A scalar or array converted as Cast does: floats to integers truncate and saturate, halves
    round."""
    if target is DType.BOOL:
        return np.asarray(value != 0)[()]
    if source.is_float and target.is_integer:
        return _float_to_int(value, target)
    if target.compute is not target:
        return np.asarray(value).astype(target.numpy).astype(np.float32)[()]
    return np.asarray(value).astype(target.numpy)[()]


def _float_to_int(value: Any, target: DType) -> Any:
    limits = np.iinfo(target.numpy)
    wide = np.trunc(
        np.nan_to_num(np.asarray(value, np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    )
    low, high = wide <= limits.min, wide >= limits.max
    safe = np.where(low | high, 0, wide).astype(target.numpy)
    return np.where(high, limits.max, np.where(low, limits.min, safe)).astype(target.numpy)[()]
