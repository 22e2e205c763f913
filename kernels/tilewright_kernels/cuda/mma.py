"""Products of small matrices by a warp: fragments from shared memory, multiplied on tensor cores.

A fragment is a thread's share of a matrix: words of 32 bits in an array of uint32 (`stack_u32`),
sums in one of float32 or int32. `mma_f16(c, k, a, i, b, j)` adds to the 4 sums c[k:k+4] of every
lane, so to a matrix of 16 rows and 8 columns, the product of what a[i:i+4] and b[j:j+2] hold. The
layouts are in the PTX ISA, "Matrix Fragments for mma.m16n8k16", and in the functions here that
pack fragments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError

from tilewright_kernels.cuda import halves
from tilewright_kernels.cuda.intrinsics import (
    F32,
    I32,
    I64,
    element,
    literal_intrinsic,
    meaning,
    ptx,
    registers,
    shared_address,
)
from tilewright_kernels.cuda.threads import register

LANES, ROWS, COLUMNS = 32, 16, 8
LANE = np.arange(LANES)
GROUP, MEMBER = LANE >> 2, LANE & 3


def left_indices(packed: int) -> tuple[Any, Any]:
    """Row and column of each element of a left fragment, [lane, word, place in the word]."""
    word, place = np.arange(4), np.arange(packed)
    row = GROUP[:, None, None] + 8 * (word & 1)[:, None] + 0 * place
    column = MEMBER[:, None, None] * packed + 4 * packed * (word >> 1)[:, None] + place
    return row, column


def right_indices(packed: int) -> tuple[Any, Any]:
    """Row and column of each element of a right fragment."""
    word, place = np.arange(2), np.arange(packed)
    row = MEMBER[:, None, None] * packed + 4 * packed * word[:, None] + place
    return row, np.broadcast_to(GROUP[:, None, None], row.shape)


def sum_indices() -> tuple[Any, Any]:
    """Row and column of each sum, [lane, place]."""
    place = np.arange(4)
    return GROUP[:, None] + 8 * (place >> 1), MEMBER[:, None] * 2 + (place & 1)


Decode = Callable[[Any], Any]


def as_bytes(words: Any, dtype: str) -> Any:
    """The bytes of words as numbers, on a further axis."""
    return np.ascontiguousarray(words).view(dtype).reshape(*words.shape, 4)


def as_pairs(words: Any, decode: Decode) -> Any:
    """The halves of words as numbers, on a further axis."""
    return decode(np.ascontiguousarray(words).view(np.uint16).reshape(*words.shape, 2))


def as_singles(words: Any) -> Any:
    return np.ascontiguousarray(words).view(np.float32)[..., None]


@dataclass(frozen=True)
class Product:
    """An instruction: its types, how many elements a word packs, and what its words mean."""

    left: str
    right: str
    packed: int
    decode_left: Decode
    decode_right: Decode

    @property
    def sums(self) -> str:
        return "f32" if self.left in ("f16", "bf16", "tf32") else "s32"

    @property
    def text(self) -> str:
        kinds = f"{self.sums}.{self.left}.{self.right}.{self.sums}"
        operands = ", ".join((registers(0, 4), registers(4, 4), registers(8, 2), registers(10, 4)))
        return f"mma.sync.aligned.m16n8k{8 * self.packed}.row.col.{kinds} {operands};"

    def mean(self, c: Any, k: int, a: Any, i: int, b: Any, j: int) -> None:
        """On arrays [lane, element]; the order of a hardware sum is not defined."""
        exact = np.float64 if self.sums == "f32" else np.int64
        left = np.zeros((ROWS, 8 * self.packed), exact)
        right = np.zeros((8 * self.packed, COLUMNS), exact)
        left[left_indices(self.packed)] = self.decode_left(a[:, i : i + 4])
        right[right_indices(self.packed)] = self.decode_right(b[:, j : j + 2])
        total = c[:, k : k + 4] + (left @ right)[sum_indices()]
        c[:, k : k + 4] = total.astype(np.int64).astype(c.dtype) if exact is np.int64 else total


def _read(builder: Any, pointer: Any, index: Any, count: int) -> list[Any]:
    places = [builder.add(index, ir.Constant(index.type, n)) for n in range(count)]
    return [builder.load(element(builder, pointer, at)) for at in places]


def _write(builder: Any, pointer: Any, index: Any, words: list[Any]) -> None:
    for n, word in enumerate(words):
        at = builder.add(index, ir.Constant(index.type, n))
        builder.store(word, element(builder, pointer, at))


def _mma(product: Product) -> Any:
    dtype = types.float32 if product.sums == "f32" else types.int32
    llvm_type = F32 if product.sums == "f32" else I32

    @literal_intrinsic
    def function(typing: Any, c: Any, k: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
        if (c.dtype, a.dtype, b.dtype) != (dtype, types.uint32, types.uint32):
            raise TypingError(f"fragments of {c.dtype}, {a.dtype} and {b.dtype}")

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            sums = _read(builder, values[0], values[1], 4)
            left = _read(builder, values[2], values[3], 4)
            words = [*left, *_read(builder, values[4], values[5], 2)]
            found = ptx(builder, product.text, [llvm_type] * 4, [*words, *sums], together=True)
            _write(builder, values[0], values[1], found)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(c, i64, a, i64, b, i64), emit

    return meaning(product.mean)(function)


def _halves(decode: Decode) -> Decode:
    return lambda words: as_pairs(words, decode)


def _signed(words: Any) -> Any:
    return as_bytes(words, "i1")


def _unsigned(words: Any) -> Any:
    return as_bytes(words, "u1")


_F16, _BF16 = _halves(halves.from_f16), _halves(halves.from_bf16)
# k is 16 for halves, 8 for float32 rounded by `to_tf32`, 32 for bytes (left, right).
mma_f16 = _mma(Product("f16", "f16", 2, _F16, _F16))
mma_bf16 = _mma(Product("bf16", "bf16", 2, _BF16, _BF16))
mma_tf32 = _mma(Product("tf32", "tf32", 1, as_singles, as_singles))
mma_i8_i8 = _mma(Product("s8", "s8", 4, _signed, _signed))
mma_u8_u8 = _mma(Product("u8", "u8", 4, _unsigned, _unsigned))
mma_u8_i8 = _mma(Product("u8", "s8", 4, _unsigned, _signed))
mma_i8_u8 = _mma(Product("s8", "u8", 4, _signed, _unsigned))


def _load_matrices(count: int, transposed: bool) -> Any:
    suffix = ".trans" if transposed else ""
    head = f"ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16"

    @literal_intrinsic
    def function(typing: Any, target: Any, j: Any, source: Any, i: Any) -> Any:
        if target.dtype != types.uint32:
            raise TypingError(f"a fragment of {target.dtype}")

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            text = f"{head} {registers(0, count)}, [${count}];"
            place = shared_address(builder, *values[2:])
            words = ptx(builder, text, [I32] * count, [place], memory=True, together=True)
            _write(builder, values[0], values[1], words)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), emit

    def mean(target: Any, j: int, rows: Any) -> None:
        """`rows` [lane, 8 elements of 16 bits]: what lies where each lane points to."""
        for n in range(count):
            matrix = rows[8 * n : 8 * n + 8]
            matrix = matrix.T if transposed else matrix
            pair = matrix[GROUP, 2 * MEMBER], matrix[GROUP, 2 * MEMBER + 1]
            target[:, j + n] = pair[0] | (pair[1].astype(np.uint32) << 16)

    return meaning(mean)(function)


def _parts(name: str, python: Any) -> Any:
    @literal_intrinsic
    def function(typing: Any, pitch: Any, step: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            lane = builder.zext(register(builder, "laneid"), I64)
            low = builder.and_(lane, I64(7))
            middle = builder.and_(builder.lshr(lane, I64(3)), I64(1))
            high = builder.lshr(lane, I64(4))
            below, beside = (middle, high) if name == "down" else (high, middle)
            row = builder.add(low, builder.mul(below, I64(8)))
            row = builder.mul(row, I64(pitch.literal_value))
            return builder.add(row, builder.mul(beside, I64(step.literal_value)))

        return types.int64(pitch, step), emit

    return meaning(python)(function)


# Where a lane points to in a matrix of 16 rows, `pitch` elements apart, of which it loads four
# parts of 8 rows: the second one below the first, or beside it, `step` elements on.
parts_down = _parts("down", lambda pitch, step: LANE % 16 * pitch + LANE // 16 * step)
parts_across = _parts(
    "across", lambda pitch, step: (LANE % 8 + LANE // 16 * 8) * pitch + LANE // 8 % 2 * step
)
# target[j:j+N] becomes each lane's words of N matrices of 8 x 8 elements of 16 bits in shared
# memory. Lane 8 * n + r points (source, i) to row r of matrix n: 16 bytes, aligned to 16.
load_matrix1, load_matrix1_transposed = _load_matrices(1, False), _load_matrices(1, True)
load_matrix2, load_matrix2_transposed = _load_matrices(2, False), _load_matrices(2, True)
load_matrix4, load_matrix4_transposed = _load_matrices(4, False), _load_matrices(4, True)


@meaning(lambda pitch: LANE % 4 * pitch + LANE // 4)
@literal_intrinsic
def lane_across(typing: Any, pitch: Any) -> Any:
    """Where a lane's first word is in a matrix of words whose lines lie side by side, `pitch` words
    from one element of the sum to the next."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lane = builder.zext(register(builder, "laneid"), I64)
        member, group = builder.and_(lane, I64(3)), builder.lshr(lane, I64(2))
        return builder.add(builder.mul(member, I64(pitch.literal_value)), group)

    return types.int64(pitch), emit


def _words_meaning(target: Any, j: int, source: Any, at: Any, below: int, beside: int) -> None:
    """On target [lane, word], `source` being the whole array."""
    for n in range(4):
        place = at + (n & 1) * below + (n >> 1) * beside
        target[:, j + n] = np.asarray(source, np.float32)[place].view(np.uint32)


@meaning(_words_meaning)
@literal_intrinsic
def load_words4(
    typing: Any, target: Any, j: Any, source: Any, i: Any, below: Any, beside: Any
) -> Any:
    """target[j:j+4] becomes the words at (source, i), `below` it, `beside` it and beside that."""
    if (target.dtype, source.dtype) != (types.uint32, types.float32):
        raise TypingError(f"a fragment of {target.dtype} from {source.dtype}")

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        found = []
        for n in range(4):
            step = (n & 1) * below.literal_value + (n >> 1) * beside.literal_value
            place = builder.add(values[3], ir.Constant(values[3].type, step))
            word = builder.load(element(builder, values[2], place))
            found.append(builder.bitcast(word, I32))
        _write(builder, values[0], values[1], found)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, below, beside), emit
