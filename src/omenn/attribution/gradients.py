"""The usual methods of gradients, computed by captum (extra ``peers``).

Each returns captum's own numbers as ``contribution``; ``weight`` and ``bias`` are zero. Inputs are
floating-point tensors, one or several; ids have no such gradient, nor has a batch that is one
object. Without captum each raises MissingExtra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omenn.attribution.captum_adapter import Task, baselines, captum, seeded
from omenn.attribution.embedded import ids_alone, layer_integrated_gradients
from omenn.attribution.perturbations import MOST_SEED
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import flag, real, whole, wrong
from omenn.errors import ModelError
from omenn.explanation import Explanation


@captum(
    "saliency",
    promise="none",
    summary="absolute gradient",
    source="arXiv 1312.6034",
)
def saliency(
    task: Task,
    *,
    absolute: bool = True,
) -> list[Tensor]:
    """|∂f/∂x|, or with ``absolute=False`` the gradient with its sign, summed over channels.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="saliency")
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach().abs())

    Source: Simonyan, Vedaldi and Zisserman 2014, arXiv 1312.6034; captum's Saliency.
    """
    return task.attributed("Saliency", abs=absolute)


@captum(
    "input-x-gradient",
    promise="none",
    summary="input times gradient; the sum is the output only without constants and curvature",
    source="arXiv 1605.01713",
)
def input_x_gradient(
    task: Task,
) -> list[Tensor]:
    """x ⊙ ∂f/∂x of the ordinary network.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="input-x-gradient")
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach() * x[0])

    Source: Shrikumar et al. 2016, arXiv 1605.01713; captum's InputXGradient.
    """
    return task.attributed("InputXGradient")


@attribution(
    "integrated-gradients",
    promise="approximate",
    summary="gradient along the line from a baseline; sums to f(x) − f(baseline)",
    source="arXiv 1703.01365",
    extra="peers",
    at=False,
)
def integrated_gradients(
    question: Question, *, steps: int = 50, baseline: Any = None, chunk: int = 32
) -> Explanation:
    """(x − x₀) ⊙ ∫₀¹ ∂f/∂x(x₀ + t (x − x₀)) dt, by Gauss-Legendre quadrature.

    Its sum is f(x) − f(x₀) up to the quadrature. So the residual, f minus the sum, is f(x₀), which
    is zero only where the baseline gives a zero.

    Of integer ids the line is between the rows of their tables, summed over the dimensions of a
    row: layer integrated gradients at the embedding. The model is called once for each point.

    Args:
        steps: points on the line.
        baseline: x₀: zero, a number, a tensor that expands to the input, or one for each input. Of
            ids: zero rows, or ids whose rows are the start (those of padding, usually).
        chunk: how many rows (samples times points) go through the model together, at least.

    Raises:
        InputError: an option that does not fit.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU()).eval()
        >>> x = torch.ones(1, 3)
        >>> e = omenn.explain(net, x, 1, method="integrated-gradients")
        >>> zero = net(torch.zeros(1, 3))[:, 1]
        >>> assert torch.allclose(e.matrix.sum(1), e.output - zero, atol=1e-4)

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365; captum's IntegratedGradients.
    """
    steps, chunk = whole("steps", steps, 1), whole("chunk", chunk, 1)
    if ids_alone(question.inputs):
        return layer_integrated_gradients(question, steps, baseline)
    task = Task("integrated-gradients", question)
    found = task.attributed(
        "IntegratedGradients",
        baselines=baselines(task, baseline),
        n_steps=steps,
        internal_batch_size=max(chunk, len(task.xs[0])),
    )
    return task.explanation(found)


@captum(
    "smoothgrad",
    promise="none",
    summary="gradient averaged over noisy copies of the input",
    source="arXiv 1706.03825",
)
def smoothgrad(
    task: Task,
    *,
    steps: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    absolute: bool = True,
    chunk: int = 25,
) -> list[Tensor]:
    """The mean of ∂f/∂x at x + ε, ε normal, or with ``absolute`` the magnitude of that mean.

    Each sample has its noise from the seed, and the same map alone and in any batch. The global
    random numbers are left as they were.

    Args:
        steps: noisy copies.
        noise: standard deviation of ε as a share of max x − min x of the sample.
        seed: of the noise; the same seed gives the same map.
        chunk: how many copies go through the model together; it changes the noise.

    Raises:
        InputError: an option that does not fit.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="smoothgrad")
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach().abs())

    Source: Smilkov et al. 2017, arXiv 1706.03825; captum's NoiseTunnel over Saliency.
    """
    steps, chunk = whole("steps", steps, 1), whole("chunk", chunk, 1)
    seed, noise = whole("seed", seed, 0, MOST_SEED), real("noise", noise, 0)
    flag("absolute", absolute)

    copies = {"nt_type": "smoothgrad", "nt_samples": steps, "nt_samples_batch_size": chunk}

    def attribute(captum: Any, xs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> Any:
        tunnel, spread = captum.NoiseTunnel(captum.Saliency(task)), _spread(xs, noise)
        with seeded(seed, xs[0]):
            return tunnel.attribute(
                xs, abs=False, stdevs=spread, additional_forward_args=extras, **copies
            )

    found = task.one_by_one(attribute)
    return [t.abs() for t in found] if absolute else found


@captum(
    "shap-gradient",
    promise="approximate",
    summary="expected gradients from random baselines; sums to f(x) − mean f(baselines)",
    source="arXiv 1705.07874",
)
def shap_gradient(
    task: Task,
    *,
    steps: int = 25,
    noise: float = 0.1,
    baseline: Any = None,
    seed: int = 0,
) -> list[Tensor]:
    """The mean of (x − x₀) ⊙ ∂f/∂x at a random point between x₀ and x, over random baselines x₀.

    Both ends have noise: x₀ = ``baseline`` + ε, and x + ε. Up to sampling the sum is f(x) minus
    the mean of f over the baselines. Each sample has its random numbers from the seed, and the
    same map alone and in any batch; the global ones are left as they were.

    Args:
        steps: random points, and baselines.
        noise: standard deviation of ε as a share of max x − min x of the sample.
        baseline: zero, a number, a tensor that expands to the input, or one for each input.
        seed: of all that is random; the same seed gives the same map.

    Raises:
        InputError: an option that does not fit.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="shap-gradient", noise=0.0)
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach() * x[0], atol=1e-6)

    Source: Lundberg and Lee 2017, arXiv 1705.07874 (GradientExplainer); captum's GradientShap.
    """
    steps, seed = whole("steps", steps, 1), whole("seed", seed, 0, MOST_SEED)
    noise = real("noise", noise, 0)
    centres = iter(zip(*(b.split(1) for b in baselines(task, baseline)), strict=True))

    def attribute(captum: Any, xs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> Any:
        spread = _spread(xs, noise)
        starts = tuple(map(_noisy(steps, seed), next(centres), spread))
        with seeded(seed, xs[0]):
            return captum.GradientShap(task).attribute(
                xs, starts, n_samples=steps, stdevs=spread, additional_forward_args=extras
            )

    return task.one_by_one(attribute)


@captum(
    "deeplift",
    promise="approximate",
    summary="differences to a baseline by the rescale rule; sums to f(x) − f(baseline)",
    source="arXiv 1704.02685",
)
def deeplift(task: Task, *, baseline: Any = None) -> list[Tensor]:
    """DeepLIFT by the rescale rule: Δy/Δx in place of the derivative of each non-linearity.

    captum sees non-linearities that are modules (``nn.ReLU``, pooling, sigmoid, tanh, softmax and
    kin), each called once. The rest (functions, GELU, attention, normalisation) keeps its ordinary
    derivative, and then the sum misses f(x) − f(baseline); the residual tells by how much.

    Args:
        baseline: zero, a number, a tensor that expands to the input, or one for each input.

    Raises:
        ModelError: a module is called twice, or the model is a function.

    Example:
        >>> import torch, omenn
        >>> layers = torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        >>> net, x = torch.nn.Sequential(*layers).eval(), torch.ones(1, 3)
        >>> e = omenn.explain(net, x, 1, method="deeplift")
        >>> zero = net(torch.zeros(1, 3))[:, 1]
        >>> assert torch.allclose(e.matrix.sum(1), e.output - zero, atol=1e-5)

    Source: Shrikumar, Greenside and Kundaje 2017, arXiv 1704.02685; captum's DeepLift.
    """
    if not isinstance(task.model, nn.Module):
        remedy = "Method 'deeplift' replaces the derivatives of its modules."
        raise wrong("model", task.model, "a torch.nn.Module", remedy, ModelError)
    return task.attributed("DeepLift", _AsModule(task), baselines=baselines(task, baseline))


class _AsModule(nn.Module):
    """The task as a module that holds the model, as DeepLift wants it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.task(*tensors)


def _noisy(steps: int, seed: int) -> Any:
    """A function (centre (1, …), deviation) ↦ (steps, …), normal; drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(centre: Tensor, deviation: float) -> Tensor:
        noise = torch.randn((steps, *centre.shape[1:]), generator=generator, dtype=torch.float64)
        return centre + deviation * noise.to(centre)

    return drawn


def _spread(xs: Sequence[Tensor], noise: float) -> tuple[float, ...]:
    return tuple(noise * float(x.detach().max() - x.detach().min()) for x in xs)
