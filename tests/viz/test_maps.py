"""Signed maps: white zero, equal arms, one scale, smoothing that keeps the sum."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from omenn.viz.heatmaps import (
    LEVELS,
    as_matrix,
    colours,
    levels,
    overlay,
    png,
    scale_of,
    signed_rgb,
    smooth,
)
from refusals import refused

WHITE = (255, 255, 255)


class TestColours:
    def test_zero_is_white_and_nothing_else_is(self) -> None:
        table = colours()
        assert table.shape == (2 * LEVELS + 1, 3)
        assert [tuple(row) == WHITE for row in table].index(True) == LEVELS
        assert sum(tuple(row) == WHITE for row in table) == 1
        assert len(np.unique(table, axis=0)) == 2 * LEVELS + 1

    def test_red_is_positive_and_blue_negative(self) -> None:
        table = colours().astype(int)
        assert (table[LEVELS + 1 :, 0] >= table[LEVELS + 1 :, 2]).all()
        assert (table[:LEVELS, 2] >= table[:LEVELS, 0]).all()

    def test_both_arms_darken_steadily_and_alike(self) -> None:
        table = colours()
        weights = np.array([0.2126, 0.7152, 0.0722])
        light = np.where(
            table / 255 <= 0.04045, table / 3294.6, ((table / 255 + 0.055) / 1.055) ** 2.4
        )
        luminance = light @ weights
        blue, red = luminance[LEVELS::-1], luminance[LEVELS:]
        assert (np.diff(blue) < 0.004).all()
        assert (np.diff(red) < 0.004).all()
        assert np.abs(blue - red).max() < 0.09

    def test_the_table_cannot_be_changed_by_a_caller(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            colours()[0] = 0


class TestSignedRgb:
    def test_the_ends_and_beyond(self) -> None:
        pixels = signed_rgb([[-9.0, -1.0, 0.0, 1.0, 9.0]], scale=1.0)
        table = colours()
        assert np.array_equal(pixels[0], table[[0, 0, LEVELS, -1, -1]])

    def test_a_map_of_zeros_is_white(self) -> None:
        assert (signed_rgb(np.zeros((3, 4))) == 255).all()

    def test_a_sign_change_swaps_the_arms(self) -> None:
        matrix = np.random.default_rng(0).normal(size=(5, 6))
        assert np.array_equal(levels(matrix).astype(int), 2 * LEVELS - levels(-matrix).astype(int))

    def test_tensors_that_need_gradients_and_half_precision(self) -> None:
        matrix = torch.tensor([[1.0, -1.0]], requires_grad=True)
        assert np.array_equal(signed_rgb(matrix), signed_rgb(matrix.bfloat16()))

    @pytest.mark.parametrize(
        ("matrix", "got"),
        [
            (np.zeros(3), "(3,)"),
            (np.zeros((1, 2, 3)), "(1, 2, 3)"),
            (np.zeros((0, 3)), "(0, 3)"),
            ([[float("nan")]], "nan"),
            ([[float("inf")]], "inf"),
        ],
    )
    def test_what_is_no_map(self, matrix: object, got: str) -> None:
        with refused("matrix", got):
            signed_rgb(matrix)

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
    def test_scales_without_a_meaning(self, scale: float) -> None:
        with refused("scale", str(scale)):
            signed_rgb([[1.0]], scale)


class TestScale:
    def test_one_scale_for_several_maps(self) -> None:
        assert scale_of([[1.0]], [[-3.0]], quantile=1.0) == 3.0

    def test_a_few_extreme_entries_do_not_decide(self) -> None:
        matrix = np.ones((100, 100))
        matrix[0, 0] = 1e6
        assert scale_of(matrix) == 1.0

    def test_zeros_and_nearly_only_zeros(self) -> None:
        spike = np.zeros((100, 100))
        assert scale_of(spike) == 1.0
        spike[0, 0] = -4.0
        assert scale_of(spike) == 4.0


class TestSmooth:
    @given(st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 30.0), st.integers(0, 2**16))
    def test_the_sum_stays(self, height: int, width: int, sigma: float, seed: int) -> None:
        matrix = np.random.default_rng(seed).normal(size=(height, width))
        soft = smooth(matrix, sigma)
        assert soft.shape == matrix.shape
        assert abs(soft.sum() - matrix.sum()) < 1e-10 * (1 + np.abs(matrix).sum())

    def test_an_even_map_stays_even(self) -> None:
        assert np.allclose(smooth(np.full((6, 9), 2.5), 3.0), 2.5)

    def test_a_spike_in_the_middle_becomes_the_gaussian(self) -> None:
        spike = np.zeros((41, 41))
        spike[20, 20] = 1.0
        offsets = np.arange(-20, 21)
        bell = np.exp(-0.5 * (offsets / 2.0) ** 2)
        bell[np.abs(offsets) > 8] = 0
        bell /= bell.sum()
        assert np.allclose(smooth(spike, 2.0), np.outer(bell, bell))

    def test_the_border_reflects(self) -> None:
        """d c b a | a b c d: what leaves on the left comes back one entry later."""
        spike = np.zeros((1, 30))
        spike[0, 2] = 1.0
        far = np.zeros((1, 60))
        far[0, 32] = 1.0
        spread = smooth(far, 1.5)[0]
        folded = spread[30:] + spread[:30][::-1]
        assert np.allclose(smooth(spike, 1.5)[0], folded)

    def test_a_width_beyond_the_picture_spreads_evenly(self) -> None:
        matrix = np.random.default_rng(0).normal(size=(4, 7))
        assert np.allclose(smooth(matrix, 1e9), matrix.mean(), atol=0.02)
        assert smooth(matrix, 1e9).sum() == pytest.approx(matrix.sum())

    def test_none_at_zero(self) -> None:
        matrix = np.random.default_rng(0).normal(size=(3, 3))
        assert np.array_equal(smooth(matrix, 0.0), matrix)

    @pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
    def test_widths_without_a_meaning(self, sigma: float) -> None:
        with refused("the width of the smoothing", str(sigma)):
            smooth([[1.0]], sigma)


class TestOverlay:
    def test_zero_shows_the_pale_picture_and_a_full_entry_covers_it(self) -> None:
        image = np.full((4, 4, 3), 100, np.uint8)
        matrix = np.array([[0.0, 1.0], [0.0, -1.0]])
        pixels = overlay(image, matrix, 1.0)
        assert (pixels[:, :2] == pixels[0, 0]).all()
        assert pixels[0, 0, 0] == pixels[0, 0, 1] == pixels[0, 0, 2] > 100
        assert np.array_equal(pixels[0, 3], colours()[-1])
        assert np.array_equal(pixels[3, 3], colours()[0])

    def test_a_map_of_another_size_is_stretched(self) -> None:
        image = np.zeros((6, 9, 3), np.uint8)
        assert overlay(image, [[1.0]], 1.0).shape == (6, 9, 3)
        assert overlay(image, np.ones((12, 5)), 1.0).shape == (6, 9, 3)


class TestPng:
    @pytest.mark.parametrize("enlarge", [1, 3])
    def test_no_loss(self, enlarge: int) -> None:
        pixels = signed_rgb(np.random.default_rng(0).normal(size=(20, 30)))
        image = Image.open(io.BytesIO(png(pixels, enlarge=enlarge)))
        wanted = pixels.repeat(enlarge, 0).repeat(enlarge, 1)
        assert np.array_equal(np.asarray(image.convert("RGB")), wanted)
        assert image.mode == "P"

    def test_a_photograph_keeps_all_its_colours(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        image = Image.open(io.BytesIO(png(pixels)))
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


def test_as_matrix_is_double_precision() -> None:
    assert as_matrix(torch.ones(2, 2, dtype=torch.float16)).dtype == np.float64
