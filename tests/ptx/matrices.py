"""Small matrices in the registers of a warp: ldmatrix and mma.sync.

The fragments are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16" and its kin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.conversions import from_brain
from ptx.errors import Unsupported
from ptx.frame import LANES, Frame, Mask, Step, builds, parts
from ptx.memory import Array
from ptx.moves import reporter
from ptx.syntax import Instruction

ROWS, COLUMNS, GROUPS, MEMBERS = 16, 8, 8, 4
TF32_BITS = np.uint32(0xFFFFE000)
PACKED = {"f16": 2, "bf16": 2, "tf32": 1, "s8": 4, "u8": 4}
Decode = Callable[[Array], Array]
DECODE: dict[str, Decode] = {
    "f16": lambda words: words.view(np.float16),
    "bf16": lambda words: from_brain(words.view(np.uint16)),
    "tf32": lambda words: (words & TF32_BITS).view(np.float32),
    "s8": lambda words: words.view(np.int8),
    "u8": lambda words: words.view(np.uint8),
}


@builds("ldmatrix")
def load_matrices(frame: Frame, i: Instruction) -> Step:
    """Matrices of 8 rows of 16 bytes; lanes 8k to 8k + 7 give the rows of matrix k."""
    if i.type != "b16" or not i.has("m8n8"):
        raise Unsupported(f"{i}")
    targets = [frame.target(o, "u32") for o in parts(i.operands[0])]
    address, report, spaces = frame.address(i.operands[1]), reporter(frame, i), frame.spaces
    lane, start = frame.lane, frame.warp_start
    gives_row = lane < 8 * len(targets)
    group, member = lane >> 2, lane & 3

    def step(mask: Mask) -> None:
        frame.whole_warps(i, mask)
        givers = np.flatnonzero(gives_row & mask)
        rows = np.zeros((frame.shape.total, 8), np.uint16)
        rows[givers] = spaces.read("shared", address()[givers], givers, 2, 8, report)
        for k, target in enumerate(targets):
            first = start + 8 * k
            if i.has("trans"):
                low, high = (rows[first + 2 * member + n, group] for n in (0, 1))
            else:
                low, high = (rows[first + group, 2 * member + n] for n in (0, 1))
            np.copyto(target, low | (high.astype(np.uint32) << np.uint32(16)), where=mask)

    return step


def fragment(words: list[Array], kind: str, warps: int) -> Array:
    """[warp, word, group, member and place]: the elements of a fragment."""
    stacked = np.stack([np.broadcast_to(w, warps * LANES) for w in words])
    values = DECODE[kind](np.ascontiguousarray(stacked))
    shape = (len(words), warps, GROUPS, MEMBERS * PACKED[kind])
    return values.reshape(shape).transpose(1, 0, 2, 3).astype(np.float64)


def left_matrix(words: list[Array], kind: str, warps: int) -> Array:
    """[warp, row, k]: words 0 and 1 are the upper and lower rows of the first columns."""
    parts_of = fragment(words, kind, warps)
    halves = [
        np.concatenate([parts_of[:, k], parts_of[:, k + 1]], 1) for k in range(0, len(words), 2)
    ]
    return np.concatenate(halves, 2)


def right_matrix(words: list[Array], kind: str, warps: int) -> Array:
    """[warp, k, column]."""
    parts_of = fragment(words, kind, warps)
    return np.concatenate([parts_of[:, k] for k in range(len(words))], 2).transpose(0, 2, 1)


@builds("mma")
def multiply(frame: Frame, i: Instruction) -> Step:
    """D = A B + C of every warp, summed exactly and rounded once."""
    shape = next(m for m in i.modifiers if re.fullmatch(r"m\d+n\d+k\d+", m))
    to, left, right, added = i.modifiers[-4:]
    is_float = left not in ("s8", "u8")
    sums: Any = "f32" if is_float else "s32"
    depth = int(shape.split("k")[1])
    a, b, c = ([frame.source(o, "u32") for o in parts(operand)] for operand in i.operands[1:4])
    known = left in PACKED and right in PACKED and (to, added) == (sums, sums)
    if not known or not shape.startswith("m16n8") or i.has("satfinite") or len(a) != 2 * len(b):
        raise Unsupported(f"{i}")
    if depth != MEMBERS * PACKED[left] * len(b) or not (i.has("row") and i.has("col")):
        raise Unsupported(f"{i}: fragments of {len(a)} and {len(b)} words")
    targets = [frame.target(o, sums) for o in parts(i.operands[0])]
    warps = frame.shape.total // LANES

    def step(mask: Mask) -> None:
        frame.whole_warps(i, mask)
        product = left_matrix(a, left, warps) @ right_matrix(b, right, warps)
        grid = product.reshape(warps, 2, GROUPS, MEMBERS, 2)
        results = []
        for k in range(4):
            old = np.broadcast_to(c[k], frame.shape.total).view(targets[k].dtype)
            part = grid[:, k >> 1, :, :, k & 1].reshape(-1)
            total = part + old if is_float else (part.astype(np.int64) + old) & 0xFFFFFFFF
            exact = total if is_float else total.astype(np.uint32)
            results.append(exact.astype(np.float32) if is_float else exact.view(np.int32))
        for target, result in zip(targets, results, strict=True):
            np.copyto(target, result, where=mask)

    return step
