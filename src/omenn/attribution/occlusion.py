"""Occlusion, computed by captum (extra ``peers``)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from omenn.attribution.captum_adapter import Task, baselines, captum
from omenn.check import whole, wrong


@captum(
    "occlusion",
    promise="none",
    summary="what the output loses when a window of the input is covered",
    source="arXiv 1311.2901",
)
def occlusion(
    task: Task,
    *,
    window: int | tuple[int, ...] | None = None,
    stride: int | tuple[int, ...] | None = None,
    baseline: Any = None,
    chunk: int = 8,
) -> list[Tensor]:
    """f(x) − f(x with a window covered), averaged over the windows that lie on a location.

    A window covers all channels. One forward pass for each window, and no gradient.

    Args:
        window: its size along each location, one number or several. Default: an eighth of an
            image's side, one token, one feature.
        stride: of the window, likewise; no larger than it. Default: half of the window.
        baseline: what it is covered with: zero, a number, or as an input.
        chunk: how many windows go through the model together.

    Raises:
        InputError: an option that does not fit.
        MissingExtra: captum is not installed.

    Example:
        >>> import torch, omenn
        >>> net, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
        >>> e = omenn.explain(net, x, 1, method="occlusion")
        >>> assert torch.allclose(e.matrix[0], net.weight[1].detach() * x[0], atol=1e-6)

    Source: Zeiler and Fergus 2014, arXiv 1311.2901, section 4; captum's Occlusion.
    """
    windows = [_windows(task, k, window, stride) for k in range(len(task.xs))]
    found = task.attributed(
        "Occlusion",
        sliding_window_shapes=tuple(size for size, _ in windows),
        strides=tuple(step for _, step in windows),
        baselines=baselines(task, baseline),
        perturbations_per_eval=whole("chunk", chunk, 1),
    )
    # captum gives every channel the whole, in single precision; here they have it together.
    shares = []
    for t, x, channel in zip(found, task.xs, task.inputs.channels, strict=True):
        shares.append(t.to(x) / (1 if channel is None else x.shape[channel]))
    return shares


def _windows(task: Task, k: int, window: Any, stride: Any) -> tuple[tuple[int, ...], ...]:
    """(window, stride) of the k-th input, with its channels and without the batch."""
    x, channel = task.xs[k], task.inputs.channels[k]
    dims = [d for d in range(1, x.ndim) if channel is None or d != x.ndim + channel]
    sizes = [x.shape[d] for d in dims]
    default = [math.ceil(n / 8) if len(sizes) > 1 else 1 for n in sizes]
    covered = _each("window", window, default, sizes)
    steps = _each("stride", stride, [max(1, n // 2) for n in covered], covered)
    size, step = list(x.shape[1:]), list(x.shape[1:])
    for d, n, s in zip(dims, covered, steps, strict=True):
        size[d - 1], step[d - 1] = n, s
    return tuple(size), tuple(step)


def _each(name: str, given: Any, default: list[int], most: list[int]) -> list[int]:
    if given is None:
        return default
    found = list(given) if isinstance(given, (list, tuple)) else [given] * len(most)
    bad = len(found) != len(most) or any(
        isinstance(n, bool) or not isinstance(n, int) for n in found
    )
    if bad or any(not 1 <= n <= limit for n, limit in zip(found, most, strict=True)):
        limits = " × ".join(map(str, most))
        remedy = "Give one for all locations, or one for each."
        raise wrong(name, given, f"integers of at least 1 and at most {limits}", remedy)
    return found
