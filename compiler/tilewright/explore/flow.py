"""What one call of a model runs, as a graph: kernels and host steps, and the buffers between."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.graph.stages import Finish, HostStep, NeedValue
from tilewright.loops.ir import Buffer, strides_of
from tilewright.runtime.model import CompiledModel
from tilewright.runtime.segments import Segment

INPUT, OUTPUT, INNER, CONSTANT = "input", "output", "inner", "constant"


@dataclass
class Value:
    """A buffer that is read or written: `offset` is its place in the memory of its stage's plan,
    None where it has memory of its own."""

    name: str
    shape: str
    nbytes: int
    kind: str
    stage: int
    offset: int | None = None
    writers: list[int] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


@dataclass
class Step:
    """A kernel, or what the host does; `weights` are the bytes of constants that it reads."""

    name: str
    operators: tuple[str, ...]
    nodes: tuple[str, ...]
    stage: int
    kernel: Any = None
    weights: int = 0
    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Of one call, if it was profiled."""
        found = self.kernel.measured if self.kernel is not None else None
        return found.step.seconds if found else None

    @property
    def token(self) -> Hashable:
        """Equal for steps that do the same to other buffers."""
        if self.kernel is None:
            return self.name, self.operators, id(self)
        return self.operators, self.kernel.source, self.kernel.tasks, id(self.kernel.kernel)


@dataclass
class Flow:
    """The steps of a call in order of execution; values are known by their index."""

    signature: str
    steps: list[Step] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    arenas: list[int] = field(default_factory=list)  # bytes, one of each stage
    is_complete: bool = False

    def kernels(self, stage: int) -> list[int]:
        """The indices of the steps of a stage that are kernels."""
        return [k for k, s in enumerate(self.steps) if s.stage == stage and s.kernel is not None]


def flow(model: CompiledModel, path: Sequence[Segment]) -> Flow:
    """The call that took these stages."""
    tracer = _Tracer([i.name for i in model.inputs], [o.name for o in model.outputs])
    first = path[0]
    made = tracer.made
    made.signature = ", ".join(f"{i.dtype.numpy}{list(i.shape)}" for i in first.stage.inputs)
    for stage, segment in enumerate(path):
        tracer.arrive(stage, segment)
        tracer.compute(stage, segment)
        tracer.leave(stage, segment)
    return made


