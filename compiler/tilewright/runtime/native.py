"""The plan executor: two functions over atomic operations, compiled like any other kernel.

`run_plan` walks a table of steps, each (kernel address, number of tasks, address of its
arguments), and never needs a helper to make progress. Helper threads are inside `helper`, a native
call that holds no interpreter lock: they claim tasks while a region is open. Both keep the
interface of kernels, two 64-bit integers. Importing this module imports Numba.

How a region stays exact: a helper counts itself into ACTIVE and only then looks whether the region
is open; the caller closes the region and only then waits until ACTIVE is 0. So no helper can hold
the description of a region that the caller has left. A task belongs to whoever's atomic addition
to a share's word at NEXT returned its number, below the share's end.

How nobody sleeps for ever: who is about to sleep first says so (SLEEPERS, WAITING) and then looks
once more at what would wake it; the other side changes that first and then looks whether somebody
sleeps. A sleeper wakes up unless the word it sleeps on is still what it was before it said so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from tilewright.runtime.futex import FUTEX, sleep_on, wake
from tilewright.runtime.layout import (
    ACTIVE,
    ARGS,
    BELL,
    FUNCTION,
    GENERATION,
    LINE,
    LINGER,
    NAP,
    NEXT,
    OPEN,
    OWNER,
    PARTS,
    RINGS,
    SLEEPERS,
    SPINS_OF_CALLER,
    STOPPING,
    TASKS,
    WAITING,
    WANTED,
)

RUNG = 2  # helpers that one thread wakes; each of them wakes as many

WORD = ir.IntType(64)
POINTER = ir.IntType(8).as_pointer()
ORDER = "seq_cst"
i64 = types.int64


def _intrinsic(define: Callable[..., Any]) -> Any:
    """`intrinsic`, without the types of the definition: uses pass one parameter less."""
    return intrinsic(define)


def _slot(builder: Any, base: Any, index: Any) -> Any:
    """Pointer to element `index` of the 64-bit table at the address `base`."""
    return builder.gep(builder.inttoptr(base, WORD.as_pointer()), [index])


def _declared(builder: Any, name: str, result: Any, parameters: list[Any]) -> Any:
    """The external function `name` in the module under construction."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, parameters), name)


@_intrinsic
def load(typing: Any, base: Any, index: Any) -> Any:
    """Element `index`, atomically."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_slot(builder, *values), ORDER, 8)

    return i64(i64, i64), emit


@_intrinsic
def store(typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Element `index` becomes `value`, atomically."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[2], _slot(builder, *values[:2]), ORDER, 8)
        return context.get_dummy_value()

    return types.void(i64, i64, i64), emit


@_intrinsic
def add(typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Adds to element `index`, atomically; returns what it was before."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _slot(builder, *values[:2]), values[2], ORDER)

    return i64(i64, i64, i64), emit


@_intrinsic
def claim(typing: Any, base: Any, index: Any) -> Any:
    """Turns element `index` from 0 to 1; returns 1 to the one thread that did it, else 0."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        swap = builder.cmpxchg(_slot(builder, *values), WORD(0), WORD(1), ORDER)
        return builder.zext(builder.extract_value(swap, 1), WORD)

    return i64(i64, i64), emit


