"""Rank correlation, row by row: Spearman's, with mean ranks for ties, also given a third."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_ranks(values: Tensor) -> Tensor:
    """The rank of each value in its row, from 1; equal values share the mean of their ranks.

    (N, P) → (N, P) float64. The rank is ½ (number below + number below or equal + 1).

    >>> mean_ranks(torch.tensor([[3.0, 1.0, 3.0]])).tolist()
    [[2.5, 1.0, 2.5]]
    """
    below = (values[:, None, :] < values[:, :, None]).sum(2).double()
    upto = (values[:, None, :] <= values[:, :, None]).sum(2).double()
    return (below + upto + 1) / 2


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two (N, P), (N,) float64; NaN where one is constant.

    >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]])).tolist()
    [1.0]
    """
    a, b = a.double(), b.double()
    level = ((a == a[:, :1]).all(1)) | ((b == b[:, :1]).all(1))
    a = a - a.mean(1, keepdim=True)
    b = b - b.mean(1, keepdim=True)
    found = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(level, torch.nan, found.clamp(-1, 1))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of the rows of two (N, P), (N,); NaN where one is constant.

    >>> spearman(torch.tensor([[1.0, 5.0, 9.0]]), torch.tensor([[2.0, 1.0, 0.0]])).tolist()
    [-1.0]
    """
    return pearson(mean_ranks(a), mean_ranks(b))


def partial_rank_correlation(a: Tensor, b: Tensor, given: Tensor) -> float:
    """How a goes with b where ``given`` is the same: one number for all rows of three (N, P).

    Ranks within each row, centred, are pooled over the rows; then
    (r_ab − r_ag r_bg) / √((1 − r_ag²)(1 − r_bg²)). NaN where a quantity is constant or a function
    of the given one.

    >>> a = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> round(partial_rank_correlation(a, a, torch.tensor([[2.0, 1.0, 4.0, 3.0]])), 6)
    1.0
    """
    rows = [mean_ranks(t) for t in (a, b, given)]
    flat = [(r - r.mean(1, keepdim=True)).flatten()[None] for r in rows]
    ab, ag, bg = (float(pearson(flat[i], flat[j])) for i, j in ((0, 1), (0, 2), (1, 2)))
    rest = (1 - ag * ag) * (1 - bg * bg)
    return (ab - ag * bg) / rest**0.5 if rest > 1e-12 else float("nan")
