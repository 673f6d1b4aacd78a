"""How cells of one size cover cells of another along a line, as weighted means.

NOTE [even cells] A dimension of ``have`` cells becomes one of ``count``. Each of these is a mean of
the old ones: its weights sum to one, so that a sum is kept. The weights of each old cell sum to
count / have, the same for all. So what is spread evenly over the new cells is even on the old ones,
at the border as well, through any number of steps.

NOTE [blocks, not centres] Cell i covers the length from i · have / count to (i + 1) · have / count,
whatever the kernel, the stride and the padding are. The middle of its window may lie up to half a
cell beside the middle of that: with a kernel of 3 and a stride of 2 it is element 2i if one element
is padded on both sides, and 2i + 1 if one is padded behind. Cells at these middles would all move
to one side, and an even map would be heavier at one border and lighter at the other. What trained
networks look at does not follow the middles of the windows either.
"""

from __future__ import annotations

import torch
from torch import Tensor


def averaged(values: Tensor, dim: int, count: int, smooth: bool) -> Tensor:
    """``values`` with ``count`` cells along ``dim``, each the mean of those that it covers.

    ``smooth``: where cells get coarser they overlap, see :func:`tents`. A mean is a sum of products
    and no matrix product, which autocast and flags of the caller may compute in less precision.
    """
    have = values.shape[dim]
    if not count:
        return values.narrow(dim, 0, 0)
    index, weights = (tents if smooth and count < have else blocks)(have, count)
    used = weights.any(0)
    index, weights = index[:, used], weights[:, used].to(values)
    rows = values.movedim(dim, 0)
    taken = rows.index_select(0, index.flatten().to(values.device)).unflatten(0, index.shape)
    return (taken * weights.reshape(*index.shape, *[1] * (rows.ndim - 1))).sum(1).movedim(0, dim)


def blocks(have: int, count: int) -> tuple[Tensor, Tensor]:
    """The cells that each of ``count`` blocks overlaps and its shares in them, both (count, k).

    >>> index, weights = blocks(5, 2)
    >>> assert index[0].tolist() == [0, 1, 2, 3]
    >>> assert weights[0].tolist() == [0.4, 0.4, 0.2, 0.0]
    """
    first = _counted(count) * have  # lengths are whole numbers of the count-th part of a cell
    index = first // count + torch.arange(-(-have // count) + 1, device="cpu")
    begin, end = (index * count).maximum(first), ((index + 1) * count).minimum(first + have)
    return index.clamp(max=have - 1), (end - begin).clamp_min(0).double() / have


def tents(have: int, count: int) -> tuple[Tensor, Tensor]:
    """The same for cells that overlap: full in the middle, and nothing at the next ones' middles.

    A cell has the integral of its tent over each of the old cells. The tents add up to one
    everywhere, as they are reflected at the border; so the weights are as even as those of blocks.
    From middle to middle a map is then interpolated linearly.

    >>> index, weights = tents(8, 4)
    >>> assert index[0, :4].tolist() == [0, 0, 1, 2]  # the first one lies beyond the border
    >>> assert weights[0, :4].tolist() == [0.125, 0.375, 0.375, 0.125]
    """
    length = have / count
    middle = (_counted(count).double() + 0.5) * length
    index = (middle - length).floor().long() + torch.arange(int(2 * length) + 2, device="cpu")
    weights = _below((index + 1 - middle) / length) - _below((index - middle) / length)
    index = torch.where(index < 0, -1 - index, index)
    return torch.where(index < have, index, 2 * have - 1 - index).clamp_(0, have - 1), weights


def _counted(count: int) -> Tensor:
    return torch.arange(count, device="cpu").unsqueeze(1)


def _below(x: Tensor) -> Tensor:
    """The integral of max(0, 1 − |x|) up to x."""
    x = x.double().clamp(-1, 1)
    return torch.where(x < 0, (1 + x).square() / 2, 1 - (1 - x).square() / 2)
