"""MatMul, Gemm and Einsum: sums of products. Each contraction is one Compute whose body is a
product of two loads.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.errors import UnsupportedError
from tilewright.loops.ir import Expr, index_const
from tilewright.loops.scalars import ScalarOp
from tilewright.ops.common import broadcast_index, broadcast_shape, elementwise, fail
from tilewright.ops.einsum import Equation, parse
from tilewright.ops.registry import op
from tilewright.ops.tensor import Compute, Tensor, compute


@op("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """NumPy's matmul: the last two dimensions are multiplied, those before them broadcast.

    https://onnx.ai/onnx/operators/onnx__MatMul.html
    """
    return matmul_product(a, b)


def matmul_product(a: Tensor, b: Tensor) -> Compute:
    """The last dimension of a contracted with the last but one of b, the others broadcast."""
    if a.rank == 0 or b.rank == 0:
        raise fail("MatMul needs operands of rank 1 or more")
    depth = a.shape[-1]
    if b.shape[-2 if b.rank > 1 else 0] != depth:
        raise fail(
            f"MatMul operands of shapes {a.shape} and {b.shape} disagree in the summed dimension"
        )
    batch = broadcast_shape(a.shape[:-2], b.shape[:-2])
    rows, columns = a.shape[-2:-1], b.shape[-1:] if b.rank > 1 else ()

    def element(*axes: Expr) -> Expr:
        outer, k = axes[: len(batch)], axes[-1]
        row, column = (
            axes[len(batch) : len(batch) + len(rows)],
            axes[len(axes) - 1 - len(columns) : -1],
        )
        left = a[(*broadcast_index(outer, a.shape[:-2]), *row, k)]
        right = b[(*broadcast_index(outer, b.shape[:-2]), k, *column)]
        return left * right

    return compute((*batch, *rows, *columns), element, reduce=ScalarOp.ADD, over=[depth])


@op("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha * a' @ b' + beta * c. https://onnx.ai/onnx/operators/onnx__Gemm.html"""
    product = gemm_product(a, b, bool(transA), bool(transB))
    return scaled_sum(product, c, alpha, beta)


def gemm_product(a: Tensor, b: Tensor, trans_a: bool, trans_b: bool) -> Compute:
    """The product of two matrices, each transposed if asked for."""
    if a.rank != 2 or b.rank != 2:
        raise fail(f"Gemm needs two matrices, not operands of ranks {a.rank} and {b.rank}")
    rows, depth = reversed(a.shape) if trans_a else a.shape
    inner, columns = reversed(b.shape) if trans_b else b.shape
    if inner != depth:
        raise fail(
            f"Gemm operands of shapes {a.shape} and {b.shape} disagree in the summed dimension"
        )

    def element(i: Expr, j: Expr, k: Expr) -> Expr:
        return (a[k, i] if trans_a else a[i, k]) * (b[j, k] if trans_b else b[k, j])

    return compute((rows, columns), element, reduce=ScalarOp.ADD, over=[depth])


def scaled_sum(product: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    """alpha * product + beta * c, c broadcast to the product; factors of one are not written."""
    if not product.dtype.is_float and (alpha != int(alpha) or beta != int(beta)):
        raise UnsupportedError(f"fractional alpha or beta for {product.dtype.name} operands")
    if c is None or beta == 0.0:
        return product if alpha == 1.0 else elementwise(lambda p: p * alpha, product)
    if broadcast_shape(product.shape, c.shape) != product.shape:
        raise fail(f"an addend of shape {c.shape} does not broadcast to {product.shape}")

    def element(p: Expr, q: Expr) -> Expr:
        return (p if alpha == 1.0 else p * alpha) + (q if beta == 1.0 else q * beta)

    return elementwise(element, product, c)


@op("Einsum")
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Einstein's summation; more than two operands are contracted from the left, pair by pair.

    https://onnx.ai/onnx/operators/onnx__Einsum.html
    """
    if not operands:
        raise fail("Einsum needs an operand")
    parsed = parse(equation, [t.shape for t in operands])
    result, labels = operands[0], parsed.terms[0]
    for position in range(1, len(operands)):
        later = set(parsed.output).union(*parsed.terms[position + 1 :])
        both = [result, operands[position]]
        terms = [labels, parsed.terms[position]]
        labels = parsed.output if position + 1 == len(operands) else _kept(terms, later)
        result = _contract(both, terms, labels, parsed)
    return result if len(operands) > 1 else _contract([result], [labels], parsed.output, parsed)


def _kept(terms: Sequence[Sequence[str]], later: set[str]) -> tuple[str, ...]:
    """The labels of a pair that something later still reads, in order of appearance."""
    return tuple(
        label for label in dict.fromkeys(s for term in terms for s in term) if label in later
    )


def _contract(
    operands: Sequence[Tensor],
    terms: Sequence[Sequence[str]],
    output: Sequence[str],
    parsed: Equation,
) -> Compute:
    """The sum over all labels that `output` lacks of the product of the operands."""
    summed = [s for s in dict.fromkeys(s for term in terms for s in term) if s not in output]

    def element(*axes: Expr) -> Expr:
        at = dict(zip([*output, *summed], axes, strict=True))
        loads = [t[_index(t, term, at)] for t, term in zip(operands, terms, strict=True)]
        return loads[0] * loads[1] if len(loads) == 2 else loads[0]

    shape = [parsed.extents[s] for s in output]
    if not summed:
        return compute(shape, element)
    return compute(shape, element, reduce=ScalarOp.ADD, over=[parsed.extents[s] for s in summed])


def _index(t: Tensor, term: Sequence[str], at: dict[str, Expr]) -> list[Expr]:
    return [index_const(0) if n == 1 else at[s] for n, s in zip(t.shape, term, strict=True)]
