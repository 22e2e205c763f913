"""Runs a kernel: all threads of a batch of blocks in lock step, the threads furthest back first.

Threads that diverge are groups with a place each; the group with the smallest place runs until it
meets the next one. So they meet again where the paths of the program do. Where a whole warp has to
meet, a part of it waits as long as there are others that run: their path may lie further down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import ptx.families
from ptx.access import Spaces
from ptx.errors import BarrierDivergence, LaunchFault, Trapped, Unsupported
from ptx.frame import BUILDERS, LANES, TYPES, Frame, Shape, Step
from ptx.memory import Array, Memory
from ptx.program import Program
from ptx.syntax import Instruction, Symbol, Variable
from ptx.traffic import Traffic
from ptx.warpgroups import guarded, registers

BATCH_THREADS = 8192
KIB = 1024
SHARED_LIMITS = {"80": 163, "86": 99, "87": 163, "89": 99, "90": 227, "100": 227, "120": 99}
MOST_THREADS = 1024
MOST_BLOCKS = 2**31 - 1

# Every step that changes what runs next.
BRANCHES = ("bra", "brx", "ret", "exit", "trap")
BARRIERS = ("bar", "barrier")


@dataclass
class Statistics:
    """What a launch executed; `thread_instructions` counts each instruction once per thread."""

    instructions: int = 0
    thread_instructions: int = 0
    barriers: int = 0
    traffic: Traffic | None = None


def launch(
    kernel: Program,
    memory: Memory,
    blocks: int,
    threads: int,
    parameters: Sequence[int | float | bytes],
    shared_bytes: int = 0,
    batch_threads: int = BATCH_THREADS,
    traffic: bool = False,
) -> Statistics:
    """Run `blocks` blocks of `threads`; a PtxError where the kernel or the launch is wrong. With
    `traffic` it is counted what they ask of memory."""
    check_launch(kernel, blocks, threads, parameters)
    statistics = Statistics(traffic=Traffic() if traffic else None)
    memory.begin_launch()
    together = min(blocks, max(1, batch_threads // Shape(1, threads).row))
    machine = Machine(kernel, memory, Shape(together, threads), blocks, shared_bytes)
    machine.set_parameters(parameters)
    machine.frame.spaces.traffic = statistics.traffic
    with np.errstate(all="ignore"):
        for first in range(0, blocks, together):
            machine.run(first, min(together, blocks - first), statistics)
    return statistics


def check_launch(
    kernel: Program, blocks: int, threads: int, parameters: Sequence[int | float | bytes]
) -> None:
    most = min(kernel.most_threads, MOST_THREADS)
    if not 0 < threads <= most:
        raise LaunchFault(f"{kernel.name}: {threads} threads a block, {most} at most")
    if not 0 < blocks <= MOST_BLOCKS:
        raise LaunchFault(f"{kernel.name}: {blocks} blocks")
    if len(parameters) != len(kernel.parameters):
        wanted = len(kernel.parameters)
        raise LaunchFault(f"{kernel.name}: {len(parameters)} parameters, {wanted} are wanted")


def shared_limit(target: str) -> int:
    """Bytes of shared memory that a block may have."""
    return SHARED_LIMITS.get(target.removeprefix("sm_").rstrip("af"), 163) * KIB


def layout(variables: Sequence[Variable], start: int = 0) -> tuple[dict[str, int], int]:
    """Places one after the other, and their end."""
    places = {}
    for variable in variables:
        start = -(-start // variable.align) * variable.align
        places[variable.name] = start
        start += variable.size
    return places, start


class Machine:
    def __init__(
        self, kernel: Program, memory: Memory, shape: Shape, blocks: int, shared_bytes: int
    ) -> None:
        self.kernel, self.shape, self.blocks = kernel, shape, blocks
        every = [*kernel.module_variables.values(), *kernel.variables.values()]
        fixed = [v for v in every if v.space == "shared" and not v.external]
        shared, end = layout(fixed)
        dynamic = [v for v in every if v.space == "shared" and v.external]
        widest = max([16, *(v.align for v in dynamic)])
        start = -(-end // widest) * widest if dynamic else end
        own, local_bytes = layout([v for v in every if v.space == "local"])
        self.check_shared(start + shared_bytes)
        spaces = Spaces(memory, shape.blocks, shape.row, start + shared_bytes, local_bytes)
        self.frame = Frame(kernel, shape, spaces)
        self.frame.symbols = shared | {v.name: start for v in dynamic} | own
        for v in every:
            if v.space in ("global", "const"):
                data = np.frombuffer(v.data or bytes(v.size), np.uint8)
                self.frame.symbols[v.name] = memory.put(data)
            elif v.space == "param":
                self.frame.parameters[v.name] = per_thread(v, shape.total)
        self.set_specials()
        self.steps: list[Step | None] = []
        self.arrived = np.zeros(shape.total, np.bool_)
        self.resume = np.zeros(shape.total, np.int64)

    def check_shared(self, total: int) -> None:
        most = shared_limit(self.kernel.target)
        if total > most:
            raise LaunchFault(f"{self.kernel.name}: {total} bytes of shared memory, {most} at most")

    def set_parameters(self, parameters: Sequence[int | float | bytes]) -> None:
        for variable, value in zip(self.kernel.parameters, parameters, strict=True):
            if isinstance(value, bytes):
                if len(value) != variable.size:
                    raise LaunchFault(f"{len(value)} bytes for {variable.size} of {variable.name}")
                self.frame.symbols[variable.name] = self.frame.spaces.memory.put(
                    np.frombuffer(value, np.uint8)
                )
                continue
            dtype = TYPES[variable.type]
            if np.dtype(dtype).kind in "iu":
                value = int(value) % (1 << 8 * variable.size)
                dtype = TYPES[f"u{8 * variable.size}"]
            self.frame.parameters[variable.name] = np.array([value], dtype).view(np.uint8)
        every = self.kernel.instructions
        products = [i.operands[0] for i in every if i.has("mma_async")]
        sums = frozenset[str]().union(*map(registers, products))
        built = [self.step(i) for i in every]
        self.steps = [
            s and guarded(self.frame, i, s, sums) for i, s in zip(every, built, strict=True)
        ]
        self.guards = [self.guard(i) for i in self.kernel.instructions]
        self.meets = [i.has("sync") for i in self.kernel.instructions]

    def step(self, instruction: Instruction) -> Step | None:
        """None for what changes the order of execution."""
        if instruction.name in BRANCHES:
            return None
        if instruction.name in BARRIERS and not instruction.has("warp"):
            return None
        if instruction.name not in BUILDERS:
            raise Unsupported(f"{instruction}")
        try:
            return BUILDERS[instruction.name](self.frame, instruction)
        except (Unsupported, KeyError) as error:
            raise Unsupported(f"{instruction}: {error}") from error

    def guard(self, instruction: Instruction) -> tuple[Array, bool] | None:
        guard = instruction.guard
        if guard is None:
            return None
        return self.frame.registers[guard.predicate.name], guard.wanted

    def set_specials(self) -> None:
        frame, shape = self.frame, self.shape
        thread = frame.thread.astype(np.uint32)
        same = {"%ntid.x": shape.threads, "%nctaid.x": self.blocks, "WARP_SZ": LANES}
        same |= {f"%{n}.{axis}": 1 for n in ("ntid", "nctaid") for axis in "yz"}
        same |= {f"%{n}.{axis}": 0 for n in ("tid", "ctaid") for axis in "yz"}
        same["%dynamic_smem_size"] = frame.spaces.shared_bytes
        for name, value in same.items():
            frame.specials[name] = np.full(shape.total, value, np.uint32)
        lane = frame.lane.astype(np.uint32)
        self.block_numbers = np.zeros(shape.total, np.uint32)
        frame.specials |= {"%tid.x": thread, "%laneid": lane, "%ctaid.x": self.block_numbers}
        frame.specials |= {"%warpid": thread // np.uint32(LANES)}
        frame.specials |= lane_masks(lane)

    # Execution.

    def run(self, first: int, count: int, statistics: Statistics) -> None:
        """Blocks `first` to `first + count`, to their end."""
        frame = self.frame
        frame.first_block = first
        frame.poison()
        frame.spaces.begin(first)
        self.statistics = statistics
        self.block_numbers[:] = first + frame.spaces.block
        present = (frame.thread < self.shape.threads) & (frame.spaces.block < count)
        frame.alive[:] = present
        self.arrived.fill(False)
        self.groups: dict[int, Array] = {0: present}
        self.held: set[int] = set()  # the places of groups that wait for others
        self.end = len(self.steps)
        while self.groups:
            place = min(self.groups.keys() - self.held, default=-1)
            together = place < 0  # all wait: who is not there yet will not come
            place = min(self.groups) if together else place
            self.held.discard(place)
            self.follow(place, self.groups.pop(place), together)
        if self.arrived.any():
            self.stuck()
        if frame.bulk is not None:
            frame.bulk.end()

    def add(self, place: int, mask: Array) -> None:
        if mask.any():
            there = self.groups.get(place)
            self.groups[place] = mask if there is None else there | mask
            self.held.discard(place)

    def follow(self, place: int, mask: Array, together: bool) -> None:
        """Run a group until it meets another one, branches back, waits or ends; it does not wait
        where it stands if all that come are `together`."""
        stop = min((p for p in self.groups if p > place), default=self.end)
        active: Any = True if mask.all() else mask
        steps, guards, start, waits = self.steps, self.guards, place, False
        while place < stop:
            if self.meets[place] and (place > start or not together) and self.may_come(mask):
                waits, stop = True, place
                break
            step = steps[place]
            if step is None:
                break
            guard = guards[place]
            if guard is None:
                step(active)
            else:
                chosen = mask & (guard[0] if guard[1] else ~guard[0])
                if chosen.any():
                    step(True if chosen.all() else chosen)
            place += 1
        is_control = place < stop
        done = place - start + is_control
        self.statistics.instructions += done
        self.statistics.thread_instructions += done * int(np.count_nonzero(mask))
        if is_control:
            self.control(place, mask)
        elif place < self.end:
            self.add(place, mask)
            if waits:
                self.held.add(place)
        else:
            self.leave(mask)

    def may_come(self, mask: Array) -> bool:
        """Whether other lanes of these warps run, elsewhere."""
        if not self.groups:
            return False
        others = self.frame.alive & ~mask & ~self.arrived
        return bool(np.any(mask.reshape(-1, LANES).any(1) & others.reshape(-1, LANES).any(1)))

    def control(self, place: int, mask: Array) -> None:
        instruction, guard = self.kernel.instructions[place], self.guards[place]
        chosen = mask if guard is None else mask & (guard[0] if guard[1] else ~guard[0])
        if guard is not None:
            self.add(place + 1, mask & ~chosen)
            if not chosen.any():
                return
        name = instruction.name
        if name == "bra":
            self.add(self.label(instruction.operands[0]), chosen)
        elif name == "brx":
            self.table(instruction, chosen)
        elif name in BARRIERS:
            self.arrive(instruction, place, chosen)
        elif name == "trap":
            self.frame.fault(Trapped, instruction, int(chosen.argmax()), "trap")
        else:
            self.leave(chosen)

    def label(self, operand: Any) -> int:
        if not isinstance(operand, Symbol) or operand.name not in self.kernel.labels:
            raise Unsupported(f"a branch to {operand}")
        return self.kernel.labels[operand.name]

    def table(self, instruction: Instruction, mask: Array) -> None:
        selector, table = instruction.operands
        assert isinstance(table, Symbol)
        index = self.frame.source(selector, "u32")
        targets = self.kernel.tables[table.name]
        for k, target in enumerate(targets):
            self.add(self.kernel.labels[target], mask & (index == k))
        outside = mask & (index >= len(targets))
        if outside.any():
            self.frame.fault(Trapped, instruction, int(outside.argmax()), "no such branch")

    # Barriers.

    def leave(self, mask: Array) -> None:
        self.frame.alive &= ~mask

    def arrive(self, instruction: Instruction, place: int, mask: Array) -> None:
        """These threads wait; whole blocks of waiting threads go on."""
        frame, row = self.frame, self.shape.row
        if len(instruction.operands) > 1 or instruction.has("arrive") or instruction.has("red"):
            raise Unsupported(f"{instruction}")
        if "aligned" in instruction.modifiers or instruction.name == "bar":
            rows = (mask | ~frame.alive).reshape(-1, LANES)
            partial = mask.reshape(-1, LANES).any(1) & ~rows.all(1)
            if partial.any():
                warp = int(partial.argmax())
                index = warp * LANES + int(rows[warp].argmin())
                text = "this lane is elsewhere while others of its warp are at the barrier"
                frame.fault(BarrierDivergence, instruction, index, text)
        self.arrived |= mask
        self.resume[mask] = place
        waits = self.arrived.reshape(-1, row)
        complete = np.all(waits | ~frame.alive.reshape(-1, row), axis=1) & np.any(waits, axis=1)
        if complete.any():
            self.release(complete)

    def release(self, blocks: Array) -> None:
        waiting = self.arrived & blocks[self.frame.spaces.block]
        self.same_barrier(waiting)
        self.arrived &= ~waiting
        self.frame.spaces.pass_barrier(blocks)
        self.statistics.barriers += int(blocks.sum())
        places = self.resume[waiting]
        for place in np.unique(places):
            self.add(int(place) + 1, waiting & (self.resume == place))

    def same_barrier(self, waiting: Array) -> None:
        """All threads of a block wait at one instruction, and none of them has ended."""
        row, present = self.shape.row, self.frame.thread < self.shape.threads
        place: Array = np.where(waiting, self.resume, -1).reshape(-1, row)
        at = place.max(1)
        some = np.any(waiting.reshape(-1, row), axis=1, keepdims=True)
        among = some & present.reshape(-1, row)
        wrong: Array = (among & (place != at[:, None])).reshape(-1)
        if wrong.any():
            index = int(wrong.argmax())
            instruction = self.kernel.instructions[int(at[index // row])]
            where = int(place.reshape(-1)[index])
            at_text = f"waits at {self.kernel.instructions[where]}" if where >= 0 else "has ended"
            text = f"other threads of its block are at the barrier, this one {at_text}"
            self.frame.fault(BarrierDivergence, instruction, index, text)

    def stuck(self) -> None:
        """Some wait for threads that have ended."""
        index = int((~self.frame.alive & self._blocks_waiting()).argmax())
        place = int(self.resume[int(self.arrived.argmax())])
        text = "it has ended while other threads of its block wait at the barrier"
        instruction = self.kernel.instructions[place]
        self.frame.fault(BarrierDivergence, instruction, index, text)

    def _blocks_waiting(self) -> Array:
        row = self.shape.row
        waits: Array = np.repeat(self.arrived.reshape(-1, row).any(1), row)
        return waits & (self.frame.thread < self.shape.threads)


def per_thread(variable: Variable, count: int) -> Array:
    """Room for a parameter of a function, [thread, byte]."""
    return np.full((count, -(-variable.size // 8) * 8), 0xFF, np.uint8)


def lane_masks(lane: Array) -> dict[str, Array]:
    """%lanemask_lt and its kin."""
    bit = np.uint32(1) << lane
    below, upto = bit - np.uint32(1), bit | (bit - np.uint32(1))
    names = {"lt": below, "le": upto, "eq": bit, "ge": ~below, "gt": ~upto}
    return {f"%lanemask_{name}": mask for name, mask in names.items()}


assert ptx.families.LOADED
