"""How a kernel says that a warp multiplies matrices, and that it copies while it does."""

from __future__ import annotations

from typing import Protocol

from tilewright.codegen.spelling import SUFFIX
from tilewright.dtypes import DType
from tilewright.loops.ir import (
    Buffer,
    Const,
    Expr,
    For,
    Load,
    Mma,
    Select,
    Space,
    Store,
    strides_of,
)

VECTOR_BYTES = 16  # of a row of a matrix that a lane points to
ROWS, WORDS, SUMS = 16, 4, 4  # of a matrix: its rows, and a lane's words and sums
PAIR = 2  # matrices of 8 columns that one instruction loads


class Printer(Protocol):
    """What of an emitter is used here."""

    locals: dict[str, str]

    def use(self, name: str) -> str:
        """The name, imported."""

    def expr(self, e: Expr) -> str:
        """An expression as text."""

    def start(self, b: Buffer, index: tuple[Expr, ...], axis: str | None) -> tuple[str, str]:
        """A buffer's name and the offset of an element, as text; where `axis` is 0."""


def print_mma(printer: Printer, s: Mma) -> list[str]:
    """Both tiles into fragments, then all products of them."""
    _, high, wide, *_ = s.sums.shape
    held = s.left.buffer.space is Space.THREAD
    lines = [f"left = {printer.use('stack_u32')}({high * WORDS})"]
    lines += [f"right = {printer.use('stack_u32')}({wide * WORDS // PAIR})"]
    if held:
        lines += _packed(printer, s.left, s.right.buffer.dtype, high)
    else:
        lines += _fragments(printer, "left", s.left, s.depth_last[0], high)
    lines += _fragments(printer, "right", s.right, s.depth_last[1], wide // PAIR)
    if s.left.buffer.dtype is DType.F32 and not held:
        lines += [*_rounded(printer, "left", high), *_rounded(printer, "right", wide // PAIR)]
    factors = [s.right.buffer.dtype if held else s.left.buffer.dtype, s.right.buffer.dtype]
    multiply = printer.use(_product(*factors))
    place = f"(m * {wide} + n) * {SUMS}"
    sums = printer.locals[s.sums.name]
    return [
        *lines,
        f"for m in range({high}):",
        f"    for n in range({wide}):",
        f"        {multiply}({sums}, {place}, left, m * {WORDS}, right, n * {WORDS // PAIR})",
    ]


def _product(left: DType, right: DType) -> str:
    if left is right is DType.F32:
        return "mma_tf32"
    same = left is right and left.is_float
    return f"mma_{SUFFIX[left]}" if same else f"mma_{SUFFIX[left]}_{SUFFIX[right]}"


def _fragments(printer: Printer, name: str, tile: Load, depth_last: bool, count: int) -> list[str]:
    """The words of `count` matrices of 16 lines. Four parts of one are loaded at once: a lane
    points to a row of them."""
    *_, pitch, _ = strides_of(tile.buffer)
    if tile.buffer.dtype is DType.F32 and not depth_last:
        return _turned(printer, name, tile, count)
    is_down = depth_last == (name == "left")
    step = VECTOR_BYTES // tile.buffer.dtype.itemsize
    lane = f"{printer.use('parts_down' if is_down else 'parts_across')}({pitch}, {step})"
    source, at = printer.start(tile.buffer, tile.index, None)
    load = printer.use("load_matrix4" if depth_last else "load_matrix4_transposed")
    next_one = ROWS * pitch if depth_last else ROWS
    return [
        f"at = {at} + {lane}",
        f"for m in range({count}):",
        f"    {load}({name}, m * {WORDS}, {source}, at + m * {next_one})",
    ]


def _turned(printer: Printer, name: str, tile: Load, count: int) -> list[str]:
    """The same word by word, where the words of a product lie `pitch` apart: no instruction turns
    matrices of words."""
    *_, pitch, _ = strides_of(tile.buffer)
    source, at = printer.start(tile.buffer, tile.index, None)
    parts = (ROWS // 2, WORDS * pitch)  # the next lines, the next of the sum
    below, beside = parts if name == "left" else parts[::-1]
    load = printer.use("load_words4")
    return [
        f"at = {at} + {printer.use('lane_across')}({pitch})",
        f"for m in range({count}):",
        f"    {load}({name}, m * {WORDS}, {source}, at + m * {ROWS}, {below}, {beside})",
    ]


def _rounded(printer: Printer, name: str, count: int) -> list[str]:
    """All words of a fragment rounded."""
    rounded = printer.use("word_to_tf32")
    return [f"for m in range({count * WORDS}):", f"    {name}[m] = {rounded}({name}[m])"]


def _packed(printer: Printer, tile: Load, half: DType, count: int) -> list[str]:
    """The words of `count` matrices that a product summed: a thread has the same rows, and pairs
    of the same columns, of sums as of factors."""
    pack = printer.use(f"pack_{SUFFIX[half]}")
    source, at = printer.start(tile.buffer, tile.index, None)
    _, rows, columns, line, _ = strides_of(tile.buffer)
    word = f"at + m * {rows} + (n >> 1) * {columns} + (n & 1) * {line}"
    return [
        f"at = {at}",
        f"for m in range({count}):",
        f"    for n in range({WORDS}):",
        f"        left[m * {WORDS} + n] = {pack}({source}[{word}], {source}[{word} + 1])",
    ]


def print_async(printer: Printer, s: For) -> str:
    """A copy to shared memory that nobody waits for yet; zeros where a condition does not hold."""
    assert isinstance(s.body, Store) and isinstance(s.extent, Const)
    count, value, conditions = int(s.extent.value), s.body.value, []
    while isinstance(value, Select):
        conditions.append(value.condition)
        value = value.then
    assert isinstance(value, Load)
    target = ", ".join(printer.start(s.body.buffer, s.body.index, s.axis))
    source = ", ".join(printer.start(value.buffer, value.index, s.axis))
    if not conditions:
        return f"{printer.use('copy_async')}({target}, {source}, {count})"
    held = " & ".join(f"({printer.expr(c)})" for c in conditions)
    valid = f"{printer.use('select')}({held}, {count}, 0)"
    return f"{printer.use('copy_async_filled')}({target}, {source}, {count}, {valid})"
