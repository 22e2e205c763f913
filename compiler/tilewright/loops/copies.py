"""Whether what is copied while threads do other things is there when they read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tilewright.loops.ir import Barrier, Commit, Wait


@dataclass
class Copies:
    """Buffers that asynchronous copies go to, and whether all threads know of their arrival."""

    targets: dict[str, int] = field(default_factory=dict)  # the stages of each
    groups: list[frozenset[str]] = field(default_factory=list)
    open: frozenset[str] = frozenset()  # copied to since the last group
    waited: bool = False
    arrived: bool = False

    def meet(self, event: Barrier | Commit | Wait) -> None:
        """Threads close a group, wait for some, or meet."""
        match event:
            case Commit():
                self.groups.append(self.open)
                self.open = frozenset()
            case Wait(pending=pending):
                self.waited = all(self.is_there(name, pending) for name in self.targets)
            case Barrier():
                self.arrived = self.waited

    def touch(self, reads: Iterable[str], copied: Mapping[str, int]) -> str | None:
        """Threads read buffers and begin copies to some, of so many stages each; the buffer that
        is read too early, if one is."""
        early = next((b for b in reads if b in self.targets), None)
        if early and not self.arrived:
            return early
        self.targets |= copied
        self.open |= copied.keys()
        self.waited = self.waited and not copied
        return None

    def is_there(self, name: str, pending: int) -> bool:
        """Whether the stage that is read has arrived: of one that is copied to once, the group."""
        if self.targets[name] > 1:
            return pending <= self.targets[name] - 2
        later = self.groups[max(0, len(self.groups) - pending) :] if pending else []
        return name not in self.open.union(*later)
