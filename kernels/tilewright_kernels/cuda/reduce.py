"""One result of all lanes of a warp, or of all threads of a block, which every thread receives.

The order of the operations is fixed by the numbers of lanes and threads, so results repeat to the
bit. Maxima and minima of floats are NaN if any value is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from tilewright_kernels.cuda.intrinsics import I32, element, literal_intrinsic, meaning
from tilewright_kernels.cuda.math import DeviceNumber, maximum_of, minimum_of
from tilewright_kernels.cuda.threads import LANES, barrier, register, shuffled

Combine = Callable[[Any, Any, Any, Any], Any]
MOST_THREADS = 1024


def _arithmetic(name: str) -> Combine:
    def combine(builder: Any, dtype: Any, a: Any, b: Any) -> Any:
        prefix = "f" if isinstance(dtype, types.Float) else ""
        return getattr(builder, prefix + name)(a, b)

    return combine


def _extreme(relation: str, of_floats: Any) -> Combine:
    def combine(builder: Any, dtype: Any, a: Any, b: Any) -> Any:
        if isinstance(dtype, types.Float):
            return of_floats(DeviceNumber(builder, a), DeviceNumber(builder, b)).value
        compare = builder.icmp_signed if dtype.signed else builder.icmp_unsigned
        return builder.select(compare(relation, a, b), a, b)

    return combine


def across(builder: Any, dtype: Any, combine: Combine, value: Any, lanes: int) -> Any:
    """The result of each group of `lanes` neighbours, the same bits in all of them."""
    distance = lanes // 2
    while distance:
        other = shuffled(builder, value, "bfly", ir.Constant(I32, distance), LANES - 1)
        value = combine(builder, dtype, value, other)
        distance //= 2
    return value


def _tree(python: Any) -> Any:
    """What `across` computes, on an array of the values by lane."""

    def mean(values: Any, lanes: int) -> Any:
        distance = lanes // 2
        while distance:
            values = python(values, values[np.arange(len(values)) ^ distance])
            distance //= 2
        return values

    return mean


def _is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def _warp(combine: Combine, python: Any) -> Any:
    @literal_intrinsic
    def function(typing: Any, value: Any, lanes: Any) -> Any:
        count = int(lanes.literal_value)
        if not _is_power_of_two(count) or count > LANES:
            raise TypingError(f"a result of {count} lanes: a power of two, at most {LANES}")

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return across(builder, value, combine, values[0], count)

        return value(value, lanes), emit

    return meaning(_tree(python))(function)


def _block(combine: Combine, python: Any) -> Any:
    @literal_intrinsic
    def function(typing: Any, value: Any, scratch: Any, at: Any, threads: Any) -> Any:
        count = int(threads.literal_value)
        if count % LANES or not 0 < count <= MOST_THREADS:
            raise TypingError(f"a block of {count} threads: a multiple of {LANES}")
        if scratch.dtype != value:
            raise TypingError(f"{value} by way of {scratch.dtype}")

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            own = across(builder, value, combine, values[0], LANES)
            if count == LANES:
                return own
            shares = _gathered(builder, own, values[1], values[2], count // LANES)
            return reduce(lambda a, b: combine(builder, value, a, b), shares)

        i64 = types.int64
        return value(value, scratch, i64, threads), emit

    def mean(values: Any, threads: int) -> Any:
        """On an array of the values by thread; one result."""
        warps = [_tree(python)(row, LANES)[0] for row in values.reshape(-1, LANES)]
        return reduce(python, warps)

    return meaning(mean)(function)


def _gathered(builder: Any, own: Any, scratch: Any, at: Any, warps: int) -> list[Any]:
    """The values of all warps, by way of shared memory, which is free again afterwards."""
    warp = builder.lshr(register(builder, "tid.x"), ir.Constant(I32, 5))
    place = builder.add(at, builder.zext(warp, at.type))
    first = builder.icmp_signed("==", register(builder, "laneid"), ir.Constant(I32, 0))
    with builder.if_then(first):
        builder.store(own, element(builder, scratch, place))
    barrier(builder)
    places = [builder.add(at, ir.Constant(at.type, k)) for k in range(warps)]
    shares = [builder.load(element(builder, scratch, p)) for p in places]
    barrier(builder)
    return shares


_add, _multiply = _arithmetic("add"), _arithmetic("mul")
_maximum, _minimum = _extreme(">", maximum_of), _extreme("<", minimum_of)

# warp_add(value, lanes): of each group of `lanes` neighbours (a literal, 32 for the whole warp).
warp_add, warp_multiply = _warp(_add, np.add), _warp(_multiply, np.multiply)
warp_maximum, warp_minimum = _warp(_maximum, np.maximum), _warp(_minimum, np.minimum)
# block_add(value, scratch, at, threads): of all threads (a literal) of a block; scratch[at:] is
# shared memory with room for one value of each warp, in whole 16 bytes. All threads call it.
block_add, block_multiply = _block(_add, np.add), _block(_multiply, np.multiply)
block_maximum, block_minimum = _block(_maximum, np.maximum), _block(_minimum, np.minimum)
