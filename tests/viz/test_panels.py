"""What is shown of one result: which panels, with which sums, on which scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import omenn
from omenn import Explanation
from omenn.viz.heatmaps import overlay, scale_of, signed_rgb
from omenn.viz.panels import Case, case_of, number, panels, shortened
from refusals import refused

MakeCase = Callable[..., Case]


def test_all_panels_in_order(case: MakeCase) -> None:
    shown = panels(case())
    assert [panel.key for panel in shown] == ["input", "c", "weight", "bias", "overlay", "contrast"]
    assert all(panel.sentence.endswith(".") for panel in shown)
    assert all(panel.smoothed is None for panel in shown)


def test_the_sums_add_up(case: MakeCase) -> None:
    given = case()
    totals = {panel.key: panel.total for panel in panels(given)}
    output = float(given.explanation.output)
    assert totals["c"] == pytest.approx(output, abs=1e-5)
    assert totals["weight"] + totals["bias"] == pytest.approx(output, abs=1e-5)
    assert totals["contrast"] == pytest.approx(float(given.contrast.output), abs=1e-5)
    assert totals["input"] is None
    assert totals["overlay"] is None


def test_parts_of_one_logit_share_a_scale(case: MakeCase) -> None:
    given = case()
    views = {panel.key: panel.exact for panel in panels(given)}
    scale = views["c"].scale
    assert scale == views["weight"].scale == views["bias"].scale
    assert scale != views["contrast"].scale
    bias = given.explanation.bias[0]
    assert np.array_equal(views["bias"].pixels, signed_rgb(bias, scale))


def test_smoothed_views(case: MakeCase) -> None:
    shown = {panel.key: panel for panel in panels(case(), sigma=1.0)}
    assert shown["input"].smoothed is None
    assert shown["overlay"].smoothed is None
    assert "smoothed with σ = 1," in shown["overlay"].sentence
    for key in ("c", "weight", "bias", "contrast"):
        assert shown[key].smoothed is not None
        assert not np.array_equal(shown[key].smoothed.pixels, shown[key].exact.pixels)


def test_without_picture_and_rival(case: MakeCase) -> None:
    shown = panels(case(image=None, contrast=None))
    assert [panel.key for panel in shown] == ["c", "weight", "bias"]


def test_constants_that_are_kept_apart_have_no_map(network: nn.Module, case: MakeCase) -> None:
    apart = omenn.explain(network, torch.randn(1, 3, 16, 16), 1, bias="separate")
    shown = panels(case(explanation=apart, contrast=None))
    assert [panel.key for panel in shown] == ["input", "weight", "overlay"]
    assert shown[1].note == f"and {number(float(apart.bias_share))} from constants, kept separate"
    assert shown[2].title == "C_w ⊙ X over input"


class TestOtherMethods:
    """Nothing of another method is called C, and no part is shown that it does not have."""

    def test_without_constants_there_is_the_map_alone(
        self, network: nn.Module, case: MakeCase
    ) -> None:
        result = omenn.explain(network, torch.randn(1, 3, 16, 16), 1, method="abslrp")
        shown = panels(case(explanation=result, contrast=None))
        assert [panel.key for panel in shown] == ["input", "c", "overlay"]
        assert [panel.title for panel in shown] == ["Input", "R", "R over input"]
        assert "in units of abslrp: not parts of the logit" in shown[1].sentence
        assert shown[1].total == pytest.approx(float(result.total), abs=1e-6)

    def test_with_constants_there_are_its_parts(self, network: nn.Module, case: MakeCase) -> None:
        result = omenn.explain(network, torch.randn(1, 3, 16, 16), 1, method="libragrad")
        shown = panels(case(explanation=result, contrast=None))
        titles = [panel.title for panel in shown]
        assert titles == ["Input", "R", "R of the input", "R of constants", "R over input"]
        assert shown[2].total + shown[3].total == pytest.approx(shown[1].total, abs=1e-5)

    def test_a_changed_map_stands_beside_the_one_before(self, case: MakeCase) -> None:
        given = case(contrast=None)
        changed = given.explanation.processed("gaussian:2")
        shown = panels(case(explanation=changed, before=given.explanation, contrast=None))
        assert [panel.key for panel in shown] == ["input", "c", "before", "overlay"]
        assert shown[1].sentence.endswith("After: gaussian:2.")
        assert shown[1].exact.scale == shown[2].exact.scale
        assert shown[1].total == pytest.approx(shown[2].total, abs=1e-5)
        alone = panels(case(explanation=changed, contrast=None))
        assert [panel.key for panel in alone] == ["input", "c", "overlay"]


class TestReadable:
    """The readable map comes first, over the picture, on a scale of its own, with the same sum."""

    def test_the_order(self, pair: Case) -> None:
        shown = panels(pair, sigma=1.0)
        keys = [panel.key for panel in shown]
        assert keys == ["readable", "input", "contrast", "c", "weight", "bias"]
        assert shown[0].title == "What speaks for Larkolin"
        assert "R, the readable map (omenn-clear): what each location adds" in shown[0].sentence
        assert [panel.smoothed is None for panel in shown] == [True] * 3 + [False] * 3

    def test_both_maps_have_the_sum(self, pair: Case) -> None:
        totals = {panel.key: panel.total for panel in panels(pair)}
        output = float(pair.explanation.output)
        assert totals["readable"] == pytest.approx(output, abs=1e-5)
        assert totals["c"] == pytest.approx(output, abs=1e-5)
        assert pair.contrast is not None
        assert totals["contrast"] == pytest.approx(float(pair.contrast.output), abs=1e-5)

    def test_it_lies_over_the_picture_on_its_own_scale(self, pair: Case) -> None:
        views = {panel.key: panel.exact for panel in panels(pair)}
        assert pair.readable is not None
        assert pair.image is not None
        matrix = pair.readable.matrix[0]
        assert views["readable"].over
        assert views["readable"].scale == scale_of(matrix) != views["c"].scale
        assert np.array_equal(views["readable"].pixels, overlay(pair.image, matrix))

    def test_without_a_picture_it_is_drawn_alone(self, pair: Case) -> None:
        assert pair.readable is not None
        shown = panels(dataclasses.replace(pair, image=None))
        assert [panel.key for panel in shown] == ["readable", "contrast", "c", "weight", "bias"]
        assert np.array_equal(shown[0].exact.pixels, signed_rgb(pair.readable.matrix[0]))

    def test_alone_it_is_no_map_that_was_processed(self, pair: Case) -> None:
        assert pair.readable is not None
        assert len(pair.readable.processing) == pair.readable.own_steps == 1
        alone = dataclasses.replace(pair, explanation=pair.readable, readable=None, contrast=None)
        titles = [panel.title for panel in panels(alone)]
        assert titles == ["Input", "R", "R over input"]
        changed = dataclasses.replace(alone, explanation=pair.readable.processed("gaussian:1"))
        assert [panel.title for panel in panels(changed)][1] == "R, processed"
        assert changed.explanation.changed == ("gaussian:1",)


def test_only_pictures_have_pixels(network: nn.Module, case: MakeCase) -> None:
    shown = {panel.key: panel.sentence for panel in panels(case())}
    assert shown["weight"].startswith("Through the pixels: each pixel times the weight")
    columns = omenn.explain(nn.Linear(5, 2).eval(), torch.randn(1, 5), 0)
    (sentence,) = [panel.sentence for panel in panels(case_of(columns)) if panel.key == "weight"]
    assert sentence.startswith("Through the input: each of its values times the weight")


class TestCaseOf:
    def test_the_input_is_stretched_to_its_range(self, explanation: Explanation) -> None:
        image = case_of(explanation, 1).image
        assert image is not None
        assert (image.shape, image.min(), image.max()) == ((16, 16, 3), 0, 255)

    def test_an_input_without_a_picture(self) -> None:
        result = omenn.explain(nn.Linear(5, 2).eval(), torch.randn(1, 5))
        assert case_of(result).image is None

    @pytest.mark.parametrize("index", [2, -3])
    def test_samples_that_are_not_there(self, explanation: Explanation, index: int) -> None:
        with refused("index", str(index)):
            case_of(explanation, index)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 4, "0"),
        (-12.3456, 4, "−12.35"),
        (1234567.0, 4, "1.235·10⁶"),
        (0.00012345, 2, "1.2·10⁻⁴"),
        (-1e-7, 4, "−1·10⁻⁷"),
        (float("nan"), 4, "nan"),
    ],
)
def test_number(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize("letters", [1, 2, 3, 8, 30])
def test_shortened(letters: int) -> None:
    text = "a long name of a picture.png"
    short = shortened(text, letters)
    assert len(short) == min(letters, len(text))
    assert short == text or "…" in short
