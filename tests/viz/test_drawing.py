"""Every entry of a map is drawn once, whatever its shape: in numbers, PNG, HTML, and processed."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import omenn
from omenn import Explanation
from omenn.errors import InputError
from omenn.viz import drawn
from omenn.viz.figure import figure
from omenn.viz.flat_map import NOTHING, drawing_of
from omenn.viz.heatmaps import colours, scale_of
from omenn.viz.panels import case_of, panels

Shape = tuple[int, ...]

SHAPES: list[Shape] = [
    (1,), (5,), (16,), (17,), (30,), (197,), (400,), (1, 1), (1, 30), (30, 1), (4, 9), (7, 7),
    (1, 2, 3), (2, 2, 2), (7, 5, 3), (9, 2, 2), (2, 3, 4, 5), (1, 4, 1, 6),
]  # fmt: skip


def entries(values: np.ndarray) -> np.ndarray:
    return np.sort(values[~np.isnan(values)])


def explained(*shape: int, channel_dim: int | None = None) -> Explanation:
    """Of a linear network on inputs (2, *shape)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2)).double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64)
    return omenn.explain(net, x, 1, channel_dim=channel_dim)


# one input of each kind: a table, tokens, a signal, a picture, a volume
INPUTS: list[Shape] = [(30,), (17, 3), (400, 1), (3, 6, 5), (1, 5, 4, 6)]


class TestNumbers:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_each_entry_stands_once(self, shape: Shape) -> None:
        matrix = torch.randperm(math.prod(shape)).reshape(shape).double() - 3
        drawing = drawing_of(matrix)
        assert np.array_equal(entries(drawing.array), np.sort(matrix.flatten().numpy()))
        assert drawing.pixels(5.0).shape == (*drawing.array.shape, 3)

    @given(
        st.lists(st.integers(1, 9), min_size=0, max_size=4),
        st.integers(0, 2**31 - 1),
        st.floats(0, 3),
    )
    @settings(deadline=None, max_examples=60)
    def test_the_sum_is_that_of_the_map(self, shape: list[int], seed: int, sigma: float) -> None:
        matrix = torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(seed))
        found = drawing_of(matrix).smoothed(sigma).array
        assert np.nansum(found) == pytest.approx(float(matrix.sum()), abs=1e-9)
        assert (~np.isnan(found)).sum() == matrix.numel()

    @given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9), st.floats(0, 2))
    @settings(deadline=None, max_examples=40)
    def test_tokens_in_front_of_a_grid_stay(self, h: int, w: int, n: int, sigma: float) -> None:
        matrix = torch.randn(n + h * w, dtype=torch.float64, generator=torch.manual_seed(h))
        drawing = drawing_of(matrix, (h, w)).smoothed(sigma)
        assert np.nansum(drawing.array) == pytest.approx(float(matrix.sum()), abs=1e-9)
        assert np.array_equal(drawing.front, matrix[:n].numpy())
        assert np.array_equal(drawing.array.flatten()[:n], matrix[:n].numpy())

    def test_a_row_stays_a_row_and_a_picture_a_picture(self) -> None:
        assert drawing_of(torch.ones(16)).array.shape == (1, 16)
        assert drawing_of(torch.ones(25)).array.shape == (1, 25)
        assert drawing_of(torch.ones(3, 5)).array.shape == (3, 5)

    def test_slices_lie_line_by_line(self) -> None:
        volume = torch.arange(12.0).reshape(3, 2, 2)
        empty = float("nan")
        expected = [
            [0, 1, empty, 4, 5],
            [2, 3, empty, 6, 7],
            [empty] * 5,
            [8, 9, empty, empty, empty],
            [10, 11, empty, empty, empty],
        ]
        assert np.array_equal(drawing_of(volume).array, np.array(expected), equal_nan=True)
        assert drawing_of(volume).words == "3 slices along the first of three axes, line by line"

    def test_a_class_token_is_above_its_grid_where_it_is_said(self) -> None:
        drawing = drawing_of(torch.arange(7.0), (2, 3))
        empty = float("nan")
        expected = [[0, empty, empty], [1, 2, 3], [4, 5, 6]]
        assert np.array_equal(drawing.array, np.array(expected), equal_nan=True)
        assert (drawing.pixels(6.0)[0, 1:] == NOTHING).all()
        assert scale_of(drawing.entries(), quantile=1.0) == 6

    @pytest.mark.parametrize(
        ("shape", "grid"),
        [((1, 1, 1, 1, 1), None), ((0,), None), ((3, 0), None), ((5,), (2, 3)), ((6, 2), (2, 3))],
    )
    def test_what_has_no_picture(self, shape: Shape, grid: tuple[int, int] | None) -> None:
        with pytest.raises(InputError):
            drawing_of(torch.ones(shape), grid)


