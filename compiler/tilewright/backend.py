"""ONNX's standard interface to backends: `prepare`, `run_model`, `run_node`, `supports_device`.

https://onnx.ai/onnx/api/backend.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType

from tilewright.driver import compile
from tilewright.errors import InputError
from tilewright.graph.upgrade import OPSET
from tilewright.options import Options
from tilewright.runtime.cuda.toolchain import TO_RUN, find_toolchain
from tilewright.runtime.model import CompiledModel

TARGETS = {DeviceType.CPU: "cpu", DeviceType.CUDA: "cuda"}


class TilewrightRep(BackendRep):
    """A compiled model behind ONNX's interface."""

    def __init__(self, model: CompiledModel) -> None:
        super().__init__()
        self.model = model

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs, for inputs in order; those with a default may be left out."""
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        specs = self.model.inputs
        if len(given) < len(specs):
            specs = tuple(s for s in specs if not s.has_default)
        if len(given) != len(specs):
            raise InputError(f"{len(given)} inputs given, the model has {len(specs)}")
        names = (s.name for s in specs)
        return tuple(self.model.run(dict(zip(names, given, strict=True))).values())


class TilewrightBackend(Backend):
    """ONNX's interface; `options` and `threads` are passed on to `tilewright.compile`."""

    @classmethod
    def prepare(
        cls,
        model: ModelProto,
        device: str = "CPU",
        *,
        options: Options | None = None,
        threads: int | None = None,
        **kwargs: Any,
    ) -> TilewrightRep:
        target = TARGETS.get(Device(device).type, device)
        return TilewrightRep(compile(model, target=target, options=options, threads=threads))

    @classmethod
    def run_model(
        cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """The outputs of one node, of the newest opset unless `opset_version` says otherwise."""
        version = kwargs.pop("opset_version", OPSET)
        arrays = [np.asarray(i) for i in inputs]
        names = [n for n in node.input if n]
        graph = helper.make_graph(
            [node],
            "node",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in zip(names, arrays, strict=True)
            ],
            [helper.make_empty_tensor_value_info(n) for n in node.output if n],
        )
        imports = [helper.make_opsetid(node.domain, version)]
        model = helper.make_model(graph, opset_imports=imports)
        return cls.run_model(model, arrays, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        kind = Device(device).type
        if kind == DeviceType.CUDA:
            return find_toolchain().has(TO_RUN)
        return kind in TARGETS


prepare = TilewrightBackend.prepare
run_model = TilewrightBackend.run_model
run_node = TilewrightBackend.run_node
supports_device = TilewrightBackend.supports_device
