"""The score of a protocol: one number per image, counts of special cases, and an interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omenn.errors import InputError

RESAMPLED = 2**22  # values at a time, which bounds the memory


@dataclass(frozen=True, eq=False, repr=False)
class Score:
    """One protocol's verdict on the maps of N images.

    ``values`` (N,), kept as float64 in ordinary memory: one number an image, NaN where the metric
    leaves an image out. ``counted``: what happened how often (constant maps, images left out and
    why), but for what never did. ``higher``:
    whether more is better. ``chance``: what a random map is expected to get, if that is known.
    ``groups`` (N,): where an image has several values, the number of the image of each.

    Example:
        >>> score = Score("x", torch.tensor([1.0, 3.0, float("nan")]), {"left out": 1})
        >>> score.mean, score.images
        (2.0, 2)
    """

    name: str
    values: Tensor
    counted: Mapping[str, int] = field(default_factory=dict)
    higher: bool = True
    chance: float | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.values.detach().double().cpu())
        counted = {what: count for what, count in self.counted.items() if count}
        object.__setattr__(self, "counted", counted)

    @property
    def valid(self) -> Tensor:
        """The values of the images that count."""
        return self.values[~torch.isnan(self.values)]

    @property
    def images(self) -> int:
        """How many images count."""
        return len(self.valid)

    @property
    def mean(self) -> float:
        """Mean over the images that count; NaN if there is none."""
        return float(self.valid.mean()) if self.images else math.nan

    def interval(self, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
        """95 % interval of the mean: percentiles of bootstrap resamples over the images."""
        groups = None if self.groups is None else self.groups[~torch.isnan(self.values)]
        return bootstrap_interval(self.valid, seed=seed, resamples=resamples, groups=groups)

    def __repr__(self) -> str:
        low, high = self.interval()
        notes = "".join(f", {count} {what}" for what, count in self.counted.items())
        value = f"{self.name}={self.mean:.4g} [{low:.4g}, {high:.4g}]"
        return f"Score({value}, {self.images} images{notes})"


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval.

    ``values``: of each picture or mosaic, NaN if left out; None where there is no such number.
    ``chance``: what a random map is expected to get, if that is known.
    """

    value: float
    low: float
    high: float
    images: int
    values: tuple[float, ...] | None = None
    chance: float | None = None

    @classmethod
    def of(cls, score: Score, seed: int) -> Measured:
        """The mean of a score, the interval by bootstrap over its values."""
        values = tuple(score.values.tolist())
        return cls(score.mean, *score.interval(seed), score.images, values, score.chance)


@dataclass(frozen=True)
class Verdict:
    """The measures of a metric by name, and counts of special cases."""

    measures: Mapping[str, Measured]
    counted: Mapping[str, int] = field(default_factory=dict)


def bootstrap_interval(
    values: Tensor,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    groups: Tensor | None = None,
) -> tuple[float, float]:
    """The percentile interval of the mean of N values, from resamples with replacement.

    Values of one group (N,) depend on each other: groups are drawn, and bring all of theirs.
    (NaN, NaN) for fewer than two values or groups, which say nothing of the spread. The same seed
    gives the same interval.

    Raises:
        InputError: values that are not finite, or not (N,).

    Example:
        >>> low, high = bootstrap_interval(torch.arange(100.0))
        >>> assert 40 < low < 49.5 < high < 59

    Source: Efron 1979, Annals of Statistics 7(1).
    """
    if values.ndim != 1 or not bool(torch.isfinite(values).all()):
        raise InputError(
            f"an interval needs finite numbers (N,), got the shape {tuple(values.shape)} with "
            f"{int((~torch.isfinite(values)).sum())} that are not finite.",
            argument="values",
            got=str(tuple(values.shape)),
            remedy="Leave those out.",
        )
    sums, counts = values.double().cpu(), torch.ones(len(values), dtype=torch.float64)
    if groups is not None:
        names, place = groups.cpu().unique(return_inverse=True)
        empty = torch.zeros(len(names), dtype=torch.float64)
        sums, counts = (empty.index_add(0, place, each) for each in (sums, counts))
    if len(sums) < 2:
        return math.nan, math.nan
    drawn = resampled(len(sums), resamples, seed)
    return percentile_interval([sums[rows].sum(1) / counts[rows].sum(1) for rows in drawn], level)


def resampled(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Bootstrap resamples: (some, count) indices drawn with replacement, chunk by chunk.

    >>> [tuple(rows.shape) for rows in resampled(3, 100, seed=0)]
    [(100, 3)]
    """
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, RESAMPLED // count)
    for start in range(0, resamples, at_once):
        size = (min(at_once, resamples - start), count)
        yield torch.randint(count, size, generator=generator)


def percentile_interval(found: Sequence[Tensor], level: float = 0.95) -> tuple[float, float]:
    """The interval that ``level`` of the values of all resamples lie in; NaN is left out."""
    tail = (1 - level) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = torch.nanquantile(torch.cat(list(found)), ends).tolist()
    return low, high
