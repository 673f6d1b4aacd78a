"""Smoothing: columns that sum to one, against dense matrices, double loops and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from omenn.viz.heatmaps import smooth
from omenn.viz.smoothing import bilateral, default_sigma, gaussian
from refusals import refused


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def matrix_of(function: Callable[[Tensor], Tensor], height: int, width: int) -> Tensor:
    """The dense matrix of a linear map of pictures: column j is the image of entry j."""
    count = height * width
    basis = torch.eye(count, dtype=torch.float64).reshape(count, height, width)
    return function(basis).reshape(count, count).T


def dense(length: int, sigma: float, keep: bool) -> np.ndarray:
    """Entry by entry, every tap of every column walked to its place, mirror by mirror."""
    reach = math.ceil(4 * sigma)
    total = sum(math.exp(-0.5 * (o / sigma) ** 2) for o in range(-reach, reach + 1))
    kernel = np.zeros((length, length))
    for source in range(length):
        for offset in range(-reach, reach + 1):
            place = source + offset
            while keep and not 0 <= place < length:
                place = -1 - place if place < 0 else 2 * length - 1 - place
            if 0 <= place < length:
                kernel[place, source] += math.exp(-0.5 * (offset / sigma) ** 2) / total
    return kernel


class TestGaussian:
    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize(("height", "width", "sigma"), [(5, 7, 0.6), (4, 9, 2.0), (2, 3, 2.9)])
    def test_it_is_the_dense_matrix(
        self, height: int, width: int, sigma: float, keep: bool
    ) -> None:
        found = matrix_of(lambda x: gaussian(x, sigma, keep), height, width)
        wanted = np.kron(dense(height, sigma, keep), dense(width, sigma, keep))
        assert np.allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-15)

    @given(st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1), st.integers(0, 2**16))
    def test_the_sum_stays(self, height: int, width: int, share: float, seed: int) -> None:
        x = noise(2, height, width, seed=seed)
        y = gaussian(x, share * max(height, width))
        apart = (y - x).sum((1, 2)).abs()
        assert bool((apart < 1e-12 * x.abs().sum((1, 2))).all())

    def test_columns_and_rows_sum_to_one_and_without_it_only_less(self) -> None:
        kept = matrix_of(lambda x: gaussian(x, 1.3), 5, 6)
        assert torch.allclose(kept.sum(0), torch.ones(30).double(), rtol=1e-14)
        assert torch.allclose(kept.sum(1), torch.ones(30).double(), rtol=1e-14)
        lossy = matrix_of(lambda x: gaussian(x, 1.3, keep_sum=False), 5, 6)
        assert bool((lossy.sum(0) < 0.97).all())

    @pytest.mark.parametrize(("keep", "mode"), [(True, "reflect"), (False, "constant")])
    def test_scipy_says_the_same(self, keep: bool, mode: str) -> None:
        x = noise(1, 20, 31)
        wanted = ndimage.gaussian_filter(x[0].numpy(), 2.0, mode=mode, truncate=4.0)
        assert np.allclose(gaussian(x, 2.0, keep)[0].numpy(), wanted, rtol=1e-10, atol=1e-14)

    def test_inside_both_forms_agree(self) -> None:
        x = noise(1, 30, 30)
        a, b = gaussian(x, 1.5), gaussian(x, 1.5, keep_sum=False)
        assert torch.allclose(a[:, 6:-6, 6:-6], b[:, 6:-6, 6:-6], rtol=1e-12)
        assert not torch.allclose(a, b)

    @pytest.mark.parametrize("keep", [True, False])
    def test_flips_and_the_transpose_pass_through(self, keep: bool) -> None:
        x = noise(2, 9, 12)
        soft = gaussian(x, 2.2, keep)
        for axes in ((1,), (2,), (1, 2)):
            assert torch.allclose(gaussian(x.flip(axes), 2.2, keep), soft.flip(axes), rtol=1e-12)
        assert torch.allclose(gaussian(x.mT, 2.2, keep), soft.mT, rtol=1e-12)

    def test_samples_and_their_order_do_not_matter(self) -> None:
        x = noise(4, 8, 8)
        soft = gaussian(x, 1.0)
        assert torch.equal(gaussian(x[[2, 0, 3, 1]], 1.0), soft[[2, 0, 3, 1]])
        assert torch.equal(gaussian(x[1:2], 1.0), soft[1:2])
        assert torch.equal(gaussian(x[1], 1.0, batched=False), soft[1])

    def test_axes_in_front_of_the_picture_stay_apart(self) -> None:
        x = noise(2, 3, 6, 7)  # frames, or channels
        soft = gaussian(x, 1.0)
        assert torch.allclose(soft[:, 1], gaussian(x[:, 1], 1.0))

    def test_an_even_map_stays_even(self) -> None:
        x = torch.full((1, 6, 9), 2.5, dtype=torch.float64)
        assert torch.allclose(gaussian(x, 3.0), x, rtol=1e-14)

    def test_an_axis_of_one_entry_loses_nothing_either(self) -> None:
        x = noise(1, 1, 40)
        row = ndimage.gaussian_filter1d(x[0, 0].numpy(), 2.0, mode="constant")
        assert np.allclose(gaussian(x, 2.0, keep_sum=False)[0, 0].numpy(), row)

    def test_a_kernel_of_few_taps(self) -> None:
        spike = torch.zeros(1, 31, 31, dtype=torch.float64)
        spike[0, 15, 15] = 1
        soft = gaussian(spike, 7, kernel=11)[0]
        bell = torch.exp(-0.5 * (torch.arange(-5, 6).double() / 7) ** 2)
        bell /= bell.sum()
        assert torch.allclose(soft[10:21, 10:21], bell[:, None] * bell)
        assert float(soft[10:21, 10:21].sum()) == pytest.approx(1, abs=1e-14)
        assert torch.equal(gaussian(spike, 2.0, kernel=1), spike)

    def test_pictures_are_smoothed_by_the_same_gaussian(self) -> None:
        x = noise(11, 14)
        wanted = gaussian(x, 2.4, batched=False).numpy()
        assert np.array_equal(smooth(x.numpy(), 2.4), wanted)

    def test_precision_and_history(self) -> None:
        x = noise(1, 6, 6).float().requires_grad_()
        soft = gaussian(x, 1.0)
        assert soft.dtype == torch.float32
        assert not soft.requires_grad
        assert gaussian(x.half(), 1.0).dtype == torch.float16


def slow_bilateral(
    x: np.ndarray, guide: np.ndarray, sigma: float, rho: float, keep: bool
) -> np.ndarray:
    """Pixel by pixel; ``guide`` (C, H, W)."""
    height, width = x.shape
    span = guide.max() - guide.min() or 1.0
    places = [(i, j) for i in range(height) for j in range(width)]
    reach = math.ceil(3 * sigma)

    def weight(a: tuple[int, int], b: tuple[int, int]) -> float:
        dy, dx = a[0] - b[0], a[1] - b[1]
        if max(abs(dy), abs(dx)) > reach:
            return 0.0
        apart = np.mean((guide[:, a[0], a[1]] - guide[:, b[0], b[1]]) ** 2) / (rho * span) ** 2
        return math.exp(-0.5 * (dy * dy + dx * dx) / sigma**2) * math.exp(-0.5 * apart)

    total = {a: sum(weight(a, b) for b in places) for a in places}
    out = np.zeros_like(x)
    for a in places:
        if keep:
            out[a] = x[a]
            for b in places:
                out[a] += weight(a, b) * (x[b] - x[a]) / max(total[a], total[b])
        else:
            out[a] = sum(weight(a, b) * x[b] for b in places) / total[a]
    return out


class TestBilateral:
    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("sigma", [0.5, 1.4])
    def test_it_is_the_double_loop(self, sigma: float, keep: bool) -> None:
        x, guide = noise(2, 5, 7), noise(2, 3, 5, 7, seed=1)
        for k in range(2):
            alone, seen = x[k].numpy(), guide[k].numpy()
            own = slow_bilateral(alone, alone[None], sigma, 0.3, keep)
            assert np.allclose(bilateral(x, sigma, 0.3, None, keep)[k].numpy(), own)
            other = slow_bilateral(alone, seen, sigma, 0.2, keep)
            assert np.allclose(bilateral(x, sigma, 0.2, guide, keep)[k].numpy(), other)

    @given(st.integers(1, 7), st.integers(1, 7), st.floats(0.05, 1), st.floats(1e-3, 9))
    def test_the_sum_stays(self, height: int, width: int, share: float, rho: float) -> None:
        x = noise(2, height, width)
        x[0, 0, 0] = 1e3
        y = bilateral(x, share * max(height, width), rho)
        assert bool(((y - x).sum((1, 2)).abs() < 1e-12 * x.abs().sum((1, 2))).all())
        for one, was in zip(y, x, strict=True):  # each result is a mean
            assert float(one.max()) <= float(was.max()) * (1 + 1e-12) + 1e-12
            assert float(one.min()) >= float(was.min()) - 1e-12

    def test_columns_and_rows_sum_to_one_for_a_fixed_guide(self) -> None:
        guide = noise(1, 4, 5).expand(20, 4, 5)
        kept = matrix_of(lambda x: bilateral(x, 1.0, 0.2, guide), 4, 5)
        assert torch.allclose(kept.sum(0), torch.ones(20).double(), rtol=1e-13)
        assert torch.allclose(kept, kept.T, rtol=1e-13)
        assert float(kept.min()) >= 0
        lossy = matrix_of(lambda x: bilateral(x, 1.0, 0.2, guide, keep_sum=False), 4, 5)
        assert torch.allclose(lossy.sum(1), torch.ones(20).double(), rtol=1e-13)
        assert float((lossy.sum(0) - 1).abs().max()) > 0.05

    def test_an_edge_of_the_guide_is_not_crossed(self) -> None:
        x, guide = noise(1, 8, 8), torch.zeros(1, 8, 8)
        guide[..., 4:] = 1
        soft = bilateral(x, 1.5, 1e-3, guide)
        assert torch.allclose(soft[..., :4].sum(), x[..., :4].sum(), rtol=1e-12)
        assert torch.allclose(soft[..., :4], bilateral(x[..., :4], 1.5, 1, guide[..., :4]))

    def test_scale_of_map_and_guide_do_not_matter(self) -> None:
        x = noise(1, 6, 6)
        assert torch.allclose(bilateral(-7 * x, 1.0, 0.2), -7 * bilateral(x, 1.0, 0.2))
        assert torch.allclose(bilateral(x, 1.0, 0.2, 9 * x + 4), bilateral(x, 1.0, 0.2))

    def test_even_maps_and_even_guides(self) -> None:
        even = torch.full((1, 5, 6), 3.0, dtype=torch.float64)
        assert torch.allclose(bilateral(even, 1.0, 0.1), even)
        assert torch.allclose(bilateral(even, 1.0, 0.1, noise(1, 5, 6)), even)
        x = noise(1, 5, 6)
        assert torch.equal(bilateral(x, 1.0, 0.1, even), bilateral(x, 1.0, 1.0, torch.ones_like(x)))

    def test_a_range_that_is_nearly_zero_changes_nothing(self) -> None:
        x = noise(1, 5, 6)
        assert torch.equal(bilateral(x, 1.0, 1e-290), x)

    def test_samples_frames_and_one_map_alone(self) -> None:
        x, guide = noise(3, 6, 6), noise(3, 2, 6, 6, seed=4)
        soft = bilateral(x, 1.0, 0.2, guide)
        assert torch.equal(soft[1:2], bilateral(x[1:2], 1.0, 0.2, guide[1:2]))
        assert torch.equal(soft[1], bilateral(x[1], 1.0, 0.2, guide[1], batched=False))
        frames = torch.stack([x, x], 1)
        assert torch.allclose(bilateral(frames, 1.0, 0.2)[:, 1], bilateral(x, 1.0, 0.2))


both = pytest.mark.parametrize(
    "filtered",
    [lambda x, **how: gaussian(x, 1.0, **how), lambda x, **how: bilateral(x, 1.0, 0.3, **how)],
    ids=["gaussian", "bilateral"],
)


@both
class TestTokens:
    def test_blocks_of_patches_are_smoothed_as_tokens(self, filtered: Any) -> None:
        tokens = noise(2, 4, 5)
        pixels = tokens.repeat_interleave(16, 1).repeat_interleave(8, 2)
        soft = filtered(tokens).repeat_interleave(16, 1).repeat_interleave(8, 2)
        assert torch.allclose(filtered(pixels, patch=(16, 8)), soft)
        assert not torch.allclose(filtered(pixels), soft, atol=0.01)

    def test_pixels_within_a_patch_are_averaged_and_the_sum_stays(self, filtered: Any) -> None:
        x = noise(1, 8, 12)
        soft = filtered(x, patch=4)
        cells = x.reshape(1, 2, 4, 3, 4).mean((2, 4))
        assert torch.allclose(soft[:, ::4, ::4], filtered(cells))
        assert torch.allclose(soft.sum(), x.sum(), rtol=1e-12)

    def test_tokens_in_front_of_the_grid_stay(self, filtered: Any) -> None:
        x = noise(2, 3 + 20)
        x[:, 0] = 1e3
        soft = filtered(x, grid=(4, 5))
        assert torch.equal(soft[:, :3], x[:, :3])
        assert torch.equal(soft[:, 3:].reshape(2, 4, 5), filtered(x[:, 3:].reshape(2, 4, 5)))
        assert torch.allclose(soft.sum(1), x.sum(1), rtol=1e-12)

    def test_a_sequence_on_request(self, filtered: Any) -> None:
        x = noise(2, 12)
        soft = filtered(x, sequence=True)
        assert torch.equal(soft, filtered(x[:, None])[:, 0])
        assert torch.equal(soft[1:], filtered(x[1:], sequence=True))  # never across samples
        assert torch.allclose(soft.sum(1), x.sum(1), rtol=1e-12)

    @pytest.mark.parametrize(
        ("shape", "how", "argument", "got"),
        [
            ((2, 12), {}, "maps", "(2, 12)"),
            ((2, 197), {}, "maps", "(2, 197)"),
            ((2, 12), {"grid": (4, 4)}, "grid", "(2, 12)"),
            ((2, 4, 4), {"grid": (4, 4)}, "grid", "(2, 4, 4)"),
            ((2, 16), {"grid": 4}, "grid", "4"),
            ((2, 16), {"grid": (4, 0)}, "grid", "(4, 0)"),
            ((2, 6, 8), {"patch": 4}, "patch", "(2, 6, 8)"),
            ((2, 6, 8), {"patch": "4"}, "patch", "'4'"),
            ((2, 16), {"patch": 4}, "patch", "(2, 16)"),
            ((2, 6, 8), {"patch": 2, "grid": (1, 1)}, "grid, patch", ""),
            ((2, 6, 8), {"sequence": True}, "sequence", "(2, 6, 8)"),
            ((), {"batched": False}, "the map", "()"),
        ],
    )
    def test_maps_of_another_layout(
        self, filtered: Any, shape: tuple[int, ...], how: dict[str, Any], argument: str, got: str
    ) -> None:
        with refused(argument, got):
            filtered(noise(*shape), **how)


def test_the_guide_lies_as_the_map() -> None:
    x, guide = noise(1, 2 + 6), noise(1, 3, 2 + 6, seed=1)
    soft = bilateral(x, 1.0, 0.3, guide, grid=(2, 3))
    wanted = bilateral(x[:, 2:].reshape(1, 2, 3), 1.0, 0.3, guide[..., 2:].reshape(1, 3, 2, 3))
    assert torch.equal(soft[:, 2:], wanted.flatten(1))
    pixels, image = noise(1, 4, 6), noise(1, 3, 4, 6, seed=2)
    cells = image.reshape(1, 3, 2, 2, 3, 2).mean((3, 5))
    wanted = bilateral(pixels.reshape(1, 2, 2, 3, 2).mean((2, 4)), 1.0, 0.3, cells)
    assert torch.allclose(bilateral(pixels, 1.0, 0.3, image, patch=2)[:, ::2, ::2], wanted)


def test_the_width_for_which_none_is_given() -> None:
    assert default_sigma(224, 300) == 5.6
    assert default_sigma(14, 14) == 0.5
    assert default_sigma(1, 80) == 2.0
    assert default_sigma(1, 1) == 0.5


@pytest.mark.parametrize(
    ("call", "argument", "got"),
    [
        (lambda x: gaussian(x, 0), "sigma", "0"),
        (lambda x: gaussian(x, -2.5), "sigma", "-2.5"),
        (lambda x: gaussian(x, float("nan")), "sigma", "nan"),
        (lambda x: gaussian(x, True), "sigma", "True"),
        (lambda x: gaussian(x, 9), "sigma", "9"),
        (lambda x: gaussian(x, 1, kernel=4), "kernel", "4"),
        (lambda x: gaussian(x, 1, kernel=2.5), "kernel", "2.5"),
        (lambda x: gaussian(x, 1, kernel=-1), "kernel", "-1"),
        (lambda x: gaussian(x, 1, kernel=19), "kernel", "19"),
        (lambda x: gaussian(x / 0, 1), "the map", "96 values"),
        (lambda x: bilateral(x, 0, 1), "sigma", "0"),
        (lambda x: bilateral(x, 1, 0), "range", "0"),
        (lambda x: bilateral(x, 1, "a"), "range", "'a'"),
        (lambda x: bilateral(x, 1, 1, x[:1]), "guide", "(1, 6, 8)"),
        (lambda x: bilateral(x, 1, 1, x[:, 1:]), "guide", "(2, 5, 8)"),
        (lambda x: bilateral(x, 1, 1, x / 0), "the guide", "96 values"),
        (lambda x: bilateral(x, 1, 1, [1]), "the guide", "list"),
        (lambda x: bilateral(x[0], 1, 1, x[0, :, :2], batched=False), "guide", "(6, 2)"),
    ],
)
def test_mistakes(call: Callable[[Tensor], Tensor], argument: str, got: str) -> None:
    with refused(argument, got):
        call(torch.zeros(2, 6, 8))
