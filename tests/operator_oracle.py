"""One operator at a time against ONNX Runtime: the same node, the same arrays."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnxruntime

from tilewright.dtypes import from_numpy
from tilewright.ops.evaluate import evaluate
from tilewright.ops.registry import find, find_host
from tilewright.ops.tensor import NeedsValue, Tensor, constant, placeholder

Array = np.ndarray
OPSETS = {"": 21, "ai.onnx.ml": 4, "com.microsoft": 1}


def runtime(
    op: str,
    inputs: Sequence[Array | None],
    outputs: int = 1,
    domain: str = "",
    opset: int | None = None,
    **attributes: Any,
) -> list[Array]:
    """What ONNX Runtime makes of a node."""
    inputs = [None if a is None else np.asarray(a) for a in inputs]
    names = [f"x{k}" if a is not None else "" for k, a in enumerate(inputs)]
    results = [f"y{k}" for k in range(outputs)]
    node = onnx.helper.make_node(op, names, results, domain=domain, **attributes)
    feeds = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
    values = [
        onnx.helper.make_tensor_value_info(n, from_numpy(a.dtype).onnx, a.shape)
        for n, a in feeds.items()
    ]
    wanted = [onnx.ValueInfoProto(name=n) for n in results]
    graph = onnx.helper.make_graph([node], "g", values, wanted)
    versions = {"": OPSETS[""], domain: opset or OPSETS[domain]}
    imports = [onnx.helper.make_opsetid(d, v) for d, v in versions.items()]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(r) for r in session.run(None, feeds)]


def own(
    op: str,
    inputs: Sequence[Array | None],
    outputs: int = 1,
    domain: str = "",
    **attributes: Any,
) -> list[Array]:
    """What this package's definition says, evaluated without generating code."""
    inputs = [None if a is None else np.asarray(a) for a in inputs]
    host = find_host(domain, op)
    if host is not None:
        result = host(*inputs, **attributes)
        return list(result) if isinstance(result, tuple) else [result]
    function = find(domain, op)
    assert function is not None, f"{op} has no definition"
    if "outputs" in inspect.signature(function).parameters:
        attributes["outputs"] = outputs
    operands = [
        None if a is None else placeholder(a.shape, from_numpy(a.dtype), f"in{k}")
        for k, a in enumerate(inputs)
    ]
    arrays = {f"in{k}": a for k, a in enumerate(inputs) if a is not None}
    tensors = _called(function, operands, arrays, attributes)
    return [evaluate(t, arrays) for t in tensors[:outputs] if t is not None]


def _called(
    function: Any,
    operands: Sequence[Tensor | None],
    arrays: Mapping[str, Array],
    attributes: Mapping[str, Any],
) -> Sequence[Tensor | None]:
    """The operator applied to placeholders, those whose elements it needs replaced by constants."""
    given = list(operands)
    while True:
        try:
            result = function(*given, **attributes)
        except NeedsValue as e:
            k = next(k for k, t in enumerate(given) if t is e.tensor)
            given[k] = constant(arrays[e.tensor.name])
            continue
        return [result] if isinstance(result, Tensor) else result


def check(
    op: str,
    inputs: Sequence[Array | None],
    outputs: int = 1,
    domain: str = "",
    tolerance: float = 1e-5,
    opset: int | None = None,
    **attributes: Any,
) -> None:
    """An error unless both agree in shape, type and elements."""
    wanted = runtime(op, inputs, outputs, domain, opset, **attributes)
    actual = own(op, inputs, outputs, domain, **attributes)
    for a, b in zip(wanted, actual, strict=True):
        assert a.shape == b.shape, f"{op}: shape {b.shape} where {a.shape} is right"
        assert a.dtype == b.dtype, f"{op}: {b.dtype} where {a.dtype} is right"
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance, err_msg=op)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Normally distributed elements."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
