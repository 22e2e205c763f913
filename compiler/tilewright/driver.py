"""The page to read first: how a model becomes a callable.

model --import_model--> Graph --simplify--> Graph        once, in `compile`
      --Specializer--> stages                            for each new signature, in runtime.session
      --build_plan--> kernels and a Plan                 for each stage, in runtime.plan
      --Session.run--> outputs                           for each call
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from onnx import ModelProto

from tilewright.errors import UnsupportedError
from tilewright.fusion.weights import PackedWeights
from tilewright.graph.ir import kept
from tilewright.graph.onnx_import import import_model
from tilewright.graph.rewrite import SimplifyLog
from tilewright.graph.rules import simplify
from tilewright.graph.support import SupportReport, support_report
from tilewright.ops.registry import is_defined
from tilewright.ops.tensor import Placeholder, Tensor
from tilewright.options import Options, available_cores
from tilewright.runtime.cache import KernelCache, environment_fields
from tilewright.runtime.model import CompiledModel
from tilewright.runtime.plan import Plan, build_plan
from tilewright.runtime.revisions import Revisions
from tilewright.runtime.segments import Evaluation, Runner
from tilewright.runtime.session import Planner, Workshop
from tilewright.runtime.tune import Allowance, KeptChoices, TunedOnHost
from tilewright.schedule.choices import Choices

Model = str | os.PathLike[str] | bytes | ModelProto

TARGETS = ("cpu", "cuda")


def compile(
    model: Model,
    *,
    target: str = "cpu",
    threads: int | None = None,
    options: Options | None = None,
    tune: float = 0.0,
) -> CompiledModel:
    """A callable with the model's meaning. Kernels are made when inputs of a new shape arrive.

    `model` is a path, the bytes of a file, or a ModelProto; `threads` overrides `options.threads`.
    First calls spend up to `tune` seconds in all on measuring other ways to make the kernels; what
    wins is kept on disk and serves later compilations on this machine, whatever their `tune`.
    Raises ModelError for a model that is wrong and UnsupportedError for one that is beyond this
    compiler: its message names the operators or the target. DeviceError for a target that cannot
    be used here: its message names what is missing; no other target takes its place.
    """
    check_target(target)
    settings = options or Options.from_environment()
    if threads is not None:
        settings = dataclasses.replace(settings, threads=threads)
    return compile_in(workshop(settings, tune, target), model)


def compile_in(workshop: Workshop, model: Model) -> CompiledModel:
    """The same with everything a model needs on its target."""
    log = SimplifyLog()
    graph = import_model(model, keep=is_defined)  # ModelProto -> Graph of known operators
    support_report(graph).raise_for_unknown()  # nothing here could run them
    graph = simplify(graph, log)  # Graph -> Graph: laws that hold for every shape
    graph = dataclasses.replace(graph, constants=kept(graph.constants))
    return CompiledModel(graph, workshop, log)


def check_target(target: str) -> None:
    """Raises an error that says why the target cannot run models here, if it cannot."""
    if target not in TARGETS:
        raise UnsupportedError(f"target {target!r} is not supported: the targets are {TARGETS}")
    if target == "cuda":
        from tilewright.runtime.cuda.toolchain import TO_RUN, find_toolchain

        find_toolchain().require(TO_RUN, "run models")


def workshop(options: Options, tune: float = 0.0, target: str = "cpu") -> Workshop:
    """What a model needs to make and run its plans on a target."""
    if target == "cuda" and not options.interpret:
        # Here alone: nothing of CUDA is imported unless it is asked for.
        from tilewright.runtime.cuda.gpu import first_gpu
        from tilewright.runtime.cuda.port import Port
        from tilewright.runtime.cuda.workshop import cuda_workshop

        device = first_gpu()
        return cuda_workshop(options, Port(device, device.cupy), tune=tune)
    if options.interpret:
        return Workshop(options, planner(options))
    cache = KernelCache(options)
    changed = Revisions(options, cache)
    plans = planner(options, tune, cache, changed)
    return Workshop(options, plans, stats=cache.stats, revisions=changed)


def planner(
    options: Options,
    tune: float = 0.0,
    cache: KernelCache | None = None,
    revisions: Revisions | None = None,
) -> Planner:
    """What makes the plan of a stage: of kernels, or of the expressions as they are."""
    if options.interpret:
        return Evaluation
    cache, weights = cache or KernelCache(options), PackedWeights()
    threads = options.threads or available_cores()
    kept = KeptChoices(cache.store, {**environment_fields(), "threads": threads})
    changed = revisions or Revisions(options, cache)
    allowance = Allowance(tune)

    def build(inputs: Sequence[Placeholder], outputs: Sequence[Tensor]) -> Runner:
        def make(choices: Choices) -> Plan:
            return build_plan(inputs, outputs, options, cache, weights, choices, changed)

        if inputs and allowance.left > 0:
            return TunedOnHost(make, kept, allowance)
        return make(Choices(kept.known))

    return build


def support(model: Model) -> SupportReport:
    """How every node of the model would run: compiled, on the host, by the reference, or not."""
    return support_report(import_model(model, keep=is_defined))
