"""Why a kernel was compiled although others are cached: the field of the key that differs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from contextlib import suppress

from tilewright.runtime.store import Store

TEXTS = ("text", "source")  # fields that hold the kernel itself
MOST_KEYS = 20_000  # that are looked at, the newest first
MOST_ALIKE = 200  # texts that are compared word by word
LONGEST = 80


def why_compiled(fields: Mapping[str, str], store: Store) -> str:
    """What keeps the closest kernel in the store from being this one, as a sentence.

    `fields` are those of the kernel's key. Of kernels with the same text the one that differs in
    fewest other fields is the closest, otherwise the one whose text is most alike.
    """
    name = next(n for n in TEXTS if n in fields)
    others = [k for k in _keys(store) if k != fields and k.keys() == fields.keys()]
    same = [k for k in others if k[name] == fields[name]]
    if same:
        closest = min(same, key=lambda k: len(_differing(k, fields)))
        return "; ".join(_compared(f, closest[f], fields[f]) for f in _differing(closest, fields))
    here = [k for k in others if len(_differing(k, fields)) == 1]
    if not here:
        return "no kernel for this machine and these versions was cached"
    text = fields[name]
    near = sorted(here, key=lambda k: abs(len(k[name]) - len(text)))[:MOST_ALIKE]
    lines = text.splitlines()
    best = max(near, key=lambda k: _alike(k[name].splitlines(), lines))
    return f"{name} is new; the closest cached one differs in {_difference(best[name], text)}"


def _keys(store: Store) -> list[dict[str, str]]:
    found = []
    for _, entry in zip(range(MOST_KEYS), store.entries(), strict=False):
        with suppress(ValueError):
            fields = json.loads(entry.key)
            if isinstance(fields, dict):
                found.append(fields)
    return found


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return [f for f in b if a[f] != b[f]]


def _alike(old: list[str], new: list[str]) -> float:
    return difflib.SequenceMatcher(None, old, new, autojunk=False).quick_ratio()


def _difference(old: str, new: str) -> str:
    """The first line that differs."""
    before, after = _statements(old), _statements(new)
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    changed = [o for o in matcher.get_opcodes() if o[0] != "equal"]
    if not changed:
        return "its imports"
    _, a0, a1, b0, b1 = changed[0]
    there = _short(before[a0].strip()) if a1 > a0 else "nothing"
    here = _short(after[b0].strip()) if b1 > b0 else "nothing"
    rest = f", and in {len(changed) - 1} other places" if len(changed) > 1 else ""
    return f"a line: {here} here, {there} there{rest}"


def _statements(text: str) -> list[str]:
    """The lines without imports, which follow from the others."""
    return [line for line in text.splitlines() if not line.startswith(("from ", "import "))]


def _compared(field: str, old: str, new: str) -> str:
    """A field of two keys; of a list of features what only one of them has."""
    if "," in new and "," in old:
        here, there = set(new.split(",")), set(old.split(","))
        new, old = ",".join(sorted(here - there)), ",".join(sorted(there - here))
    return f"{field} is {_short(new)}, cached is {_short(old)}"


def _short(text: str) -> str:
    """Long values by their ends."""
    half = LONGEST // 2 - 2
    return repr(text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}")
