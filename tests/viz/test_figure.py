"""The figure: the pictures on it, its words, and no trace in the user's own plots."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import omenn
from omenn import Explanation
from omenn.viz.figure import figure, figure_png
from omenn.viz.page import Report, page
from omenn.viz.panels import Case, panels

MakeCase = Callable[..., Case]


def words(drawn: Figure) -> str:
    texts = [text.get_text() for text in drawn.texts]
    for axes in drawn.axes:
        texts += [axes.get_title("left"), axes.get_title("right")]
        texts += [text.get_text() for text in axes.texts]
    return "\n".join(texts)


def pictures(drawn: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in drawn.axes for image in axes.images]


def test_every_panel_is_on_it(case: MakeCase) -> None:
    given = case()
    drawn = pictures(figure(given))
    for panel in panels(given):
        assert any(np.array_equal(panel.exact.pixels, picture) for picture in drawn), panel.key


def test_the_words(case: MakeCase) -> None:
    text = words(figure(case(warning="Random weights, seed 0: nothing was learned.")))
    for part in (
        "bird.png: Larkolin",
        "birds-resnet · logit",
        "exact",
        "Random weights, seed 0: nothing was learned.",
        "Why not Noomi?",
        "sum ",
        "Exact is not the same as faithful",
    ):
        assert part in text
    assert "Gaussian" not in text


def test_the_readable_map_is_large(pair: Case) -> None:
    drawn = figure(pair)
    for panel in panels(pair):
        assert any(np.array_equal(panel.exact.pixels, one) for one in pictures(drawn)), panel.key
    sizes = {axes.get_title("left"): axes.get_position().width for axes in drawn.axes}
    assert sizes["What speaks for Larkolin"] > 2 * sizes["Input"]
    assert "R and C both add up to the logit" in words(drawn).replace("\n", " ")


def test_the_readable_map_with_a_row_of_smoothed_ones(pair: Case) -> None:
    plain, soft = figure(pair), figure(pair, sigma=1.0)
    assert soft.get_figheight() > plain.get_figheight()
    assert words(soft).split("\n").count("smoothed") == 3


def test_smoothing_adds_a_row_and_says_so(case: MakeCase) -> None:
    plain, smoothed = figure(case()), figure(case(), sigma=2.0)
    assert "Smoothed by a Gaussian, σ = 2 entries, that keeps the sum." in words(smoothed)
    assert smoothed.get_size_inches()[1] > plain.get_size_inches()[1]
    assert len(pictures(smoothed)) > len(pictures(plain))


def test_an_inexact_result_says_so(inexact: Case) -> None:
    text = words(figure(inexact))
    assert "NOT EXACT" in text
    assert "≠ ΣC" in text


def test_what_is_not_in_the_picture_is_said_on_it(network: nn.Module, case: MakeCase) -> None:
    apart = omenn.explain(network, torch.randn(1, 3, 16, 16), 1, bias="separate")
    given = case(explanation=apart, contrast=None)
    assert panels(given)[1].note in words(figure(given))
    assert panels(given)[1].note in page(Report("title", "", [given]))


@pytest.mark.parametrize("name", ["$x_1$ costs 3$.png", "100 %.png", "a_b^c.png", "x" * 300])
def test_names_with_signs_of_the_mathematics(case: MakeCase, name: str) -> None:
    content = figure_png(case(name=name, target="a$b"))
    assert Image.open(io.BytesIO(content)).format == "PNG"


def test_nothing_of_a_figure_is_cut_off(case: MakeCase) -> None:
    drawn = figure(
        case(name="n" * 200, model="m" * 200, warning="Random weights, seed 0: nothing."), sigma=1.0
    )
    drawn.draw_without_rendering()
    width, height = drawn.get_size_inches() * drawn.dpi
    for text in [*drawn.texts, *(t for axes in drawn.axes for t in axes.texts)]:
        box = text.get_window_extent()
        assert box.x0 >= 0, text.get_text()
        assert box.y0 >= 0, text.get_text()
        assert box.x1 <= width, text.get_text()
        assert box.y1 <= height, text.get_text()


@pytest.mark.parametrize("method", ["abslrp", "epsilon", "libragrad"])
def test_of_another_method_nothing_is_cut_off_either(
    network: nn.Module, case: MakeCase, method: str
) -> None:
    result = omenn.explain(network, torch.randn(1, 3, 16, 16), 1, method=method)
    drawn = figure(case(explanation=result, contrast=None, name="n" * 200, model="m" * 200))
    text = words(drawn)
    assert f"by {method}" in text or "…" in text
    assert "ΣC" not in text
    drawn.draw_without_rendering()
    width = drawn.get_size_inches()[0] * drawn.dpi
    assert all(
        0 <= t.get_window_extent().x0 <= t.get_window_extent().x1 <= width for t in drawn.texts
    )


def test_plot_and_heatmap_of_an_explanation(explanation: Explanation) -> None:
    assert isinstance(explanation.plot(1, smooth=1.0), Figure)
    picture = explanation.heatmap(1, smooth=1.0)
    assert (picture.shape, picture.dtype) == ((16, 16, 3), np.uint8)


def test_pyplot_is_not_touched() -> None:
    code = (
        "import sys, torch, omenn\n"
        "e = omenn.explain(torch.nn.Flatten().eval(), torch.ones(1, 1, 4, 4), target=4)\n"
        "assert 'matplotlib' not in sys.modules\n"
        "e.plot()\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
