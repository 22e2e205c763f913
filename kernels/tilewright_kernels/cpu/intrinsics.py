"""Numba's decorator, with types that say how the results are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import intrinsic as numba_intrinsic

Emit = Callable[[Any, Any, Any, Any], Any]
Definition = Callable[..., "tuple[Any, Emit]"]


def intrinsic(define: Definition) -> Any:
    """A function for kernels. A call passes one argument less than the definition takes (the typing context)."""
    return numba_intrinsic(define)


def literal_intrinsic(define: Definition) -> Any:
    """As `intrinsic`; integer literals reach the definition as such."""
    return numba_intrinsic(prefer_literal=True)(define)
