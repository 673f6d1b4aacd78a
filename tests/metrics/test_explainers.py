"""Who makes the maps: methods by name, and the trivial maps that a method has to beat."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn.errors import InputError
from omenn.metrics.explainers import TRIVIAL, centre, constant, edges, explainer, random


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 4, 2])


class TestMethods:
    @pytest.mark.parametrize("method", ["omenn", "xgradient", "abslrp"])
    def test_the_matrix_of_a_method(self, net: nn.Module, method: str) -> None:
        found = explainer(net, method)(IMAGES, TARGETS)
        expected = omenn.explain(net, IMAGES, TARGETS, method=method).matrix
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(found, expected)
        assert found.shape == (3, 8, 8)
        assert not found.requires_grad

    def test_exact_maps_sum_to_the_logit(self, net: nn.Module) -> None:
        maps = explainer(net, "omenn", bias="uniform")(IMAGES, TARGETS)
        logits = net(IMAGES).gather(1, TARGETS[:, None])[:, 0]
        torch.testing.assert_close(maps.sum((1, 2)), logits)
        assert not torch.equal(maps, explainer(net, "omenn")(IMAGES, TARGETS))

    def test_unknown_names(self, net: nn.Module) -> None:
        with pytest.raises(InputError, match="unknown method 'omen': did you mean 'omenn'"):
            explainer(net, "omen")
        with pytest.raises(InputError, match="unknown method 'center': did you mean 'centre'"):
            explainer(net, "center")

    def test_unknown_options(self, net: nn.Module) -> None:
        with pytest.raises(InputError, match="method 'abslrp' has no option 'stepz'"):
            explainer(net, "abslrp", stepz=3)(IMAGES, TARGETS)
        with pytest.raises(InputError, match="the trivial map 'edges' has no option 'sigma'"):
            explainer(net, "edges", sigma=3)

    def test_maps_of_another_form(self) -> None:
        table = nn.Linear(4, 5).eval()
        text = (
            r"'omenn' gives maps of the form \(3, 4\), the protocols need \(B, H, W\). Explain an"
        )
        with pytest.raises(InputError, match=text):
            explainer(table, "omenn")(torch.rand(3, 4), TARGETS)


class TestTrivial:
    @pytest.mark.parametrize("name", TRIVIAL)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_form(self, net: nn.Module, name: str, dtype: torch.dtype) -> None:
        images = torch.rand(3, 2, 5, 7).to(dtype)
        maps = explainer(net, name)(images, TARGETS)
        assert maps.shape == (3, 5, 7)
        assert maps.dtype == dtype
        assert torch.isfinite(maps).all()

    def test_constant(self) -> None:
        assert (constant(IMAGES, TARGETS) == 1).all()

    def test_centre(self) -> None:
        maps = centre(torch.zeros(1, 1, 9, 5), TARGETS[:1])
        for row in range(9):
            for column in range(5):
                square = (row / 8 - 0.5) ** 2 + (column / 4 - 0.5) ** 2
                expected = math.exp(-square / (2 * 0.04))
                assert float(maps[0, row, column]) == pytest.approx(expected, rel=1e-5)

    def test_edges(self) -> None:
        image = torch.rand(1, 2, 4, 5, dtype=torch.float64)
        grey = image[0].mean(0)

        def at(row: int, column: int) -> float:
            return float(grey[min(max(row, 0), 3), min(max(column, 0), 4)])

        found = edges(image, TARGETS[:1])
        for r in range(4):
            for c in range(5):
                across = sum(w * (at(r + k, c - 1) - at(r + k, c + 1)) for k, w in SMOOTH)
                down = sum(w * (at(r - 1, c + k) - at(r + 1, c + k)) for k, w in SMOOTH)
                assert float(found[0, r, c]) == pytest.approx(math.hypot(across, down))

    def test_edges_of_a_flat_picture(self) -> None:
        assert (edges(torch.ones(1, 3, 6, 6), TARGETS[:1]) == 0).all()


SMOOTH = ((-1, 1), (0, 2), (1, 1))


class TestRandom:
    def test_the_same_for_an_image_and_target_whatever_the_batch(self) -> None:
        whole = random(IMAGES, TARGETS)
        assert torch.equal(random(IMAGES[1:2], TARGETS[1:2])[0], whole[1])
        strided = IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        assert torch.equal(random(strided, TARGETS), whole)

    def test_another_for_another_target(self) -> None:
        assert not torch.equal(random(IMAGES, TARGETS), random(IMAGES, TARGETS + 1))

    def test_another_for_another_image_even_of_round_numbers(self) -> None:
        images = torch.zeros(4, 1, 6, 6)
        images[1], images[2, 0, 0, 0], images[3, 0, 5, 5] = 1, 1, 1  # the last two have one sum
        maps = random(images, torch.zeros(4, dtype=torch.int64)).flatten(1)
        between = torch.corrcoef(maps) - torch.eye(4)
        assert between.abs().max() < 0.6  # of 36 numbers: 3.5 standard deviations

    def test_normal(self) -> None:
        maps = random(torch.rand(20, 1, 30, 30), torch.zeros(20, dtype=torch.int64))
        assert float(maps.mean()) == pytest.approx(0, abs=0.03)
        assert float(maps.std()) == pytest.approx(1, abs=0.03)

    def test_the_callers_random_numbers_stay(self) -> None:
        before = torch.get_rng_state()
        random(IMAGES, TARGETS)
        assert torch.equal(torch.get_rng_state(), before)
