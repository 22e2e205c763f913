"""Products of halves by each of their tiles: which of them a heuristic should take, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_parts.bench import PRECISIONS, checked, error_of
from gpu_parts.part import Figures, Setting, Unavailable
from gpu_parts.timing import KERNELS, in_turns
from tilewright.codegen.cuda import Launch, emit_cuda
from tilewright.dtypes import DType
from tilewright.fusion.groups import form_groups
from tilewright.fusion.inline import inline
from tilewright.fusion.legalize import legalize
from tilewright.fusion.lower import lower
from tilewright.loops.ir import Kernel
from tilewright.ops.contraction import gemm
from tilewright.ops.tensor import placeholder
from tilewright.runtime.cuda.device import Step
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.schedule.cuda import MMA_TILES, WITH_WARPGROUPS
from tilewright.schedule.directives import schedule
from tilewright.schedule.wgmma_tiles import TILES, WgmmaTile

if TYPE_CHECKING:
    from gpu_parts.bench import Bench

# rows, depth, columns
SHAPES = {
    "square 4096": (4096, 4096, 4096),
    "bert up": (4096, 768, 3072),
    "square 1024": (1024, 1024, 1024),
}
ORDERS = {"rows": 0, "turned": 1}  # of the right factor, as it lies
TILE = {
    f"{kind} {t.rows}x{t.columns}": t
    for kind, tiles in (("wgmma", [t for t, _ in TILES]), ("mma", MMA_TILES[:3]))
    for t in tiles
}
LEAST_DEPTH = 128  # shorter sums are not copied ahead
SAMPLE = 8  # rows of the result that are compared


def cases(setting: Setting) -> list[str]:
    return [f"{shape} {order} {tile}" for shape in SHAPES for order in ORDERS for tile in TILE]


def run(bench: Bench, case: str) -> Figures:
    shape = next(s for s in SHAPES if case.startswith(s))
    order, _, name = case.removeprefix(f"{shape} ").partition(" ")
    tile = TILE[name]
    if isinstance(tile, WgmmaTile) and bench.device.architecture != WITH_WARPGROUPS:
        raise Unavailable(f"only {WITH_WARPGROUPS} multiplies by warpgroups")
    m, k, n = map(bench.setting.size, SHAPES[shape])
    k = max(k, LEAST_DEPTH)
    e = emit_cuda(schedule(product(m, k, n, ORDERS[order]), (tile,)))
    x = bench.random((m, k), np.float16)
    w = bench.random((n, k) if ORDERS[order] else (k, n), np.float16, 1)
    y = np.zeros((m, n), np.float16)
    there = [bench.put(a) for a in (x, w, y)]
    launches = bench.device.launches([step(bench, e, [a.address for a in there])])
    launches.start()
    got = there[2].get()
    rows = np.unique(np.linspace(0, m - 1, SAMPLE).astype(int))
    right = w.T if ORDERS[order] else w
    wanted = x[rows].astype(np.float64) @ right.astype(np.float64)
    verdict = checked(error_of(got[rows].astype(np.float64), wanted), PRECISIONS["f16"].tolerance)
    times = in_turns(bench.clock, {KERNELS: launches.start}, bench.setting)
    rate = 2.0 * m * k * n / times.seconds[KERNELS]
    return {
        **verdict,
        "seconds": times.seconds,
        "shape": [m, k, n],
        "rate": rate,
        "tile": str(tile),
    }


def product(m: int, k: int, n: int, turned: int) -> Kernel:
    """The loop nest of one product of halves."""
    x = placeholder((m, k), DType.F16)
    w = placeholder((n, k) if turned else (k, n), DType.F16)
    program = inline([x, w], legalize([gemm(x, w, transB=turned)]))
    (group,) = form_groups(program)
    return lower(group, program).kernel


def step(bench: Bench, e: Launch, addresses: list[int]) -> Step:
    """A launch on arrays in the order of the kernel's parameters."""
    device = bench.device
    source = KernelSource(
        *(e.text, e.pointers, len(e.numbers), e.threads),
        *(device.architecture, bool(e.checks), len(e.maps)),
    )
    function: Any = device.load(bench.cache.load([source])[0])
    maps = [device.tensor_map(m.tensor, addresses[m.pointer]) for m in e.maps]
    words = np.concatenate([np.array([*addresses, *e.numbers], np.int64), *maps])
    return Step(function, e.blocks, e.threads, e.shared_bytes, words, len(maps))
