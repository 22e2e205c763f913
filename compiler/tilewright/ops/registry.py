"""Where operators are registered and found. Only the newest version of each ONNX operator is
defined."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from tilewright.ops.tensor import Tensor

Operator = Callable[..., Tensor | Sequence[Tensor | None]]
HostOperator = Callable[..., Any]
F = TypeVar("F", bound=Operator)

_OPERATORS: dict[tuple[str, str], Operator] = {}
_HOST: dict[tuple[str, str], HostOperator] = {}


def op(name: str, domain: str = "") -> Callable[[F], F]:
    """Register an operator as a tensor expression: operands by position (None where omitted),
    attributes by name."""

    def register(function: F) -> F:
        _check_new(domain, name, function, _OPERATORS)
        _OPERATORS[domain, name] = function
        return function

    return register


def host_op(name: str, domain: str = "") -> Callable[[HostOperator], HostOperator]:
    """Register an operator that runs on the host: NumPy arrays, lists (sequences) or None in; the
    same out, one value
    or a tuple. For what has no place in a loop nest: data-dependent shapes, sequences, strings."""

    def register(function: HostOperator) -> HostOperator:
        _check_new(domain, name, function, _HOST)
        _HOST[domain, name] = function
        return function

    return register


def _check_new(domain: str, name: str, function: object, known: Mapping[Any, object]) -> None:
    """A definition in a notebook may be run again, one in a file is an oversight."""
    if (domain, name) in known and getattr(function, "__module__", "") != "__main__":
        raise ValueError(f"{domain}:{name} is registered twice")


@cache
def _load() -> None:
    """Each module of this package registers its operators: when the first one is looked for."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__, f"{__package__}."):
        importlib.import_module(module.name)


def find(domain: str, name: str) -> Operator | None:
    """The tensor-expression definition of an operator, if there is one."""
    _load()
    return _OPERATORS.get((domain, name))


def find_host(domain: str, name: str) -> HostOperator | None:
    """The host definition of an operator, if there is one."""
    _load()
    return _HOST.get((domain, name))


def is_defined(domain: str, name: str) -> bool:
    """Whether the operator has a definition of its own, compiled or on the host."""
    _load()
    return (domain, name) in _OPERATORS or (domain, name) in _HOST
