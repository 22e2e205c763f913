"""Arrays in the memory of a device, as the stages of a model and its host steps see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.graph.ir import Array


class RemoteArray(ABC):
    """An array whose elements, in C order, the host cannot read where they are."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def fetch(self, value: str, reason: str) -> Array:
        """A copy on the host, of `value`, which is needed there for a `reason`."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @abstractmethod
    def copy(self) -> RemoteArray:
        """A copy where the array is."""

    @abstractmethod
    def rows(self) -> list[RemoteArray]:
        """What lies at each index of the first axis."""

    @abstractmethod
    def stacked(self, others: Sequence[RemoteArray]) -> RemoteArray:
        """This array and others of its shape and dtype along a new first axis, where they are."""


def is_array(value: Any) -> bool:
    """Whether the value has a dtype and a shape that stages are made for."""
    return isinstance(value, (np.ndarray, RemoteArray))


def on_host(value: Any, name: str, reason: str) -> Any:
    """The value as the host can read it."""
    return value.fetch(name, reason) if isinstance(value, RemoteArray) else value