class TestPictures:
    @pytest.mark.parametrize("shape", INPUTS, ids=str)
    def test_heatmap_and_its_numbers(self, shape: Shape) -> None:
        e = explained(*shape)
        for index in (0, 1, -1):
            values = drawn(e, index)
            assert np.nansum(values) == pytest.approx(float(e.output[index]), abs=1e-9)
            picture = e.heatmap(index, scale=100.0)
            assert picture.shape == (*values.shape, 3)
            levels = np.rint(np.nan_to_num(values) / 100 * 127).astype(int) + 127
            there = ~np.isnan(values)
            assert np.array_equal(picture[there], colours()[levels][there])

    @pytest.mark.parametrize("shape", INPUTS, ids=str)
    def test_png_and_html_show_the_same_entries(self, shape: Shape) -> None:
        e = explained(*shape)
        shown = panels(case_of(e))
        axes = figure(case_of(e)).axes
        there = [np.asarray(image.get_array()) for one in axes for image in one.images]
        html = _pictures(e)
        for panel in shown:
            assert any(np.array_equal(panel.exact.pixels, one) for one in there), panel.key
            assert any(np.array_equal(panel.exact.pixels, one) for one in html), panel.key
        (whole,) = [panel for panel in shown if panel.key == "c"]
        assert whole.total == pytest.approx(float(e.output[0]), abs=1e-9)
        expected = drawing_of(e.matrix[0]).pixels(whole.exact.scale or 1.0)
        assert np.array_equal(whole.exact.pixels, expected)

    @pytest.mark.parametrize(
        ("shape", "steps", "options"),
        [
            ((30,), ["clamp:0.1"], {}),
            ((30,), ["mad"], {}),
            ((17, 3), ["clean"], {"sequence": True}),
            ((17, 3), ["clean"], {"grid": (4, 4)}),
            ((400, 1), ["gaussian:3"], {"sequence": True}),
            ((3, 6, 5), ["clean"], {}),
            ((1, 5, 4, 6), ["clean"], {}),
        ],
        ids=str,
    )
    def test_processed(self, shape: Shape, steps: list[str], options: dict[str, Any]) -> None:
        e = explained(*shape).processed(*steps, **options)
        assert e.exact
        grid = options.get("grid")
        for index in range(2):
            found = drawn(e, index, grid=grid)
            assert np.nansum(found) == pytest.approx(float(e.output[index]), abs=1e-8)

    def test_columns_of_a_table_are_not_smoothed_unless_it_is_said_how_they_lie(self) -> None:
        with pytest.raises(InputError):
            explained(25).processed("gaussian:1")

    def test_a_row_is_stretched_to_be_seen(self, tmp_path: Any) -> None:
        e = explained(400)
        views = {panel.key: panel.exact for panel in panels(case_of(e))}
        assert views["c"].pixels.shape == (1, 400, 3)
        assert views["c"].form == "strip"
        drawn_ = figure(case_of(e))
        heights = {one.get_position().height for one in drawn_.axes if one.get_title("right")}
        assert min(heights) * drawn_.get_size_inches()[1] > 0.3

    def test_tokens_of_a_picture_lie_over_it_where_their_grid_is_given(self) -> None:
        e = dataclasses.replace(explained(17, 3))
        image = np.zeros((8, 8, 3), dtype=np.uint8)
        keys = [panel.key for panel in panels(case_of(e, image=image))]
        assert keys == ["input", "c", "weight", "bias"]
        keys = [panel.key for panel in panels(case_of(e, image=image, grid=(4, 4)))]
        assert keys == ["input", "c", "weight", "bias", "overlay"]
        shown = panels(case_of(e, image=image, grid=(4, 4)))[1]
        assert shown.exact.pixels.shape == (5, 4, 3)
        assert shown.total == pytest.approx(float(e.output[0]), abs=1e-9)
        assert shown.note.startswith("above it 1 token in front: ")


class Two(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.sum(1, keepdim=True) + 2 * b.sum((1, 2, 3))[:, None]


class TestSeveralInputs:
    def test_one_is_named(self, tmp_path: Any) -> None:
        x = {"a": torch.randn(1, 30), "b": torch.randn(1, 1, 4, 5)}
        e = omenn.explain(Two().eval(), x, 0)
        assert e.heatmap(input="a").shape == (1, 30, 3)
        assert np.array_equal(drawn(e, input="b"), e.matrix["b"][0].double().numpy())
        assert e.save(tmp_path / "b.png", input="b").stat().st_size > 1000
        html = e.save(tmp_path / "a.html", input="a").read_text()
        assert "one row, entries 0 to 29" in html
        for which in (None, "c", 0):
            with pytest.raises(InputError):
                e.heatmap(input=which)

    def test_an_input_without_a_map_is_passed_over(self) -> None:
        e = explained(30)
        for structure in ((None, e.matrix), {"x": e.matrix}, {"ids": None, "x": e.matrix}):
            one = dataclasses.replace(e, matrix=structure)
            assert np.array_equal(drawn(one), drawn(e))


def _pictures(e: Explanation) -> list[np.ndarray]:
    from omenn.viz.page import Report, page

    html = page(Report("title", "", [case_of(e)]))
    coded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(c))).convert("RGB")) for c in coded]
