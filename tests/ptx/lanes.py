"""Exchanges between the lanes of a warp, which must all be there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.errors import InactiveLanes, Unsupported
from ptx.frame import LANES, Frame, Mask, Step, builds, parts
from ptx.memory import Array
from ptx.syntax import Instruction, Operand

Check = Callable[[Mask], Array]
BIT = np.uint32(1) << np.arange(LANES, dtype=np.uint32)


def active_lanes(frame: Frame, mask: Mask) -> Array:
    """The active lanes of each thread's warp as bits."""
    rows = np.broadcast_to(mask, frame.shape.total).reshape(-1, LANES)
    words = (rows * BIT).sum(1, dtype=np.uint32)
    return np.repeat(words, LANES)


def members(frame: Frame, i: Instruction, operand: Operand) -> Check:
    """Checks that every named lane takes part, and gives the lanes named."""
    named = np.broadcast_to(frame.source(operand, "u32"), frame.shape.total)
    own = BIT[frame.lane]

    def check(mask: Mask) -> Array:
        active = active_lanes(frame, mask)
        wrong = mask & (((named & ~active) | (own & ~named)) != 0)
        if wrong.any():
            index = int(np.broadcast_to(wrong, frame.shape.total).argmax())
            lost = [k for k in range(LANES) if int(named[index] & ~active[index]) >> k & 1]
            text = f"lanes {lost} are named but do not take part" if lost else "not among the lanes"
            frame.fault(InactiveLanes, i, index, text)
        return named

    return check


@builds("shfl")
def shuffle(frame: Frame, i: Instruction) -> Step:
    """PTX ISA, "shfl.sync": the lane read lies in the segment that `c` describes, or is its own."""
    if not i.has("sync"):
        raise Unsupported("shfl without .sync")
    mode = i.modifiers[1]
    results = parts(i.operands[0])
    value, by, clamp = (frame.source(o, "u32") for o in i.operands[1:4])
    check = members(frame, i, i.operands[4])
    target = frame.target(results[0], "u32")
    inside = frame.target(results[1], "pred") if len(results) > 1 else None
    lane = frame.lane

    def step(mask: Mask) -> None:
        named = check(mask)
        b, c = by.astype(np.int64) & 31, clamp.astype(np.int64)
        limit, segment = c & 31, c >> 8 & 31
        most, least = (lane & segment) | (limit & ~segment), lane & segment
        source = {
            "up": lane - b,
            "down": lane + b,
            "bfly": lane ^ b,
            "idx": least | (b & ~segment),
        }[mode]
        valid = source >= most if mode == "up" else source <= most
        source = np.where(valid, source, lane)
        wrong = mask & ((named >> source.astype(np.uint32) & np.uint32(1)) == 0)
        if wrong.any():
            index = int(wrong.argmax())
            frame.fault(InactiveLanes, i, index, f"lane {source[index]} is read but not named")
        np.copyto(target, np.broadcast_to(value, lane.shape)[frame.warp_start + source], where=mask)
        if inside is not None:
            np.copyto(inside, valid, where=mask)

    return step


@builds("vote")
def vote(frame: Frame, i: Instruction) -> Step:
    mode = i.modifiers[1]
    predicate, check = frame.predicate(i.operands[1]), members(frame, i, i.operands[2])
    target = frame.target(i.operands[0], "u32" if mode == "ballot" else "pred")

    def step(mask: Mask) -> None:
        named = check(mask)
        votes = active_lanes(frame, np.broadcast_to(predicate(), frame.shape.total) & mask) & named
        results: dict[str, Any] = {
            "ballot": votes,
            "any": votes != 0,
            "all": votes == named,
            "uni": (votes == named) | (votes == 0),
        }
        np.copyto(target, results[mode], where=mask)

    return step


@builds("activemask")
def active_mask(frame: Frame, i: Instruction) -> Step:
    target = frame.target(i.operands[0], "u32")
    return lambda mask: np.copyto(target, active_lanes(frame, mask), where=mask)


@builds("redux")
def reduce(frame: Frame, i: Instruction) -> Step:
    """One result of all named lanes."""
    functions: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    function = functions[i.modifiers[1]]
    value, check = frame.source(i.operands[1], i.type), members(frame, i, i.operands[2])
    target = frame.target(i.operands[0], i.type)

    def step(mask: Mask) -> None:
        named = check(mask)
        full = np.uint32(0xFFFFFFFF)
        if (
            np.broadcast_to(named, frame.shape.total)[np.broadcast_to(mask, named.shape)] != full
        ).any():
            raise Unsupported(f"{i}: a part of a warp")
        rows = np.broadcast_to(value, frame.shape.total).reshape(-1, LANES)
        result = function.reduce(rows, axis=1, dtype=target.dtype)
        np.copyto(target, np.repeat(result, LANES), where=mask)

    return step


@builds("bar", "barrier")
def meet(frame: Frame, i: Instruction) -> Step:
    """bar.warp.sync: lanes run in lock step, so they only must be there."""
    check = members(frame, i, i.operands[0])

    def step(mask: Mask) -> None:
        check(mask)

    return step
