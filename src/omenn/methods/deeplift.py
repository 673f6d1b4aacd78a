"""DeepLIFT, computed by captum (extra ``peers``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.errors import ModelError
from omenn.explanation import Explanation
from omenn.methods.captum_adapter import Task, baselines
from omenn.methods.registry import method


class _AsModule(nn.Module):
    """The task as a module that holds the model, as DeepLift wants it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.task(*tensors)


@method(
    "deeplift",
    promise="approximate",
    summary="differences to a baseline by the rescale rule; sums to f(x) − f(baseline)",
    source="arXiv 1704.02685",
    extra="peers",
)
@alone()
def deeplift(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    baseline: Any = None,
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """DeepLIFT by the rescale rule: Δy/Δx in place of the derivative of each non-linearity.

    captum sees non-linearities that are modules (``nn.ReLU``, pooling, sigmoid, tanh, softmax and
    kin), each called once. The rest (functions, GELU, attention, normalisation) keeps its ordinary
    derivative, and then the sum misses f(x) − f(baseline); the residual tells by how much.

    Args:
        baseline: zero, a number, a tensor that expands to the input, or one for each input.

    Raises:
        ModelError: a module is called twice, or the model is a function.
        MissingExtra: captum is not installed.

    Example:
        >>> import torch, omenn
        >>> layers = torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        >>> net, x = torch.nn.Sequential(*layers).eval(), torch.ones(1, 3)
        >>> e = omenn.explain(net, x, 1, method="deeplift")
        >>> zero = net(torch.zeros(1, 3))[:, 1]
        >>> assert torch.allclose(e.matrix.sum(1), e.output - zero, atol=1e-5)

    Source: Shrikumar, Greenside and Kundaje 2017, arXiv 1704.02685; captum's DeepLift.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "method 'deeplift' replaces the derivatives of modules, but the model is a function. "
            "Give a torch.nn.Module."
        )
    task = Task("deeplift", model, inputs, target, output, channel_dim)
    start = baselines(task, baseline)
    found = task.attributions(
        lambda captum, f, xs, extras: captum.DeepLift(_AsModule(f)).attribute(
            xs, start, additional_forward_args=extras
        )
    )
    return task.explanation(found)
