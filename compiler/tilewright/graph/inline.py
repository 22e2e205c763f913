"""Replaces calls of functions by their bodies: those of the model, and those that ONNX defines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx import ModelProto, inliner

from tilewright.errors import ModelError
from tilewright.graph.payload import all_nodes

Keep = Callable[[str, str], bool]
"""Whether the operator `(domain, op_type)` is wanted as it is; ONNX's own domain is ""."""

_MAX_ROUNDS = 16


def keep_all(domain: str, op_type: str) -> bool:
    """Every operator is wanted as it is."""
    return True


def inline_model_functions(model: ModelProto) -> ModelProto:
    """The model without functions of its own: every call is replaced by the body."""
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model, convert_version=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the model's functions cannot be inlined: {error}") from None


def expand_function_nodes(model: ModelProto, keep: Keep) -> ModelProto:
    """The model in which operators that are not wanted are replaced by ONNX's definition of them.

    Holds for what the definitions use in turn. An operator that ONNX defines without a body stays.
    """
    for _ in range(_MAX_ROUNDS):
        unwanted = sorted(_expandable(model, keep))
        if not unwanted:
            return model
        try:
            expanded = inliner.inline_selected_functions(
                model, unwanted, inline_schema_functions=True
            )
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"ONNX cannot expand {_names(unwanted)}: {error}") from None
        if len(list(all_nodes(expanded))) == len(list(all_nodes(model))):
            return expanded
        model = expanded
    return model


def _expandable(model: ModelProto, keep: Keep) -> Iterator[tuple[str, str]]:
    versions = {o.domain: o.version for o in model.opset_import}
    for domain, op_type in {(n.domain, n.op_type) for n in all_nodes(model)}:
        if keep(domain, op_type) or domain not in versions:
            continue
        if onnx.defs.has(op_type, versions[domain], domain):
            # The stub of this class is incomplete.
            schema: Any = onnx.defs.get_schema(op_type, versions[domain], domain)
            if schema.has_function or schema.has_context_dependent_function:
                yield domain, op_type


def _names(operators: list[tuple[str, str]]) -> str:
    return ", ".join(f"{domain}.{op}" if domain else op for domain, op in operators)