class _Tracer:
    """Follows values from stage to stage under the names that a run holds them by."""

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.made = Flow("")
        self._inputs, self._outputs = inputs, outputs
        self._held: dict[str, int] = {}
        self._arriving: list[int] = []  # steps whose results the next stage begins with

    def arrive(self, stage: int, segment: Segment) -> None:
        """What the cut above brought, or the call's inputs."""
        shapes = {i.name: i for i in segment.stage.inputs}
        for place, name in enumerate(segment.arrivals):
            if name is None or name in self._held:
                continue
            known = shapes.get(name)
            shape, nbytes = (
                (_shape(known.dtype.numpy.name, known.shape), known.size * known.dtype.itemsize)
                if known is not None
                else ("", 0)
            )
            title = segment.origins.get(name, (name, ""))[0]
            value = self._value(title, shape, nbytes, INNER if stage else INPUT, stage)
            self._held[name] = value
            if self._arriving:
                self._write(self._arriving[-1], value)
            elif not stage and place < len(self._inputs):
                self.made.values[value].name = self._inputs[place]
        self._arriving = []

    def compute(self, stage: int, segment: Segment) -> None:
        """The kernels of a stage."""
        runner = segment.runner
        self.made.arenas.append(getattr(runner, "arena_bytes", 0))
        if runner is None:
            return
        env = {n: self._held[n] for n in segment.reads if n in self._held}
        if runner.kernels:
            offsets = getattr(runner, "offsets", {})
            for kernel in runner.kernels:
                self._kernel(stage, kernel, env, offsets)
            results: Sequence[str] = getattr(runner, "results", ())
        else:
            results = self._evaluation(stage, segment, env)
        for name, tensor in zip(segment.stage.names, results, strict=False):
            if tensor in env:
                self._held[name] = env[tensor]

    def leave(self, stage: int, segment: Segment) -> None:
        """The host step after a stage, or the end."""
        match segment.stage.cut:
            case Finish(outputs=outputs):
                self.made.is_complete = True
                for name, output in zip(self._outputs, outputs, strict=True):
                    value = (
                        self._held.get(output.source) if isinstance(output.source, str) else None
                    )
                    if value is not None:
                        self.made.values[value].outputs.append(name)
                        if self.made.values[value].kind == INNER:
                            self.made.values[value].kind = OUTPUT
            case HostStep(node=node, kind=kind, operands=operands, captured=captured):
                step = self._step(Step("host", (node.op_type,), (node.label,), stage))
                self.made.steps[step].name = f"host {kind}" if kind != "host" else "host"
                for operand in (*operands, *captured.values()):
                    if isinstance(operand, str) and operand in self._held:
                        self._read(step, self._held[operand])
                self._arriving = [step]
            case NeedValue(name=name, reason=reason):
                step = self._step(Step("look at a value", (reason,), (), stage))
                if name in self._held:
                    self._read(step, self._held[name])

    def _kernel(
        self, stage: int, kernel: Any, env: dict[str, int], offsets: dict[str, int]
    ) -> None:
        operators = tuple(kernel.graph.split("+"))
        step = self._step(Step(kernel.name, operators, kernel.nodes, stage, kernel))
        outputs = kernel.kernel.outputs
        for buffer, name in zip(kernel.kernel.params, kernel.tensors, strict=True):
            nbytes = _bytes(buffer)
            if buffer.name in outputs:
                if name not in env:
                    shape = _shape(buffer.dtype.numpy.name, buffer.shape)
                    env[name] = self._value(name, shape, nbytes, INNER, stage, offsets.get(name))
                self._write(step, env[name])
            elif name in env:
                self._read(step, env[name])
            else:
                self.made.steps[step].weights += nbytes

    def _evaluation(self, stage: int, segment: Segment, env: dict[str, int]) -> list[str]:
        """One step for expressions that are evaluated as they are."""
        labels = tuple(dict.fromkeys(segment.stage.labels.values()))
        step = self._step(Step("evaluation", ("evaluation",), labels, stage))
        for name in segment.reads:
            if name in env:
                self._read(step, env[name])
        for t in segment.stage.outputs:
            shape = _shape(t.dtype.numpy.name, t.shape)
            env.setdefault(
                t.name, self._value(t.name, shape, t.size * t.dtype.itemsize, INNER, stage)
            )
            if env[t.name] not in self.made.steps[step].reads:
                self._write(step, env[t.name])
        return [t.name for t in segment.stage.outputs]

    def _step(self, step: Step) -> int:
        self.made.steps.append(step)
        return len(self.made.steps) - 1

    def _value(
        self, name: str, shape: str, nbytes: int, kind: str, stage: int, offset: int | None = None
    ) -> int:
        self.made.values.append(Value(name, shape, nbytes, kind, stage, offset))
        return len(self.made.values) - 1

    def _read(self, step: int, value: int) -> None:
        if value not in self.made.steps[step].reads:
            self.made.steps[step].reads.append(value)
            self.made.values[value].readers.append(step)

    def _write(self, step: int, value: int) -> None:
        if value not in self.made.steps[step].writes:
            self.made.steps[step].writes.append(value)
            self.made.values[value].writers.append(step)


def _shape(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} {'×'.join(map(str, shape)) or 'scalar'}"


def _bytes(buffer: Buffer) -> int:
    """From the first element to the last, gaps included."""
    spans = (max(n - 1, 0) * s for n, s in zip(buffer.shape, strides_of(buffer), strict=True))
    return (1 + sum(spans)) * buffer.dtype.itemsize
