"""`tilewright doctor`, `cache` and `pins`: what this machine offers, and what it keeps."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from tilewright.errors import InputError
from tilewright.explore import doctor
from tilewright.explore.commands.base import RIGHT, Command, add_json, is_quiet, write_json
from tilewright.explore.screen import Screen
from tilewright.options import Options
from tilewright.runtime.pinned import pins
from tilewright.runtime.store import Entry, Store, default_folder

SHOWN = 20


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _run_doctor(arguments: argparse.Namespace, screen: Screen) -> int:
    """What is here; that something is missing is no failure."""
    found = doctor.diagnose()
    if arguments.json:
        print(json.dumps(found.as_dict()))
    else:
        doctor.show(found, screen)
    return RIGHT


DOCTOR = Command(
    "doctor",
    "what this machine offers, what is missing and how to get it",
    _add_doctor,
    _run_doctor,
    "Shows what compiled models can use here, and what is missing for CUDA.",
)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=("size", "list", "clear"), nargs="?", default="size")
    add("--all", action="store_true", help=f"list all entries, not only the newest {SHOWN}")
    add_json(parser)


def _run_cache(arguments: argparse.Namespace, screen: Screen) -> int:
    options = Options.from_environment()
    store = Store(options.cache_dir or default_folder(), options.cache_bytes)
    if store.folder is None:
        raise InputError("there is no home folder to keep a cache in: set TILEWRIGHT_CACHE_DIR")
    entries = list(store.entries())
    data: dict[str, Any] = {
        "folder": str(store.folder),
        "entries": len(entries),
        "bytes": sum(e.nbytes for e in entries),
        "limit": store.limit,
        "kinds": dict(Counter(_kind(e) for e in entries)),
    }
    if arguments.action == "clear":
        data["deleted"] = store.clear()
    if arguments.action == "list":
        shown = entries if arguments.all else entries[:SHOWN]
        data["list"] = [_row(e) for e in shown]
    if not is_quiet(arguments):
        _show(data, screen)
    write_json(data, arguments.json)
    return RIGHT


def _show(data: dict[str, Any], screen: Screen) -> None:
    kinds = ", ".join(f"{n} {kind}" for kind, n in data["kinds"].items()) or "nothing"
    screen.line(f"{data['folder']}: {kinds}; {data['bytes'] / 1e6:,.1f} MB")
    if "deleted" in data:
        screen.line(f"deleted {data['deleted']} entries")
        return
    screen.line(f"the least recently used go beyond {data['limit'] / 1e6:,.0f} MB")
    if rows := data.get("list"):
        columns = ["kind", "what", "bytes", "last used"]
        screen.table(
            columns, [[str(r[c]) for c in ("kind", "what", "bytes", "used")] for r in rows]
        )
        if len(rows) < data["entries"]:
            screen.line(f"and {data['entries'] - len(rows)} older ones: --all shows them")


def _fields(entry: Entry) -> dict[str, str]:
    with suppress(ValueError):
        fields = json.loads(entry.key)
        if isinstance(fields, dict):
            return fields
    return {}


def _kind(entry: Entry) -> str:
    fields = _fields(entry)
    if "text" in fields:
        return "kernels for the CPU"
    if "source" in fields:
        return "kernels for CUDA"
    return str(fields.get("kind", "unreadable"))


def _row(entry: Entry) -> dict[str, Any]:
    fields = _fields(entry)
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    return {
        "kind": _kind(entry),
        "what": _what(fields),
        "bytes": entry.nbytes,
        "used": used,
        "fields": {k: v for k, v in fields.items() if k not in ("text", "source")},
    }


def _what(fields: dict[str, str]) -> str:
    """What a kernel calls, which tells one from another."""
    text = fields.get("text") or fields.get("source", "")
    lines = text.replace("\\n", "\n").splitlines()
    names = [
        n for line in lines if " import " in line for n in line.split(" import ")[1].split(", ")
    ]
    told = [n for n in names if n not in ("f32", "integer", "offset")]
    return " ".join(told[:6])


CACHE = Command(
    "cache",
    "what the kernel cache holds: size, list, clear",
    _add_cache,
    _run_cache,
    "Shows or empties the folder in which compiled kernels are kept (TILEWRIGHT_CACHE_DIR).",
)


def _add_pins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clear", nargs="?", const="", metavar="NAME", help="all, or these")
    add_json(parser)


def _run_pins(arguments: argparse.Namespace, screen: Screen) -> int:
    found = pins()
    data: dict[str, Any] = {"pins": [{"name": p.name, **asdict(p)} for p in found]}
    told = str(found)
    if arguments.clear is not None:
        data["cleared"] = found.clear(arguments.clear)
        told = f"{data['cleared']} pins taken back"
    if not is_quiet(arguments):
        screen.line(told)
    write_json(data, arguments.json)
    return RIGHT


PINS = Command(
    "pins",
    "changed kernels that are kept for later sessions",
    _add_pins,
    _run_pins,
    "Lists the kernels that were pinned, or takes pins back.",
)
