"""Several methods side by side: their scales, whose numbers set a common one, other units."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn

import omenn
from omenn.modalities.image.pictures import Pictures
from omenn.modalities.image.preprocessing import Preprocessing
from omenn.viz.compare_figure import compare_figure, compare_png
from omenn.viz.compare_page import compare_page
from omenn.viz.comparison import (
    Answer,
    Cell,
    Comparison,
    Row,
    own_views,
    reference,
    shared_views,
    views_of,
)
from omenn.viz.heatmaps import scale_of, signed_rgb
from omenn.viz.panels import Case, Panel, View

MAP = np.random.default_rng(0).normal(size=(8, 8))


@functools.cache
def one() -> omenn.Explanation:
    return omenn.explain(nn.Flatten().eval(), torch.ones(1, 1, 1, 1), 0)


def cell(values: np.ndarray, promise: str = "none", **fields: object) -> Cell:
    matrix = torch.from_numpy(np.asarray(values))[None]
    found = one().with_matrix(matrix, promise=promise, method="abslrp")
    return Cell(Case("a.png", "net", "cat", found, **fields))  # type: ignore[arg-type]


def row(name: str, promise: str, values: np.ndarray | None = MAP, **fields: object) -> Row:
    found = Cell(error="it is <i>broken</i>.") if values is None else cell(values, promise)
    return Row(name, promise, f"about {name}", "a paper", found, **fields)  # type: ignore[arg-type]


def comparison(*rows: Row, **fields: object) -> Comparison:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    words: dict[str, object] = {"name": "a.png", "model": "net", "target": "cat", "logit": 2.0}
    return Comparison(image=image, rows=rows, **(words | fields))  # type: ignore[arg-type]


class TestScale:
    def test_logits_share_the_bar_of_the_exact_map(self) -> None:
        views = shared_views([row("a", "approximate", 10 * MAP), row("b", "exact")])
        assert views["a"].scale == views["b"].scale == scale_of(MAP)
        assert np.array_equal(views["a"].pixels, signed_rgb(10 * MAP, scale_of(MAP)))

    @pytest.mark.parametrize("factor", [1e-6, 3.0, 1e6])
    def test_another_unit_is_brought_to_the_same_mass(self, factor: float) -> None:
        views = shared_views([row("a", "exact"), row("b", "none", factor * MAP)])
        assert np.array_equal(views["a"].pixels, views["b"].pixels)
        assert views["b"].scale == pytest.approx(factor * scale_of(MAP))

    @pytest.mark.parametrize("promise", ["exact", "approximate", "none"])
    def test_a_coarser_map_is_drawn_by_area(self, promise: str) -> None:
        even = np.repeat([0.25, 1.0], 4)[:, None].repeat(8, 1)
        coarse = np.array([[4.0, 4.0], [16.0, 16.0]])  # the same sum, in sixteenth of the entries
        views = shared_views([row("a", "exact", even), row("b", promise, coarse)])
        assert np.array_equal(views["b"].pixels[0, 0], views["a"].pixels[0, 0])
        assert not np.array_equal(views["b"].pixels[0, 0], views["b"].pixels[1, 0])

    @pytest.mark.parametrize("promise", ["exact", "none"])
    def test_a_map_of_zeros_is_white(self, promise: str) -> None:
        views = shared_views([row("a", promise, 0 * MAP), row("b", "none", 0 * MAP)])
        assert all((view.pixels == 255).all() for view in views.values())
        views = shared_views([row("a", "exact", MAP), row("b", promise, 0 * MAP)])
        assert (views["b"].pixels == 255).all()

    def test_the_reference_is_the_first_that_promises_most(self) -> None:
        rows = [row("a", "none"), row("b", "exact", None), row("c", "approximate")]
        assert reference(rows) == rows[2]
        assert set(shared_views(rows)) == {"a", "c"}
        assert reference([rows[1]]) is None
        assert shared_views([rows[1]]) == {}

    def test_answers_of_one_method_share_a_scale_of_their_own(self) -> None:
        cells = [cell(MAP), row("a", "exact", None).cell, cell(2 * MAP)]
        first, two, three = own_views(cells)
        assert first is not None
        assert three is not None
        assert two is None
        assert first.scale == three.scale == scale_of(MAP, 2 * MAP)

    def test_smoothing_keeps_one_scale(self) -> None:
        views = shared_views([row("a", "exact"), row("b", "none", 5 * MAP)], sigma=1.0)
        assert np.array_equal(views["a"].pixels, views["b"].pixels)
        assert views["a"].scale != scale_of(MAP)


class Words:
    """A modality that draws one green cell, whatever the numbers are."""

    def views(self, case: Case, *, sigma: float = 0.0) -> list[Panel]:
        green = np.full((1, 1, 3), (0, 255, 0), dtype=np.uint8)
        return [Panel("words", "Words", "Words.", View(green, case.scale))]

    def units(self, *_: object) -> list[object]:
        return []


class TestOwnScale:
    """The default: a map is drawn on its own numbers, however small the others' are."""

    def test_a_map_of_little_mass_is_not_white(self) -> None:
        given = comparison(row("a", "exact"), row("b", "approximate", 1e-3 * MAP))
        views = views_of(given)
        assert np.array_equal(views["a"].pixels, views["b"].pixels)
        assert views["b"].scale == pytest.approx(1e-3 * scale_of(MAP))
        shared = views_of(dataclasses.replace(given, common_scale=True))
        assert shared["b"].scale == shared["a"].scale == scale_of(MAP)
        assert (shared["b"].pixels >= 250).all()

    def test_zero_stays_white(self) -> None:
        sparse = np.zeros((8, 8))
        sparse[3, 4] = 1e-6
        (view,) = views_of(comparison(row("a", "none", sparse))).values()
        assert tuple(view.pixels[0, 0]) == (255, 255, 255)
        assert view.scale is not None
        assert 0 < view.scale <= 1e-6
        assert tuple(view.pixels[3, 4]) == tuple(signed_rgb([[1.0]])[0, 0])

    def test_the_parts_of_a_map_do_not_set_its_scale(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 2)).eval()
        found = omenn.explain(net, torch.randn(1, 1, 8, 8), 0)
        view = own_views([Cell(Case("a", "net", "cat", found))])[0]
        assert view is not None
        assert view.scale == scale_of(found.matrix[0])

    def test_a_modality_draws_its_maps(self) -> None:
        (view,) = own_views([cell(MAP, modality=Words())])
        assert view is not None
        assert (view.pixels.shape, view.scale) == ((1, 1, 3), scale_of(MAP))

    def test_tokens_of_a_picture_are_its_grid(self) -> None:
        pictures = Pictures(Preprocessing(size=(8, 8)))
        (view,) = own_views([cell(np.arange(17.0), grid=(4, 4), modality=pictures)])
        assert view is not None
        assert view.pixels.shape == (5, 4, 3)  # the class token above it


