"""``omenn.tune``: chooses a method and its options on the user's own pictures, by interventions.

NOTE [two halves] Candidates are compared on one half of the pictures. The best of many has profited
from chance there, so what is gained is measured on the other half, which had no part in the choice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from omenn.check import path as checked_path
from omenn.tuning.candidates import CANDIDATES, Candidate, chosen_from
from omenn.tuning.search import Search, prepared
from omenn.tuning.tuned import Row, Tuned

__all__ = ["CANDIDATES", "Candidate", "Row", "Search", "Tuned", "chosen_from", "prepared", "tune"]


def tune(
    model: Any,
    images: Any,
    *,
    candidates: str | Sequence[str] | None = None,
    against: str | None = None,
    passes: int | None = None,
    seconds: float | None = None,
    sets: int = 64,
    across: int = 14,
    share: float = 0.2,
    fill: str | float = "blur",
    check: bool = True,
    seed: int = 0,
    chunk: int = 16,
    output: Any = None,
    folder: str | os.PathLike[str] | None = None,
    tick: Callable[[str], None] = lambda step: None,
) -> Tuned:
    """Which exact method explains this model best on these pictures, if any beats the default.

    A picture has ``across`` × ``across`` cells. For each picture, ``sets`` random unions of cells
    are replaced, and the model is asked what its answer (the largest logit f) loses. The score of a
    map a is Pearson's correlation over the unions S of Σ_{i∈S} a_i and f(x) − f(x without S). The
    answers do not depend on the map, so a candidate costs no more than its map.

    The candidate with the largest mean score on one half of the pictures is compared with the
    default on the other half, picture by picture. It is better if the 95 % interval of the mean
    difference (paired bootstrap) lies above zero. Otherwise the result is the default.

    Args:
        images: a tensor (N, C, H, W), or a sequence of (C, H, W) that is read one by one, as the
            model takes them. No labels are needed. 12 at the least; copies count once.
        candidates: methods with options such as ``"gamma[gamma=0.5;complete=true]"``, a list or a
            text with commas; their sums must be exact. None: :data:`CANDIDATES`.
        against: the default that they have to beat; None: that of :func:`omenn.explain`.
        passes: a budget in forward passes (a map counts by its arithmetic). It decides how many of
            the pictures are used, and whether dear candidates are.
        seconds: the same in seconds, estimated on the first picture.
        sets, share: how many unions a picture has, and which share of the cells each has.
        fill: what replaces a union, see :data:`omenn.metrics.removal.Fill`.
        check: whether held-out pictures are also judged by insertion minus deletion.
        seed: of the halves, the unions and the intervals.
        chunk: how many pictures the model gets at once, at most.
        output: where the logits are, see :func:`omenn.explain`.
        folder: where finished pictures are kept, so that an interrupted search goes on.
        tick: called with a description before each picture.

    Raises:
        InputError: fewer than 12 different pictures, a budget that is not enough for them, an
            unknown candidate or one without an exact sum, a model that answers the same whatever is
            replaced, a folder of another search.
        ModelError: the model is in training mode, or cannot be explained by the default.
        OutputError: the folder cannot be written.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(),
        ...                           torch.nn.Flatten(), torch.nn.Linear(144, 2)).eval()
        >>> given = {"candidates": ["gamma[complete=true]"], "sets": 8, "across": 4}
        >>> found = omenn.tune(net, torch.randn(12, 3, 8, 8), **given)
        >>> assert found.chosen.name == ("gamma[complete=true]" if found.better else "omenn")
        >>> e = omenn.explain(net, torch.randn(1, 3, 8, 8), method=found.method, **found.options)
        >>> assert e.exact

    Source: the score is that of Bhatt, Weller, Moura 2020, arXiv 2005.00631, on cells.
    """
    place = None if folder is None else checked_path("folder", folder)
    search = prepared(
        model,
        images,
        candidates=candidates,
        against=against,
        passes=passes,
        seconds=seconds,
        check=check,
        output=output,
        folder=place,
        sets=sets,
        across=across,
        share=share,
        fill=fill,
        seed=seed,
        chunk=chunk,
    )
    return search.run(tick)
