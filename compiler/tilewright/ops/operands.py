"""What operators demand of their operands' element types."""

from __future__ import annotations

from tilewright.errors import UnsupportedError
from tilewright.ops.common import fail
from tilewright.ops.tensor import Tensor

# sets of DType.kind
FLOATS = "f"
INTEGERS = "iu"
NUMBERS = "fiu"
BOOLS = "b"
NATIVE = "fiub"


def native(*tensors: Tensor) -> None:
    """Raises UnsupportedError unless kernels compute on all the types."""
    for t in tensors:
        if not t.dtype.is_native:
            raise UnsupportedError(f"kernels do not compute on {t.dtype.name}")


def require(kinds: str, *tensors: Tensor) -> None:
    """Raises unless all types are native and of the given kinds."""
    native(*tensors)
    for t in tensors:
        if t.dtype.kind not in kinds:
            raise fail(f"the operator is not defined for {t.dtype.name}")


def same_type(*tensors: Tensor, kinds: str = NATIVE) -> None:
    """Raises unless all operands have one native type of the given kinds."""
    require(kinds, *tensors)
    if len({t.dtype for t in tensors}) != 1:
        raise fail(f"operands of different types {[t.dtype.name for t in tensors]}")
