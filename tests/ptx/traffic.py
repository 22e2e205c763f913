"""What warps ask of memory: sectors of 32 bytes of global memory, passes over the banks of shared
memory.

A request is one instruction of one warp. It needs as many sectors as the bytes it wants fill, and
asks for those that they lie in: as many, if neighbouring threads want neighbouring elements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SECTOR = 32
BANK = 4  # bytes
BANKS = 32
LANES = 32


@dataclass
class Requests:
    """Of one allocation, or of shared memory: there `asked` are passes over all banks."""

    count: int = 0
    asked: int = 0
    needed: int = 0

    @property
    def share(self) -> float:
        """Of what was asked for, that which was needed."""
        return self.needed / self.asked if self.asked else 1.0

    def add(self, count: int, asked: int, needed: int) -> None:
        self.count += count
        self.asked += asked
        self.needed += needed


@dataclass
class Traffic:
    """Of a launch: reads and writes of global memory by the address of the allocation, and all
    accesses to shared memory."""

    of_global: dict[int, Requests] = field(default_factory=dict)
    of_shared: Requests = field(default_factory=Requests)

    def note_global(self, allocation: int, addresses: Array, warps: Array, size: int) -> None:
        pairs = np.unique(np.stack([warps, addresses // SECTOR]), axis=1)
        places = np.unique(np.stack([warps, addresses]), axis=1)
        wanted = np.bincount(places[0]) * size
        found = self.of_global.setdefault(allocation, Requests())
        count = np.unique(warps).size
        found.add(count, pairs.shape[1], int(np.sum(-(-wanted // SECTOR))))

    def note_shared(self, addresses: Array, threads: Array, size: int) -> None:
        """Wide accesses take turns: as many threads at a time as have a bank each."""
        turn = max(size // BANK, 1)
        group = threads * turn // LANES
        words = [np.stack([group, addresses // BANK + k]) for k in range(turn)]
        group_of, word = np.unique(np.concatenate(words, axis=1), axis=1)
        (of, _), times = np.unique(np.stack([group_of, word % BANKS]), axis=1, return_counts=True)
        groups = np.unique(of)
        passes = sum(int(times[of == g].max()) for g in groups)
        self.of_shared.add(np.unique(threads // LANES).size, passes, groups.size)
