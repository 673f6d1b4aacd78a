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
    (r_ab − r_ag r_bg) / √((1 − r_ag²)(1 − r_bg²)). It is 0, as by chance, where a or b says nothing
    of its own: it is constant, or goes with ``given`` all the way. What is given is taken away as
    far as its ranks tell, which among few columns is not all: of two noisy copies of it, with
    r_ab = .68, .14 is left among five.

    >>> a = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> given = torch.tensor([[2.0, 1.0, 4.0, 3.0]])
    >>> round(partial_rank_correlation(a, a, given), 6), partial_rank_correlation(given, a, given)
    (1.0, 0.0)
    """
    rows = [mean_ranks(t) for t in (a, b, given)]
    a, b, given = ((r - r.mean(1, keepdim=True)).flatten()[None] for r in rows)
    ab, ag, bg = (float(pearson(*pair).nan_to_num(0)) for pair in ((a, b), (a, given), (b, given)))
    own = (1 - ag * ag), (1 - bg * bg)
    return (ab - ag * bg) / (own[0] * own[1]) ** 0.5 if min(own) > 1e-9 else 0.0
