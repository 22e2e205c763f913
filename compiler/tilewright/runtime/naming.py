"""What the kernels of a plan are called, and which nodes their errors name."""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.fusion.lower import Lowered

LONGEST = 40


def identifier(text: str) -> str:
    """A text as part of a name."""
    return "".join(c if c.isalnum() else "_" for c in text.lower())[:LONGEST]


def checked_nodes(lowered: Lowered, checked: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The nodes whose checks a kernel makes, for messages."""
    if lowered.group.nest is not None:
        return (lowered.group.nest.node,)
    return tuple(
        dict.fromkeys(n for m in lowered.group.members for n in checked.get(m.name, ()) if n)
    )
