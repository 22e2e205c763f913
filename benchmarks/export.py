"""Exports well-known architectures with random weights, so that anybody can repeat the table.

python benchmarks/export.py --out FOLDER [NAME ...]

Speed does not depend on what was learned, and random weights need no download and no licence. Each
model is written by PyTorch's own exporter, with the shapes that the table is about. Needs the extra
`export` (PyTorch for CPUs is enough).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Case = tuple[nn.Module, dict[str, Tensor]]
MODELS: dict[str, Callable[[], Case]] = {}
OPSET = 20
VOCABULARY = 20_000  # of language models: what the table of embeddings holds has no cost in time
SEED = 7


def model(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Registers a function that builds a model and its inputs."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        MODELS[name] = build
        return build

    return register


class Pick(nn.Module):
    """A model of transformers, called with named inputs, of whose outputs the first is kept."""

    def __init__(self, inner: nn.Module, names: Sequence[str], **fixed: Any) -> None:
        super().__init__()
        self.inner, self.names, self.fixed = inner, names, fixed

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.inner(**dict(zip(self.names, inputs)), **self.fixed, return_dict=False)
        first: Tensor = found[0]
        return first


# -- images


IMAGE_MODELS = {
    "resnet50": ("resnet50", 224),
    "mobilenetv3": ("mobilenetv3_large_100", 224),
    "efficientnet_b0": ("efficientnet_b0", 224),
    "efficientnetv2_t": ("efficientnetv2_rw_t", 224),
    "regnety_8": ("regnety_008", 224),
    "densenet121": ("densenet121", 224),
    "ghostnet": ("ghostnet_100", 224),
    "convnext_tiny": ("convnext_tiny", 224),
    "poolformer_s12": ("poolformer_s12", 224),
    "mobilevit_s": ("mobilevit_s", 256),
    "vit_base": ("vit_base_patch16_224", 224),
    "deit_tiny": ("deit_tiny_patch16_224", 224),
    "swin_tiny": ("swin_tiny_patch4_window7_224", 224),
    "mixer_b16": ("mixer_b16_224", 224),
}


# Where timm is missing; the same architectures in other words.
OF_TORCHVISION = {
    "resnet50": "resnet50",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "efficientnet_b0": "efficientnet_b0",
    "regnety_008": "regnet_y_800mf",
    "densenet121": "densenet121",
    "convnext_tiny": "convnext_tiny",
    "vit_base_patch16_224": "vit_b_16",
    "swin_tiny_patch4_window7_224": "swin_t",
}


def _image_model(name: str, size: int) -> Callable[[], Case]:
    def build() -> Case:
        return _of_images(name), {"image": torch.randn(1, 3, size, size)}

    return build


def _of_images(name: str) -> nn.Module:
    """An architecture of timm; of torchvision, if only that is there and has it."""
    try:
        import timm
    except ImportError:
        if name not in OF_TORCHVISION:
            raise
        import torchvision

        found: nn.Module = torchvision.models.get_model(OF_TORCHVISION[name], weights=None)
        return found
    return timm.create_model(name, pretrained=False, exportable=True)


MODELS.update({name: _image_model(*source) for name, source in IMAGE_MODELS.items()})


@model("segformer_b0")
def segformer() -> Case:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    built = SegformerForSemanticSegmentation(SegformerConfig())
    return Pick(built, ["pixel_values"]), {"image": torch.randn(1, 3, 512, 512)}


class Residual(nn.Module):
    """Two convolutions, told the time between them, beside a short cut."""

    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1)
        )
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time, outside))
        self.second = nn.Sequential(
            nn.GroupNorm(8, outside), nn.SiLU(), nn.Conv2d(outside, outside, 3, padding=1)
        )
        self.short = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.first(x) + self.time(time)[:, :, None, None]
        result: Tensor = self.second(hidden) + self.short(x)
        return result


class Look(nn.Module):
    """Attention of all pixels to all pixels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.mix = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _channels, height, width = x.shape
        mixed = self.mix(self.norm(x)).reshape(batch, 3, self.heads, -1, height * width)
        q, k, v = mixed.transpose(-1, -2).unbind(1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = x + self.out(seen.transpose(-1, -2).reshape(x.shape))
        return result


class Diffusion(nn.Module):
    """The U-Net of a diffusion model: predicts the noise in an image at a time."""

    def __init__(self, channels: Sequence[int] = (64, 128, 256, 256), time: int = 256) -> None:
        super().__init__()
        first, last = channels[0], channels[-1]
        frequencies = torch.exp(torch.linspace(0, -9, first // 2))
        self.register_buffer("frequencies", frequencies)
        self.time = nn.Sequential(nn.Linear(first, time), nn.SiLU(), nn.Linear(time, time))
        self.entry = nn.Conv2d(3, first, 3, padding=1)
        pairs = list(zip(channels, (*channels[1:], last)))
        self.down = nn.ModuleList(Residual(a, a, time) for a, _ in pairs)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, 2, padding=1) for a, b in pairs)
        self.middle = nn.ModuleList([Residual(last, last, time) for _ in range(2)])
        self.look = Look(last, 4)
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in reversed(pairs))
        self.up = nn.ModuleList(Residual(2 * a, a, time) for a, _ in reversed(pairs))
        self.exit = nn.Sequential(
            nn.GroupNorm(8, first), nn.SiLU(), nn.Conv2d(first, 3, 3, padding=1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * self.frequencies
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        x, kept = self.entry(x), []
        for block, shrink in zip(self.down, self.shrink):
            x = block(x, told)
            kept.append(x)
            x = shrink(x)
        x = self.middle[1](self.look(self.middle[0](x, told)), told)
        for grow, block in zip(self.grow, self.up):
            x = grow(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = block(torch.cat([x, kept.pop()], 1), told)
        result: Tensor = self.exit(x)
        return result


@model("diffusion_unet")
def diffusion_unet() -> Case:
    return Diffusion(), {"noisy": torch.randn(1, 3, 64, 64), "time": torch.tensor([500.0])}


# -- text


def _words(length: int, batch: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length))


@model("bert_base")
def bert() -> Case:
    from transformers import BertConfig, BertModel

    inputs = {"input_ids": _words(128), "attention_mask": torch.ones(1, 128, dtype=torch.int64)}
    return Pick(BertModel(BertConfig(vocab_size=VOCABULARY)), list(inputs)), inputs


@model("distilbert")
def distilbert() -> Case:
    from transformers import DistilBertConfig, DistilBertModel

    inputs = {"input_ids": _words(64), "attention_mask": torch.ones(1, 64, dtype=torch.int64)}
    return Pick(DistilBertModel(DistilBertConfig(vocab_size=VOCABULARY)), list(inputs)), inputs


@model("gpt2")
def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    built = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0))
    return Pick(built, ["input_ids"], use_cache=False), {"input_ids": _words(64)}


