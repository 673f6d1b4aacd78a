"""The FunnyBirds protocol: a slow reference, models whose truth is known, the published defects."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from metrics.toys import CLASSES, SIDE, Mixed, ToyBirds, additive, preprocessing
from omenn.errors import InputError
from omenn.metrics.explainers import Explainer, explainer, random
from omenn.metrics.funnybirds_protocol import (
    CHECKS,
    THRESHOLDS,
    FunnyBirdsScore,
    accuracy,
    background_independence,
    funnybirds,
)
from omenn.metrics.parts import PartData, Responses, dilated, responses

COUNT = 24
NAN = float("nan")


@pytest.fixture(scope="module")
def exact() -> Responses:
    return responses(additive(), ToyBirds(COUNT), preprocessing)


@pytest.fixture(scope="module")
def mixed() -> Responses:
    return responses(Mixed(), ToyBirds(COUNT), preprocessing)


def odd_maps(images: Tensor, targets: Tensor) -> Tensor:
    """Noise about the picture, of either sign; and some that are constant, broken, or zero."""
    maps = (0.2 + random(images, targets + 9)) * (0.1 + images.sum(1))
    kind = ((images * 255).round().sum((1, 2, 3)).long() + targets) % 12
    maps[kind == 0] = 0.5
    maps[kind == 1, 0, 0] = NAN
    maps[kind == 2] = 0.0
    return maps


# --- the slow reference: one picture after the other, by names of parts -----------------------


class Slow:
    """The protocol by its words, for one picture at a time and with dictionaries."""

    def __init__(self, f: nn.Module, explain: Explainer, data: PartData, **options: Any) -> None:
        self.f, self.explain, self.data = f, explain, data
        self.published = options.get("published", False)
        self.positive = options.get("positive", False)
        self.width = 5 if self.published else 3
        self.names = sorted(data.parts)
        self.logits: dict[Any, list[float]] = {}

    def says(self, index: int, kept: frozenset[str] | int | None = None) -> list[float]:
        """Logits of the picture, with these parts alone, or without this object."""
        if (index, kept) not in self.logits:
            if kept is None:
                picture = self.data.image(index)
            elif isinstance(kept, int):
                picture = self.data.without_background(index, kept)
            else:
                picture = self.data.with_parts(index, kept)
            self.logits[index, kept] = self.f(preprocessing(picture))[0].tolist()
        return self.logits[index, kept]

    def class_of(self, index: int, kept: frozenset[str] | None = None) -> int:
        logits = self.says(index, kept)
        return max(range(len(logits)), key=lambda k: logits[k])

    def importances(self, index: int, target: int) -> dict[str, float]:
        """Of every part and object ("0", "1", …), and the sum of all as "total"."""
        image = preprocessing(self.data.image(index))
        found = self.explain(image, torch.tensor([target]))[0].tolist()
        if any(not math.isfinite(v) for row in found for v in row):
            found = [[0.0] * SIDE] * SIDE
        if self.positive:
            found = [[max(0.0, v) for v in row] for row in found]
        masks = dict(self.data.masks(index))
        masks |= {str(n): mask for n, mask in enumerate(self.data.background_masks(index))}
        sums = {"total": sum(map(sum, found))}
        reach = range(-(self.width // 2), self.width // 2 + 1)
        for name, mask in masks.items():
            near = {
                (row + down, column + right)
                for row in range(SIDE)
                for column in range(SIDE)
                if mask[row, column]
                for down in reach
                for right in reach
            }
            inside = [(r, c) for r, c in near if 0 <= r < SIDE and 0 <= c < SIDE]
            sums[name] = sum(found[r][c] for r, c in sorted(inside))
        return sums

    def curves(self, index: int) -> dict[str, list[float]]:
        """CSDC, PC, DC and distractibility at every threshold."""
        label, predicted = self.data.label(index), self.class_of(index)
        own, other = self.importances(index, label), self.importances(index, predicted)
        found: dict[str, list[float]] = {name: [] for name in CHECKS}
        irrelevant = self.irrelevant(index)
        for k in range(80):
            t = 0.01 + k * 0.49 / 79
            chosen = frozenset(p for p in self.names if own[p] > t * own["total"])
            shares = [len(s & chosen) / len(s) for s in self.sufficient(label)]
            found["csdc"].append(max(shares, default=0.0) if label == predicted else NAN)
            kept = frozenset(p for p in self.names if other[p] > t * other["total"])
            found["pc"].append(float(self.class_of(index, kept) == predicted))
            rest = frozenset(self.names) - kept
            found["dc"].append(float(self.class_of(index, rest) != predicted))
            wrong = [name for name in irrelevant if own[name] > t * own["total"]]
            share = 1 - len(wrong) / len(irrelevant) if irrelevant else NAN
            found["distractibility"].append(share)
        return found

    def drops(self, index: int) -> dict[str, float]:
        label = self.data.label(index)
        before = self.says(index)[label]
        everything = frozenset(self.names)
        found = {p: before - self.says(index, everything - {p})[label] for p in self.names}
        for n in range(self.data.background_count(index)):
            found[str(n)] = before - self.says(index, n)[label]
        return found

    def irrelevant(self, index: int) -> list[str]:
        limit = 0.05 * abs(self.says(index)[self.data.label(index)])
        return [name for name, drop in self.drops(index).items() if drop < 0 or abs(drop) < limit]

    def sufficient(self, label: int) -> list[frozenset[str]]:
        if self.published and label == len(self.data.classes) - 1:
            return []
        own = self.data.classes[label]
        enough = []
        for count in range(1, 6):
            for names in combinations(self.names, count):
                same = [c for c in self.data.classes if all(c[p] == own[p] for p in names)]
                if same == [own]:
                    enough.append(frozenset(names))
        return [s for s in enough if not any(other < s for other in enough)]

    def single_deletion(self, index: int) -> float:
        drops, sums = self.drops(index), self.importances(index, self.data.label(index))
        values = [sums[p] for p in self.names], [drops[p] for p in self.names]
        if any(len(set(v)) == 1 for v in values):
            return NAN if self.published else 0.5
        return float(stats.spearmanr(*values).statistic + 1) / 2

    def target_sensitivity(self, index: int) -> float:
        label = self.data.label(index)
        own = self.data.classes[label]
        near = []
        for k, other in enumerate(self.data.classes):
            shared = frozenset(p for p in self.names if other[p] == own[p])
            if k != label and len(shared) == 2:
                near.append((k, shared))
        pairs = [(a, b) for a, b in combinations(near, 2) if not a[1] & b[1]]
        if not pairs:
            return NAN
        (first, one), (second, two) = pairs[0]
        everything = frozenset(self.names)
        without_one = self.says(index, everything - one)
        without_two = self.says(index, everything - two)
        if not (
            without_one[first] < without_two[first] and without_two[second] < without_one[second]
        ):
            return NAN
        for_first, for_second = self.importances(index, first), self.importances(index, second)
        a = sum(for_first[p] for p in one) > sum(for_second[p] for p in one)
        b = sum(for_second[p] for p in two) > sum(for_first[p] for p in two)
        return (a + b) / 2


OPTIONS = [{}, {"published": True}, {"positive": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=["corrected", "published", "positive"])
def test_against_the_slow_reference(mixed: Responses, options: dict[str, bool]) -> None:
    data = ToyBirds(COUNT)
    found = funnybirds(odd_maps, mixed, chunk=5, **options)
    slow = Slow(Mixed(), odd_maps, data, **options)
    curves = [slow.curves(k) for k in range(COUNT)]
    for name in CHECKS:
        expected = torch.tensor([c[name] for c in curves], dtype=torch.float64)
        torch.testing.assert_close(found.curves[name], expected, equal_nan=True)
    for name, of in (
        ("single_deletion", slow.single_deletion),
        ("target_sensitivity", slow.target_sensitivity),
    ):
        expected = torch.tensor([of(k) for k in range(COUNT)], dtype=torch.float64)
        torch.testing.assert_close(getattr(found, name), expected, equal_nan=True)
        assert len(expected[~expected.isnan()].unique()) > 2
    right = [slow.class_of(k) == data.label(k) for k in range(COUNT)]
    assert 0 < sum(right) < COUNT
    assert {"constant maps", "maps that are not finite"} <= found.counted.keys()
    check_means(found, curves)


def test_pictures_whose_contrast_the_model_does_not_follow_are_left_out() -> None:
    wild, data = Mixed(noise=400), ToyBirds(8)
    seen = responses(wild, data, preprocessing)
    found = funnybirds(random, seen)
    slow = Slow(wild, random, data)
    expected = [slow.target_sensitivity(k) for k in range(8)]
    torch.testing.assert_close(
        found.target_sensitivity, torch.tensor(expected, dtype=torch.float64), equal_nan=True
    )
    text = "pictures whose contrast the model does not follow, not in target sensitivity"
    assert found.counted[text] == sum(map(math.isnan, expected)) - 1 > 0
    assert found.counted["pictures without a contrast pair, not in target sensitivity"] == 1


def test_negative_logits() -> None:
    """What is 5 % of a negative logit is the same as of a positive one."""
    flipped, data = additive(flipped=True), ToyBirds(8)
    seen = responses(flipped, data, preprocessing)
    assert (seen.full[range(8), seen.labels] < 0).all()
    found = funnybirds(odd_maps, seen)
    slow = Slow(flipped, odd_maps, data)
    assert {len(slow.irrelevant(k)) for k in range(8)} == {5, 6, 7, 8}
    expected = [slow.curves(k)["distractibility"] for k in range(8)]
    torch.testing.assert_close(
        found.curves["distractibility"], torch.tensor(expected, dtype=torch.float64)
    )


def check_means(found: FunnyBirdsScore, curves: list[dict[str, list[float]]]) -> None:
    """The threshold, and what is made of the measures."""

    def mean(values: Any) -> float:
        return fmean(v for v in values if not math.isnan(v))

    totals = []
    for k in range(80):
        csdc, pc, dc, d = (mean(c[name][k] for c in curves) for name in CHECKS)
        totals.append((csdc + pc + dc) / 3 + d)
    best = max(range(80), key=lambda k: totals[k])
    values = found.values
    assert found.threshold == pytest.approx(0.01 + best * 0.49 / 79)
    assert values["completeness"] == pytest.approx(totals[best] / 2)
    assert values["correctness"] == pytest.approx(mean(found.single_deletion.tolist()))
    assert values["contrastivity"] == pytest.approx(mean(found.target_sensitivity.tolist()))
    three = [values[name] for name in ("completeness", "correctness", "contrastivity")]
    assert values["mean"] == pytest.approx(sum(three) / 3)
    for name in CHECKS:
        assert values[name] == pytest.approx(mean(c[name][best] for c in curves))
        assert found.scores()[name].mean == pytest.approx(values[name])


def test_the_reference_sees_irrelevant_parts_and_objects_and_pictures_without(
    mixed: Responses,
) -> None:
    found = [Slow(Mixed(), odd_maps, ToyBirds(COUNT)).irrelevant(k) for k in range(COUNT)]
    assert any(not names for names in found)
    assert any(name.isdigit() for names in found for name in names)
    assert any(name.isalpha() for names in found for name in names)


def test_accuracy_and_background_independence(mixed: Responses) -> None:
    slow = Slow(Mixed(), odd_maps, ToyBirds(COUNT))
    relevant = []
    for k in range(COUNT):
        label = slow.data.label(k)
        assert accuracy(mixed).values[k] == (slow.class_of(k) == label)
        before = slow.says(k)[label]
        for n in range(slow.data.background_count(k)):
            drop = slow.drops(k)[str(n)]
            relevant.append(drop > 0 and drop >= 0.05 * abs(before))
    assert 0 < sum(relevant) < len(relevant)
    found = background_independence(mixed)
    assert found.values.tolist() == [float(not r) for r in relevant]
    assert found.mean == pytest.approx(1 - sum(relevant) / len(relevant))


# --- validation: what is true of the model is known -------------------------------------------


class TestTruth:
    def test_exact_maps_of_an_additive_model_get_one(self, exact: Responses) -> None:
        found = funnybirds(explainer(additive(), "omenn"), exact)
        for name in ("csdc", "pc", "distractibility", "single_deletion", "target_sensitivity"):
            assert found.values[name] == 1, name
        assert found.values["single_deletion_given_area"] == pytest.approx(1)
        # a picture without a part has logits of 0, and the first of equals is class 0
        assert found.curves["dc"][:, 0].tolist() == [float(k % 8 != 0) for k in range(COUNT)]
        assert found.counted == {
            "pictures where all is relevant, not in distractibility": 6,
            "pictures without a contrast pair, not in target sensitivity": 3,
        }

    def test_their_importance_is_the_drop_of_the_logit(self, exact: Responses) -> None:
        found = funnybirds(explainer(additive(), "omenn"), exact)
        importances, drops, _ = found.ranked.unbind(1)
        torch.testing.assert_close(importances, drops)

    def test_the_opposite_gets_the_least(self, exact: Responses) -> None:
        best = explainer(additive(), "omenn")
        found = funnybirds(lambda x, y: -best(x, y), exact).values
        assert found["single_deletion"] == found["target_sensitivity"] == 0
        assert found["single_deletion_given_area"] == pytest.approx(-1)

    def test_random_maps_get_chance(self) -> None:
        seen = responses(additive(), ToyBirds(96), preprocessing)
        found = funnybirds(random, seen)
        for name in ("single_deletion", "target_sensitivity"):
            score = found.scores()[name]
            low, high = score.interval()
            assert low < 0.5 == score.chance < high
            assert high - low < 0.2
        low, high = found.intervals(resamples=200)["single_deletion_given_area"]
        assert low < 0 < high

    def test_constant_maps_get_chance_where_area_is_taken_out(self, mixed: Responses) -> None:
        found = funnybirds(explainer(Mixed(), "constant"), mixed)
        assert found.values["single_deletion_given_area"] == 0
        assert found.values["target_sensitivity"] == 0  # the same map for every class
        three = int((~found.target_sensitivity.isnan()).sum())
        wrong = int((mixed.predicted != mixed.labels).sum())
        assert found.counted["constant maps"] == COUNT + wrong + 2 * three
        torch.testing.assert_close(found.ranked[:, 0], found.ranked[:, 2])

    def test_scale_does_not_matter(self, mixed: Responses) -> None:
        one = funnybirds(odd_maps, mixed)
        other = funnybirds(lambda x, y: 512 * odd_maps(x, y), mixed)
        assert one.values == other.values


class TestPublished:
    def test_the_last_class_gets_nothing(self, exact: Responses) -> None:
        best = explainer(additive(), "omenn")
        found = funnybirds(best, exact, published=True)
        last = exact.labels == len(CLASSES) - 1
        assert (found.curves["csdc"][last] == 0).all()
        assert (found.curves["csdc"][~last, 0] == 1).all()
        assert found.values["csdc"] == pytest.approx(7 / 8)
        assert funnybirds(best, exact).values["csdc"] == 1

    def test_equal_importances_are_left_out_there_and_chance_here(self, exact: Responses) -> None:
        def explain(images: Tensor, targets: Tensor) -> Tensor:
            maps = explainer(additive(), "omenn")(images, targets)
            return torch.where((targets == 2)[:, None, None], 0.0, maps)

        here, there = (funnybirds(explain, exact, published=p) for p in (False, True))
        zero = exact.labels == 2
        assert (here.single_deletion[zero] == 0.5).all()
        assert there.single_deletion.isnan().equal(zero)
        assert here.counted["equal importances or drops, 0.5 in single deletion"] == 3
        assert there.counted["equal importances or drops, not in single deletion"] == 3
        assert there.values["single_deletion"] == 1
        assert here.values["single_deletion"] == pytest.approx(1 - 0.5 / 8)

    def test_masks_grow_by_five_pixels(self, exact: Responses) -> None:
        found = funnybirds(random, exact, published=True)
        torch.testing.assert_close(found.ranked[:, 2], dilated(exact.masks, 5).sum((2, 3)))
        same = funnybirds(random, exact, published=False, dilation=5)
        assert torch.equal(same.ranked, found.ranked)


class TestStrangeMaps:
    def test_a_negative_sum_turns_the_threshold_round_and_is_counted(
        self, exact: Responses
    ) -> None:
        best = explainer(additive(), "omenn")

        def sunk(images: Tensor, targets: Tensor) -> Tensor:
            """The same order of parts, but what lies around them is far below zero."""
            maps = best(images, targets)
            maps[(targets % 2 == 0), -1, -1] = -1000.0
            return maps

        found = funnybirds(sunk, exact)
        assert found.counted["maps whose sum is not positive"] == COUNT // 2
        even = exact.labels % 2 == 0
        some = even & ~found.curves["distractibility"][:, 0].isnan()
        assert int(some.sum()) > 0
        # every part and object lies above a negative number
        assert (found.curves["distractibility"][some] == 0).all()
        assert (found.curves["csdc"][even] == 1).all()
        assert (found.curves["csdc"][~even, -1] < 1).all()
        repaired = funnybirds(sunk, exact, positive=True)
        assert repaired.values["distractibility"] == 1
        assert "maps whose sum is not positive" not in repaired.counted

    def test_maps_that_are_not_finite_count_as_zero(self, exact: Responses) -> None:
        broken = funnybirds(lambda x, y: x.sum(1) * NAN, exact)
        zero = funnybirds(lambda x, y: x.sum(1) * 0, exact)
        assert broken.values == zero.values
        usable = int((~zero.target_sensitivity.isnan()).sum())
        assert broken.counted["maps that are not finite"] == COUNT + 2 * usable
        assert zero.counted["constant maps"] == COUNT + 2 * usable
        for found in (broken, zero):
            assert found.counted["maps whose sum is not positive"] == COUNT
            assert found.values["single_deletion"] == 0.5
            assert found.values["csdc"] == 0
            assert found.values["distractibility"] == 1

    def test_what_is_counted_for_the_predicted_class(self, mixed: Responses) -> None:
        found = funnybirds(lambda x, y: -x.sum(1), mixed)
        wrong = int((mixed.predicted != mixed.labels).sum())
        assert found.counted["pictures classified wrong, not in csdc"] == wrong > 0
        assert found.counted["maps whose sum is not positive"] == COUNT + wrong

    def test_a_model_that_is_never_right(self, exact: Responses) -> None:
        labels = (exact.labels + 1) % 8
        found = funnybirds(random, replace(exact, labels=labels))
        assert accuracy(replace(exact, labels=labels)).mean == 0
        assert math.isnan(found.values["csdc"])
        assert math.isnan(found.values["mean"])
        assert found.counted["pictures classified wrong, not in csdc"] == COUNT

    @pytest.mark.parametrize(
        ("dilation", "text"),
        [
            (2, "dilation must be odd, so that masks grow to all sides alike"),
            (0, "dilation must be an integer"),
            (1.5, "dilation must be an integer"),
        ],
    )
    def test_dilations_refused(self, exact: Responses, dilation: Any, text: str) -> None:
        with pytest.raises(InputError, match=text):
            funnybirds(random, exact, dilation=dilation)

    def test_masks_need_not_grow(self, exact: Responses) -> None:
        found = funnybirds(explainer(additive(), "omenn"), exact, dilation=1)
        assert torch.equal(found.ranked[:, 2], exact.masks.sum((2, 3)).double())
        assert found.values["single_deletion"] == 1


class TestResult:
    def test_intervals_hold_the_values_and_come_from_a_seed(self, mixed: Responses) -> None:
        found = funnybirds(explainer(Mixed(), "omenn"), mixed)
        intervals = found.intervals(seed=1, resamples=100)
        assert intervals.keys() == found.values.keys()
        for name, (low, high) in intervals.items():
            assert low <= found.values[name] <= high, name
        assert intervals == found.intervals(seed=1, resamples=100)
        assert intervals != found.intervals(seed=2, resamples=100)

    def test_the_threshold_is_chosen_anew_for_every_resample(self, mixed: Responses) -> None:
        found = funnybirds(odd_maps, mixed)
        rows = torch.tensor([0] * 10 + [5] * 10)
        alone = found.of(rows)
        best = [
            (alone["csdc"] + alone["pc"] + alone["dc"]) / 3 + alone["distractibility"],
            *(
                sum(float(found.curves[n][rows].nanmean(0)[k]) for n in ("csdc", "pc", "dc")) / 3
                + float(found.curves["distractibility"][rows].nanmean(0)[k])
                for k in range(80)
            ),
        ]
        assert best[0] == pytest.approx(max(b for b in best[1:] if not math.isnan(b)))

    def test_words(self, exact: Responses) -> None:
        found = funnybirds(explainer(additive(), "omenn"), exact)
        assert repr(found) == (
            "FunnyBirdsScore(completeness=0.979, correctness=1.000, contrastivity=1.000, "
            "mean=0.993, 24 pictures)"
        )

    def test_ticks_and_thresholds(self, exact: Responses) -> None:
        ticks: list[int] = []
        funnybirds(random, exact, tick=lambda: ticks.append(1))
        assert len(ticks) == 4
        assert len(THRESHOLDS) == 80
        assert (float(THRESHOLDS[0]), float(THRESHOLDS[-1])) == (0.01, 0.5)

    def test_chunks_do_not_matter(self, mixed: Responses) -> None:
        one, other = (funnybirds(odd_maps, mixed, chunk=chunk) for chunk in (1, 24))
        assert one.values == other.values
        assert one.counted == other.counted


@pytest.mark.parametrize("none", ["csdc", "distractibility"])
def test_the_threshold_is_chosen_by_what_has_a_value(none: str) -> None:
    """No picture classified right, or none where something is irrelevant."""
    flat = torch.full((4, len(THRESHOLDS)), 0.2, dtype=torch.float64)
    best = flat.clone()
    best[:, 5] = 0.9
    curves = {"csdc": flat, "pc": best, "dc": flat, "distractibility": flat}
    curves[none] = torch.full_like(flat, math.nan)
    score = FunnyBirdsScore(
        curves=curves,
        single_deletion=flat[:, 0],
        target_sensitivity=flat[:, 0],
        ranked=torch.rand(4, 3, 5, dtype=torch.float64),
        counted={},
    )
    assert score.threshold == pytest.approx(float(THRESHOLDS[5]))
    assert score.values["pc"] == pytest.approx(0.9)
    assert math.isnan(score.values[none])
