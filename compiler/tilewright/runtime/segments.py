"""Compiled stages in a tree: a child for each value or signature that came from the cut above."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet, ref

import numpy as np

from tilewright.fusion.decide import Reason
from tilewright.graph.ir import Array
from tilewright.graph.remote import is_array
from tilewright.graph.stages import Finish, NeedValue, Stage
from tilewright.ops.evaluate import evaluate
from tilewright.ops.tensor import Placeholder, Tensor

Step = Callable[[dict[str, Any]], list[Any]]
"""A host step: from the values of the call to results, in the order of the node's outputs."""

Origin = tuple[str, str]
"""What the model calls a value, and who may have put it into the host's memory."""

PLAIN_KEY_BYTES = 4096  # values up to this size are keys as they are, larger ones by a digest

NODE_BYTES = 4096  # about what the expression of one node takes

_clock = itertools.count()


class Runner(Protocol):
    """What runs the compiled part of a stage; thread-safe."""

    @property
    def kernels(self) -> Sequence[Any]:
        """The kernels, in order of execution."""

    @property
    def decisions(self) -> Sequence[Reason]:
        """Why operators share a kernel or do not."""

    @property
    def nbytes(self) -> int:
        """Memory that is held between runs."""

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """The outputs for arrays where the target has them, one to an input: C-contiguous NumPy
        arrays, or arrays on a device."""


@runtime_checkable
class Timed(Protocol):
    """A Runner that can say how long its kernels take."""

    def timed(self, arrays: Sequence[Any]) -> tuple[list[Any], list[float]]:
        """The outputs of a run, and the seconds that each kernel took in it."""


@runtime_checkable
class Placed(Protocol):
    """A Runner whose arrays must be on a device, those that it does not use apart."""

    @property
    def used(self) -> Sequence[bool]:
        """Which inputs kernels read."""


