"""Does the sum of a peer's attributions equal the output? The same models, weights and input.

    python -m experiments.peers            needs captum (extra peers)
    python -m experiments.peers --write    and into the README

Random weights with random biases and statistics, float64, one image, class 3. The error is
|Σ attribution − (f(x) − reference)| / |f(x) − reference|, where the reference is f(baseline) for
methods that explain a difference and zero for the others. It shows whether a method sums to the
output, not how far it would be off on a trained network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from experiments.command import Command
from experiments.report import environment, table, versions
from experiments.zoo_models import perturb

COMMAND = Command("peers", __doc__, "write")
TARGET = 3
MODELS = ("resnet18", "vgg11_bn", "densenet121", "convnext_tiny", "vit_b_16")


def load(name: str) -> tuple[nn.Module, Tensor]:
    from omenn.models.torchvision_remedy import prepare

    prepare()
    import torchvision

    torch.manual_seed(0)
    model = perturb(torchvision.models.get_model(name, weights=None)).double()
    return model, torch.randn(1, 3, 224, 224, dtype=torch.float64)


def by_omenn(model: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    return omenn.explain(model, x, TARGET).matrix.sum(), 0.0


def _captum(name: str, **options: Any) -> Callable[[nn.Module, Tensor], tuple[Tensor, float]]:
    def run(model: nn.Module, x: Tensor) -> tuple[Tensor, float]:
        import captum.attr

        method = getattr(captum.attr, name)(model)
        total = method.attribute(x.clone(), target=TARGET, **options).sum()
        against_baseline = name in ("IntegratedGradients", "DeepLift")
        reference = model(torch.zeros_like(x))[0, TARGET].item() if against_baseline else 0.0
        return total, reference

    return run


METHODS: dict[str, Callable[[nn.Module, Tensor], tuple[Tensor, float]]] = {
    "omenn": by_omenn,
    "captum InputXGradient": _captum("InputXGradient"),
    "captum IntegratedGradients, 50 steps": _captum("IntegratedGradients", internal_batch_size=10),
    "captum DeepLift": _captum("DeepLift"),
    "captum LRP": _captum("LRP"),
}


def cell(method: Callable[[nn.Module, Tensor], tuple[Tensor, float]], name: str) -> str:
    model, x = load(name)  # afresh: some methods leave their mark on the model
    with torch.no_grad():
        f = model(x)[0, TARGET].item()
    try:
        total, reference = method(model, x)
    except ImportError:
        return "not installed"
    except Exception as error:  # a refusal is a result here
        return type(error).__name__
    return f"{abs(float(total.detach()) - (f - reference)) / abs(f - reference):.0e}"


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    rows = [[name, *(cell(method, m) for m in MODELS)] for name, method in METHODS.items()]
    made = f"{COMMAND.written()}; {environment()}; {versions('captum', 'torchvision')}."
    text = f"{table(['relative error of the sum', *MODELS], rows)}\n\n{made}"
    COMMAND.publish(a, "../README.md", peers=text)


if __name__ == "__main__":
    main()
