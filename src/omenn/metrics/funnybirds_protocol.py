"""The FunnyBirds protocol: does a map rate the parts of a bird as the model does?

Parts are removed from the picture one by one and in all combinations, which the data provides, and
what the model then says is compared with the sum of the map over each part.

Source: Hesse, Schaub-Meyer, Roth, "FunnyBirds: A Synthetic Vision Dataset for a Part-Based Analysis
of Explainable AI Methods", ICCV 2023, arXiv 2308.06248.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omenn.check import whole, wrong
from omenn.metrics.explainers import Explainer
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.parts import (
    Importance,
    Responses,
    contrast_pair,
    dilated,
    dilation_for,
    importance,
    minimal_sufficient,
)
from omenn.metrics.ranking import partial_rank_correlation, spearman
from omenn.metrics.score import Measured, Score, Verdict, percentile_interval, resampled

THRESHOLDS = torch.linspace(0.01, 0.5, 80, dtype=torch.float64)
MOVES = 0.05  # a removal that changes the logit by less than this share is irrelevant
CHECKS = ("csdc", "pc", "dc", "distractibility")
RENAMED = {"single_deletion": "correctness", "target_sensitivity": "contrastivity"}
LEVEL = ("0.5 in single deletion", "not in single deletion")  # corrected, published


@dataclass(frozen=True, eq=False, repr=False)
class FunnyBirdsScore:
    """The scores of one method on one model over N pictures.

    ``curves``: of ``csdc``, ``pc``, ``dc`` and ``distractibility`` (N, 80), over the thresholds;
    ``single_deletion`` and ``target_sensitivity`` (N,). NaN where a picture is left out. ``ranked``
    (N, 3, P): importance, drop of the logit, area of the dilated mask of each part. ``counted``:
    how often what.
    """

    curves: Mapping[str, Tensor]
    single_deletion: Tensor
    target_sensitivity: Tensor
    ranked: Tensor
    counted: Mapping[str, int]

    @property
    def threshold(self) -> float:
        """The share of the whole map from which a part counts as important, as chosen by
        (CSDC + PC + DC) / 3 + D."""
        return float(THRESHOLDS[self._best(slice(None))])

    @property
    def values(self) -> dict[str, float]:
        """Every measure by name; ``mean`` is the mean of completeness, correctness and
        contrastivity."""
        return self.of(slice(None))

    def of(self, rows: Any) -> dict[str, float]:
        """The measures over some of the pictures, the threshold chosen on them."""
        best = self._best(rows)
        found = {name: _mean(self.curves[name][rows][:, best]) for name in CHECKS}
        found["single_deletion"] = _mean(self.single_deletion[rows])
        found["target_sensitivity"] = _mean(self.target_sensitivity[rows])
        found["single_deletion_given_area"] = partial_rank_correlation(*self.ranked[rows].unbind(1))
        sufficient = (found["csdc"] + found["pc"] + found["dc"]) / 3
        found["completeness"] = (sufficient + found["distractibility"]) / 2
        found["correctness"] = found["single_deletion"]
        found["contrastivity"] = found["target_sensitivity"]
        three = ("completeness", "correctness", "contrastivity")
        found["mean"] = sum(found[name] for name in three) / 3
        return found

    def _best(self, rows: Any) -> int:
        means = {name: self.curves[name][rows].nanmean(0) for name in CHECKS}
        # csdc has no value at any threshold where no picture is classified right
        sufficient = torch.stack([means[name] for name in ("csdc", "pc", "dc")]).nanmean(0)
        total = sufficient + means["distractibility"]
        total = sufficient if bool(total.isnan().all()) else total
        return int(total.nan_to_num(-1).argmax())

    def intervals(self, seed: int = 0, resamples: int = 500) -> dict[str, tuple[float, float]]:
        """95 % intervals of all measures by bootstrap over the pictures.

        The threshold is chosen anew for every resample, as it is a part of the protocol.
        """
        drawn = resampled(len(self.single_deletion), resamples, seed)
        found = [self.of(rows) for some in drawn for rows in some]
        values = {n: torch.tensor([f[n] for f in found], dtype=torch.float64) for n in found[0]}
        return {name: percentile_interval([each]) for name, each in values.items()}

    def scores(self) -> dict[str, Score]:
        """The measures that have one number a picture, at the chosen threshold."""
        best = self._best(slice(None))
        values = {name: self.curves[name][:, best] for name in CHECKS}
        values["single_deletion"] = self.single_deletion
        values["target_sensitivity"] = self.target_sensitivity
        chance = {"single_deletion": 0.5, "target_sensitivity": 0.5}
        return {
            name: Score(name, v, self.counted, chance=chance.get(name))
            for name, v in values.items()
        }

    def verdict(self, seed: int = 0) -> Verdict:
        """Every measure with its interval; those that are one of the three under that name."""
        scores, intervals = self.scores(), self.intervals(seed)
        measures = {}
        for name, value in self.values.items():
            if name in RENAMED:
                continue
            own = scores.get({new: old for old, new in RENAMED.items()}.get(name, name))
            images = len(self.single_deletion) if own is None else own.images
            values = None if own is None else tuple(own.values.tolist())
            chance = own and own.chance
            measured = Measured(value, *intervals[name], images, values, chance)
            measures[name.replace("_", " ")] = measured
        return Verdict(measures, self.counted)

    def __repr__(self) -> str:
        v = self.values
        words = ", ".join(
            f"{name}={v[name]:.3f}"
            for name in ("completeness", "correctness", "contrastivity", "mean")
        )
        return f"FunnyBirdsScore({words}, {len(self.single_deletion)} pictures)"


def accuracy(seen: Responses) -> Score:
    """A: is the class with the largest logit the bird's?"""
    return Score("accuracy", (seen.predicted == seen.labels).double())


