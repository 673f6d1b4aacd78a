"""The models whose cost is measured: real sizes, random perturbed weights, logits (B, classes)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.zoo_models import perturb

MEMORY_GOAL = 1.05
ROWS_GOAL = 0.8


@dataclass(frozen=True)
class Subject:
    """A model, the shape of one sample, and what its cost shall not exceed."""

    label: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    goal: float | None = None  # explanation with bias : plain input gradient
    rows_goal: float | None = None  # 100 rows : 100 explanations
    canonizer: str | None = None  # zennit's, for this architecture
    for_peers: bool = False  # only in the comparison with other libraries

    def load(self, batch: int, device: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
        """(perturbed model in evaluation mode, random input), the same every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = perturb(self.build())
            x = torch.randn(batch, *self.shape)
        return model.to(device, dtype), x.to(device, dtype)


class Embedded(nn.Module):
    """A language model as a function of its token embeddings: (B, T, D) -> (B, classes)."""

    def __init__(self, model: nn.Module, **options: object) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = self.model(inputs_embeds=embeddings, **self.options).logits
        return logits[:, -1] if logits.ndim == 3 else logits


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from omenn.models.torchvision_remedy import prepare

        prepare()
        import torchvision

        return torchvision.models.get_model(name, weights=None)

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from omenn.models.torchvision_remedy import prepare

        prepare()
        import timm

        return timm.create_model(name, pretrained=False)

    return build


def _bert() -> nn.Module:
    from omenn.models.torchvision_remedy import prepare

    prepare()
    import transformers as t

    # The sizes of BERT-base; the vocabulary is not used.
    config = t.BertConfig(vocab_size=1000, num_labels=100)
    return Embedded(t.BertForSequenceClassification(config))


def _llama() -> nn.Module:
    from omenn.models.torchvision_remedy import prepare

    prepare()
    import transformers as t

    config = t.LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    return Embedded(t.LlamaForCausalLM(config), use_cache=False, logits_to_keep=1)


class Recurrent(nn.Module):
    """A classifier of sequences (B, T, 16) by the last state of a bidirectional LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 64, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 100),
    )


_IMAGE = (3, 224, 224)

SUBJECTS: dict[str, Subject] = {
    "resnet50": Subject(
        "ResNet-50", _torchvision("resnet50"), _IMAGE, 1.00, canonizer="ResNetCanonizer"
    ),
    "convnext_tiny": Subject("ConvNeXt-T", _timm("convnext_tiny"), _IMAGE, 1.05),
    "vit_base": Subject("ViT-B/16", _timm("vit_base_patch16_224"), _IMAGE, 0.95, ROWS_GOAL),
    "swin_tiny": Subject("Swin-T", _timm("swin_tiny_patch4_window7_224"), _IMAGE, 1.05),
    "efficientnet_b0": Subject("EfficientNet-B0", _timm("efficientnet_b0"), _IMAGE, 1.05),
    "bert": Subject("BERT, 12 layers, 128 tokens", _bert, (128, 768)),
    "llama": Subject("Llama, 8 layers, 512 tokens", _llama, (512, 512)),
    "lstm": Subject("LSTM, 2 layers, 500 steps", Recurrent, (500, 16), 5.0),
    "vgg16": Subject(
        "VGG-16", _torchvision("vgg16"), _IMAGE, canonizer="VGGCanonizer", for_peers=True
    ),
    "tiny": Subject("a tiny network", _tiny, (3, 16, 16), 1.0, ROWS_GOAL),
}
# `tiny` is there to try the commands with.
PUBLISHED: tuple[str, ...] = tuple(name for name in SUBJECTS if name != "tiny")
