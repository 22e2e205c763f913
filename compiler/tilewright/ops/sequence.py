"""Sequences (lists of arrays) and optional values (None where empty): on the host.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.ops.common import fail, normalize_axis
from tilewright.ops.registry import host_op, op
from tilewright.ops.tensor import Tensor, constant

Array = np.ndarray


@host_op("SequenceConstruct")
def sequence_construct(*inputs: Array) -> list[Array]:
    return list(inputs)


@host_op("SequenceEmpty")
def sequence_empty(*, dtype: int = DType.F32.onnx) -> list[Array]:
    return []


@host_op("SequenceInsert")
def sequence_insert(
    sequence: list[Array], tensor: Array, position: Array | None = None
) -> list[Array]:
    """The sequence with one more tensor, at the end if no position is given."""
    n = len(sequence)
    at = n if position is None else _position(position, n, n)
    return [*sequence[:at], tensor, *sequence[at:]]


@host_op("SequenceErase")
def sequence_erase(sequence: list[Array], position: Array | None = None) -> list[Array]:
    """The sequence without one tensor, the last if no position is given."""
    n = len(sequence)
    at = n - 1 if position is None else _position(position, n, n - 1)
    if n == 0:
        raise fail("there is nothing to erase from an empty sequence")
    return [*sequence[:at], *sequence[at + 1 :]]


@host_op("SequenceAt")
def sequence_at(sequence: list[Array], position: Array) -> Array:
    return sequence[_position(position, len(sequence), len(sequence) - 1)]


@host_op("SequenceLength")
def sequence_length(sequence: list[Array]) -> Array:
    return np.array(len(sequence), np.int64)


def _position(position: Array, length: int, last: int) -> int:
    """A place in a sequence; negative ones count from the end."""
    given = int(position.reshape(()))
    if not -length <= given <= last:
        raise fail(f"position {given} is not in a sequence of length {length}")
    return given + length if given < 0 else given


@host_op("ConcatFromSequence")
def concat_from_sequence(sequence: list[Array], *, axis: int, new_axis: int = 0) -> Array:
    """All tensors joined along an axis, one of its own if `new_axis`."""
    if not sequence:
        raise fail("an empty sequence cannot be joined")
    return np.stack(sequence, axis) if new_axis else np.concatenate(sequence, axis)


@host_op("SplitToSequence")
def split_to_sequence(
    x: Array, split: Array | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Array]:
    """Parts of x along an axis: of one element each, of `split` elements, or of given lengths."""
    at = normalize_axis(axis, x.ndim)
    n = x.shape[at]
    if split is None:
        parts = np.split(x, n, at) if n else []
        return parts if keepdims else [p.squeeze(at) for p in parts]
    if split.ndim == 0:
        length = int(split)
        if length < 1:
            raise fail(f"parts of {length} elements")
        return np.split(x, range(length, n, length), at) if n else []
    lengths = [int(s) for s in split]
    if min(lengths, default=0) < 0 or sum(lengths) != n:
        raise fail(f"lengths {lengths} do not add up to {n}")
    return np.split(x, np.cumsum(lengths)[:-1], at) if lengths else []


@host_op("Identity")
def identity(value: Any) -> Any:
    """What is no tensor: a sequence, an optional value, text."""
    return value


@host_op("Optional")
def optional(value: Any = None, *, type: Any = None) -> Any:
    return value


@host_op("OptionalHasElement")
def optional_has_element(value: Any = None) -> Array:
    return np.array(value is not None)


@host_op("OptionalGetElement")
def optional_get_element(value: Any) -> Any:
    if value is None:
        raise fail("the optional value is empty")
    return value


@op("OptionalHasElement")
def tensor_has_element(value: Tensor | None = None) -> Tensor:
    """A tensor is always there."""
    return constant(np.array(value is not None))


@op("OptionalGetElement")
def tensor_element(value: Tensor) -> Tensor:
    """A tensor itself."""
    return value
