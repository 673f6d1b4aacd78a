"""Constants without a place are spread over the locations of their sample that act on the output.

NOTE what acts. A location acts where its weight is not zero in any channel, or where a constant
lies that reaches the output. What does not act is not there for the model (padding, the nodes of
another graph, what a stride leaves out), and gets nothing: so a sample has the same map alone and
in a batch, beside a longer one and padded. Where nothing of a sample acts, the constants are spread
over all of it; of several inputs those that have an acting location share them evenly. Constants
that are made of an integer input, which has no weight, stay with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spread(
    amounts: Sequence[Tensor], acts: Sequence[Tensor], own: Sequence[bool] = ()
) -> list[Tensor]:
    """What each input has without a place, (B,), over its locations ``acts``, (B, *locations).

    ``own``: inputs that keep what they have though nothing of them acts.

    >>> acts = torch.tensor([[True, True, False]]), torch.tensor([[False, False]])
    >>> [m.tolist() for m in spread([torch.tensor([2.0]), torch.tensor([4.0])], acts)]
    [[[3.0, 3.0, 0.0]], [[0.0, 0.0]]]
    """
    some = torch.stack([_by_sample(n, a).any(1) for n, a in zip(amounts, acts, strict=True)])
    whole = torch.stack(list(amounts))  # (inputs, B)
    stays = torch.tensor(own or [False] * len(acts), device=some.device).unsqueeze(1) | some
    moves = ~stays & some.any(0)
    homeless = torch.where(moves, whole, 0).sum(0) / some.sum(0).clamp_min(1)
    whole = torch.where(moves, 0, whole) + torch.where(some, homeless, 0)
    return [_evenly(amount, a) for amount, a in zip(whole, acts, strict=True)]


def _evenly(amount: Tensor, acts: Tensor) -> Tensor:
    flat = _by_sample(amount, acts)
    flat = flat | ~flat.any(1, keepdim=True)
    shares = flat.to(amount.dtype) / flat.sum(1, keepdim=True)
    return (amount.unsqueeze(1) * shares).reshape(acts.shape)


def _by_sample(amount: Tensor, acts: Tensor) -> Tensor:
    """(B, locations); several rows of a sample (windows) follow one another."""
    return acts.reshape(len(amount), -1)
