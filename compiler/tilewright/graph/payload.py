"""Takes big tensors out of a model message, so that ONNX's own tools never copy weights.

While a tensor is out, its message keeps name, type and shape, and says that the data is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from tilewright.errors import ModelError
from tilewright.graph.external import read_external
from tilewright.graph.ir import Array
from tilewright.graph.tensors import sparse_to_array, to_array
from tilewright.graph.wire import Lifted

STAYS_BELOW = 1 << 10
"""Tensors of fewer bytes stay in the message: converters and shape inference look at those."""

_MARK = "tilewright:"


@dataclass
class Payloads:
    """The arrays that were taken out of one model."""

    lifted: Lifted
    folder: Path | None
    arrays: list[Array] = field(default_factory=list)
    _stubs: list[tuple[TensorProto, tuple[int, ...]]] = field(default_factory=list)

    def take(self, model: ModelProto) -> None:
        """Leave every big tensor of the model empty, and every other one inside the message.

        Sparse tensors become dense ones on the way. The emptied model still passes ONNX's checker.
        """
        for graph in graphs_of(model):
            self._densify(graph)
        for node in all_nodes(model):
            for attribute in node.attribute:
                self._densify_attribute(node, attribute)
        for tensor in _tensors(model):
            self._take_tensor(tensor)

    def mark(self) -> None:
        """Give the emptied tensors their shapes back, with a mark instead of data."""
        for number, (tensor, shape) in enumerate(self._stubs):
            tensor.ClearField("raw_data")
            tensor.dims[:] = shape
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=f"{_MARK}{number}")

    def array(self, tensor: TensorProto) -> Array:
        """The value of a tensor of the model, whether it was taken out or not."""
        if tensor.data_location == TensorProto.EXTERNAL:
            return self.arrays[int(tensor.external_data[0].value.removeprefix(_MARK))]
        return to_array(tensor)

    def _dense(self, sparse: SparseTensorProto) -> Array:
        return sparse_to_array(sparse, self.folder)

    def _densify(self, graph: GraphProto) -> None:
        for sparse in graph.sparse_initializer:
            array = self._dense(sparse)
            self._stub(graph.initializer.add(), sparse.values, array)
        del graph.sparse_initializer[:]

    def _densify_attribute(self, node: NodeProto, attribute: AttributeProto) -> None:
        if attribute.type == AttributeProto.SPARSE_TENSORS:
            raise ModelError(f"node {node.name!r}: no operator takes a list of sparse tensors")
        if attribute.type != AttributeProto.SPARSE_TENSOR:
            return
        array = self._dense(attribute.sparse_tensor)
        values = TensorProto()
        values.CopyFrom(attribute.sparse_tensor.values)
        attribute.ClearField("sparse_tensor")
        attribute.name, attribute.type = "value", AttributeProto.TENSOR
        self._stub(attribute.t, values, array)

    def _take_tensor(self, tensor: TensorProto) -> None:
        elsewhere = tensor.data_location == TensorProto.EXTERNAL
        raw = self.lifted.region(tensor.raw_data) if tensor.HasField("raw_data") else None
        array = to_array(tensor, self.folder, raw)
        if array.dtype == object or (array.nbytes < STAYS_BELOW and not elsewhere):
            return
        if array.nbytes < STAYS_BELOW:
            _put_inside(tensor, self.folder)
        else:
            self._stub(tensor, tensor, array)

    def _stub(self, tensor: TensorProto, described_by: TensorProto, array: Array) -> None:
        name, code = described_by.name, described_by.data_type
        tensor.Clear()
        tensor.name, tensor.data_type, tensor.raw_data = name, code, b""
        tensor.dims.append(0)
        self.arrays.append(array)
        self._stubs.append((tensor, array.shape))


def _put_inside(tensor: TensorProto, folder: Path | None) -> None:
    tensor.raw_data = read_external(tensor, folder).tobytes()
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def graphs_of(model: ModelProto) -> Iterator[GraphProto]:
    """Every graph of a model, the nested ones included; functions count by their nested graphs."""
    yield from _nested([model.graph])
    for function in model.functions:
        yield from _nested(_graph_attributes(function.node))


def _nested(graphs: Iterable[GraphProto]) -> Iterator[GraphProto]:
    for graph in graphs:
        yield graph
        yield from _nested(_graph_attributes(graph.node))


def _graph_attributes(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield attribute.g
            yield from attribute.graphs


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of a model: of its graphs, nested graphs and functions."""
    for graph in graphs_of(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in graphs_of(model):
        yield from graph.initializer
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
