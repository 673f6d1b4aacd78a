"""From measured regions to intervals: the fit on one half, the quantiles on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from omenn.calibration.conformal import cuts, fitted, hierarchical_quantile, needed
from omenn.calibration.intervals import LEVELS, Size
from omenn.calibration.interventions import Measured
from omenn.calibration.regions import SIZES, size_of
from omenn.errors import InputError, ModelError


def halved(found: Sequence[Measured], seed: int) -> tuple[list[Measured], list[Measured]]:
    """Two halves of the inputs, drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(found), generator=generator).tolist()
    half = len(found) // 2
    return [found[k] for k in order[:half]], [found[k] for k in order[half:]]


def sizes_from(
    fit: Sequence[Measured], rest: Sequence[Measured], level: float
) -> tuple[Size | None, ...]:
    """The intervals of each size from the two halves; None where too few inputs have regions.

    Raises:
        InputError: fewer inputs than needed. ModelError: no drop at all.
    """
    if min(len(fit), len(rest)) < needed(level):
        count = len(fit) + len(rest)
        raise too_few(f"{count} different inputs", str(count), 2 * needed(level))
    if not any(bool((m.drops != 0).any()) for m in (*fit, *rest)):
        raise ModelError(
            "the logit is the same whatever is replaced: there is nothing to calibrate.",
            argument="model",
            remedy="Check the model, its weights and the replacement.",
        )
    return tuple(_size(_sized(fit, k), _sized(rest, k), level) for k in range(len(SIZES) - 1))


def _sized(found: Sequence[Measured], k: int) -> list[Measured]:
    """The regions of one size, of the inputs that have some."""
    parts = [m.of(torch.tensor([size_of(s) == k for s in m.shares.tolist()])) for m in found]
    return [part for part in parts if len(part)]


def _size(fit: Sequence[Measured], rest: Sequence[Measured], level: float) -> Size | None:
    if min(len(fit), len(rest)) < needed(level):
        return None
    sums, shares, drops = (
        torch.cat([getattr(m, part) for m in fit]) for part in ("sums", "shares", "drops")
    )
    line, plain = fitted(sums, shares, drops), fitted(sums * 0, shares, drops)
    bounds = tuple(cuts([m.sums for m in fit], level))
    reach = torch.cat([m.shares for m in rest])
    empty = Size(float(reach.min()), float(reach.max()), line, bounds, (), len(rest), len(reach))
    scores = [(empty.part(m.sums), line.scores(m.sums, m.shares, m.drops)) for m in rest]
    levels = sorted({*LEVELS, level})
    quantiles = tuple(
        {at: hierarchical_quantile([s[part == j] for part, s in scores], at) for at in levels}
        for j in range(len(bounds) + 1)
    )
    size = replace(empty, quantiles=quantiles)
    typical = torch.cat([size.half_widths(m.sums, level) for m in rest]).mean()
    blind = [plain.scores(m.sums * 0, m.shares, m.drops) for m in rest]
    without = hierarchical_quantile(blind, level)
    return replace(size, typical=float(typical), without=without)


def too_few(what: str, got: str, least: int) -> InputError:
    """The error for fewer different inputs than a calibration takes."""
    return InputError(
        f"{what}: a calibration at this level takes at least {least}.",
        argument="inputs",
        got=got,
        expected=f"{least} or more, that differ",
        remedy="Give more pictures like those that will be explained; 100 or more are better.",
    )
