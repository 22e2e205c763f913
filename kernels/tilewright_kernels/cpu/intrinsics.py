"""Numba's decorator, with types that say how the results are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic as numba_intrinsic

Emit = Callable[[Any, Any, Any, Any], Any]
Definition = Callable[..., "tuple[Any, Emit]"]


def intrinsic(define: Definition) -> Any:
    """A function for kernels; calls leave out the definition's first argument, `typing`."""
    return numba_intrinsic(define)


def literal_intrinsic(define: Definition) -> Any:
    """As `intrinsic`; integer literals reach the definition as such."""
    return numba_intrinsic(prefer_literal=True)(define)


def pointer_to(dtype: Any) -> Any:
    """Numba's type of a pointer to `dtype`."""
    pointer: Any = types.CPointer  # its constructor has no annotations
    return pointer(dtype)
