"""The callable that `compile` returns."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from tilewright.errors import InputError
from tilewright.graph.ir import Array, Dim, Graph, ValueInfo
from tilewright.graph.remote import RemoteArray
from tilewright.graph.rewrite import SimplifyLog
from tilewright.graph.stages import Finish
from tilewright.runtime.cache import CacheStats
from tilewright.runtime.ceilings import Ceilings
from tilewright.runtime.display import Displayed
from tilewright.runtime.explain import Explainer
from tilewright.runtime.inputs import read_inputs, show_shape
from tilewright.runtime.profile import KernelSeconds, Profile, profile
from tilewright.runtime.report import Explanation, Report, kernels_of, report_stages
from tilewright.runtime.segments import Segment
from tilewright.runtime.session import Session, Workshop

MOST_NAMED = 5  # nodes in a message

Shapes = Mapping[str, Sequence[int] | Array]


@dataclass(frozen=True)
class ValueSpec:
    """An input or output of a model. A dimension is a number, a symbol's name, or None: any size.

    `kind` is tensor, sequence, optional or map; dtype and shape are those of the tensors inside.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[Dim, ...] | None
    kind: str = "tensor"
    has_default: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.kind} {self.dtype or '?'}{show_shape(self.shape)}"


@dataclass(frozen=True)
class ModelCacheInfo:
    """Signatures held and dropped, stages in all, and the bytes that they hold."""

    signatures: int
    stages: int
    dropped: int
    nbytes: int


