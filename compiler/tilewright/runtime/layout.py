"""Where the words of a pool's shared memory are; read by the executor and by its Python side.

Indices of 64-bit words. Words that different threads write often lie in cache lines of their own.
"""

from __future__ import annotations

OPEN = 0  # number of the open region, 0 between regions
PARTS = 8  # shares that the tasks of a region are divided into, one for each thread
ACTIVE = 16  # helpers that may be looking at the region; a waiting caller sleeps on it
WAITING = 17  # 1 while the caller sleeps, or is about to
FUNCTION = 24  # the region: kernel, arguments, tasks
ARGS = 25
TASKS = 26
GENERATION = 27  # number of the last region
RINGS = 28  # 1 if sleeping helpers are woken for the region
WANTED = 32  # 1 while a plan with parallel steps runs
STOPPING = 33  # 1 once helpers are to leave native code
OWNER = 40  # 1 while a plan has the helpers
NAP = 48  # two words, a timespec: how long an idle helper sleeps
LINGER = 50  # pauses before an idle helper sleeps or leaves native code
BELL = 56  # rung for sleeping helpers, which sleep on it
SLEEPERS = 57  # helpers that sleep, or are about to
NEXT = 64  # the next unclaimed task of the first share; that of each other one is a line further
LINE = 8
LINE_BYTES = 8 * LINE


def words(threads: int) -> int:
    """The size of the memory of a pool of so many threads."""
    return NEXT + LINE * threads


SPINS_OF_CALLER = 300  # pauses before a waiting caller gives up its core
RECORD_WORDS = 5  # of a watched task, in memory of its plan: begin and end in seconds and
# nanoseconds, thread
