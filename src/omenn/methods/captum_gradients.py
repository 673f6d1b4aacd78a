"""The usual methods of gradients, computed by captum (extra ``peers``).

Each gives captum's own numbers as ``contribution``; ``weight`` and ``bias`` are zero. Inputs are
floating-point tensors, alone or several; ids have no such gradient, nor has a batch that is one
object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omenn.check import flag
from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.explanation import Explanation
from omenn.methods.captum_adapter import Task, at_least_zero, baselines, seeded, whole
from omenn.methods.embedded import ids_alone, layer_integrated_gradients
from omenn.methods.registry import method


@method(
    "saliency",
    promise="none",
    summary="absolute gradient",
    source="arXiv 1312.6034",
    extra="peers",
)
@alone()
def saliency(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    absolute: bool = True,
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """|∂f/∂x|, or with ``absolute=False`` the gradient with its sign, summed over channels.

    Raises:
        MissingExtra: captum is not installed.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="saliency")
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach().abs())

    Source: Simonyan, Vedaldi and Zisserman 2014, arXiv 1312.6034; captum's Saliency.
    """
    task = Task("saliency", model, inputs, target, output, channel_dim)
    found = task.attributions(
        lambda captum, f, xs, extras: captum.Saliency(f).attribute(
            xs, abs=absolute, additional_forward_args=extras
        )
    )
    return task.explanation(found)


@method(
    "input-x-gradient",
    promise="none",
    summary="input times gradient; the sum is the output only without constants and curvature",
    source="arXiv 1605.01713",
    extra="peers",
)
@alone()
def input_x_gradient(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """x ⊙ ∂f/∂x of the ordinary network.

    Raises:
        MissingExtra: captum is not installed.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="input-x-gradient")
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach() * x[0])

    Source: Shrikumar et al. 2016, arXiv 1605.01713; captum's InputXGradient.
    """
    task = Task("input-x-gradient", model, inputs, target, output, channel_dim)
    found = task.attributions(
        lambda captum, f, xs, extras: captum.InputXGradient(f).attribute(
            xs, additional_forward_args=extras
        )
    )
    return task.explanation(found)


@method(
    "integrated-gradients",
    promise="approximate",
    summary="gradient along the line from a baseline; sums to f(x) − f(baseline)",
    source="arXiv 1703.01365",
    extra="peers",
)
@alone()
def integrated_gradients(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    steps: int = 50,
    baseline: Any = None,
    chunk: int = 32,
    output: Any = None,
    channel_dim: int | None = None,
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
        MissingExtra: captum is not installed.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU()).eval()
        >>> x = torch.ones(1, 3)
        >>> e = omenn.explain(net, x, 1, method="integrated-gradients")
        >>> zero = net(torch.zeros(1, 3))[:, 1]
        >>> assert torch.allclose(e.matrix.sum(1), e.output - zero, atol=1e-4)

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365; captum's IntegratedGradients.
    """
    steps, chunk = whole("steps", steps), whole("chunk", chunk)
    if ids_alone(inputs):
        return layer_integrated_gradients(
            model, inputs, target, steps, baseline, output, channel_dim
        )
    task = Task("integrated-gradients", model, inputs, target, output, channel_dim)
    start = baselines(task, baseline)
    found = task.attributions(
        lambda captum, f, xs, extras: captum.IntegratedGradients(f).attribute(
            xs,
            start,
            additional_forward_args=extras,
            n_steps=steps,
            internal_batch_size=max(chunk, len(xs[0])),
        )
    )
    return task.explanation(found)


@method(
    "smoothgrad",
    promise="none",
    summary="gradient averaged over noisy copies of the input",
    source="arXiv 1706.03825",
    extra="peers",
)
@alone()
def smoothgrad(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    steps: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    absolute: bool = True,
    chunk: int = 25,
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
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
        MissingExtra: captum is not installed.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="smoothgrad")
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach().abs())

    Source: Smilkov et al. 2017, arXiv 1706.03825; captum's NoiseTunnel over Saliency.
    """
    steps, chunk, seed = whole("steps", steps), whole("chunk", chunk), whole("seed", seed, 0)
    noise = at_least_zero("noise", noise)
    flag("absolute", absolute)
    task = Task("smoothgrad", model, inputs, target, output, channel_dim)

    def attribute(captum: Any, f: Task, xs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> Any:
        with seeded(seed, xs[0]):
            return captum.NoiseTunnel(captum.Saliency(f)).attribute(
                xs,
                nt_type="smoothgrad",
                nt_samples=steps,
                nt_samples_batch_size=chunk,
                stdevs=_spread(xs, noise),
                abs=False,
                additional_forward_args=extras,
            )

    found = task.attributions(attribute, alone=True)
    return task.explanation([t.abs() for t in found] if absolute else found)


@method(
    "shap-gradient",
    promise="approximate",
    summary="expected gradients from random baselines; sums to f(x) − mean f(baselines)",
    source="arXiv 1705.07874",
    extra="peers",
)
@alone()
def shap_gradient(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    steps: int = 25,
    noise: float = 0.1,
    baseline: Any = None,
    seed: int = 0,
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
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
        MissingExtra: captum is not installed.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="shap-gradient", noise=0.0)
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach() * x[0], atol=1e-6)

    Source: Lundberg and Lee 2017, arXiv 1705.07874 (GradientExplainer); captum's GradientShap.
    """
    steps, seed, noise = (
        whole("steps", steps),
        whole("seed", seed, 0),
        at_least_zero("noise", noise),
    )
    task = Task("shap-gradient", model, inputs, target, output, channel_dim)
    centres = iter(zip(*(b.split(1) for b in baselines(task, baseline)), strict=True))

    def attribute(captum: Any, f: Task, xs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> Any:
        spread = _spread(xs, noise)
        starts = tuple(map(_noisy(steps, seed), next(centres), spread))
        with seeded(seed, xs[0]):
            return captum.GradientShap(f).attribute(
                xs, starts, n_samples=steps, stdevs=spread, additional_forward_args=extras
            )

    return task.explanation(task.attributions(attribute, alone=True))


def _noisy(steps: int, seed: int) -> Any:
    """A function (centre (1, …), deviation) ↦ (steps, …), normal; drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(centre: Tensor, deviation: float) -> Tensor:
        noise = torch.randn((steps, *centre.shape[1:]), generator=generator, dtype=torch.float64)
        return centre + deviation * noise.to(centre)

    return drawn


def _spread(xs: Sequence[Tensor], noise: float) -> tuple[float, ...]:
    return tuple(noise * float(x.detach().max() - x.detach().min()) for x in xs)
