"""Checks of values that come from data. A failed one leaves a code; its result is harmless.

`errors` is a kernel's last parameter: it points to an int64 in global memory that was 0. Where
several threads fail it ends as the greatest of their codes, whatever their order.
"""

from __future__ import annotations

from typing import Any

from numba import types

from tilewright_kernels.cpu.integers import (
    Integers,
    Operation,
    check_same,
    floor_modulo_of,
    integers_of,
    quotient_of,
    remainder_of,
)
from tilewright_kernels.cuda.intrinsics import I64, global_address, intrinsic, pointer_to
from tilewright_kernels.cuda.pointers import reduce_into

ERRORS = pointer_to(types.int64)


def _report_if(builder: Any, failed: Any, errors: Any, code: Any) -> None:
    with builder.if_then(failed, likely=False):
        place = global_address(builder, errors, I64(0))
        reduce_into(builder, "max", "u64", place, code)


@intrinsic
def checked_index(typing: Any, index: Any, count: Any, errors: Any, code: Any) -> Any:
    """`index` if 0 <= index < count; otherwise the code is left and the result is 0."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        i, n, place, number = values
        inside = builder.icmp_unsigned("<", i, n)  # a negative index is a large unsigned number
        _report_if(builder, builder.not_(inside), place, number)
        return builder.select(inside, i, I64(0))

    i64 = types.int64
    return i64(i64, i64, ERRORS, i64), emit


def _checked(operation: Operation) -> Any:
    @intrinsic
    def function(typing: Any, a: Any, b: Any, errors: Any, code: Any) -> Any:
        check_same(a, b)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            numbers: Integers = integers_of(builder, a)
            _report_if(builder, numbers.is_zero(values[1]), values[2], values[3])
            return operation(numbers, values[0], values[1])

        return a(a, b, ERRORS, types.int64), emit

    return function


# As the functions of `integers`; b == 0 leaves the code and gives 0.
checked_div, checked_rem = _checked(quotient_of), _checked(remainder_of)
checked_floor_mod = _checked(floor_modulo_of)
