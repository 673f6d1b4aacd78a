"""Parts of a gradient that are zeros by construction: the tokens that an output does not see."""

from __future__ import annotations

from torch import Tensor

from omenn.engine.torch_private import batched


def live(t: Tensor, dim: int) -> Tensor | None:
    """Indices along ``dim`` where t is not zero throughout; None unless most of t is zero.

    One of two neighbours in the middle must be zero before all are looked at, and nothing is
    looked at where that would have to wait for the device.
    """
    n = t.shape[dim]
    if n < 8 or t.device.type != "cpu" or batched(t):
        return None
    if all(bool(t.select(dim, n // 2 + k).any()) for k in range(2)):
        return None
    others = [d for d in range(t.ndim) if d != dim % t.ndim]
    index = t.detach().ne(0).any(others).nonzero().squeeze(1)
    return index if 4 * index.numel() <= n else None