def background_independence(seen: Responses) -> Score:
    """BI: 1 − the share of background objects whose removal lowers the bird's logit by 5 % of it.

    One value for each background object of all pictures; it is a property of the model alone. The
    interval is over pictures, as the objects of one depend on each other.
    """
    drops, rows = [], []
    for row, logits in enumerate(seen.backgrounds):
        before = seen.full[row, seen.labels[row]]
        change = before - logits[:, seen.labels[row]]
        drops.append((change > 0) & (change >= MOVES * before.abs()))
        rows.append(torch.full((len(logits),), row))
    values = 1 - torch.cat(drops).double()
    return Score("background_independence", values, groups=torch.cat(rows))


@metric(
    "funnybirds",
    Measure("mean", headline=True),
    Measure("completeness", headline=True),
    Measure("correctness", headline=True, axis=True),
    Measure("contrastivity", headline=True, axis=True),
    Measure("single deletion given area", headline=True),
    *(Measure(name, axis=True) for name in CHECKS),
    family="composite",
    summary="do part importances match the model's outputs without the parts? completeness, "
    "correctness (single deletion), contrastivity (target sensitivity), their mean",
    source="arXiv 2308.06248",
)
def funnybirds(
    explain: Explainer,
    seen: Responses,
    *,
    published: bool = False,
    positive: bool = False,
    dilation: int | None = None,
    chunk: int = 16,
    tick: Callable[[], Any] = lambda: None,
) -> FunnyBirdsScore:
    """Completeness, correctness and contrastivity of the maps of one method.

    With I_P the sum of the map over part P, dilated, and P_t the parts with I_P > t Σ map:

    - *csdc*: of the pictures that are classified right, the largest share of a minimal sufficient
      set of parts that lies in P_t; *pc*: is the prediction the same with P_t alone; *dc*: does it
      change without P_t; *distractibility*: 1 − the share of irrelevant parts and background
      objects (removal changes the logit by less than 5 %, or raises it) that count as important;
    - *single deletion*: (ρ + 1) / 2, Spearman's ρ between I_P and the drop of the logit without P;
    - *target sensitivity*: for two classes that share two parts each with the bird, are those rated
      higher for the class they speak for? (A map that is the same for every class gets 0.)
    - *single deletion given area*: partial rank correlation of I_P and the drop, given the area of
      the dilated parts, pooled over the pictures. Larger parts move the logit more, so a map that
      is the same everywhere scores well on single deletion; here it gets chance, 0.

    Args:
        explain: makes the maps (for the label, the predicted class and the two contrast classes).
        seen: what the model says, from :func:`omenn.metrics.parts.responses`.
        published: as the published code behaves: pictures of the last class get 0 for csdc,
            pictures whose importances or drops are all equal are left out of single deletion (here
            they count as chance, 0.5), masks grow by 5 pixels whatever the size of the picture. In
            one thing it is not followed: it lets the two eyes, feet or wings grow apart and counts
            pixels near to both twice.
        positive: only the positive part of the maps counts. A map whose sum is not positive turns
            the threshold round; such maps are counted.
        dilation: the width, odd, of the square by which masks grow (1: not at all); by default 5
            for a side of 256, in proportion, and at least 3.
        tick: called after each of the four rounds of maps.

    A map that is not finite counts as zero everywhere, and is counted.

    Raises:
        InputError: a dilation that is not odd, maps of another shape.

    Source: arXiv 2308.06248, sections 4 and 5.
    """
    side = int(seen.images.shape[-1])
    width = dilation_for(side, published) if dilation is None else dilation
    if whole("dilation", width, 1) % 2 == 0:
        raise wrong("dilation", width, "odd, so that masks grow to all sides alike")
    asked = {"dilation": width, "positive": positive, "chunk": chunk}
    own = importance(explain, seen, seen.labels, **asked)
    tick()
    missed = [int(k) for k in (seen.predicted != seen.labels).nonzero()]
    other = importance(explain, seen, seen.predicted, rows=missed, **asked)
    predicted = _merged(own, other, missed)
    tick()
    drops = _drops(seen)
    deletion, level = _single_deletion(own.parts, drops, published)
    contrast, maps, skipped = _target_sensitivity(explain, seen, asked, tick)
    distraction = _distractibility(seen, own, drops)
    counted = {
        "constant maps": sum(found.constant for found in (own, other, *maps)),
        "maps that are not finite": sum(found.broken for found in (own, other, *maps)),
        "maps whose sum is not positive": own.inverted + other.inverted,
        "pictures classified wrong, not in csdc": len(missed),
        "pictures where all is relevant, not in distractibility": int(
            distraction[:, 0].isnan().sum()
        ),
        f"equal importances or drops, {LEVEL[published]}": level,
        **skipped,
    }
    areas = dilated(seen.masks, width).sum((2, 3))
    return FunnyBirdsScore(
        curves={
            "csdc": _csdc(seen, own, published),
            "pc": _prediction(seen, predicted, kept=True),
            "dc": _prediction(seen, predicted, kept=False),
            "distractibility": distraction,
        },
        single_deletion=deletion,
        target_sensitivity=contrast,
        ranked=torch.stack([own.parts, drops, areas], 1),
        counted={what: count for what, count in counted.items() if count},
    )


