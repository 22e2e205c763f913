"""Brings a model to the one version of ONNX's operators that the rest of the compiler knows."""

from __future__ import annotations

from onnx import ModelProto, version_converter

from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.payload import all_nodes

OPSET = 28
"""The version of ONNX's operators that operators are defined for here."""


def normalise_domains(model: ModelProto) -> None:
    """Every domain is imported once, and ONNX's own is always written ""."""
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = _domain(entry.domain)
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"the model imports two versions of the operators of {domain!r}")
    del model.opset_import[:]
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)
    for node in all_nodes(model):
        if node.domain:
            node.domain = _domain(node.domain)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def upgrade(model: ModelProto) -> ModelProto:
    """The model with the same meaning in terms of `OPSET`; ModelError says why there is none."""
    version = next((o.version for o in model.opset_import if o.domain == ""), OPSET)
    if version == OPSET:
        return model
    if version > OPSET:
        raise ModelError(
            f"the model uses version {version} of ONNX's operators; "
            f"the newest known here is {OPSET}"
        )
    if version == 8 and any(n.op_type == "Scan" for n in all_nodes(model)):
        raise UnsupportedError("Scan of opset 8 has a batch axis: export with opset 9 or newer")
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"the model uses version {version} of ONNX's operators and cannot be brought to "
            f"version {OPSET}: {reason}"
        ) from None
