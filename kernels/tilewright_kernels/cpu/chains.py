"""Sums over k in several chains, for tiles too small to hide the latency of their own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from tilewright_kernels.cpu.values import I64
from tilewright_kernels.cpu.vectors import keep_loop_rolled, word

CHAINS = 8  # independent sums that keep two multipliers with a latency of four cycles busy

Step = Callable[[Any, Sequence[Any]], list[Any]]
"""One k: the registers with their products added."""


def chains_for(registers: int) -> int:
    """Chains that keep the multipliers busy when each k has so many independent sums."""
    return -(-CHAINS // registers)


def chained_sums(builder: Any, step: Step, start: Sequence[Any], count: Any, chains: int) -> Any:
    """`start` and the sums over all k: whole rounds of the chains, then what is left on the first.

    The loops are not unrolled: processors overlap the iterations, and unrolled loads cost
    registers.
    """
    if chains == 1:
        return _loop(builder, step, (word(0), count), [start])[0]
    whole = builder.mul(builder.sdiv(count, word(chains)), word(chains))
    zeros = [x.type(None) for x in start]
    carried = _loop(builder, step, (word(0), whole), [start, *[zeros] * (chains - 1)])
    is_integer = isinstance(start[0].type.element, ir.IntType)
    add = builder.add if is_integer else builder.fadd
    while len(carried) > 1:
        pairs = zip(carried[::2], carried[1::2], strict=False)
        odd = carried[len(carried) // 2 * 2 :]
        carried = [[add(x, y) for x, y in zip(a, b, strict=True)] for a, b in pairs] + odd
    return _loop(builder, step, (whole, count), carried)[0]


def _loop(
    builder: Any, step: Step, bounds: tuple[Any, Any], starts: Sequence[Sequence[Any]]
) -> list[list[Any]]:
    """Chain c takes k = first + c, and then every len(starts)-th."""
    before = builder.block
    head, body, end = (builder.append_basic_block(f"sum.{s}") for s in ("head", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(I64)
    k.add_incoming(bounds[0], before)
    carried = [[builder.phi(x.type) for x in chain] for chain in starts]
    builder.cbranch(builder.icmp_signed("<", k, bounds[1]), body, end)
    builder.position_at_end(body)
    results = [step(builder.add(k, word(c)), chain) for c, chain in enumerate(carried)]
    keep_loop_rolled(builder)
    k.add_incoming(builder.add(k, word(len(starts))), body)
    for chain, first, result in zip(carried, starts, results, strict=True):
        for phi, x, y in zip(chain, first, result, strict=True):
            phi.add_incoming(x, before)
            phi.add_incoming(y, body)
    builder.branch(head)
    builder.position_at_end(end)
    return carried