def _mean(values: Tensor) -> float:
    return float(values.nanmean())


def _merged(own: Importance, other: Importance, rows: list[int]) -> Importance:
    """The maps for the predicted class: the label's own where the model is right."""
    parts, total = own.parts.clone(), own.total.clone()
    parts[rows], total[rows] = other.parts[rows], other.total[rows]
    return replace(own, parts=parts, total=total)


def _important(found: Importance) -> Tensor:
    """(N, thresholds, P): which parts count as important."""
    return found.parts[:, None, :] > THRESHOLDS[None, :, None] * found.total[:, None, None]


def _bits(chosen: Tensor) -> Tensor:
    """(…, P) bool → (…) the number with these bits."""
    return (chosen.long() << torch.arange(chosen.shape[-1])).sum(-1)


def _drops(seen: Responses) -> Tensor:
    """(N, P): how much the label's logit falls when one part is removed."""
    rows = torch.arange(len(seen))
    before = seen.full[rows, seen.labels]
    after = [seen.without(1 << p)[rows, seen.labels] for p in range(len(seen.parts))]
    return before[:, None] - torch.stack(after, 1)


def _csdc(seen: Responses, own: Importance, published: bool) -> Tensor:
    chosen = _important(own).double()
    right = seen.predicted == seen.labels
    values = torch.full(chosen.shape[:2], torch.nan, dtype=torch.float64)
    for label in seen.labels[right].unique().tolist():
        rows = (right & (seen.labels == label)).nonzero()[:, 0]
        if published and label == len(seen.classes) - 1:
            values[rows] = 0.0  # the published loop never records the sets of the last class
            continue
        shares = [
            chosen[rows][:, :, [seen.parts.index(p) for p in subset]].mean(2)
            for subset in minimal_sufficient(seen.classes, label)
        ]
        values[rows] = torch.stack(shares).amax(0) if shares else 0.0
    return values


