"""What is common to all samples, parted among them by what it adds to the number of each.

A reference row beside the batch, prototypes, padding along the batch: each sample uses them, and
they are of none. The gradient of all numbers together holds the shares of all samples in one; that
of one number alone is the share of its sample. So a model with such rows takes one pass back more
for each sample, and no other does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from omenn.engine.run import FrozenRun, Gradients


def parted(
    run: FrozenRun, f: Tensor, g: Gradients, retain: bool, create_graph: bool = False
) -> Gradients:
    """Gradients of Σf whose last column, of means and of sources, goes to the samples before it."""
    n, f = run.inputs.samples, run.renewed.get(id(f), f)
    alone: list[Gradients] = []
    if run.mode.location.common():
        for k, one in enumerate(torch.eye(n, dtype=f.dtype, device=f.device)):
            alone.append(run.pulled_once(f, one, retain or k + 1 < n, create_graph))
    means = [_parted(m, [a.means[k] for a in alone]) for k, m in enumerate(g.means)]
    rows = {name: [m, *(a.sources[name] for a in alone)] for name, m in g.sources.items()}
    sources = {}
    for name, (own, *each) in rows.items():
        wide = [m.reshape(-1, n + 1) for m in each]
        sources[name] = _parted(own.reshape(-1, n + 1), wide).flatten()
    return replace(g, means=means, sources=sources)


def _parted(amounts: Tensor, alone: Sequence[Tensor]) -> Tensor:
    """Amounts (…, samples + 1) as (…, samples); ``alone``: those of each number, if any differ."""
    own = amounts[..., :-1]
    return own + torch.stack([a[..., -1] for a in alone], -1) if alone else own
