"""Random unions of the cells of a picture: what the model loses without each, and what maps say.

The answers of the model do not depend on a map. They are asked once for a picture, and any number
of maps is then judged without running the model again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omenn.check import real, whole
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_maps,
    checked_targets,
    constant_maps,
    descending,
    logits_of,
    ranks,
)
from omenn.metrics.perturbation import Outcome, mean_height, states
from omenn.metrics.ranking import pearson
from omenn.metrics.removal import Fill, filled

ROUNDING = 64
"""Drops that differ by fewer units in the last place of the model's answer are the same."""


def cells_of(height: int, width: int, across: int) -> Tensor:
    """The number of its cell for every pixel, (H, W): ``across`` × ``across`` cells, row by row.

    Cells differ by one row or column of pixels where ``across`` does not divide a side.

    Raises:
        InputError: more cells than pixels along a side.

    >>> cells_of(2, 4, 2).tolist()
    [[0, 0, 1, 1], [2, 2, 3, 3]]
    """
    whole("across", across, 1, min(height, width))
    rows, columns = (torch.arange(side) * across // side for side in (height, width))
    return rows[:, None] * across + columns[None, :]


def sums_of(map: Tensor, cells: Tensor) -> Tensor:
    """The sum of a map (H, W) over each cell, (cells,) float64.

    >>> sums_of(torch.ones(2, 4), cells_of(2, 4, 2)).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    found = torch.zeros(int(cells.max()) + 1, dtype=torch.float64, device=map.device)
    return found.index_add_(0, cells.flatten().to(map.device), map.double().flatten())


def random_unions(count: int, size: int, runs: int, seed: int) -> Tensor:
    """``runs`` sets of ``size`` of ``count`` cells, (runs, count) bool.

    >>> random_unions(9, 2, 5, seed=0).sum(1).tolist()
    [2, 2, 2, 2, 2]
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(runs, count, generator=generator).topk(size, dim=1).indices
    return torch.zeros(runs, count, dtype=torch.bool).scatter_(1, drawn, True)


@dataclass(frozen=True, eq=False)
class Unions:
    """One picture, unions of its cells, and the drop of the target's outcome without each.

    ``image``, ``fill`` (1, C, H, W): the picture, and what replaces it. ``cells`` (H, W): see
    :func:`cells_of`. ``members`` (R, cells) bool: the cells of each union. ``before``: the outcome
    for the whole picture. ``drops`` (R,) float64: what it loses without each union.
    """

    f: Model
    image: Tensor
    target: int
    fill: Tensor
    cells: Tensor
    members: Tensor
    before: float
    drops: Tensor
    chunk: int

    @classmethod
    def of(
        cls,
        f: Model,
        image: Tensor,
        target: int | None = None,
        *,
        across: int = 14,
        share: float = 0.2,
        runs: int = 64,
        fill: Fill = "blur",
        outcome: Outcome = "logit",
        seed: int = 0,
        chunk: int = 64,
    ) -> Unions:
        """Ask the model: once for the whole picture, and once for each union.

        Args:
            target: a class; None: the one with the largest logit.
            across: cells along each side.
            share: of the cells that a union has.
            runs: how many unions, at least 2.
            fill: see :data:`~omenn.metrics.removal.Fill`.

        Raises:
            InputError: not one picture, an option out of its range, logits that are not finite.
            TargetError: a class that the logits do not have.

        Example:
            >>> weight, image = torch.randn(3, 8, 8), torch.randn(1, 3, 8, 8)
            >>> f = lambda x: (x * weight).flatten(1).sum(1, keepdim=True)
            >>> asked = Unions.of(f, image, across=4, fill="zero")
            >>> assert asked.correlation((weight * image[0]).sum(0)) > 0.999
        """
        image = checked_images(image)[:1]
        cells = cells_of(image.shape[2], image.shape[3], across).to(image.device)
        count, runs = across * across, whole("runs", runs, 2)
        size = max(1, round(real("share", share, 0, 1) * count))
        members = random_unions(count, size, runs, seed).to(image.device)
        logits = logits_of(f, image, chunk)
        target = int(logits.argmax()) if target is None else target
        new = filled(image, fill)

        def change(_: Tensor, state: Tensor) -> Tensor:
            gone = members[(state - 1).clamp(min=0)][:, cells] & (state > 0).view(-1, 1, 1)
            return torch.where(gone[:, None], new, image)

        own = checked_targets(target, 1, image.device)
        seen = states(f, own, runs + 1, change, outcome=outcome, chunk=chunk)[0]
        drops = seen[0] - seen[1:]
        return cls(f, image, target, new, cells, members, float(seen[0]), drops, chunk)

    @property
    def level(self) -> bool:
        """Whether the model answers the same whatever is replaced, up to rounding."""
        largest = max(abs(self.before), float(self.drops.abs().max()))
        units = ROUNDING * torch.finfo(self.image.dtype).eps
        return float(self.drops.max() - self.drops.min()) <= units * largest

    def sums(self, map: Tensor) -> Tensor:
        """What a map (H, W) says of each union, (R,)."""
        return self.members.double() @ sums_of(map.to(self.image.device), self.cells)

    def correlation(self, map: Tensor) -> float:
        """Pearson's correlation of sums and drops; NaN where the map or the drops are constant.

        Raises:
            InputError: not one map (H, W) of the picture's size, or not finite.
        """
        checked = checked_maps(map[None], self.image)
        if self.level or bool(constant_maps(checked)):
            return float("nan")
        return float(pearson(self.sums(checked[0])[None], self.drops[None]))

    def insertion_deletion(self, map: Tensor, *, points: int = 11, seed: int = 0) -> float:
        """Insertion minus deletion by whole cells, of the target's probability.

        Cells come back, or go, by falling sum of the map, at ``points`` counts that are evenly
        apart; where they are not, there is the fill. Areas are by trapezoids. The model runs
        2 · ``points`` times.

        Example:
            >>> weight, image = torch.rand(3, 8, 8), torch.rand(1, 3, 8, 8)
            >>> f = lambda x: torch.stack([(x * weight).sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)
            >>> asked = Unions.of(f, image, across=4, fill="zero")
            >>> exact = (weight * image[0]).sum(0)
            >>> assert asked.insertion_deletion(exact) > asked.insertion_deletion(-exact)

        Source: Petsiuk, Das, Saenko 2018, arXiv 1806.07421, by cells.
        """
        checked = checked_maps(map[None], self.image)
        sums = sums_of(checked[0], self.cells)
        place = ranks(descending(sums[None], seed))[0][self.cells]
        count, points = len(sums), whole("points", points, 2)
        steps = [round(count * k / (points - 1)) for k in range(points)]
        counts = torch.tensor(steps, device=self.image.device)

        def change(_: Tensor, state: Tensor) -> Tensor:
            first = place < counts[state % points].view(-1, 1, 1)
            here = (first ^ (state >= points).view(-1, 1, 1))[:, None]
            return torch.where(here, self.image, self.fill)

        own = checked_targets(self.target, 1, self.image.device)
        options = {"outcome": "probability", "chunk": self.chunk}
        line = states(self.f, own, 2 * points, change, **options)
        inserted, deleted = mean_height(line.view(2, points)).tolist()
        return inserted - deleted
