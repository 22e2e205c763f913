"""Inputs for a model: from files where they have them, else random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from tilewright import dtypes
from tilewright.errors import InputError
from tilewright.explore.process import described


@dataclass(frozen=True)
class Wanted:
    """Shapes of inputs and sizes of symbolic dimensions by name, files of arrays, and how others
    are drawn: integers are less than `below`."""

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    arrays: Sequence[str] = ()
    below: int = 2
    seed: int = 0


def feeds_of(model: Any, wanted: Wanted) -> dict[str, np.ndarray]:
    """Arrays for the inputs of a compiled model."""
    return make_feeds(described(model.inputs), wanted)


def make_feeds(inputs: Sequence[Mapping[str, Any]], wanted: Wanted) -> dict[str, np.ndarray]:
    """Arrays for the inputs that are described: from files where they have them, else random."""
    given = read_arrays(wanted.arrays, [i["name"] for i in inputs])
    shapes = dict(wanted.shapes)
    _check_names((*given, *shapes), [i["name"] for i in inputs], "input")
    symbols = {d for i in inputs for d in i["shape"] or () if isinstance(d, str)}
    _check_names(tuple(wanted.dims), sorted(symbols), "dimension")
    rng = np.random.default_rng(wanted.seed)
    feeds = {}
    for i in inputs:
        name = i["name"]
        if name in given:
            feeds[name] = given[name]
        elif name in shapes or not i["has_default"]:
            shape = shapes[name] if name in shapes else _shape(i, wanted.dims)
            feeds[name] = random_array(rng, i, shape, wanted.below)
    return feeds


def _check_names(given: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            there = ", ".join(known) or "none"
            raise InputError(f"the model has no {what} {name!r}, it has {there}")


def read_arrays(files: Sequence[str], names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of FILE.npz by their names there, NAME=FILE.npy and NAME=FILE.pb.

    A .pb file is a TensorProto, as ONNX's own test data are; without NAME its own name counts, or
    that of the model's only input.
    """
    found: dict[str, np.ndarray] = {}
    for text in files:
        name, equals, path = text.rpartition("=")
        if not equals or Path(text).is_file():
            name, path = "", text
        if path.endswith(".npz"):
            found.update(_read(path, _npz))
            continue
        value, own = _read(path, _single)
        name = name or own or (names[0] if len(names) == 1 else "")
        if not name:
            raise InputError(f"{path} does not say which input it is: give NAME={path}")
        found[name] = value
    return found


def _read(path: str, how: Any) -> Any:
    try:
        return how(path)
    except Exception as error:  # of NumPy, of zip files, of protobuf
        kind = Path(path).suffix or "such"
        raise InputError(f"{path} is not a readable {kind} file: {error}") from error


def _npz(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _single(path: str) -> tuple[np.ndarray, str]:
    """An array and the name that the file gives it."""
    if path.endswith(".npy"):
        return np.load(path, allow_pickle=False), ""
    if path.endswith(".pb"):
        proto = TensorProto()
        proto.ParseFromString(Path(path).read_bytes())
        return numpy_helper.to_array(proto), proto.name
    raise ValueError("inputs are .npz, .npy and .pb files")


def _shape(info: Mapping[str, Any], dims: Mapping[str, int]) -> list[int]:
    """The declared shape with symbols as given, 1 where nothing is."""
    if info["shape"] is None:
        raise InputError(f"input {info['name']!r} has no declared rank: give --shape")
    return [d if isinstance(d, int) else dims.get(str(d), 1) for d in info["shape"]]


def random_array(
    rng: np.random.Generator, info: Mapping[str, Any], shape: Sequence[int], below: int
) -> np.ndarray:
    """Normal floats, integers from 0, booleans of both kinds."""
    if info["kind"] != "tensor" or info["dtype"] in (None, "object"):
        raise InputError(f"input {info['name']!r} cannot be drawn at random: give --input")
    dtype = dtypes.from_numpy(np.dtype(info["dtype"])).numpy
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, below, shape).astype(dtype)
    return rng.standard_normal(tuple(shape)).astype(dtype)
