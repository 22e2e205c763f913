"""Compiled objects on disk: one file per key, which a reader trusts only after checking it.

A file is MAGIC, the BLAKE2b digest of the rest, the header's length, the header (JSON: the full
text of the key, the exported symbol, the symbols that must exist in the process) and the object.
Writers use a temporary name in the same folder and rename it, so that a reader in another process
sees a whole file or none. The store is only a cache: no failure of the file system is an error.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

MAGIC = b"TWOBJ\1"
DIGEST_BYTES = 16
HEADER_AT = len(MAGIC) + DIGEST_BYTES
TEMPORARY = ".tmp"
PINS = "pins"  # a folder with a store of its own, which no sweep of this one touches
ABANDONED_AFTER = 3600.0  # seconds; a temporary file this old has lost its writer


@dataclass(frozen=True)
class StoredObject:
    """Object code, the symbol it exports and the symbols that the process must offer to it."""

    data: bytes
    symbol: str
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A file of the store: its key, its bytes, and when it was used last (seconds of the epoch)."""

    key: str
    nbytes: int
    used: float


def default_folder() -> Path | None:
    """The user's cache folder for this package; None where there is no home directory."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "tilewright"
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "tilewright" if os.path.isabs(home) else None


def digest(key: str) -> str:
    """32 hexadecimal digits that stand for the key, in file names and in symbols."""
    return blake2b(key.encode(), digest_size=DIGEST_BYTES).hexdigest()


class Store:
    """A folder of compiled objects; with folder None it holds nothing.

    `limit` bounds the bytes: beyond it the objects that were used least recently are deleted.
    """

    def __init__(self, folder: Path | None, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._room: int | None = None  # bytes left before the next sweep; None before the first

    def path(self, key: str) -> Path | None:
        """Where the object of this key is or would be."""
        name = digest(key)
        return self.folder / name[:2] / name[2:] if self.folder else None

    def get(self, key: str) -> StoredObject | None:
        """The object of this key, or None; a damaged file is removed."""
        path = self.path(key)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            found = decode(content, key)
        except ValueError:
            self.discard(key)
            return None
        with suppress(OSError):
            os.utime(path)  # the sweep deletes by this time
        return found

    def items(self) -> Iterator[tuple[str, StoredObject]]:
        """Every key with its object, damaged files apart."""
        for _, _, path in self._files():
            with suppress(OSError, ValueError):
                yield decode_any(path.read_bytes())

    def put(self, key: str, item: StoredObject) -> bool:
        """Keeps the object under this key; False where the folder cannot be written."""
        path = self.path(key)
        if path is None:
            return False
        content = encode(key, item)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_whole(path, content)
        except OSError:
            return False
        self._account(len(content))
        return True

    def discard(self, key: str) -> None:
        """Removes the object of this key, if there is one and it can be removed."""
        path = self.path(key)
        if path is not None:
            with suppress(OSError):
                path.unlink()

    def sweep(self) -> None:
        """Deletes abandoned temporary files and, beyond the limit, the least recently used objects.

        A sweep leaves a tenth of the limit free, so that not every new object needs another.
        """
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        target = self.limit - self.limit // 10 if total > self.limit else total
        for _, size, path in files:
            if total <= target:
                break
            with suppress(OSError):
                path.unlink()
            total -= size
        self._room = self.limit - total

    def entries(self) -> Iterator[Entry]:
        """All objects, the most recently used first; what cannot be read has no key."""
        for used, size, path in sorted(self._files(), reverse=True):
            key = ""
            with suppress(OSError, ValueError, KeyError, struct.error):
                key = _key_of(path)
            yield Entry(key, size, used)

    def clear(self) -> int:
        """Deletes all objects; how many there were."""
        count = 0
        for _, _, path in list(self._files()):
            with suppress(OSError):
                path.unlink()
                count += 1
        self._room = self.limit
        return count

    def _account(self, size: int) -> None:
        """Sweeps when the files are likely to exceed the limit, seen from this process alone."""
        if self._room is not None:
            self._room -= size
        if self._room is None or self._room < 0:
            self.sweep()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each object."""
        now = time.time()
        for folder, below, names in os.walk(self.folder or ""):
            if PINS in below:
                below.remove(PINS)
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):
                    status = path.stat()
                    if not name.startswith(TEMPORARY):
                        yield status.st_mtime, status.st_size, path
                    elif now - status.st_mtime > ABANDONED_AFTER:
                        path.unlink()


def encode(key: str, item: StoredObject) -> bytes:
    """The content of the file that keeps `item` under `key`."""
    fields = {"key": key, "symbol": item.symbol, "requires": item.requires}
    header = json.dumps(fields).encode()
    body = struct.pack("<I", len(header)) + header + item.data
    return MAGIC + _checksum(body) + body


def decode(content: bytes, key: str) -> StoredObject:
    """The object in a file's content; ValueError unless it is whole and belongs to `key`."""
    found, item = decode_any(content)
    if found != key:
        raise ValueError("two keys with one digest")
    return item


def decode_any(content: bytes) -> tuple[str, StoredObject]:
    """The key and the object in a file's content; ValueError unless it is whole."""
    body = content[HEADER_AT:]
    if content[: len(MAGIC)] != MAGIC or content[len(MAGIC) : HEADER_AT] != _checksum(body):
        raise ValueError("not a whole object file of this version")
    (length,) = struct.unpack_from("<I", body)
    fields = json.loads(body[4 : 4 + length])
    item = StoredObject(body[4 + length :], fields["symbol"], tuple(fields["requires"]))
    return fields["key"], item


def _key_of(path: Path) -> str:
    """The key that the head of a file names."""
    with path.open("rb") as file:
        start = file.read(HEADER_AT + 4)
        if start[: len(MAGIC)] != MAGIC:
            raise ValueError("no object file of this version")
        (length,) = struct.unpack_from("<I", start, HEADER_AT)
        if length > path.stat().st_size:
            raise ValueError("damaged")
        return str(json.loads(file.read(length))["key"])


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=DIGEST_BYTES).digest()


def _write_whole(path: Path, content: bytes) -> None:
    """The file at `path` has this content; other processes never see a part of it."""
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
