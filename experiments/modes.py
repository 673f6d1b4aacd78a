"""What is timed: a model's own passes, omenn's, and the peers' on the same model and input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import omenn
from experiments.timed_models import Subject

Mode = Callable[[Subject, nn.Module, Tensor], object]

STEPS = 50  # of integrated gradients


def forward(subject: Subject, model: nn.Module, x: Tensor) -> object:
    with torch.no_grad():
        return model(x)


def gradient(subject: Subject, model: nn.Module, x: Tensor) -> object:
    """The gradient of the largest logit of each sample by the input: what all is compared with."""
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    return torch.autograd.grad(y.gather(1, y.argmax(1, keepdim=True)).sum(), leaf)


def contribution(subject: Subject, model: nn.Module, x: Tensor) -> object:
    """C_w alone: the same gradient through the frozen network."""
    leaf = x.clone().requires_grad_()
    with omenn.frozen(leaf, model=model):
        y = model(leaf)
        f = y.gather(1, y.argmax(1, keepdim=True)).sum()
    return torch.autograd.grad(f, leaf)[0] * x


def explain(subject: Subject, model: nn.Module, x: Tensor) -> object:
    """C = C_w ⊙ X + C_b, and the check of its sum."""
    return omenn.explain(model, x)


def rows(count: int) -> Mode:
    def run(subject: Subject, model: nn.Module, x: Tensor) -> object:
        return omenn.rows(model, x, range(count))

    return run


def input_x_gradient(subject: Subject, model: nn.Module, x: Tensor) -> object:
    from captum.attr import InputXGradient

    # The largest logit from the pass that is made anyway, as in the other modes.
    return InputXGradient(lambda v: model(v).max(1).values).attribute(x.clone().requires_grad_())


def integrated_gradients(subject: Subject, model: nn.Module, x: Tensor) -> object:
    from captum.attr import IntegratedGradients

    with torch.no_grad():
        classes = model(x).argmax(1)
    at_once = max(10, len(x))  # all fifty images at once need too much memory
    return IntegratedGradients(model).attribute(
        x, target=classes, n_steps=STEPS, internal_batch_size=at_once
    )


def epsilon_plus(subject: Subject, model: nn.Module, x: Tensor) -> object:
    import zennit.torchvision
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlus

    assert subject.canonizer is not None
    canonizer = getattr(zennit.torchvision, subject.canonizer)()
    with Gradient(model=model, composite=EpsilonPlus(canonizers=[canonizer])) as attributor:
        return attributor(x, lambda y: torch.eye(y.shape[1]).to(y)[y.argmax(1)])


MODES: dict[str, Mode] = {
    "forward": forward,
    "gradient": gradient,
    "contribution": contribution,
    "explain": explain,
    "rows_10": rows(10),
    "rows_100": rows(100),
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "epsilon_plus": epsilon_plus,
}
PACKAGES = {
    "input_x_gradient": "captum",
    "integrated_gradients": "captum",
    "epsilon_plus": "zennit",
}
