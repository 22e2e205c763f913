"""What kernels that memory limits ask of memory, and the instructions that they do it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from cuda_harness import ARCHITECTURES, instructions, needs_compiler, needs_sass, uses
from cuda_kernels import Run, compiled, emulated, lowered
from strategies import random_array
from tilewright.codegen.cuda import emit_cuda
from tilewright.codegen.quotients import MOST, magic_of
from tilewright.dtypes import DType
from tilewright.loops.ir import Select, apply
from tilewright.loops.scalars import ScalarOp
from tilewright.loops.verify import verify
from tilewright.ops import common
from tilewright.ops.pooling import max_pool
from tilewright.ops.slicing import concat
from tilewright.ops.tensor import Placeholder, Tensor, compute, constant, placeholder
from tilewright.schedule.cuda import choose_cuda_schedule
from tilewright.schedule.traffic import traffic
from tilewright_kernels.cuda.quotients import quotient, remainder

Array = np.ndarray[Any, Any]
EVERY = 0.95  # of the sectors asked for, those needed where nothing is odd


@dataclass(frozen=True)
class Case:
    """Inputs by shape and type, what is computed of them, the same in NumPy, the least share of
    needed sectors, and the instructions that must be there."""

    name: str
    inputs: tuple[tuple[tuple[int, ...], DType], ...]
    build: Callable[..., Tensor]
    wanted: Callable[..., Array]
    share: float = EVERY
    uses: tuple[str, ...] = ("LDG.128", "STG.128")
    registers: int = 64

    def tensors(self) -> list[Placeholder]:
        return [placeholder(shape, dtype) for shape, dtype in self.inputs]


def f32(*shapes: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], DType], ...]:
    return tuple((s, DType.F32) for s in shapes)


def plus(a: Tensor, b: Tensor) -> Tensor:
    return common.elementwise(lambda x, y: x + y, a, b)


def turned(order: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda x: common.view(
        x, [x.shape[k] for k in order], lambda *i: [i[order.index(k)] for k in range(x.rank)]
    )


def total(axes: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda x: common.reduce(ScalarOp.ADD, x, axes, False)


def softmax(axis: int) -> Callable[[Tensor], Tensor]:
    def build(x: Tensor) -> Tensor:
        top = common.reduce(ScalarOp.MAX, x, [axis], True)
        e = common.elementwise(lambda a, b: apply(ScalarOp.EXP, a - b), x, top)
        whole = common.reduce(ScalarOp.ADD, e, [axis], True)
        return common.elementwise(lambda a, b: a / b, e, whole)

    return build


def softmax_of(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    result: Array = e / e.sum(axis, keepdims=True)
    return result


def normalised(x: Tensor, scale: Tensor) -> Tensor:
    n = x.shape[-1]

    def mean(t: Tensor) -> Tensor:
        whole = common.reduce(ScalarOp.ADD, t, [t.rank - 1], True)
        return common.elementwise(lambda s: s / n, whole)

    apart = plus(x, common.elementwise(lambda m: -m, mean(x)))
    spread = mean(common.elementwise(lambda a: a * a, apart))
    value = common.elementwise(lambda a, v: a / apply(ScalarOp.SQRT, v + 0.01), apart, spread)
    return common.elementwise(lambda a, s: a * s, value, scale)


def normalised_of(x: Array, scale: Array) -> Array:
    apart = x - x.mean(-1, keepdims=True)
    result: Array = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 0.01) * scale
    return result


def bordered(x: Tensor) -> Tensor:
    rows, columns = x.shape
    return compute(
        (rows, columns + 8),
        lambda i, j: common.select(common.inside(j - 3, columns), x[i, j - 3], 0.0),
    )


TABLE = np.arange(512 * 256, dtype=np.float32).reshape(512, 256) % 97


def shifted(x: Tensor) -> Tensor:
    """What no vector of x holds."""
    rows, columns = x.shape
    return common.view(x, (rows, columns - 4), lambda i, j: [i, j + 1])


def pooled(x: Tensor) -> Tensor:
    greatest = max_pool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])[0]
    assert greatest is not None
    return greatest


def pooled_of(x: Array) -> Array:
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    views = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (2, 3))
    result: Array = views[:, :, ::2, ::2].max((4, 5))
    return result


HALF = DType.F16
CASES = (
    Case("add", f32((64, 2048), (64, 2048)), plus, np.add),
    Case("row", f32((64, 2048), (1, 2048)), plus, np.add),
    Case("channels", f32((2, 32, 56, 56), (1, 32, 1, 1)), plus, np.add),
    Case("odd", f32((131, 1021), (131, 1021)), plus, np.add),
    Case("odd row", f32((131, 1021), (1, 1021)), plus, np.add, share=0.2),
    Case("halves", (((64, 4096), HALF), ((1, 4096), HALF)), plus, np.add),
    Case(
        "bytes",
        (((512, 4096), DType.U8),) * 2,
        lambda a, b: common.elementwise(lambda x, y: x + y, a, b),
        np.add,
    ),
    Case("softmax", f32((64, 1024)), softmax(1), lambda x: softmax_of(x, 1), registers=96),
    Case("long softmax", f32((5, 5000)), softmax(1), lambda x: softmax_of(x, 1), registers=64),
    Case("odd softmax", f32((33, 1001)), softmax(1), lambda x: softmax_of(x, 1), 0.75, ()),
    Case("short softmax", f32((4096, 8)), softmax(1), lambda x: softmax_of(x, 1)),
    Case("layer norm", f32((64, 768), (768,)), normalised, normalised_of),
    Case("sum", f32((1 << 19,)), total([0]), np.sum, uses=("LDG.128", "SHFL")),
    Case("odd sum", f32(((1 << 19) + 63,)), total([0]), np.sum, 0.75, ("SHFL",)),
    Case("shifted", f32((64, 2052)), shifted, lambda x: x[:, 1:-3], 0.2, ("STG.128",)),
    Case(
        "turned constant",
        f32((256, 512)),
        lambda x: plus(x, turned([1, 0])(constant(TABLE))),
        lambda x: x + TABLE.T,
    ),
    Case("columns", f32((4096, 64)), total([0]), lambda x: x.sum(0), uses=("LDG.128", "LDS")),
    Case(
        "images", f32((8, 16, 28, 28)), total([0, 2, 3]), lambda x: x.sum((0, 2, 3)), 0.9, ("SHFL",)
    ),
    Case("turned", f32((320, 448)), turned([1, 0]), lambda x: x.T),
    Case("odd turned", f32((131, 509)), turned([1, 0]), lambda x: x.T, 0.75, ("LDS", "STS")),
    Case(
        "channels last",
        f32((2, 64, 28, 28)),
        turned([0, 2, 3, 1]),
        lambda x: x.transpose(0, 2, 3, 1),
    ),
    Case("turned halves", (((256, 320), HALF),), turned([1, 0]), lambda x: x.T),
    Case("turned bytes", (((256, 320), DType.U8),), turned([1, 0]), lambda x: x.T),
    Case("turned doubles", (((256, 192), DType.F64),), turned([1, 0]), lambda x: x.T),
    Case(
        "turned sum",
        f32((320, 448), (448, 320)),
        lambda x, y: plus(turned([1, 0])(x), y),
        lambda x, y: x.T + y,
    ),
    Case(
        "joined",
        f32((512, 192), (512, 64)),
        lambda x, y: concat(x, y, axis=1),
        lambda x, y: np.concatenate([x, y], 1),
    ),
    Case(
        "bordered",
        f32((256, 1024)),
        bordered,
        lambda x: np.pad(x, ((0, 0), (3, 5))),
        0.2,
        ("STG.128",),
    ),
    Case(
        "chosen",
        (((256, 1024), DType.BOOL), *f32((256, 1024), (256, 1024))),
        lambda c, x, y: common.elementwise(lambda a, b, d: Select(a, b, d), c, x, y),
        np.where,
    ),
    Case(
        "pooled",
        f32((1, 16, 56, 56)),
        pooled,
        pooled_of,
        0.2,
        (),
    ),
)


@cache
def runs(case: Case) -> tuple[list[Run], Array, Array]:
    """The kernels as the emulator ran them, what they give, and what is wanted."""
    inputs = case.tensors()
    result = case.build(*inputs)
    arrays = {t.name: random_array(k, t.shape, t.dtype) for k, t in enumerate(inputs)}
    kernels, settled = lowered(inputs, [result])
    arrays |= {name: c.value for name, c in settled.items()}
    wanted = case.wanted(*(arrays[t.name] for t in inputs))
    done: list[Run] = []
    for n in kernels:
        done.append(emulated(n, arrays))
        arrays.update(done[-1].written)
    return done, next(iter(done[-1].written.values())), wanted


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "_"))
def test_results_and_traffic(case: Case) -> None:
    done, found, wanted = runs(case)
    half = found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, rtol=1e-3 if half else 2e-5, atol=1e-4)
    run = done[0]  # of two steps the first reads it all
    for place in run.places:
        assert run.share(place) >= case.share, place
    assert run.statistics.traffic is not None
    assert run.statistics.traffic.of_shared.share == 1.0, "bank conflicts"


REGULAR = [c for c in CASES if c.share == EVERY]


@needs_compiler
@pytest.mark.parametrize("case", REGULAR, ids=lambda c: c.name.replace(" ", "_"))
def test_static_traffic(case: Case) -> None:
    """What is read off the loops of one warp is what the emulator counts of all, about."""
    run = runs(case)[0][0]
    static = traffic(run.kernel)
    assert static.threads >= run.launch.blocks * run.launch.threads - 255
    assert run.statistics.traffic is not None
    counted = run.statistics.traffic.of_global.values()
    share = sum(r.needed for r in counted) / sum(r.asked for r in counted)
    assert abs(static.share - share) < 0.25
    for place in run.places:
        if run.share(place) > EVERY:
            assert all(r.share > 0.5 for r in static.requests if r.buffer == place)


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "_"))
def test_instructions(case: Case, architecture: str) -> None:
    inputs = case.tensors()
    kernels, _ = lowered(inputs, [case.build(*inputs)])
    made = compiled(emit_cuda(verify(choose_cuda_schedule(kernels[0]))), architecture)
    found = instructions(made)
    assert made.usage.spill_bytes == 0 and made.usage.local_bytes == 0
    assert made.usage.registers <= case.registers
    for wanted in case.uses:
        assert uses(found, wanted), (wanted, found)


def test_quotients() -> None:
    rng = np.random.default_rng(0)
    divisors = [1, 2, 3, 5, 7, 10, 255, 641, 1 << 30, MOST - 1, MOST]
    divisors += [int(d) for d in rng.integers(1, MOST, 200)]
    for d in divisors:
        near = [k * d + e for k in (0, 1, 2, MOST // d - 1, MOST // d) for e in (-1, 0, 1)]
        values = [
            x for x in (*near, 0, MOST, *map(int, rng.integers(0, MOST, 20))) if 0 <= x <= MOST
        ]
        for x in values:
            assert quotient.meaning(x, magic_of(d)) == x // d
            assert remainder.meaning(x, d, magic_of(d)) == x % d
