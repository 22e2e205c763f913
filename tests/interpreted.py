"""All kernels of some outputs, made as a plan makes them, and run by the interpreter.

Tiles are small, so that small shapes have whole ones, edges and single rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.dtypes import DType, from_numpy
from tilewright.fusion.extremes import split_extremes
from tilewright.fusion.gates import quotients_before_quantisation
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import Program, inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import Lowered, lower
from tilewright.fusion.pack import pack_operands
from tilewright.fusion.restructure import Means, restructure
from tilewright.fusion.results import copy_results
from tilewright.fusion.settle import settle
from tilewright.fusion.weights import PackedWeights
from tilewright.loops.interpret import interpret, poisoned
from tilewright.loops.ir import Kernel, Tile, walk
from tilewright.loops.verify import verify
from tilewright.ops.tensor import Constant, Placeholder, Tensor, constant, placeholder
from tilewright.options import Options
from tilewright.runtime.cache import default_cache
from tilewright.runtime.plan import build_plan
from tilewright.schedule.heuristics import TileLimits, choose_schedule

Array = np.ndarray[Any, Any]
INTERPRETED = 1 << 16  # points that the interpreter gets through in time
SMALL = TileLimits(rows={1: 4, 2: 3}, lanes={32: 4, 64: 2})


def run_lowered(n: Lowered, kernel: Kernel, arrays: dict[str, Array]) -> None:
    """Adds what a kernel writes, by the names of its tensors, to the arrays it reads."""
    env = {}
    for b, t in zip(kernel.params, n.tensors, strict=True):
        if t.name not in arrays:
            arrays[t.name] = t.value if isinstance(t, Constant) else poisoned(t.shape, t.dtype)
        env[b.name] = arrays[t.name]
    interpret(kernel, env)


def whole_program(
    inputs: Sequence[Placeholder], outputs: Sequence[Tensor], *, of_bytes: bool
) -> tuple[Program, dict[str, Constant]]:
    """What is lowered, and the tensors that are constants by then."""
    weights = PackedWeights()
    legal = legalize(quotients_before_quantisation(outputs))
    program = inline(inputs, restructure(legal, Means(SMALL.lanes, weights, bytes=of_bytes)))
    program = split_extremes(copy_results(program), SMALL.lanes)
    program = pack_operands(program, SMALL.lanes, weights)
    return program, settle(program, weights)


def interpreted(
    inputs: Sequence[Placeholder],
    outputs: Sequence[Tensor],
    given: Mapping[str, Array],
    *,
    of_bytes: bool = False,
) -> tuple[list[Array], Counter[str]]:
    """The outputs, and how many kernels there were: in all, with tiles, of each strategy."""
    program, settled = whole_program(inputs, outputs, of_bytes=of_bytes)
    arrays = {**given, **{name: c.value for name, c in settled.items()}}
    seen = Counter[str]()
    for group in form_groups(program):
        n = lower(group, program)
        kernel = verify(choose_schedule(n, SMALL))
        tiles = [s for s in walk(kernel.body) if isinstance(s, Tile)]
        seen["kernels"] += 1
        seen["winograd"] += group.winograd is not None
        seen[group.nest.op if group.nest else "maps"] += 1
        seen["tiles"] += bool(tiles)
        seen["tiles of bytes"] += any(t.acc.dtype is DType.I32 for t in tiles)
        run_lowered(n, kernel, arrays)
    return [arrays[t.name] for t in program.outputs], seen


@dataclass
class Model:
    """Tensors that are known only when the model runs, and those that are constants."""

    inputs: list[Placeholder] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    of_bytes: bool = True

    def given(self, value: Array, known: bool = False) -> Tensor:
        if known:
            return constant(value)
        x = placeholder(value.shape, from_numpy(value.dtype))
        self.inputs.append(x)
        self.arrays[x.name] = value
        return x

    def interpreted(self, *outputs: Tensor) -> tuple[list[Array], Counter[str]]:
        """The results by the loops of every kernel, and what the kernels were made of."""
        return interpreted(self.inputs, outputs, self.arrays, of_bytes=self.of_bytes)

    def compiled(self, *outputs: Tensor, threads: int = 2) -> list[Array]:
        plan = build_plan(self.inputs, outputs, Options(threads=threads), default_cache())
        return plan.run([self.arrays[x.name] for x in self.inputs])

    def check(self, y: Tensor, want: Array, work: int = 0) -> Counter[str]:
        np.testing.assert_array_equal(self.compiled(y)[0], want)
        if max(work, sum(a.size for a in self.arrays.values()) << 4) > INTERPRETED:
            return Counter()
        (got,), seen = self.interpreted(y)
        np.testing.assert_array_equal(got, want)
        return seen
