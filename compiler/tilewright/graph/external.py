"""Tensor data in files beside the model: only ever read from inside the model's own folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from tilewright.errors import ModelError

MAP_FROM = 1 << 16
"""Files regions of at least this many bytes are mapped into memory instead of read."""


def read_external(tensor: TensorProto, folder: Path | None) -> NDArray[np.uint8]:
    """The bytes of a tensor whose data lies in another file; ModelError unless that is safe.

    The file must be a regular one inside the model's folder, symbolic links resolved, and the
    region that the tensor names must lie within the file.
    """
    if folder is None:
        raise ModelError(
            f"tensor {tensor.name!r} keeps its data in another file: pass the model's path "
            "instead of its bytes, so that the file can be found beside it"
        )
    entries = {e.key: e.value for e in tensor.external_data}
    path = _inside(folder, entries.get("location", ""), tensor.name)
    size = path.stat().st_size
    offset = _number(entries, "offset", 0, tensor.name)
    length = _number(entries, "length", max(size - offset, 0), tensor.name)
    if offset + length > size:
        raise ModelError(
            f"tensor {tensor.name!r} needs bytes {offset} to {offset + length} of "
            f"{path.name!r}, which has {size}: the file is truncated or belongs to another model"
        )
    return _region(path, offset, length)


def _inside(folder: Path, location: str, name: str) -> Path:
    """The real path of a file that provably lies in `folder`."""
    refused = f"tensor {name!r} names the data file {location!r}"
    parts = PurePosixPath(location).parts + PureWindowsPath(location).parts
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    if not location or "\0" in location or absolute or ".." in parts:
        raise ModelError(f"{refused}: it must be a relative path inside the model's folder")
    root = folder.resolve()
    try:
        path = (root / location).resolve(strict=True)
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{refused}: {error}") from None
    if not path.is_relative_to(root):
        raise ModelError(f"{refused}: a symbolic link leads out of the model's folder")
    if not regular:
        raise ModelError(f"{refused}: it is not a regular file")
    return path


def _number(entries: dict[str, str], key: str, default: int, name: str) -> int:
    text = entries.get(key, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ModelError(f"tensor {name!r} has an external data {key} that is no byte count")
    return int(text)


def _region(path: Path, offset: int, length: int) -> NDArray[np.uint8]:
    try:
        if length >= MAP_FROM:
            return np.memmap(path, np.uint8, mode="r", offset=offset, shape=(length,))
        return np.fromfile(path, np.uint8, count=length, offset=offset)
    except OSError as error:
        raise ModelError(f"cannot read {path.name!r}: {error}") from None
