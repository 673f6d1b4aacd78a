"""What all protocols share: checks with their texts, the order of pixels, ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omenn.errors import InputError, TargetError
from omenn.metrics.maps import (
    checked_images,
    checked_maps,
    checked_targets,
    constant_maps,
    descending,
    explained,
    logits_of,
    not_finite,
    of_targets,
    ranks,
    tie_order,
)
from refusals import refused

IMAGES = torch.zeros(2, 3, 4, 5)


class TestChecks:
    def test_images_lose_their_history(self) -> None:
        leaf = torch.zeros(1, 1, 2, 2, requires_grad=True)
        assert not checked_images(leaf * 2).requires_grad

    @pytest.mark.parametrize(
        ("images", "text"),
        [
            (torch.zeros(3, 4, 5), r"\(B, C, H, W\) and not empty, got .*\(3, 4, 5\)\."),
            (torch.zeros(0, 3, 4, 5), r"not empty, got .*\(0, 3, 4, 5\)\."),
            (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), "floating-point numbers, got torch.uint8"),
            ([1.0], "images must be a tensor of floating-point numbers, got list"),
        ],
    )
    def test_images_refused(self, images: Any, text: str) -> None:
        with pytest.raises(InputError, match=text):
            checked_images(images)

    def test_maps_with_channels_are_averaged(self) -> None:
        maps = torch.randn(2, 3, 4, 5, requires_grad=True)
        found = checked_maps(maps, IMAGES)
        assert found.dtype == torch.float64
        assert not found.requires_grad
        assert torch.equal(found, maps.detach().double().mean(1))

    @pytest.mark.parametrize(
        "shape", [(2, 5, 4), (3, 4, 5), (4, 5), (2, 1, 4, 4), (2, 0, 4, 5), (2, 3, 4, 5, 1)]
    )
    def test_maps_of_another_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError) as caught:
            checked_maps(torch.zeros(shape), IMAGES)
        assert f"maps of the shape {shape} do not fit images of the shape (2, 3, 4, 5)" in str(
            caught.value
        )
        assert "Give one map for each image, (2, 4, 5)" in str(caught.value)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_maps_that_are_not_finite(self, value: float) -> None:
        maps = torch.zeros(2, 4, 5)
        maps[1, 2, 3] = value
        assert not_finite(maps).tolist() == [False, True]
        with pytest.raises(InputError, match=r"1 of 2 maps are not finite .* first is map 1"):
            checked_maps(maps, IMAGES)

    def test_constant_maps(self) -> None:
        maps = torch.stack([torch.zeros(4, 5), torch.full((4, 5), -2.5), torch.eye(4, 5)])
        assert constant_maps(maps).tolist() == [True, True, False]

    @pytest.mark.parametrize(
        "targets", [1, torch.tensor(1), torch.tensor([1, 1]), torch.tensor([1, 1]).to(torch.uint8)]
    )
    def test_targets(self, targets: Any) -> None:
        found = checked_targets(targets, 2)
        assert found.dtype == torch.int64
        assert found.tolist() == [1, 1]

    @pytest.mark.parametrize(
        ("targets", "got"),
        [
            (True, "bool"),
            (1.0, "float"),
            ([0, 1], "list"),
            (-1, "-1"),
            (torch.tensor([0, -3]), "-3"),
            (torch.tensor([0, 1, 2]), r"torch.int64 of the shape \(3,\)"),
            (torch.tensor([0.0, 1.0]), r"torch.float32 of the shape \(2,\)"),
        ],
    )
    def test_targets_refused(self, targets: Any, got: str) -> None:
        text = rf"one for each of the 2 images or one for all, got {got}\."
        with pytest.raises(TargetError, match=text):
            checked_targets(targets, 2)


class TestLogits:
    @pytest.mark.parametrize("chunk", [1, 2, 64])
    def test_in_chunks_without_gradients(self, chunk: int) -> None:
        seen: list[int] = []
        weight = torch.randn(60, 4, requires_grad=True)

        def f(images: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            seen.append(len(images))
            return images.flatten(1) @ weight

        images = torch.randn(5, 3, 4, 5)
        found = logits_of(f, images, chunk)
        torch.testing.assert_close(found, (images.flatten(1) @ weight).double().detach())
        assert found.dtype == torch.float64
        assert max(seen) <= chunk
        assert sum(seen) == 5
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize(
        ("f", "text"),
        [
            (lambda x: x, r"of the shape \(2, classes\) for 2 images, but returned torch"),
            (lambda x: [x], "but returned list. Give a function that picks them"),
            (lambda x: x.flatten(1)[:1], r"but returned .* of the shape \(1, 60\)"),
            (lambda x: x.flatten(1) / 0, r"logits that are not finite .* for a picture. Check the"),
        ],
    )
    def test_refused(self, f: Any, text: str) -> None:
        with pytest.raises(InputError, match=text):
            logits_of(f, IMAGES)

    def test_chunk(self) -> None:
        with refused("chunk", "0"):
            logits_of(lambda x: x.flatten(1), IMAGES, 0)

    def test_the_targets_own(self) -> None:
        logits = torch.arange(6.0).view(2, 3)
        assert of_targets(logits, torch.tensor([2, 0])).tolist() == [2.0, 3.0]
        with pytest.raises(
            TargetError, match=r"target 3 is not among the 3 classes .* from 0 to 2"
        ):
            of_targets(logits, torch.tensor([2, 3]))


class TestExplained:
    def test_as_it_is(self) -> None:
        maps = torch.full((2, 4, 5), float("nan"), requires_grad=True)
        found = explained(lambda images, targets: maps, IMAGES, torch.zeros(2))
        assert found.dtype == torch.float64
        assert not found.requires_grad
        assert not_finite(found).all()

    @pytest.mark.parametrize(
        ("maps", "got"),
        [
            (torch.zeros(2, 3, 4, 5), r"of the shape \(2, 3, 4, 5\)"),
            (torch.zeros(1, 4, 5), r"of the shape \(1, 4, 5\)"),
            (None, "NoneType"),
        ],
    )
    def test_refused(self, maps: Any, got: str) -> None:
        text = rf"explainer returned .*{got} for images of the shape \(2, 3, 4, 5\). Return one"
        with pytest.raises(InputError, match=text):
            explained(lambda images, targets: maps, IMAGES, torch.zeros(2))


class TestOrder:
    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(0, 2**31))
    def test_against_sorting_with_the_tie_order_as_key(self, row: list[int], seed: int) -> None:
        (shuffled,) = tie_order(1, len(row), seed=seed).tolist()
        expected = sorted(range(len(row)), key=lambda k: (-row[k], shuffled.index(k)))
        assert descending(torch.tensor([row]), seed).tolist() == [expected]

    @given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
    @settings(max_examples=30)
    def test_ranks_invert_an_order(self, rows: int, count: int, seed: int) -> None:
        order = tie_order(rows, count, seed=seed)
        assert torch.equal(order.sort(1).values, torch.arange(count).expand(rows, -1))
        places = ranks(order)
        for row in range(rows):
            for place in range(count):
                assert places[row, order[row, place]] == place

    def test_a_row_has_its_ties_in_any_batch(self) -> None:
        values = torch.zeros(4, 50)
        whole = descending(values, 7)
        assert torch.equal(descending(values[:2], 7), whole[:2])
        assert not torch.equal(whole[0], whole[1])
        assert not torch.equal(descending(values, 8), whole)

    def test_no_place_has_an_advantage_in_constant_maps(self) -> None:
        first = ranks(descending(torch.zeros(4000, 8)))
        # the mean of 4000 uniform numbers of 0 to 7 has a standard deviation of 0.036
        assert (first.double().mean(0) - 3.5).abs().max() < 4 * 0.036

    def test_zero_has_no_sign(self) -> None:
        signs = torch.tensor([[0.0, -0.0] * 10])
        assert torch.equal(descending(signs), descending(signs.abs()))

    def test_the_callers_random_numbers_stay(self) -> None:
        before = torch.get_rng_state()
        descending(torch.zeros(2, 9))
        assert torch.equal(torch.get_rng_state(), before)

    def test_seed(self) -> None:
        with refused("seed", "-1"):
            descending(torch.zeros(1, 2), -1)
