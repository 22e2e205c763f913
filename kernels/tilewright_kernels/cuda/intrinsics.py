"""numba-cuda's decorator, inline PTX, and the meaning in Python that goes with an instruction.

Definitions that only use an LLVM builder are written once, for the CPU; `shared` makes one of them
known to numba-cuda as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.cuda.extending import _intrinsic as numba_intrinsic

from tilewright_kernels.cpu.intrinsics import Definition, pointer_to
from tilewright_kernels.cpu.values import F32, F64, I8, I16, I32, I64

__all__ = ["F32", "F64", "I8", "I16", "I32", "I64", "pointer_to"]

Meaning = Callable[..., Any]
VOID = ir.VoidType()
GLOBAL, SHARED = 1, 3  # address spaces


def intrinsic(define: Definition) -> Any:
    """A function for kernels; calls leave out the definition's first argument, `typing`."""
    return numba_intrinsic(target="cuda")(define)


def literal_intrinsic(define: Definition) -> Any:
    """As `intrinsic`; integer literals reach the definition as such."""
    return numba_intrinsic(target="cuda", prefer_literal=True)(define)


def shared(function: Any) -> Any:
    """The function of the CPU's kernels, for kernels on a GPU."""
    return intrinsic(function.__wrapped__)


def shared_literal(function: Any) -> Any:
    """As `shared`, for one that takes literals."""
    return literal_intrinsic(function.__wrapped__)


def meaning(python: Meaning) -> Callable[[Any], Any]:
    """Attaches what a function computes, in Python and NumPy: `function.meaning`.

    What a warp does together means a function of arrays whose first axis is the lane.
    """

    def attach(function: Any) -> Any:
        function.meaning = python
        return function

    return attach


CONSTRAINTS = {"i16": "h", "i32": "r", "i64": "l", "float": "f", "double": "d"}


def constraint(llvm_type: Any) -> str:
    """The class of registers that inline PTX holds a value of this type in."""
    return "l" if isinstance(llvm_type, ir.PointerType) else CONSTRAINTS[str(llvm_type)]


def ptx(
    builder: Any,
    text: str,
    results: Sequence[Any],
    operands: Sequence[Any],
    *,
    memory: bool = False,
    together: bool = False,
) -> list[Any]:
    """The values that one PTX instruction gives; `$0`, `$1` ... are first results, then operands.

    With `memory` it keeps its place among accesses to memory and is never left out; `together`
    says that the threads of a warp or block meet at it, so that no branch may be put around it.
    """
    names = ["=" + constraint(t) for t in results] + [constraint(v.type) for v in operands]
    if memory:
        names.append("~{memory}")
    answer = results[0] if len(results) == 1 else ir.LiteralStructType(results)
    signature = ir.FunctionType(answer if results else VOID, [v.type for v in operands])
    code = ir.InlineAsm(signature, text, ",".join(names), memory or together)
    found = builder.call(code, list(operands), attrs=("convergent",) if together else ())
    if len(results) < 2:
        return [found] if results else []
    return [builder.extract_value(found, k) for k in range(len(results))]


def registers(first: int, count: int) -> str:
    """`{$first, ...}`: that many operands of an instruction."""
    return "{" + ", ".join(f"${first + k}" for k in range(count)) + "}"


def element(builder: Any, pointer: Any, index: Any) -> Any:
    """The address of an element."""
    return builder.gep(pointer, [index])


def shared_address(builder: Any, pointer: Any, index: Any) -> Any:
    """The address of an element in shared memory, as the 32 bits that PTX takes for it."""
    place = builder.bitcast(element(builder, pointer, index), I8.as_pointer())
    return builder.ptrtoint(builder.addrspacecast(place, I8.as_pointer(SHARED)), I32)


def global_address(builder: Any, pointer: Any, index: Any) -> Any:
    """The address of an element in global memory, as the 64 bits that PTX takes for it."""
    place = builder.bitcast(element(builder, pointer, index), I8.as_pointer())
    return builder.ptrtoint(builder.addrspacecast(place, I8.as_pointer(GLOBAL)), I64)
