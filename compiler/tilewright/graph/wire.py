"""Lifts big tensor data out of a serialised model, so that parsing the rest costs next to nothing.

Only the few message types on the way from a model to its tensors are known here, by field number.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import ModelError

Bytes = NDArray[np.uint8]

LIFT_FROM = 1 << 12
"""Tensor data of at least this many bytes is lifted out."""

CACHE_LINE = 64
_DEPTH_LIMIT = 100

_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}
_RAW_DATA = 9

_NO_TENSORS_WITH = {"attribute": (7, 8, 9), "tensor": (6,)}
"""Lists of numbers or texts take a field per element: where one begins, nothing is to be lifted."""


class _MalformedError(Exception):
    """The bytes do not follow the wire format; the real parser will say so."""


@dataclass
class Lifted:
    """A serialised model without its big tensor data, and the data.

    Each lifted field holds a ticket instead. Tickets start with a random token, so that no model
    can contain one on its own.
    """

    message: bytes
    _token: bytes = b""
    _regions: list[Bytes] = field(default_factory=list)

    def region(self, raw_data: bytes) -> Bytes:
        """The bytes that a `raw_data` field stands for."""
        if self._token and raw_data.startswith(self._token):
            return self._regions[int(raw_data[len(self._token) :])]
        return np.frombuffer(raw_data, np.uint8)


def lift_bytes(data: bytes) -> Lifted:
    """A model given as bytes; the data that is lifted out shares memory with them."""
    return _lift(data, lambda start, end: np.frombuffer(data, np.uint8)[start:end])


def lift_file(path: Path) -> Lifted:
    """A model file; each lifted region is read once, into memory of its own."""
    try:
        with path.open("rb") as file:
            return _lift_open(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the model {str(path)!r}: {error}") from None


def _lift_open(file: Any) -> Lifted:
    info = os.fstat(file.fileno())
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("it is not a regular file")
    if info.st_size == 0:
        raise ValueError("there is nothing in it")

    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:

        def read(start: int, end: int) -> Bytes:
            region = _on_a_line(end - start)
            file.seek(start)
            if file.readinto(region) != len(region):
                raise ValueError("it ends too early")
            _forget(data)
            return region

        return _lift(data, read)


def _forget(data: mmap.mmap) -> None:
    """What was looked at no longer counts as memory in use: with a few bytes come whole huge
    pages."""
    if hasattr(data, "madvise"):
        data.madvise(mmap.MADV_DONTNEED)


def _on_a_line(size: int) -> Bytes:
    """Memory that starts on a cache line, as kernels want their constants."""
    raw = np.empty(size + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + size]


def _lift(data: bytes | mmap.mmap, read: Callable[[int, int], Bytes]) -> Lifted:
    token = secrets.token_bytes(16)
    regions: list[Bytes] = []

    def lift(start: int, end: int) -> bytes:
        regions.append(read(start, end))
        return token + str(len(regions) - 1).encode()

    try:
        message = _rewrite(data, 0, len(data), "model", lift, 0)
    except _MalformedError:
        return Lifted(data[:])
    return Lifted(message, token, regions)


def _rewrite(
    data: bytes | mmap.mmap,
    at: int,
    end: int,
    kind: str,
    lift: Callable[[int, int], bytes],
    depth: int,
) -> bytes:
    """The message in `data[at:end]`, with a ticket in place of every big `raw_data` below it."""
    if depth > _DEPTH_LIMIT:
        raise _MalformedError
    pieces, kept, children = [], at, _CHILDREN[kind]
    while at < end:
        start = at
        number, body, at = _field(data, at, end)
        if number in _NO_TENSORS_WITH.get(kind, ()):
            break
        if at - body < LIFT_FROM:
            continue
        if kind == "tensor" and number == _RAW_DATA:
            content = lift(body, at)
        elif number in children:
            content = _rewrite(data, body, at, children[number], lift, depth + 1)
        else:
            continue
        pieces += [data[kept:start], _varint_bytes(number << 3 | 2), _varint_bytes(len(content))]
        pieces.append(content)
        kept = at
    return b"".join((*pieces, data[kept:end]))


def _field(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int, int]:
    """The number of the field at `at`, where its content starts and where it ends.

    Content that is no message or text counts as empty: there is nothing to lift in it.
    """
    key, at = _varint(data, at, end)
    wire = key & 7
    if wire == 2:
        length, body = _varint(data, at, end)
        at = body + length
    elif wire == 0:
        at = body = _varint(data, at, end)[1]
    elif wire in (1, 5):
        at = body = at + (8 if wire == 1 else 4)
    else:
        raise _MalformedError
    if at > end:
        raise _MalformedError
    return key >> 3, body, at


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _MalformedError


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