class CompiledModel(Displayed):
    """A model that runs. The first call with inputs of new shapes makes the kernels that are new.

    Calls may come from several threads. Inputs are read in place where they are C-contiguous NumPy
    arrays (or DLPack tensors) of the declared dtype; outputs belong to the caller.
    """

    def __init__(self, graph: Graph, workshop: Workshop, log: SimplifyLog) -> None:
        self._graph = graph
        self._workshop = workshop
        self._port = workshop.port
        self._log = log
        self._lock = threading.Lock()
        self._sessions: dict[frozenset[str], Session] = {}
        self._names = [i.name for i in graph.inputs]
        self._required = [n for n in self._names if n not in graph.defaults]
        self._places = tuple(enumerate(o.name for o in graph.outputs))
        self._warned = False
        self._measured: KernelSeconds = {}
        self._main = self._session(frozenset())
        if workshop.revisions is not None:
            workshop.revisions.serve(self.run)

    @property
    def graph(self) -> Graph:
        """What is compiled: the model's graph after the rewrites of the import."""
        return self._graph

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """What `run` takes."""
        return tuple(_spec(i, i.name in self._graph.defaults) for i in self._graph.inputs)

    @property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """What `run` returns."""
        return tuple(_spec(o) for o in self._graph.outputs)

    def run(self, feeds: Mapping[str, Any], *, stream: Any = None) -> dict[str, Any]:
        """The outputs by name, for inputs by name; inputs with a default may be left out.

        On a GPU the work goes into `stream` (a number, or a stream of PyTorch, CuPy or Numba), by
        default the current one of the library that arrays on the device come from. Where an input
        is on the device, outputs stay there and the call does not wait for them.

        Raises InputError if the feeds do not fit, OperatorError if the model cannot be applied to
        these shapes, and ExecutionError for bad data (an index out of range ...).
        """
        outputs = (
            self._run(feeds, stream) if self._port or stream is not None else self._compute(feeds)
        )
        return {name: outputs[k] for k, name in self._places}

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """The output, or a tuple of several, for inputs by position (in order) and by name."""
        if len(arrays) > len(self._names):
            raise InputError(f"{len(arrays)} inputs given, the model has {len(self._names)}")
        if not named and len(arrays) == len(self._names) == len(self._required):
            outputs = self._run_seen(arrays) if self._port is None else None
            if outputs is None:
                outputs = self._run(dict(zip(self._names, arrays, strict=True)))
        else:
            feeds = dict(zip(self._names, arrays, strict=False))
            if twice := feeds.keys() & named.keys():
                names = ", ".join(sorted(twice))
                raise InputError(f"inputs given by position and by name: {names}")
            outputs = self._run({**feeds, **named})
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def warmup(self, shapes: Shapes | Sequence[Shapes]) -> None:
        """Makes what calls with such inputs need: for each a shape, or an array if values matter.

        A model that cannot be compiled in one piece is run once, on zeros where a shape is given.
        """
        for one in [shapes] if isinstance(shapes, Mapping) else shapes:
            session, values = self._read(self._example(one))
            if not isinstance(session.enter(values).stage.cut, Finish):
                session.run(values)

    @overload
    def explain(self) -> Report: ...
    @overload
    def explain(self, what: Any, other: str | None = None) -> Explanation: ...
    def explain(self, what: Any = None, other: str | None = None) -> Explanation:
        """How the model runs for the signatures seen so far, and why so.

        `what` is a kernel or its name ("k3"), a node's name or that of a value it computes; with
        `other` it is why these two nodes do not share a kernel. InputError for unknown names.
        """
        log, limits = self._log, self._workshop.known_ceilings()
        seconds = {key: taken for key, (_, taken) in self._measured.items()}
        crossings = self._port.crossings.seen() if self._port else ()
        if what is None:
            stages = report_stages(self._all_sessions(), limits, seconds)
            kept = tuple(log.unfolded.items())
            return Report(self._graph.name, tuple(log.applied), kept, stages, crossings)
        segments = list(self._segments())
        explainer = Explainer(self._graph, log.applied, segments, limits, seconds, crossings)
        return explainer.about(what, other)

    @property
    def kernels(self) -> list[Any]:
        """The kernels made so far, each with its source and schedule."""
        return kernels_of(self._all_sessions())

    def paths(self) -> list[list[Segment]]:
        """For each signature seen, the one used last first, the stages that its last call took."""
        roots = [root for s in list(self._sessions.values()) for root in list(s.roots.values())]
        return [list(root.path()) for root in sorted(roots, key=lambda r: -r.used)]

    def known_ceilings(self) -> Ceilings | None:
        """What the processor can do at most, once that has been measured."""
        return self._workshop.known_ceilings()

    def kernel_stats(self) -> CacheStats | None:
        """How many kernels came from where, as far as there are kernels."""
        stats = self._workshop.stats
        return stats() if stats else None

    def cache_info(self) -> ModelCacheInfo:
        """What is held in memory for the signatures seen so far."""
        sessions = list(self._all_sessions())
        return ModelCacheInfo(
            sum(len(s.roots) for s in self._sessions.values()),
            sum(1 for s in sessions for _ in s.segments()),
            self._workshop.budget.dropped,
            self._workshop.budget.nbytes(),
        )

    def profile(self, feeds: Mapping[str, Any], seconds: float = 0.25) -> Profile:
        """Where the time of such a call goes, kernel by kernel, and what the machine could do.

        Medians of at least five runs, of up to fifty while `seconds` last. The first profile on a
        machine measures the machine, which takes a second.
        """
        return profile(
            self._graph.name,
            self._whole_call(feeds),
            lambda: list(self._segments()),
            self._workshop.ceilings,
            seconds,
            self._measured,
        )

    def _whole_call(self, feeds: Mapping[str, Any]) -> Callable[[], object]:
        """A call to measure: its inputs checked before, its work on a device done at the end."""
        port = self._port
        if port is None:
            session, values = self._read(feeds)
            return lambda: session.run(values)

        def call() -> None:
            with port.call(list(feeds.values()), None):
                self._run(feeds)
                port.device.finish()

        return call

    def _run(self, feeds: Mapping[str, Any], stream: Any = None) -> list[Any]:
        port = self._port
        if port is None:
            if stream is not None:
                raise InputError("only models for a GPU run in a stream")
            return self._compute(feeds)
        with port.call(list(feeds.values()), stream) as stays:
            outputs = self._compute({n: port.read(n, v) or v for n, v in feeds.items()})
            self._warn_of_host()
            return [port.deliver(name, outputs[k], stays) for k, name in self._places]

    def _warn_of_host(self) -> None:
        """Says it once, if the GPU has nothing to do although nodes are computed."""
        hosted = self._workshop.hosted
        if hosted and not self._workshop.makes_kernels and not self._warned:
            self._warned = True
            nodes = ", ".join(hosted[:MOST_NAMED]) + (" ..." if len(hosted) > MOST_NAMED else "")
            warnings.warn(
                f"no part of {self._graph.name!r} runs on the GPU: the host computes {nodes}",
                RuntimeWarning,
                stacklevel=4,
            )

    def _compute(self, feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs, where they are."""
        if len(feeds) == len(self._required):
            outputs = self._run_seen([feeds.get(n) for n in self._required])
            if outputs is not None:
                return outputs
        session, values = self._read(feeds)
        return session.run(values)

    def _run_seen(self, values: Sequence[Any]) -> list[Any] | None:
        """The outputs, if all values are arrays that can be read in place (see `is_ready`) and have
        a signature that has been seen: it has been checked.
        """
        key = []
        for value in values:
            if type(value) is np.ndarray:
                flags = value.flags  # made anew by every access
                if not (flags.c_contiguous and flags.aligned):
                    return None
            elif not isinstance(value, RemoteArray):
                return None
            key.append((value.dtype, value.shape))
        segment = self._main.roots.get(tuple(key))
        if segment is None:
            return None
        segment.touch()
        if segment.runner is not None and segment.direct and self._port is None:
            return segment.runner.run(values)
        return self._main.run_from(segment, values)

    def _read(self, feeds: Mapping[str, Any]) -> tuple[Session, list[Any]]:
        """The feeds checked, and the session in which missing defaults are constants."""
        overridden = frozenset(n for n in self._graph.defaults if n in feeds)
        session = self._session(overridden)
        port = self._port
        return session, read_inputs(session.graph.inputs, feeds, port.read if port else None)

    def _session(self, overridden: frozenset[str]) -> Session:
        with self._lock:
            found = self._sessions.get(overridden)
            if found is None:
                graph = self._graph.bind_defaults(overridden)
                found = self._sessions[overridden] = Session(graph, self._workshop)
            return found

    def _all_sessions(self) -> Iterator[Session]:
        yield from list(self._sessions.values())
        yield from self._workshop.sessions()

    def _segments(self) -> Iterator[Segment]:
        """The stages made so far, in the order in which they are numbered."""
        for session in self._all_sessions():
            yield from session.segments()

    def _example(self, shapes: Shapes) -> dict[str, Any]:
        """Arrays of zeros, except where an array is given."""
        infos = {i.name: i for i in self._graph.inputs}
        return {n: _zeros(infos[n], s) if n in infos else s for n, s in shapes.items()}


def _zeros(info: ValueInfo, shape: Sequence[int] | Array) -> Array:
    if isinstance(shape, np.ndarray):
        return shape
    if info.dtype is None or info.kind != "tensor":
        raise InputError(f"input {info.name!r} needs an example, its shape is not enough")
    return np.zeros(tuple(shape), info.dtype.numpy)


def _spec(info: ValueInfo, has_default: bool = False) -> ValueSpec:
    dtype = info.dtype.numpy if info.dtype else None
    return ValueSpec(info.name, dtype, info.shape, info.kind, has_default)
