"""Arrays in files, as other programs read them. A name from a model never is a path."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import numpy_helper

from tilewright.errors import InputError

FORMATS = ("npy", "pb", "npz")


def check_output(path: str) -> None:
    """InputError unless arrays can go there: into an .npz file, or a folder."""
    suffix = Path(path).suffix
    if suffix not in ("", ".npz") and not Path(path).is_dir():
        raise InputError(f"{path}: outputs go into an .npz file or a folder")


def save(path: str, arrays: Mapping[str, np.ndarray], kind: str) -> None:
    """The arrays are in the file, if it is an .npz, or else in files of a folder, numbered in
    their order."""
    if path.endswith(".npz"):
        _npz(Path(path), arrays)
        return
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        _npz(folder / "outputs.npz", arrays)
        return
    for number, (name, array) in enumerate(arrays.items()):
        target = folder / f"output_{number}_{_safe(name)}.{kind}"
        if kind == "npy":
            np.save(target, array, allow_pickle=False)
        else:
            target.write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def _npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Under their own names, which `numpy.load` gives back; `savez` has arguments of its own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(name.replace("..", "_") + ".npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:80].strip(".")