class TestPage:
    @pytest.mark.parametrize("common", [False, True])
    def test_the_scale_that_is_asked_for_is_shown_first(self, common: bool) -> None:
        html = compare_page(comparison(row("a", "exact"), common_scale=common))
        chosen = "scale-one" if common else "scale-own"
        assert html.count('name="scale"') == 2
        assert f'id="{chosen}" checked' in html
        assert html.count(" checked>") == 1

    def test_the_scale_is_explained_as_far_as_it_matters(self) -> None:
        words = "It is rescaled to"
        assert words not in compare_page(comparison(row("a", "exact"), row("b", "approximate")))
        html = compare_page(comparison(row("a", "exact"), row("b", "none", np.ones((2, 2)))))
        assert words in html
        assert "counts by area" in html

    def test_one_answer_has_no_tabs(self) -> None:
        html = compare_page(comparison(row("a", "exact")))
        assert 'class="tabs"' not in html
        assert 'id="view-smoothed"' not in html[html.index("<body>") :]

    def test_words_from_outside_are_escaped(self) -> None:
        evil = "<script>alert(1)</script>"
        bad = row(evil, "none", None, classes=(row(evil, "none", None).cell,), options=evil)
        good = dataclasses.replace(row(evil + "2", "none"), classes=bad.classes)
        html = compare_page(
            comparison(
                bad, good, name=evil, model=evil, target=evil, warning=evil, footer=evil,
                answers=[Answer(0, evil, 1.0, 0.5)], sigma=1.0,
            )
        )  # fmt: skip
        assert "<script>alert" not in html
        assert "<i>broken" not in html

    def test_a_class_that_failed_alone_says_so_in_its_place(self) -> None:
        cells = (row("a", "exact").cell, row("a", "exact", None).cell)
        answers = [Answer(0, "cat", 1.0, 0.6), Answer(1, "dog", 0.5, 0.0004)]
        html = compare_page(comparison(row("a", "exact", classes=cells), answers=answers))
        assert html.count('class="reason"') == 1
        assert "&lt; 0.1 %" in html or "< 0.1 %" in html


def test_the_figure_holds_every_map_and_every_reason() -> None:
    given = comparison(row("good", "none"), row("bad", "none", None), warning="Random weights.")
    drawn = compare_figure(given)
    drawn.draw_without_rendering()
    texts = [text.get_text() for text in drawn.texts]
    for axes in drawn.axes:
        texts += [axes.get_title("left"), *(text.get_text() for text in axes.texts)]
    words = " ".join(texts)
    for part in ("Input", "good", "bad", "No map. It is", "Random weights.", "a.png: cat"):
        assert part in words
    pictures = [np.asarray(image.get_array()) for axes in drawn.axes for image in axes.images]
    view = views_of(given)["good"]
    assert any(np.array_equal(view.pixels, picture) for picture in pictures)
    assert compare_png(given).startswith(b"\x89PNG")
