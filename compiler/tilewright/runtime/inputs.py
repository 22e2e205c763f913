"""What a caller passes, checked against what the model declares."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, from_numpy
from tilewright.errors import InputError
from tilewright.graph.ir import Array, Dim, ValueInfo
from tilewright.graph.remote import RemoteArray, is_array

_PLAIN = (bool, int, float, complex, str, bytes, np.generic)


def is_ready(value: Any) -> bool:
    """Whether a session can read the value as it is."""
    if type(value) is not np.ndarray:
        return False
    flags = value.flags  # made anew by every access
    return flags.c_contiguous and flags.aligned


RemoteReader = Callable[[str, Any], RemoteArray | None]
"""From the name and value of an input to an array on the device, if the value is there."""


def read_inputs(
    infos: Sequence[ValueInfo], feeds: Mapping[str, Any], remote: RemoteReader | None = None
) -> list[Any]:
    """The values of the inputs, in order: arrays that a session can read, lists and None."""
    _check_names([i.name for i in infos], feeds)
    values = [read_value(i, feeds[i.name], remote) for i in infos]
    _check_symbols(infos, values)
    return values


def _check_names(wanted: Sequence[str], given: Iterable[str]) -> None:
    missing = [n for n in wanted if n not in set(given)]
    unknown = [n for n in given if n not in wanted]
    if not missing and not unknown:
        return
    parts = [f"missing: {', '.join(map(repr, missing))}"] if missing else []
    for name in unknown:
        close = difflib.get_close_matches(str(name), wanted, 1)
        parts.append(f"no input {name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    raise InputError(f"{'; '.join(parts)}. The inputs are {', '.join(map(repr, wanted)) or 'none'}")


def read_value(info: ValueInfo, value: Any, remote: RemoteReader | None = None) -> Any:
    """One value as a session reads it, in place if that is possible."""
    match info.kind:
        case "sequence":
            return _sequence(info, value)
        case "optional" if value is None or isinstance(value, (list, tuple)):
            return None if value is None else _sequence(info, value)
        case "map":
            return value
    array = (remote(info.name, value) if remote else None) or _array(info, value)
    if isinstance(array, RemoteArray):
        _check_dtype(info, array.dtype)
    if info.shape is not None:
        _check_shape(info.name, info.shape, array.shape)
    return array


def _sequence(info: ValueInfo, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"input {info.name!r} must be a list of arrays, not {_kind(value)}")
    return [_array(info, item) for item in value]


def _array(info: ValueInfo, value: Any) -> Array:
    """The value as an array of the declared dtype, in place where it is contiguous and aligned."""
    if isinstance(value, np.ndarray):
        array = np.asarray(value)
    elif isinstance(value, (*_PLAIN, list, tuple)):
        array = _from_numbers(info, value)
    elif hasattr(value, "__dlpack__"):
        array = _from_dlpack(info, value)
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
    else:
        raise InputError(f"input {info.name!r} must be an array, not {_kind(value)}")
    array = _normal(info, array)
    _check_dtype(info, array.dtype)
    return array if is_ready(array) else array.copy("C")


def _check_dtype(info: ValueInfo, dtype: np.dtype[Any]) -> None:
    if info.dtype is not None and dtype != info.dtype.numpy:
        raise InputError(f"input {info.name!r} must have dtype {info.dtype.numpy}, but has {dtype}")


def _normal(info: ValueInfo, array: Array) -> Array:
    """In native byte order, text as objects; InputError for a dtype that ONNX has not."""
    if array.dtype.kind in "USO":
        return array.astype(object)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        from_numpy(array.dtype)
    except KeyError:
        raise InputError(f"input {info.name!r} has dtype {array.dtype}, unknown to ONNX") from None
    return array


def _from_numbers(info: ValueInfo, value: Any) -> Array:
    """Python numbers take the declared dtype if it holds them; NumPy scalars keep theirs."""
    if isinstance(value, np.generic):
        return np.asarray(value)
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(
            f"input {info.name!r}: the nested lists are not of equal lengths"
        ) from None
    if info.dtype is None or info.dtype is DType.STRING or _holds_numpy(value):
        return array
    kinds = {"b": "b", "i": "iuf", "u": "iuf", "f": "f", "c": "c"}.get(array.dtype.kind, "")
    if array.size and info.dtype.kind not in kinds:
        raise InputError(
            f"input {info.name!r} must have dtype {info.dtype.numpy}, but holds {array.dtype}"
        )
    converted = array.astype(info.dtype.numpy)
    if array.dtype.kind in "iu" and info.dtype.kind in "iu" and (converted != array).any():
        raise InputError(f"input {info.name!r}: {value!r} does not fit {info.dtype.numpy}")
    return converted


def _holds_numpy(value: Any) -> bool:
    """Whether a nested list has elements with a dtype of their own."""
    if isinstance(value, (list, tuple)):
        return any(map(_holds_numpy, value))
    return isinstance(value, (np.generic, np.ndarray))


def _from_dlpack(info: ValueInfo, value: Any) -> Array:
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"input {info.name!r} cannot be read in place: {error}") from None


def _check_shape(name: str, wanted: Sequence[Dim], shape: Sequence[int]) -> None:
    fits = len(wanted) == len(shape) and all(
        not isinstance(w, int) or w == n for w, n in zip(wanted, shape, strict=True)
    )
    if not fits:
        raise InputError(f"input {name!r} must have shape {show_shape(wanted)}, not {tuple(shape)}")


def _check_symbols(infos: Sequence[ValueInfo], values: Sequence[Any]) -> None:
    """One symbol means one size in all inputs."""
    seen: dict[str, tuple[int, str]] = {}
    for info, value in zip(infos, values, strict=True):
        if not is_array(value) or info.kind == "sequence":
            continue
        for dim, size in zip(info.shape or (), value.shape, strict=False):
            if isinstance(dim, str):
                known, where = seen.setdefault(dim, (size, info.name))
                if known != size:
                    raise InputError(
                        f"dimension {dim!r} is {known} in input {where!r}, "
                        f"but {size} in {info.name!r}"
                    )


def show_shape(shape: Sequence[Dim] | None) -> str:
    """A declared shape as text; what is not declared is a question mark."""
    if shape is None:
        return "(any)"
    dims = ["?" if d is None else str(d) for d in shape]
    return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
