"""The graph of a model: values are names, nodes apply ONNX operators, graphs nest as attributes.

A name is a key and a word for messages; it never reaches generated code. Names are unique inside a
graph. A nested graph sees the names of the graphs around it unless it defines them itself.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from tilewright.dtypes import DType
from tilewright.ops.tensor import Constant, constant

Array: TypeAlias = NDArray[Any]
Dim: TypeAlias = int | str | None
Kind: TypeAlias = Literal["tensor", "sequence", "optional", "map", "sparse"]


@dataclass(frozen=True)
class ValueInfo:
    """What a model declares about a value; None is undeclared, a text dimension is symbolic.

    For a sequence, an optional or a map, dtype and shape are those of the tensors inside.
    """

    name: str
    dtype: DType | None
    shape: tuple[Dim, ...] | None
    kind: Kind = "tensor"


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an operator; "" among the inputs or outputs is an omitted one."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How messages name this node."""
        return f"{self.name or ', '.join(self.outputs)!r} ({self.op_type})"

    def subgraphs(self) -> Iterator[Graph]:
        """The graphs among the attributes: branches and loop bodies."""
        for value in self.attributes.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Graph):
                    yield item

    @cached_property
    def reads(self) -> frozenset[str]:
        """Every name whose value this node needs, what its nested graphs capture included."""
        captured = (g.free_names() for g in self.subgraphs())
        return frozenset(n for n in self.inputs if n).union(*captured)


@dataclass(frozen=True, eq=False)
class Kept(Mapping[str, Array]):
    """Constants of a graph that is not rewritten any more, as the tensors that all plans share.

    Their elements may be given up while kernels read another form of them.
    """

    tensors: dict[str, Constant]

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def kept(constants: Mapping[str, Array]) -> Kept:
    """The constants as tensors, each of them made once."""
    if isinstance(constants, Kept):
        return constants
    return Kept({name: constant(array) for name, array in constants.items()})


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which every value is computed before it is read.

    `constants` are fixed values; `defaults` are values of inputs that a caller may leave out.
    `opset` is the version of ONNX's own operators, `domains` those of other domains.
    """

    name: str
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    constants: Mapping[str, Array]
    nodes: tuple[Node, ...]
    opset: int
    defaults: Mapping[str, Array] = field(default_factory=dict)
    domains: Mapping[str, int] = field(default_factory=dict)

    def free_names(self) -> frozenset[str]:
        """The values of enclosing graphs that this graph and its nested graphs read."""
        return self._free_names

    @cached_property
    def _free_names(self) -> frozenset[str]:
        defined = self.defined_names()
        read = {o.name for o in self.outputs}.union(*(n.reads for n in self.nodes))
        return frozenset(read - defined)

    def defined_names(self) -> frozenset[str]:
        """The values that this graph itself gives a name to."""
        made = (name for node in self.nodes for name in node.outputs if name)
        return frozenset((*(i.name for i in self.inputs), *self.constants, *made))

    def producers(self) -> dict[str, Node]:
        """The node that computes each value."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def use_counts(self) -> Counter[str]:
        """How many inputs of nodes, nested graphs and graph outputs read each value."""
        uses = Counter(o.name for o in self.outputs)
        for node in self.nodes:
            uses.update(n for n in node.inputs if n)
            for graph in node.subgraphs():
                uses.update(graph.free_names())
        return uses

    def bind_defaults(self, overridden: Collection[str] = ()) -> Graph:
        """The graph in which every default that is not overridden is a constant and no input."""
        bound = {k: v for k, v in self.defaults.items() if k not in overridden}
        if not bound:
            return self
        return dataclasses.replace(
            self,
            inputs=tuple(i for i in self.inputs if i.name not in bound),
            defaults={k: v for k, v in self.defaults.items() if k not in bound},
            constants=Kept(kept(self.constants).tensors | kept(bound).tensors),
        )


Attribute: TypeAlias = (
    int
    | float
    | str
    | bytes
    | Array
    | Graph
    | ValueInfo
    | tuple[int, ...]
    | tuple[float, ...]
    | tuple[str | bytes, ...]
    | tuple[Array, ...]
    | tuple[Graph, ...]
    | tuple[ValueInfo, ...]
)
