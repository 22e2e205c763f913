"""The order of blocks: each is computed once, and those that run together share factors."""

from __future__ import annotations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from cuda_harness import needs_compiler
from cuda_products import Case, agree, ran
from tilewright.codegen.cuda import Launch, emit_cuda
from tilewright.dtypes import DType
from tilewright.loops.ir import Buffer, Const, For, Kernel, LoopKind, Store, Var, walk
from tilewright.schedule.block_tiles import MOST_TOGETHER, BlockTile, over_blocks, rows_together
from tilewright.schedule.mma_tiles import MmaTile
from tilewright_kernels.cuda.quotients import quotient, remainder

RUNNING = 264  # blocks at the same time


def kernel_of(rows: int, columns: int) -> Kernel:
    """One that does something in each block."""
    done = Buffer("p0", DType.F32, (rows, columns, 32))
    one = Store(done, (Var("block_row"), Var("block_column"), Var("thread")), Const(1.0, DType.F32))
    thread = For("thread", Const(32, DType.I64), one, LoopKind.THREAD)
    return Kernel("order", (done,), over_blocks(thread, [], rows, columns), frozenset({"p0"}))


def places(launch: Launch, names: tuple[str, str]) -> list[tuple[int, int]]:
    """The row and the column of each block, in order, as the kernel's text finds them."""
    lines = [line.strip() for line in launch.text.splitlines()]
    begin = next(k for k, line in enumerate(lines) if line.startswith("def kernel"))
    end = next(k for k, line in enumerate(lines) if line.endswith("= thread()"))
    parameters = lines[begin].partition("(")[2].partition(")")[0].split(", ")
    numbers = [name for name in parameters if name.startswith("n")]
    text, found = compile("\n".join(lines[begin + 1 : end]), "order", "exec"), []
    for number in range(launch.blocks):
        env: dict[str, object] = dict(zip(numbers, launch.numbers, strict=True))
        env |= {"block": number.__int__, "quotient": quotient.meaning}
        exec(text, env | {"remainder": remainder.meaning}, env)
        row, column = (env[name] for name in names)
        assert isinstance(row, int) and isinstance(column, int)
        found.append((row, column))
    return found


@given(st.integers(2, 40), st.integers(2, 80))
def test_each_block_once(rows: int, columns: int) -> None:
    kernel = kernel_of(rows, columns)
    together = [n.together for n in walk(kernel.body) if isinstance(n, For) and n.together]
    event(f"together: {bool(together)}")
    names = ("i3", "i1") if together else ("i0", "i1")
    found = places(emit_cuda(kernel), names)
    assert sorted(found) == [(r, c) for r in range(rows) for c in range(columns)]


def test_running_blocks_read_less() -> None:
    rows, columns = 32, 256
    launch = emit_cuda(kernel_of(rows, columns))
    running = places(launch, ("i3", "i1"))[:RUNNING]
    read = sum(len(set(side)) for side in zip(*running, strict=True))
    assert read <= MOST_TOGETHER + -(-RUNNING // MOST_TOGETHER)
    assert read * 6 < 2 + columns, "row by row it were that much more"


@given(st.integers(1, 1000))
def test_rows_together(rows: int) -> None:
    count = rows_together(rows)
    assert count == 0 or (rows % count == 0 and count <= MOST_TOGETHER)
    assert count == rows or rows > MOST_TOGETHER or rows == 1


@needs_compiler
@pytest.mark.parametrize(
    ("tile", "dtype"),
    [(BlockTile(16, 32, 4, 4, 4), DType.F32), (MmaTile(16, 16, 16, 16, 16), DType.F16)],
    ids=["BlockTile", "MmaTile"],
)
def test_numbers(tile: BlockTile | MmaTile, dtype: DType) -> None:
    case = Case(tile.rows * 12, 32, tile.columns * 34, dtype, after="bias")
    done, found, _ = ran(case, (tile,))
    assert any(isinstance(n, For) and n.together for n in walk(done[0].kernel.body))
    agree(case, found)