class Evaluation:
    """A Runner without kernels: the tensor expressions themselves, on whole arrays."""

    kernels: Sequence[Any] = ()
    decisions: Sequence[Reason] = ()
    nbytes = 0

    def __init__(self, inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> None:
        self._names = [i.name for i in inputs]
        self._outputs = tuple(outputs)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        env = dict(zip(self._names, arrays, strict=True))
        for t in self._outputs:  # what is there already need not be computed again
            env[t.name] = evaluate(t, env)
        return [np.array(env[t.name], order="C") for t in self._outputs]


class Children(dict[Hashable, "Segment"]):
    """Segments by what leads to them; each knows its `Children`, but does not keep them."""

    __slots__ = ("__weakref__",)


class Segment:
    """One stage, ready to run: `arrivals` are the names of what the cut above brought,
    `origins` tell of all values that a run holds here where they come from."""

    __slots__ = (
        "__weakref__",
        "arrivals",
        "brings",
        "children",
        "computes",
        "direct",
        "keep",
        "key",
        "needs",
        "origins",
        "parent",
        "passes",
        "reads",
        "returns",
        "runner",
        "seconds",
        "stage",
        "step",
        "used",
        "wanted",
    )

    def __init__(
        self,
        stage: Stage,
        runner: Runner | None,
        step: Step | None,
        arrivals: Sequence[str | None],
        seconds: float,
        origins: Mapping[str, Origin],
    ) -> None:
        self.stage = stage
        self.runner = runner
        self.step = step
        self.arrivals = tuple(arrivals)
        self.seconds = seconds
        self.origins = origins
        # Pairs of place and name, for loops that a short call has no time to zip.
        self.brings = tuple((k, n) for k, n in enumerate(arrivals) if n is not None)
        self.computes = tuple(enumerate(stage.names))
        self.reads = tuple(i.name for i in stage.inputs)
        self.wanted = tuple(runner.used) if isinstance(runner, Placed) else ()
        self.keep = stage.rest.names
        self.needs = stage.cut.name if isinstance(stage.cut, NeedValue) else None
        self.returns = self._returned()
        self.direct = runner is not None and self._is_direct()
        self.passes = self._passed()
        self.children = Children()
        self.parent: Callable[[], Children | None] = Children
        self.key: Hashable = None
        self.used = 0

    def _returned(self) -> tuple[str, ...] | None:
        """The names of the values that a run returns, if it ends here and they are its own."""
        cut = self.stage.cut
        if not isinstance(cut, Finish) or any(o.copy for o in cut.outputs):
            return None
        names = tuple(o.source for o in cut.outputs if isinstance(o.source, str))
        return names if len(names) == len(cut.outputs) else None

    def _is_direct(self) -> bool:
        """Whether a run is just a run of the plan: inputs in order, outputs in order."""
        return self.reads == self.arrivals and self.returns == self.stage.names

    def _passed(self) -> list[int] | None:
        """Which arrivals the outputs are copies of, if a run is nothing else."""
        cut = self.stage.cut
        if not isinstance(cut, Finish) or self.runner is not None:
            return None
        sources = [o.source for o in cut.outputs if o.copy and isinstance(o.source, str)]
        if len(sources) < len(cut.outputs) or not set(sources) <= set(self.arrivals):
            return None
        return [self.arrivals.index(s) for s in sources]

    @property
    def nbytes(self) -> int:
        """Bytes held: the runner's, and a guess at the expressions."""
        own = NODE_BYTES * (1 + len(self.stage.labels))
        return own + (self.runner.nbytes if self.runner else 0)

    def touch(self) -> None:
        """Marks the segment as used now."""
        self.used = next(_clock)

    def adopt(self, key: Hashable, child: Segment) -> Segment:
        """Adds a child."""
        return attach(self.children, key, child)

    def path(self) -> Iterator[Segment]:
        """This segment and, below each cut, the one that was made or entered last."""
        segment: Segment | None = self
        while segment is not None:
            yield segment
            below = list(segment.children.values())
            segment = max(below, key=lambda s: s.used, default=None)

    def walk(self) -> Iterator[Segment]:
        """This segment and all below it."""
        waiting = [self]
        while waiting:  # a chain of host steps may be deeper than Python's stack
            segment = waiting.pop()
            yield segment
            waiting.extend(reversed(list(segment.children.values())))


def attach(children: Children, key: Hashable, child: Segment) -> Segment:
    """Makes `child` reachable under the key; it can be dropped again."""
    child.parent, child.key = ref(children), key
    children[key] = child
    child.touch()
    return child


class Budget:
    """Bounds the memory of all segments of a model: the one not used for longest goes first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dropped = 0
        self._segments: WeakSet[Segment] = WeakSet()

    def add(self, new: Segment) -> None:
        """Counts a segment, and drops others while there are too many bytes."""
        self._segments.add(new)
        total = sum(s.nbytes for s in self._segments)
        while total > self.limit:
            leaves = [s for s in self._segments if not s.children and s is not new]
            if not leaves:
                return
            oldest = min(leaves, key=lambda s: s.used)
            siblings = oldest.parent()
            if siblings is not None:
                siblings.pop(oldest.key, None)
            self._segments.discard(oldest)
            self.dropped += 1
            total -= oldest.nbytes

    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(s.nbytes for s in self._segments)


def signature(values: Sequence[Any]) -> Hashable:
    """What a stage is specialised on: dtype and shape of an array, the kind of anything else."""
    return tuple([(v.dtype, v.shape) if is_array(v) else type(v) for v in values])


def value_key(array: Array) -> Hashable:
    """Equal for arrays with equal elements."""
    if array.dtype == object:
        return array.shape, tuple(array.ravel().tolist())
    data = array.tobytes()
    if len(data) > PLAIN_KEY_BYTES:
        data = blake2b(data, digest_size=20).digest()
    return array.dtype, array.shape, data
