"""Accesses of 2, 4, 8 and 16 bytes: some neighbouring elements at once, by one instruction.

A vector is `count` elements (a literal) between two pointers: global or shared memory on one side,
most often a thread's own array on the other. Both places are aligned to the vector's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from tilewright_kernels.cuda import halves
from tilewright_kernels.cuda.intrinsics import (
    F32,
    I8,
    I16,
    I32,
    element,
    global_address,
    intrinsic,
    literal_intrinsic,
    meaning,
    ptx,
    shared_address,
)

WIDEST = 16  # bytes


def _vector_type(dtype: Any, count: int) -> Any:
    """How an access of `count` elements is best written: in words of 32 bits, or natively."""
    size = dtype.width // 8 if isinstance(dtype, ir.IntType) else (4 if dtype == F32 else 8)
    total = size * count
    if total > WIDEST or total & (total - 1):
        raise TypingError(f"a vector of {count} times {size} bytes: 1, 2, 4, 8 or 16 in all")
    if size < 4:
        word = {1: I8, 2: I16}.get(total, I32)
        return word if total <= 4 else ir.VectorType(I32, total // 4)
    return dtype if count == 1 else ir.VectorType(dtype, count)


def vector_bytes(vector: Any) -> int:
    """Bytes of a type that `_vector_type` gives."""
    lanes = vector.count if isinstance(vector, ir.VectorType) else 1
    item = vector.element if isinstance(vector, ir.VectorType) else vector
    return lanes * (item.width // 8 if isinstance(item, ir.IntType) else (4 if item == F32 else 8))


def load(builder: Any, pointer: Any, index: Any, vector: Any, constant: bool = False) -> Any:
    """The vector there; `constant`: nobody writes to that memory while the kernel runs."""
    place = builder.bitcast(element(builder, pointer, index), vector.as_pointer())
    value = builder.load(place, align=vector_bytes(vector))
    if constant:
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return value


def store(builder: Any, pointer: Any, index: Any, value: Any) -> None:
    place = builder.bitcast(element(builder, pointer, index), value.type.as_pointer())
    builder.store(value, place, align=vector_bytes(value.type))


def _copy_meaning(target: Any, j: int, source: Any, i: int, count: int) -> None:
    target[j : j + count] = source[i : i + count]


def _copy(constant: bool) -> Any:
    @literal_intrinsic
    def copy(typing: Any, target: Any, j: Any, source: Any, i: Any, count: Any) -> Any:
        if target != source:
            raise TypingError(f"a copy from {source} to {target}")

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            dtype = context.get_data_type(source.dtype)
            vector = _vector_type(dtype, count.literal_value)
            to, at, of, there = values[:4]
            store(builder, to, at, load(builder, of, there, vector, constant))
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64, count), emit

    return meaning(_copy_meaning)(copy)


# target[j + k] = source[i + k] for k in range(count). `copy_constant` reads memory that no thread
# writes to while the kernel runs, which may go by the cache for constants.
copy_vector, copy_constant = _copy(False), _copy(True)


@meaning(lambda source, i: source[i])
@intrinsic
def load_constant(typing: Any, source: Any, i: Any) -> Any:
    """source[i], of memory that no thread writes to while the kernel runs."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        dtype = context.get_data_type(source.dtype)
        return load(builder, values[0], values[1], dtype, constant=True)

    return source.dtype(source, types.int64), emit


def _words(builder: Any, value: Any) -> list[Any]:
    """A vector of halves as words of two."""
    if not isinstance(value.type, ir.VectorType):
        return [value]
    return [builder.extract_element(value, ir.Constant(I32, k)) for k in range(value.type.count)]


def _joined(builder: Any, words: Sequence[Any]) -> Any:
    if len(words) == 1:
        return words[0]
    value = ir.Constant(ir.VectorType(I32, len(words)), ir.Undefined)
    for k, word in enumerate(words):
        value = builder.insert_element(value, word, ir.Constant(I32, k))
    return value


def _even(count: Any) -> int:
    n = int(count.literal_value)
    if n % 2:
        raise TypingError(f"a vector of {n} halves")
    return n


