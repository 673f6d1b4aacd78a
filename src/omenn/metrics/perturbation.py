"""A model's outputs for pictures in several states: the one loop of all metrics that change pixels.

NOTE [states]
A metric that deletes, inserts, blurs or paints pixels says how a state of an image is made;
:func:`states` asks the model about every state of every image, some pictures at a time, so that
memory does not grow with their number. :func:`curve` is that for pixels in the order of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from omenn.check import choose, whole
from omenn.errors import InputError
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_targets,
    logits_of,
    of_targets,
    ranks,
)

Outcome = Literal["probability", "logit", "accuracy"]
"""What is recorded: the target's probability (softmax) or logit, or whether it is the largest."""
OUTCOMES = ("probability", "logit", "accuracy")

Change = Callable[[Tensor, Tensor], Tensor]
"""Numbers of images (n,), numbers of their states (n,) → the pictures (n, C, H, W)."""


def states(
    f: Model,
    targets: Tensor,
    count: int,
    change: Change,
    *,
    outcome: Outcome = "logit",
    chunk: int = 64,
) -> Tensor:
    """The model's outcome for each image in each of its states: (B, count), float64.

    >>> f = lambda x: torch.stack([x.flatten(1).sum(1)] * 2, 1)
    >>> states(f, torch.tensor([0]), 3, lambda image, state: state.view(-1, 1, 1, 1)).tolist()
    [[0.0, 1.0, 2.0]]
    """
    pairs = torch.cartesian_prod(torch.arange(len(targets)), torch.arange(count))
    found = []
    for rows in pairs.to(targets.device).split(whole("chunk", chunk, 1)):
        image, state = rows.unbind(1)
        found.append(answers(f, change(image, state), targets[image], outcome, chunk))
    return torch.cat(found).view(len(targets), count)


def answers(
    f: Model, pictures: Tensor, targets: Tensor, outcome: Outcome, chunk: int = 64
) -> Tensor:
    """The outcome for each picture, (n,) float64."""
    choose("outcome", outcome, OUTCOMES)
    logits = logits_of(f, pictures, chunk)
    chosen = of_targets(logits.softmax(1) if outcome == "probability" else logits, targets)
    return (logits.argmax(1) == targets).double() if outcome == "accuracy" else chosen


def curve(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    order: Tensor,
    fill: Tensor | Callable[[Tensor, Tensor], Tensor],
    counts: Sequence[int] | Tensor,
    *,
    restore: bool = False,
    outcome: Outcome = "probability",
    chunk: int = 64,
) -> Tensor:
    """The model's outcome as the first pixels of an order are replaced: (B, counts), float64.

    Args:
        order: (B, H·W), the indices of the pixels.
        fill: (B, C, H, W), what they are replaced by, or a function (numbers of images, pixels that
            are replaced (n, 1, H, W)) → pictures. With ``restore`` it is what one starts from, and
            the picture is put back.
        counts: how many pixels are changed at each point; (B, points) for other ones in each image.

    Raises:
        InputError: an outcome that is not known, shapes that do not fit, what the model returns.
        TargetError: a class that the logits do not have.

    Example:
        >>> f = lambda images: torch.stack([images.flatten(1).sum(1)] * 2, 1)
        >>> x = torch.tensor([[[[1.0, 2.0]]]])
        >>> order = torch.tensor([[1, 0]])
        >>> curve(f, x, 0, order, x * 0, [0, 1, 2], outcome="logit").tolist()
        [[3.0, 1.0, 0.0]]
    """
    choose("outcome", outcome, OUTCOMES)
    images = checked_images(images)
    targets = checked_targets(targets, len(images), images.device)
    _check(images, order, fill)
    place = ranks(order).view(-1, 1, *images.shape[2:])
    points = torch.as_tensor(counts, device=images.device).expand(len(images), -1)

    def change(image: Tensor, state: Tensor) -> Tensor:
        first = place[image] < points[image, state].view(-1, 1, 1, 1)
        new = fill[image] if isinstance(fill, Tensor) else fill(image, first)
        return torch.where(first ^ restore, new, images[image])

    return states(f, targets, points.shape[1], change, outcome=outcome, chunk=chunk)


def mean_height(line: Tensor) -> Tensor:
    """The mean of each row of points that are one apart, by trapezoids.

    >>> mean_height(torch.tensor([[0.0, 1.0, 0.0]])).tolist()
    [0.5]
    """
    return torch.trapezoid(line, dim=1) / (line.shape[1] - 1)


def _check(images: Tensor, order: Tensor, fill: Tensor | Callable[..., Tensor]) -> None:
    wanted = (len(images), images[0, 0].numel())
    if order.shape != wanted:
        raise InputError(
            f"order has the shape {tuple(order.shape)}, images {tuple(images.shape)}.",
            argument="order",
            got=str(tuple(order.shape)),
            expected=str(wanted),
            remedy=f"Give the indices of all pixels for each image, {wanted}.",
        )
    if isinstance(fill, Tensor) and fill.shape != images.shape:
        raise InputError(
            f"fill has the shape {tuple(fill.shape)}, the images {tuple(images.shape)}.",
            argument="fill",
            got=str(tuple(fill.shape)),
            expected=str(tuple(images.shape)),
            remedy="Give one picture for each image.",
        )
