"""Where the words of a pool's shared memory are; read by the executor and by its Python side.

Indices of 64-bit words. Words that different threads write often lie in cache lines of their own.
"""

from __future__ import annotations

OPEN = 0  # number of the open region, 0 between regions
NEXT = 8  # the next unclaimed task
ACTIVE = 16  # helpers that may be looking at the region
FUNCTION = 24  # the region: kernel, arguments, tasks
ARGS = 25
TASKS = 26
GENERATION = 27  # number of the last region
WANTED = 32  # 1 while a plan with parallel steps runs
OWNER = 40  # 1 while a plan has the helpers
NAP = 48  # two words, a timespec: how long an idle helper sleeps
WORDS = 64
LINE_BYTES = 64

SPINS_OF_CALLER = 300  # pauses before a waiting caller yields its core
