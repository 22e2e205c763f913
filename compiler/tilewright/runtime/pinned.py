"""Changes to kernels that users keep for later sessions, in a folder beside the kernel cache.

A pin belongs to what was generated: an edit to the text and the numbers lifted out of it, a
schedule to the loop nest before any schedule. What it says is applied only where it is known to be
right: that one text may stand for another is a fact of its own, which holds for one version of the
library and its tools, and is found out again after an upgrade.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tilewright.codegen.emit import Emitted
from tilewright.loops.ir import Kernel
from tilewright.loops.structure import structure
from tilewright.options import Options
from tilewright.runtime.cache import environment_fields, fingerprint
from tilewright.runtime.store import PINS, Store, StoredObject, default_folder, digest

SOURCE, SCHEDULE = "source", "schedule"
PIN, FACT = "pin", "verified"
VERSION = "1"  # of the fields of a pin
UNLIMITED = 1 << 62
TARGET = "cpu"


@dataclass(frozen=True)
class Pin:
    """A change that is kept. `change` is the new text, or directives as text; `text` and `numbers`
    are what was generated, `structure` stands for the loop nest before any schedule.

    With `every_shape` an edit is for all numbers, as far as it is right for them.
    """

    kind: str
    change: str
    structure: str
    text: str
    numbers: tuple[int, ...]
    every_shape: bool = False
    kernel: str = ""
    graph: str = ""

    @property
    def key(self) -> str:
        """Where it is kept: a later pin for the same takes its place."""
        fields: dict[str, object] = {"kind": PIN, "of": self.kind, "target": TARGET}
        if self.kind == SCHEDULE:
            fields["structure"] = self.structure
        else:
            fields["text"] = self.text
            fields["numbers"] = None if self.every_shape else self.numbers
        return json.dumps(fields, sort_keys=True)

    @property
    def name(self) -> str:
        """Short, for people and the command line."""
        return digest(self.key)[:12]

    def __str__(self) -> str:
        what = "schedule" if self.kind == SCHEDULE else "source"
        where = " for every shape" if self.every_shape else ""
        return f"{self.name}  {what} of {self.kernel} ({self.graph}){where}"


class Pins:
    """The pins in a cache folder, as they were when this was made and as changed through it."""

    def __init__(self, folder: Path | None) -> None:
        self._store = Store(folder / PINS if folder else None, UNLIMITED)
        found = (_read(item) for key, item in self._store.items())
        self._pins = {p.key: p for p in found if p is not None}

    def __iter__(self) -> Iterator[Pin]:
        return iter(list(self._pins.values()))

    def __len__(self) -> int:
        return len(self._pins)

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no kernel is pinned"

    def add(self, pin: Pin) -> bool:
        """Keeps a pin; False if the folder cannot be written."""
        self._pins[pin.key] = pin
        data = json.dumps({"version": VERSION, **asdict(pin)}).encode()
        return self._store.put(pin.key, StoredObject(data, PIN))

    def remove(self, pins: Iterable[Pin]) -> None:
        """Takes them back."""
        for pin in pins:
            self._pins.pop(pin.key, None)
            self._store.discard(pin.key)

    def clear(self, name: str = "") -> int:
        """Takes back all whose name begins like this; how many."""
        chosen = [p for p in self if p.name.startswith(name)]
        self.remove(chosen)
        return len(chosen)


def pins(options: Options | None = None) -> Pins:
    """What is pinned in the kernel cache of these options, by default of the environment's."""
    options = options or Options.from_environment()
    return Pins(options.cache_dir or default_folder())


def _read(item: StoredObject) -> Pin | None:
    with suppress(ValueError, TypeError, KeyError):
        fields = json.loads(item.data)
        if fields.pop("version") == VERSION:
            return Pin(**{**fields, "numbers": tuple(fields["numbers"])})
    return None


class Facts:
    """Which text is known to compute what a generated kernel does, kept beside the kernels."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def holds(self, structure: str, emitted: Emitted, text: str) -> bool:
        """Whether it was found to be right, by this version on a machine like this one."""
        item = self._store.get(_fact(structure, emitted, text))
        return item is not None and item.symbol == FACT

    def add(self, structure: str, emitted: Emitted, text: str) -> None:
        """It was found to be right."""
        self._store.put(_fact(structure, emitted, text), StoredObject(b"", FACT))


def _fact(structure: str, emitted: Emitted, text: str) -> str:
    fields = {
        **environment_fields(),
        "kind": FACT,
        "library": _library(),
        "structure": structure,
        "generated": emitted.text,
        "numbers": emitted.numbers,
        "changed": text,
    }
    return json.dumps(fields, sort_keys=True)


@cache
def _library() -> str:
    """Of all the compiler's files."""
    return fingerprint(Path(__file__).parents[1])


def structure_key(kernel: Kernel) -> str:
    """The same in every process for kernels of one structure."""
    return digest(repr(structure(kernel)))
