"""From a map to an explanation, for methods that do not pull relevance through a table of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from omenn.engine.depth import boxed
from omenn.engine.inputs import Inputs
from omenn.engine.location import Place
from omenn.engine.trace.call import tensors_in
from omenn.explanation import TOLERANCES, Explanation, owned, sums


def explanation_of(
    inputs: Inputs, f: Tensor, index: Tensor, contributions: Sequence[Tensor], at: str | None = None
) -> Explanation:
    """An explanation whose contributions are given, one per explained input and shaped like it.

    ``matrix`` is their sum over channels, ``bias`` is zero, and so is ``weight``: such a method has
    no operator W(x) of which its map would be W ⊙ X. ``f`` (B,) is the explained number.
    """
    matrix = inputs.located(contributions)
    residual, magnitude = sums(f, matrix, [], inputs.samples)
    found = Explanation(
        output=f,
        target=index,
        inputs=inputs.by_leaf(inputs.values, lambda entry: entry.value),
        weight=inputs.by_leaf([torch.zeros_like(x) for x in inputs.values]),
        contribution=inputs.by_leaf(contributions),
        bias=inputs.shaped([torch.zeros_like(m) for m in matrix]),
        matrix=inputs.shaped(matrix),
        residual=residual,
        magnitude=magnitude,
        tolerance=TOLERANCES.get(inputs.values[0].dtype, 1e-5),
        at=at,
        bias_placement="none",
    )
    return owned(found, False, tensors_in([inputs.items, inputs.values, index]))


def spread_over_locations(
    inputs: Inputs, place: Place, amounts: Tensor, smooth: bool
) -> list[Tensor]:
    """What each position has, (B, positions), at the locations of each explained input.

    ``place`` tells where the positions lie; what those without a place have is left out. Each
    amount is spread evenly over its part of the input, so the sum stays; with ``smooth`` the steps
    between the parts are then interpolated, which keeps it as well.
    """
    kept = torch.where(place.located(), amounts, torch.zeros_like(amounts))
    with torch.enable_grad():
        spread = (place.ones() * kept).sum()
    found = torch.autograd.grad(spread, inputs.ones, retain_graph=True, allow_unused=True)
    maps = []
    for k, (there, ones) in enumerate(zip(found, inputs.ones, strict=True)):
        there = inputs.batch_first(torch.zeros_like(ones) if there is None else there, k)
        if smooth and there.ndim > 2:
            for dim, width in enumerate(_footprint(inputs, place, k), start=1):
                there = boxed(there, dim, width)
        maps.append(there)
    return maps


def _footprint(inputs: Inputs, place: Place, k: int) -> list[int]:
    """How many locations of the k-th input a position covers along each dimension."""
    cells = place.cells[place.located()]
    with torch.enable_grad():
        one = place.with_cells(cells[cells.numel() // 2]).ones()
    (seen,) = torch.autograd.grad(one, inputs.ones[k], retain_graph=True, allow_unused=True)
    if seen is None:
        return []
    hit = inputs.batch_first(seen, k).nonzero()
    return (hit.amax(0) - hit.amin(0) + 1)[1:].tolist()


def over_channels(inputs: Inputs, maps: Sequence[Tensor]) -> list[Tensor]:
    """A map (B, *locations) of each explained input as contributions of its leaves, one each.

    Even over the channels, and over the lookups of the same ids.
    """
    found = []
    for k, x in enumerate(inputs.values):
        entry = inputs.entries[inputs.owners[k]]
        there = maps[inputs.owners[k]].movedim(0, entry.axis)
        spread = inputs.spreads[k]
        if spread is not None:
            found.append(spread.forth(there, x.shape) / len(entry.leaves))
        elif entry.channel is None:
            found.append(there.expand(x.shape).clone())
        else:
            even = there.unsqueeze(entry.channel) / x.shape[entry.channel]
            found.append(even.expand(x.shape).clone())
    return found


def mixed_shares(
    parts: Iterable[tuple[float, Mapping[str, Mapping[str, float]]]],
) -> dict[str, dict[str, float]]:
    """module → reason → share of a mixture, of (weight, such shares) pairs.

    >>> mixed_shares([(0.5, {"head": {"uniform": 1.0}}), (0.5, {})])
    {'head': {'uniform': 0.5}}
    """
    found: dict[str, dict[str, float]] = {}
    for weight, shares in parts:
        for module, reasons in shares.items():
            total = found.setdefault(module, {})
            for why, share in reasons.items():
                total[why] = total.get(why, 0.0) + weight * share
    return found