def _prediction(seen: Responses, predicted: Importance, kept: bool) -> Tensor:
    """PC: the prediction with the important parts alone; DC: without them."""
    chosen = _important(predicted)
    bits = _bits(chosen if kept else ~chosen)
    answers = seen.kept.argmax(2).gather(1, bits)
    same = answers == seen.predicted[:, None]
    return (same if kept else ~same).double()


def _distractibility(seen: Responses, own: Importance, drops: Tensor) -> Tensor:
    rows = torch.arange(len(seen))
    before = seen.full[rows, seen.labels]
    values = torch.full((len(seen), len(THRESHOLDS)), torch.nan, dtype=torch.float64)
    for row in range(len(seen)):
        gone = before[row] - seen.backgrounds[row][:, seen.labels[row]]
        change = torch.cat([drops[row], gone])
        irrelevant = (change < 0) | (change.abs() < MOVES * before[row].abs())
        if irrelevant.any():
            found = torch.cat([own.parts[row], own.backgrounds[row]])[irrelevant]
            values[row] = 1 - (found > THRESHOLDS[:, None] * own.total[row]).double().mean(1)
    return values


def _single_deletion(parts: Tensor, drops: Tensor, published: bool) -> tuple[Tensor, int]:
    values = (spearman(parts, drops) + 1) / 2
    level = torch.isnan(values)
    return (values if published else torch.where(level, 0.5, values)), int(level.sum())


def _target_sensitivity(
    explain: Explainer, seen: Responses, asked: dict[str, Any], tick: Callable[[], Any]
) -> tuple[Tensor, list[Importance], dict[str, int]]:
    pairs = [contrast_pair(seen.classes, int(label)) for label in seen.labels]
    usable, lacking, odd = [], 0, 0
    for row, pair in enumerate(pairs):
        if pair is None:
            lacking += 1
        elif _behaves(seen, row, pair):
            usable.append(row)
        else:
            odd += 1
    classes = torch.tensor([(0, 0) if p is None else (p[0], p[2]) for p in pairs])
    found = []
    for column in (0, 1):
        found.append(importance(explain, seen, classes[:, column], rows=usable, **asked))
        tick()
    values = torch.full((len(seen),), torch.nan, dtype=torch.float64)
    for row in usable:
        pair = pairs[row]
        assert pair is not None
        one, two = ([seen.parts.index(p) for p in shared] for shared in (pair[1], pair[3]))
        first, second = (f.parts[row] for f in found)
        checks = (first[one].sum() > second[one].sum(), second[two].sum() > first[two].sum())
        values[row] = sum(map(float, checks)) / 2
    return (
        values,
        found,
        {
            "pictures without a contrast pair, not in target sensitivity": lacking,
            "pictures whose contrast the model does not follow, not in target sensitivity": odd,
        },
    )


def _behaves(seen: Responses, row: int, pair: tuple[int, frozenset, int, frozenset]) -> bool:
    """Whether each class loses more by the parts it shares than by those the other shares."""
    one, two = (sum(1 << seen.parts.index(p) for p in shared) for shared in (pair[1], pair[3]))
    last = seen.kept.shape[1] - 1
    without_one, without_two = seen.kept[row, last - one], seen.kept[row, last - two]
    first, second = pair[0], pair[2]
    # less is left of a class whose parts are gone
    return bool(
        without_one[first] < without_two[first] and without_two[second] < without_one[second]
    )