@_intrinsic
def read(typing: Any, base: Any, index: Any) -> Any:
    """Element `index` of a table that nobody writes meanwhile."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(_slot(builder, *values))

    return i64(i64, i64), emit


@_intrinsic
def call(typing: Any, function: Any, task: Any, args: Any) -> Any:
    """Calls the kernel at the address `function`."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kernel = ir.FunctionType(ir.VoidType(), [WORD, WORD])
        builder.call(builder.inttoptr(values[0], kernel.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(i64, i64, i64), emit


@_intrinsic
def pause(typing: Any) -> Any:
    """Tells the core that this is a waiting loop."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if llvm.get_process_triple().startswith("x86"):
            builder.call(_declared(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        elif llvm.get_process_triple().startswith("aarch64"):
            number = ir.IntType(32)
            hint = _declared(builder, "llvm.aarch64.hint", ir.VoidType(), [number])
            builder.call(hint, [number(1)])
        return context.get_dummy_value()

    return types.void(), emit


@_intrinsic
def yield_core(typing: Any) -> Any:
    """Lets another thread have this core if one waits for it."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.call(_declared(builder, "sched_yield", ir.IntType(32), []), [])
        return context.get_dummy_value()

    return types.void(), emit


@_intrinsic
def nap(typing: Any, pool: Any) -> Any:
    """Sleeps for the time in the pool's NAP slots.

    Waking up from a real sleep lets the scheduler move a helper to an idle core; after a mere
    yield it often stayed on the caller's core.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        sleep = _declared(builder, "nanosleep", ir.IntType(32), [POINTER, POINTER])
        time = builder.bitcast(_slot(builder, values[0], WORD(NAP)), POINTER)
        builder.call(sleep, [time, ir.Constant(POINTER, None)])
        return context.get_dummy_value()

    return types.void(i64), emit


@register_jitable
def work(pool: int, me: int, function: int, args: int, tasks: int) -> None:
    """Runs unclaimed tasks: those of the share `me` first, then what others have left over.

    Shares are ranges of tasks, so that a thread works on the same part of every tensor, as far as
    kernels are cut alike: what it wrote in one region is in its cache when the next one reads it.
    """
    parts = load(pool, PARTS)
    for k in range(parts):
        share = me + k if me + k < parts else me + k - parts
        end = tasks * (share + 1) // parts
        slot = NEXT + LINE * share
        task = add(pool, slot, 1)
        while task < end:
            call(function, task, args)
            task = add(pool, slot, 1)


def run_plan(rings: int, block: int) -> None:
    """Runs the plan that `block` describes: [pool or 0, table, steps, last parallel step].

    While another plan has the pool's helpers, this one runs alone; so it does while all of them
    sleep, unless `rings` is 1.
    """
    pool = read(block, 0)
    table = read(block, 1)
    last = read(block, 3)
    mine = 0
    if pool != 0 and last >= 0:
        if rings != 0 or load(pool, SLEEPERS) + 1 < load(pool, PARTS):
            mine = claim(pool, OWNER)
        if mine != 0:
            store(pool, RINGS, rings)
            store(pool, WANTED, 1)
    for step in range(read(block, 2)):
        function = read(table, 3 * step)
        tasks = read(table, 3 * step + 1)
        args = read(table, 3 * step + 2)
        if tasks == 1 or mine == 0:
            for task in range(tasks):
                call(function, task, args)
        else:
            store(pool, FUNCTION, function)
            store(pool, ARGS, args)
            store(pool, TASKS, tasks)
            parts = load(pool, PARTS)
            for share in range(parts):
                store(pool, NEXT + LINE * share, tasks * share // parts)
            store(pool, OPEN, add(pool, GENERATION, 1) + 1)
            if rings != 0 and load(pool, SLEEPERS) != 0:
                add(pool, BELL, 1)
                wake(pool, BELL, RUNG)
            work(pool, 0, function, args, tasks)
            store(pool, OPEN, 0)
            spins = 0
            while load(pool, ACTIVE) != 0:
                pause()
                spins += 1
                if spins > SPINS_OF_CALLER:
                    if FUTEX:
                        store(pool, WAITING, 1)
                        active = load(pool, ACTIVE)
                        if active != 0:
                            sleep_on(pool, ACTIVE, active)
                        store(pool, WAITING, 0)
                    else:
                        yield_core()
        if step == last and mine != 0:
            store(pool, WANTED, 0)
            store(pool, OWNER, 0)
            mine = 0
    if mine != 0:
        store(pool, WANTED, 0)
        store(pool, OWNER, 0)


def helper(me: int, pool: int) -> None:
    """Runs tasks of open regions, first those of share `me`; between them it spins LINGER times
    and then sleeps.

    Returns once helpers are to stop; without a futex also when no plan wants help, because
    sleeping is then left to the caller.
    """
    linger = load(pool, LINGER)
    done = 0
    spins = 0
    while True:
        region = load(pool, OPEN)
        if region != 0 and region != done:
            add(pool, ACTIVE, 1)
            region = load(pool, OPEN)
            if region != 0:
                function = load(pool, FUNCTION)
                args = load(pool, ARGS)
                tasks = load(pool, TASKS)
                if load(pool, RINGS) != 0 and load(pool, SLEEPERS) != 0:
                    add(pool, BELL, 1)
                    wake(pool, BELL, RUNG)
                work(pool, me, function, args, tasks)
                done = region
            if add(pool, ACTIVE, -1) == 1 and load(pool, WAITING) != 0:
                wake(pool, ACTIVE, 1)
            spins = 0
        else:
            pause()
            spins += 1
            if spins > linger:
                if load(pool, STOPPING) != 0:
                    return
                if FUTEX:
                    rung = load(pool, BELL)
                    add(pool, SLEEPERS, 1)
                    region = load(pool, OPEN)
                    if (region == 0 or region == done) and load(pool, STOPPING) == 0:
                        sleep_on(pool, BELL, rung)
                    add(pool, SLEEPERS, -1)
                    spins = 0
                elif load(pool, WANTED) == 0:
                    return
                else:
                    nap(pool)
