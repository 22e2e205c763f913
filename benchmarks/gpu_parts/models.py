"""Whole models beside PyTorch, eager and compiled, in float32, TF32 and halves.

The modules come from `benchmarks/export.py`; their ONNX files are made where they are not there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto

from gpu_parts.agreement import feeds_for
from gpu_parts.bench import PRECISIONS, Compiled, Precision, checked, error_of
from gpu_parts.halves import to_halves
from gpu_parts.part import Figures, Setting, Unavailable

if TYPE_CHECKING:
    from gpu_parts.bench import Array, Bench

FIRST = ("resnet50", "bert_base", "vit_base", "llama_small")
OTHERS = (
    *("gpt2", "whisper_encoder", "wav2vec2_small", "segformer_b0", "diffusion_unet"),
    *("convnext_tiny", "swin_tiny", "efficientnet_b0", "mobilenetv3", "densenet121"),
    *("distilbert", "efficientnetv2_t", "regnety_8", "ghostnet", "poolformer_s12", "mobilevit_s"),
    *("deit_tiny", "mixer_b16", "lstm_tagger", "gru_tagger", "mlp"),
)
KINDS = ("f16", "f32", "tf32", "bf16")
TOLERANCE = {"f32": 1e-3, "tf32": 3e-2, "f16": 3e-2, "bf16": 2e-1}


def cases(setting: Setting) -> list[str]:
    """The best known models first, in all precisions."""
    return [f"{name} {kind}" for names in (FIRST, OTHERS) for kind in KINDS for name in names]


class TorchModel:
    """A model of `export.py` on the GPU, with the inputs of its example."""

    def __init__(self, torch: Any, name: str) -> None:
        self._torch, self.name = torch, name
        folder = str(Path(__file__).resolve().parent.parent)
        if folder not in sys.path:
            sys.path.append(folder)
        self._export: Any = import_module("export")
        try:
            self.module, self.inputs = self._export.built(name)
        except ImportError as error:
            raise Unavailable(f"PyTorch's side of {name} cannot be made: {error}") from error

    def written(self, folder: Path) -> tuple[Path, bool]:
        """The ONNX file, and whether it has these very weights."""
        path = folder / f"{self.name}.onnx"
        if path.exists():
            return path, False
        folder.mkdir(parents=True, exist_ok=True)
        with self._torch.enable_grad():
            return self._export.write(self.name, self.module, self.inputs, folder), True

    def feeds(self, dtype: Any) -> dict[str, Array]:
        """The example's inputs; floats in this type."""
        arrays = {n: t.detach().cpu().numpy() for n, t in self.inputs.items()}
        return {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in arrays.items()}

    def calls(self, precision: Precision, mode: str) -> tuple[Mapping[str, Any], Any]:
        """Eager and compiled calls, and the first result."""
        kind = {"float": "float32"}.get(precision.onnx, precision.onnx)
        dtype = getattr(self._torch, kind)
        module = self.module.to("cuda", dtype).eval()
        given = [t.cuda() for t in self.inputs.values()]
        given = [t.to(dtype) if t.is_floating_point() else t for t in given]
        first = module(*given)
        found = {"torch": lambda: module(*given)}
        if mode:
            compiled = self._torch.compile(module, mode=mode)
            compiled(*given)
            found["torch.compile"] = lambda: compiled(*given)
        return found, first


def converted(path: Path, kind: str) -> ModelProto:
    """The file's model with numbers of a kind."""
    model = onnx.load(str(path))
    return to_halves(model, kind) if kind in ("f16", "bf16") else model


def ours(bench: Bench, model: ModelProto, kind: str, feeds: Mapping[str, Array]) -> Compiled:
    """The model, called once with arrays that are on the device and stay there."""
    compiled = bench.compile(model, bench.options_for(PRECISIONS[kind]))
    names = [i.name for i in compiled.model.inputs]
    given = dict(zip(names, feeds.values(), strict=True))
    compiled.run({n: bench.put(a) for n, a in given.items()})
    return compiled


def run(bench: Bench, case: str) -> Figures:
    """Where there is no PyTorch, our times alone."""
    name, _, kind = case.rpartition(" ")
    precision = PRECISIONS[kind]
    bench.options_for(precision)
    if getattr(bench.rival, "name", "") != "torch":
        return alone(bench, bench.setting.folder / f"{name}.onnx", kind)
    source = TorchModel(bench.rival.torch, name)
    path, is_same = source.written(bench.setting.folder)
    compiled = ours(bench, converted(path, kind), kind, source.feeds(precision.dtype))
    bench.rival.set_precision(precision)
    calls, wanted = source.calls(precision, bench.setting.compiled)
    got = compiled.first().astype("float32")
    error = error_of(got, wanted.detach().float().cpu().numpy())
    verdict = checked(error, TOLERANCE[kind]) if is_same else {"error": None}
    times = bench.time(compiled, calls)
    return bench.figures(times, **verdict, **facts(compiled))


def alone(bench: Bench, path: Path, kind: str) -> Figures:
    """Our times for a file; Unavailable where there is none."""
    if not path.exists():
        raise Unavailable(f"neither PyTorch with CUDA nor {path} is here")
    model = converted(path, kind)
    compiled = bench.compile(model, bench.options_for(PRECISIONS[kind]))
    feeds = feeds_for(path, compiled.model)
    compiled.run({n: bench.put(a) for n, a in feeds.items()})
    return bench.figures(bench.time(compiled), **facts(compiled))


def facts(compiled: Compiled) -> dict[str, Any]:
    """Kernels, what crossed to the host, and what each kernel takes."""
    crossings = [str(c) for c in compiled.model.explain().crossings]
    return {"kernels": compiled.count, "crossings": crossings, "steps": compiled.steps()}
