"""The models that the engine is proven on: random weights, perturbed so that none is trivial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model, its inputs and how to explain it. ``small`` asks for a quicker input."""

    name: str
    build: Callable[[bool], tuple[nn.Module, Any]]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, dtype: torch.dtype, small: bool = False, seed: int = 0) -> tuple[nn.Module, Any]:
        """(perturbed model in evaluation mode, inputs), both seeded and in ``dtype``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, inputs = self.build(small)
        return perturb(model, seed).to(dtype), cast(inputs, dtype)


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Moves every parameter and statistic away from zero, one and the identity."""
    generator = torch.Generator().manual_seed(seed)

    def noise(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=t.dtype)

    with torch.no_grad():
        for p in model.parameters():
            spread = float(p.std()) if p.ndim > 1 and p.numel() > 1 else 0.0
            # Zero-initialised heads and layer scales near zero become ordinary layers.
            p.add_(noise(p) * (0.1 * spread if spread > 1e-3 else 0.1))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.add_(0.1 * noise(b))
            if name.endswith("running_var"):
                b.mul_(0.5 + torch.rand(b.shape, generator=generator, dtype=b.dtype))
    return model.eval()


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: cast(v, dtype) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(cast(v, dtype) for v in value)
    return value


# --- the models -------------------------------------------------------------------------------


def _timm(name: str, size: int = 224, small: int | None = None, **options: Any) -> Any:
    def build(quick: bool) -> tuple[nn.Module, Tensor]:
        from omenn.models.torchvision_remedy import prepare

        prepare()
        import timm

        side = small if quick and small else size
        extra = {"img_size": side} if options.get("sized") and side != size else {}
        return timm.create_model(name, pretrained=False, **extra), torch.randn(1, 3, side, side)

    return build


def _mlp(quick: bool) -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)
    )
    return net, torch.randn(4, 10)


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.core = kind(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.core(self.embed(ids))[0].mean(1))


class _Encoder(nn.Module):
    """A Transformer encoder over padded sequences; padded tokens do not enter the mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.core = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.core(x, src_key_padding_mask=padding)
        keep = (~padding).unsqueeze(-1).to(h.dtype)
        return self.head((h * keep).sum(1) / keep.sum(1))


def _encoder(quick: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    padding = torch.zeros(3, 12, dtype=torch.bool)
    padding[0, 8:] = padding[2, 5:] = True
    return _Encoder(), (torch.randn(3, 12, 32), padding)


def _transformers(name: str) -> Any:
    def build(quick: bool) -> tuple[nn.Module, dict[str, Any]]:
        from omenn.models.torchvision_remedy import prepare

        prepare()
        import transformers as t

        size = {
            "vocab_size": 100,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 128,
        }
        ids = torch.randint(1, 100, (2, 16))
        mask = torch.ones_like(ids)
        mask[0, 11:] = 0
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if name == "bert":
            return t.BertForSequenceClassification(t.BertConfig(**size)), inputs
        model = t.LlamaForCausalLM(t.LlamaConfig(**size, num_key_value_heads=2))
        return model, inputs | {"use_cache": False}

    return build


def _graph(quick: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    from omenn.models.torchvision_remedy import prepare

    prepare()
    from torch_geometric.nn import GCNConv

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = GCNConv(7, 16), GCNConv(16, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x, edges)), edges)

    return Graph(), (torch.randn(20, 7), torch.randint(0, 20, (2, 60)))


def _recurrent(kind: type[nn.RNNBase]) -> Any:
    return lambda quick: (_Recurrent(kind), torch.randint(0, 50, (3, 9)))


CASES: tuple[Case, ...] = (
    Case("MLP", _mlp),
    Case("VGG-11", _timm("vgg11", small=64)),
    Case("ResNet-18", _timm("resnet18", small=64)),
    Case("ResNet-50", _timm("resnet50", small=64)),
    Case("DenseNet-121", _timm("densenet121", small=64)),
    Case("MobileNetV3", _timm("mobilenetv3_large_100", small=64)),
    Case("EfficientNet-B0", _timm("efficientnet_b0", small=64)),
    Case("ConvNeXt-T", _timm("convnext_tiny", small=64)),
    Case("ViT-B/16", _timm("vit_base_patch16_224", small=64, sized=True)),
    Case("DeiT-S/16", _timm("deit_small_patch16_224", small=64, sized=True)),
    Case("BEiT-B/16", _timm("beit_base_patch16_224", small=64, sized=True)),
    Case("EVA-02-T/14", _timm("eva02_tiny_patch14_224", small=56, sized=True)),
    Case("Swin-T", _timm("swin_tiny_patch4_window7_224", small=112, sized=True)),
    Case("SwinV2-T", _timm("swinv2_tiny_window8_256", 256, small=128, sized=True)),
    Case("MaxViT-T", _timm("maxvit_tiny_tf_224", small=64, sized=True)),
    Case("LSTM classifier", _recurrent(nn.LSTM)),
    Case("GRU classifier", _recurrent(nn.GRU)),
    Case("Transformer encoder, padded", _encoder),
    Case("BERT (small)", _transformers("bert")),
    Case("Llama (small)", _transformers("llama"), {"target": lambda out: out[:, -1, 7]}),
    Case("GCN, one node", _graph, {"target": lambda out: out[3, 1]}),
)


# --- the same models for the command line -----------------------------------------------------


def slug(name: str) -> str:
    """``"ViT-B/16"`` -> ``"vit_b_16"``."""
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """``omenn certify --model experiments/zoo_models.py:vit_b_16``: a case as a function."""
    found = next((c for c in CASES if slug(c.name) == name), None)
    if found is None:
        raise AttributeError(name)

    def build() -> nn.Module:
        model, inputs = found.make(torch.float32)
        model.example_inputs = inputs
        model.example_target = found.options.get("target")
        return model

    return build