def _load_halves(kind: str, python: Any) -> Any:
    @literal_intrinsic
    def load_vector(typing: Any, target: Any, j: Any, source: Any, i: Any, count: Any) -> Any:
        n = _even(count)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            vector = load(builder, values[2], values[3], _vector_type(I16, n))
            words = _words(builder, vector)
            for k, word in enumerate(words):
                for m, single in enumerate(halves.decode_pair(builder, kind, word)):
                    at = builder.add(values[1], ir.Constant(values[1].type, 2 * k + m))
                    builder.store(single, element(builder, values[0], at))
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64, count), emit

    def mean(target: Any, j: int, source: Any, i: int, count: int) -> None:
        target[j : j + count] = python(source[i : i + count])

    return meaning(mean)(load_vector)


def _store_halves(kind: str, python: Any) -> Any:
    @literal_intrinsic
    def store_vector(typing: Any, target: Any, j: Any, source: Any, i: Any, count: Any) -> Any:
        n = _even(count)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            def single(k: int) -> Any:
                at = builder.add(values[3], ir.Constant(values[3].type, k))
                return builder.load(element(builder, values[2], at))

            pairs = [(single(k), single(k + 1)) for k in range(0, n, 2)]
            words = [halves.encode_pair(builder, kind, *pair) for pair in pairs]
            store(builder, values[0], values[1], _joined(builder, words))
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64, count), emit

    def mean(target: Any, j: int, source: Any, i: int, count: int) -> None:
        target[j : j + count] = python(source[i : i + count])

    return meaning(mean)(store_vector)


# A vector of halves read into, or written from, an array of float32.
load_vector_f16 = _load_halves("f16", halves.from_f16)
load_vector_bf16 = _load_halves("bf16", halves.from_bf16)
store_vector_f16 = _store_halves("f16", halves.as_f16)
store_vector_bf16 = _store_halves("bf16", halves.as_bf16)


def _async_bytes(pointer: Any, count: Any) -> int:
    size = int(pointer.dtype.bitwidth // 8 * count.literal_value)
    if size not in (4, 8, 16):
        raise TypingError(f"an asynchronous copy of {size} bytes: 4, 8 or 16")
    return size


def _async_text(size: int) -> str:
    """Copies of 16 bytes leave the first cache to others."""
    return f"cp.async.{'cg' if size == WIDEST else 'ca'}.shared.global [$0], [$1], {size}"


@meaning(_copy_meaning)
@literal_intrinsic
def copy_async(typing: Any, target: Any, j: Any, source: Any, i: Any, count: Any) -> Any:
    """As `copy_vector` from global to shared memory, done when its group has been waited for."""
    size = _async_bytes(source, count)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        places = shared_address(builder, *values[:2]), global_address(builder, *values[2:4])
        ptx(builder, _async_text(size) + ";", [], places, memory=True)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, count), emit


def _partial_meaning(target: Any, j: int, source: Any, i: int, count: int, valid: int) -> None:
    target[j : j + count] = 0
    target[j : j + valid] = source[i : i + valid]


@meaning(_partial_meaning)
@literal_intrinsic
def copy_async_filled(
    typing: Any, target: Any, j: Any, source: Any, i: Any, count: Any, valid: Any
) -> Any:
    """As `copy_async` of the first `valid` elements, then zeros; with 0 nothing is read."""
    size = _async_bytes(source, count)
    item = source.dtype.bitwidth // 8

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        places = shared_address(builder, *values[:2]), global_address(builder, *values[2:4])
        valid_bytes = builder.mul(builder.trunc(values[5], I32), ir.Constant(I32, item))
        ptx(builder, _async_text(size) + ", $2;", [], [*places, valid_bytes], memory=True)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(target, i64, source, i64, count, i64), emit


@intrinsic
def async_commit(typing: Any) -> Any:
    """This thread's copies since the last call are a group."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        ptx(builder, "cp.async.commit_group;", [], [], memory=True)
        return context.get_dummy_value()

    return types.void(), emit


@literal_intrinsic
def async_wait(typing: Any, pending: Any) -> Any:
    """At most `pending` (a literal) of this thread's latest groups are still under way."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        ptx(builder, f"cp.async.wait_group {pending.literal_value};", [], [], memory=True)
        return context.get_dummy_value()

    return types.void(pending), emit