@model("llama_small")
def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    built = LlamaForCausalLM(config)
    return Pick(built, ["input_ids"], use_cache=False), {"input_ids": _words(64)}


class Tagger(nn.Module):
    """Embedding, a recurrent network of two layers in both directions, a label a word."""

    def __init__(self, cell: type[nn.RNNBase], width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.recur = cell(width, width, 2, batch_first=True, bidirectional=True)  # type: ignore[call-arg]
        self.label = nn.Linear(2 * width, 32)

    def forward(self, words: Tensor) -> Tensor:
        labels: Tensor = self.label(self.recur(self.embed(words))[0])
        return labels


@model("lstm_tagger")
def lstm_tagger() -> Case:
    return Tagger(nn.LSTM, 256), {"words": _words(100)}


@model("gru_tagger")
def gru_tagger() -> Case:
    return Tagger(nn.GRU, 128), {"words": _words(50, 4)}


# -- sound and numbers


@model("whisper_encoder")
def whisper_encoder() -> Case:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536
    )
    return Pick(WhisperEncoder(config), ["input_features"]), {"sound": torch.randn(1, 80, 3000)}


@model("wav2vec2_small")
def wav2vec2() -> Case:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536
    )
    return Pick(Wav2Vec2Model(config), ["input_values"]), {"sound": torch.randn(1, 16000)}


@model("mlp")
def mlp() -> Case:
    sizes = (64, 256, 256, 128)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10)), {"rows": torch.randn(32, 64)}


# -- files


@torch.no_grad()
def vary(built: nn.Module) -> nn.Module:
    """The model with noise on what is constant at first (scales, shifts, heads), so that
    no error hides behind a zero or a one."""
    for values in (*built.parameters(), *built.buffers()):
        if values.is_floating_point() and values.numel() > 1 and values.min() == values.max():
            values += 0.1 * torch.rand_like(values)
    return built


@torch.no_grad()
def settle(built: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Batch normalisation has the statistics of a batch, as after training; without, activations
    grow from layer to layer and so do errors of rounding."""
    norms = [m for m in built.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        built.train()(*(torch.randn(4, *x.shape[1:]) for x in inputs.values()))


def built(name: str) -> Case:
    """The model and its inputs, the same ones each time."""
    torch.manual_seed(SEED)
    made, inputs = MODELS[name]()
    settle(vary(made), inputs)
    return made.eval(), inputs


def write(name: str, made: nn.Module, inputs: dict[str, Tensor], folder: Path) -> Path:
    """The model's file, in one piece."""
    path = folder / f"{name}.onnx"
    torch.onnx.export(
        made,
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        opset_version=OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    return path


def export(name: str, folder: Path) -> Path:
    """The model's file, in one piece."""
    return write(name, *built(name), folder)


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 if a model could not be exported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/models"))
    arguments = parser.parse_args(words)
    unknown = set(arguments.names) - set(MODELS)
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    return export_all(arguments.names or list(MODELS), arguments.out)


def export_all(names: Sequence[str], folder: Path) -> int:
    """Exports with a bar of progress; what fails is named and the rest goes on."""
    from rich.progress import Progress

    warnings.filterwarnings("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with Progress() as progress:
        bar = progress.add_task("exporting", total=len(names))
        for name in names:
            progress.update(bar, description=name)
            try:
                size = export(name, folder).stat().st_size
                progress.console.print(f"{name}: {size / 1e6:,.1f} MB")
            except Exception as error:
                failed = 1
                progress.console.print(f"{name}: {type(error).__name__}: {error}", markup=False)
            progress.advance(bar)
    return failed


if __name__ == "__main__":
    sys.exit(main())
