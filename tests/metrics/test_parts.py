"""Part-annotated pictures: answers to every intervention, sums of maps over dilated masks."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from metrics.toys import SIDE, Mixed, ToyBirds, additive, preprocessing
from omenn.data import birds
from omenn.data.funnybirds import FunnyBirds
from omenn.data.generated import GeneratedBirds
from omenn.errors import InputError
from omenn.metrics.explainers import random
from omenn.metrics.parts import (
    Responses,
    contrast_pair,
    dilated,
    dilation_for,
    importance,
    minimal_sufficient,
    responses,
)


@pytest.fixture(scope="module")
def seen() -> Responses:
    return responses(Mixed(), ToyBirds(8), preprocessing)


class TestResponses:
    def test_every_intervention_one_by_one(self, seen: Responses) -> None:
        data, net = ToyBirds(8), Mixed()

        def answer(picture: Image.Image) -> Tensor:
            return net(preprocessing(picture))[0]

        assert seen.parts == ("beak", "eye", "foot", "tail", "wing")
        for k in (0, 1, 6):
            torch.testing.assert_close(seen.full[k], answer(data.image(k)))
            assert int(seen.predicted[k]) == int(answer(data.image(k)).argmax())
            assert torch.equal(seen.images[k], preprocessing(data.image(k))[0])
            for count in range(6):
                for kept in combinations(seen.parts, count):
                    bits = sum(2 ** seen.parts.index(part) for part in kept)
                    expected = answer(data.with_parts(k, kept))
                    torch.testing.assert_close(seen.kept[k, bits], expected)
                    torch.testing.assert_close(seen.without(31 - bits)[k], expected)
            for n in range(data.background_count(k)):
                expected = answer(data.without_background(k, n))
                torch.testing.assert_close(seen.backgrounds[k][n], expected)
            for number, part in enumerate(seen.parts):
                assert (seen.masks[k, number].numpy() == data.masks(k)[part]).all()
            assert (seen.background_masks[k].numpy() == data.background_masks(k)).all()
        assert seen.labels.tolist() == list(range(8))
        assert [len(objects) for objects in seen.backgrounds] == [0, 3, 2, 1] * 2
        assert len(seen) == 8

    def test_some_pictures_in_small_chunks(self, seen: Responses) -> None:
        ticks: list[int] = []
        options: dict[str, Any] = {"indices": [5, 2], "chunk": 3, "tick": lambda: ticks.append(1)}
        found = responses(Mixed(), ToyBirds(8), preprocessing, **options)
        assert found.labels.tolist() == [5, 2]
        torch.testing.assert_close(found.kept, seen.kept[[5, 2]])
        assert len(ticks) == 2

    def test_masks_follow_the_size_of_the_models_input(self) -> None:
        def half(picture: Image.Image) -> Tensor:
            return preprocessing(picture)[..., ::2, ::2]

        data = ToyBirds(8)
        found = responses(lambda x: x.flatten(1)[:, :8], data, half)
        assert found.masks.shape == (8, 5, SIDE // 2, SIDE // 2)
        for k in range(8):
            for number, part in enumerate(found.parts):
                assert (found.masks[k, number].numpy() == data.masks(k)[part][::2, ::2]).all()
            expected = data.background_masks(k)[:, ::2, ::2]
            assert (found.background_masks[k].numpy() == expected).all()

    def test_a_folder_and_generated_birds_give_the_same(self, tmp_path: Any) -> None:
        root = birds.write(tmp_path / "birds", train_scenes=0, test_scenes=2, size=16)
        weight = torch.randn(3 * 256, 50, dtype=torch.float64)

        def f(images: Tensor) -> Tensor:
            return images.flatten(1) @ weight

        disk, drawn = (
            responses(f, data, preprocessing)
            for data in (FunnyBirds(root), GeneratedBirds("test", 2, size=16))
        )
        assert disk.parts == drawn.parts
        assert disk.classes == drawn.classes
        for name in ("labels", "images", "masks", "full", "kept"):
            assert torch.equal(getattr(disk, name), getattr(drawn, name)), name
        for name in ("backgrounds", "background_masks"):
            pairs = zip(getattr(disk, name), getattr(drawn, name), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), name

    def test_refused(self) -> None:
        data = ToyBirds(8)
        with pytest.raises(InputError, match=r"there are no pictures\. Give at least"):
            responses(additive(), data, preprocessing, indices=[])
        text = r"the model has 7 classes, the data 8. Give a model that was trained on these"
        with pytest.raises(InputError, match=text):
            responses(lambda x: x.flatten(1)[:, :7], data, preprocessing)

        sizes = iter([8] * 36 + [9] * 36)

        def wider_later(picture: Image.Image) -> Tensor:
            return preprocessing(picture)[..., : next(sizes)]

        text = r"picture 1 comes as \(1, 3, 24, 9\), the first as \(1, 3, 24, 8\)\. Use a prepro"
        count = data.background_count(0)
        sizes = iter([8] * (33 + count) + [9] * 40)
        with pytest.raises(InputError, match=text):
            responses(lambda x: x.flatten(1), data, wider_later)
        sizes = iter([8] * 3 + [9] * 40)
        text = r"picture 0 and its interventions come as \(1, 3, 24, 8\), \(1, 3, 24, 9\)\. Use a"
        with pytest.raises(InputError, match=text):
            responses(lambda x: x.flatten(1), data, wider_later)
        with pytest.raises(InputError, match=r"come as \(3, 24, 24\)\. Use a preprocessing that"):
            responses(lambda x: x.flatten(1), data, lambda p: preprocessing(p)[0])


class TestDilation:
    @given(st.integers(0, 2**20 - 1), st.sampled_from([1, 3, 5]))
    def test_pixel_by_pixel(self, bits: int, width: int) -> None:
        mask = torch.tensor([bool(bits >> k & 1) for k in range(20)]).view(4, 5)
        found = dilated(mask[None], width)[0]
        for row in range(4):
            for column in range(5):
                near = any(
                    mask[r, c] and max(abs(r - row), abs(c - column)) <= width // 2
                    for r in range(4)
                    for c in range(5)
                )
                assert float(found[row, column]) == near

    def test_no_masks(self) -> None:
        assert dilated(torch.zeros(0, 4, 5, dtype=torch.bool), 3).shape == (0, 4, 5)

    def test_width(self) -> None:
        sides = (16, 64, 128, 224, 256, 512)
        assert [dilation_for(side) for side in sides] == [3, 3, 3, 5, 5, 9]
        assert {dilation_for(side, published=True) for side in sides} == {5}


def slow_importance(seen: Responses, maps: Tensor, row: int, mask: Tensor, width: int) -> float:
    """Pixel by pixel: the sum of a map where a mask is near."""
    total = 0.0
    for r in range(SIDE):
        for c in range(SIDE):
            reach = width // 2
            around = mask[max(0, r - reach) : r + reach + 1, max(0, c - reach) : c + reach + 1]
            total += float(maps[row, r, c]) * bool(around.any())
    return total


class TestImportance:
    @pytest.mark.parametrize("positive", [False, True])
    def test_pixel_by_pixel(self, seen: Responses, positive: bool) -> None:
        found = importance(random, seen, seen.labels, dilation=3, positive=positive, chunk=3)
        maps = random(seen.images, seen.labels)
        maps = maps.clamp(min=0) if positive else maps
        for k in (0, 3, 7):
            assert float(found.total[k]) == pytest.approx(float(maps[k].sum()))
            for p in range(5):
                expected = slow_importance(seen, maps, k, seen.masks[k, p], 3)
                assert float(found.parts[k, p]) == pytest.approx(expected)
            for n, mask in enumerate(seen.background_masks[k]):
                expected = slow_importance(seen, maps, k, mask, 3)
                assert float(found.backgrounds[k][n]) == pytest.approx(expected)
        assert found.inverted == int((maps.sum((1, 2)) <= 0).sum())
        assert (found.constant, found.broken) == (0, 0)

    def test_only_some_rows(self, seen: Responses) -> None:
        asked: list[int] = []

        def explain(images: Tensor, targets: Tensor) -> Tensor:
            asked.extend(targets.tolist())
            return random(images, targets)

        some = importance(explain, seen, seen.labels, dilation=3, rows=[6, 1])
        whole = importance(random, seen, seen.labels, dilation=3)
        assert asked == [6, 1]
        assert some.total.isnan().tolist() == [k not in (1, 6) for k in range(8)]
        assert torch.equal(some.parts[[1, 6]], whole.parts[[1, 6]])
        assert some.parts[0].isnan().all()
        assert torch.equal(some.backgrounds[1], whole.backgrounds[1])

    def test_constant_and_broken_maps_are_counted(self, seen: Responses) -> None:
        def explain(images: Tensor, targets: Tensor) -> Tensor:
            maps = random(images, targets).double().abs()
            maps[targets == 1] = -2.0
            maps[targets == 2, 3, 4] = float("nan")
            maps[targets == 3, 0, 0] = float("inf")
            maps[targets == 4] = 0.0
            return maps

        found = importance(explain, seen, seen.labels, dilation=3)
        assert (found.constant, found.broken, found.inverted) == (2, 2, 4)
        assert (found.parts[2:5] == 0).all()
        assert (found.total[2:5] == 0).all()
        area = dilated(seen.masks[1], 3).sum((1, 2))
        torch.testing.assert_close(found.parts[1], -2 * area)

    def test_maps_of_another_shape(self, seen: Responses) -> None:
        text = r"returned .* of the shape \(2, 3, 24, 24\) for images of the shape \(2, 3, 24, 24\)"
        with pytest.raises(InputError, match=text):
            importance(lambda x, y: x, seen, seen.labels, dilation=3, chunk=2)


tables = st.lists(
    st.tuples(*[st.integers(0, 2)] * 5).map(lambda t: dict(zip("abcde", t, strict=True))),
    min_size=2,
    max_size=7,
)


class TestClasses:
    @given(tables)
    def test_minimal_sufficient_sets_by_definition(self, classes: list[dict[str, int]]) -> None:
        def sufficient(subset: frozenset[str]) -> bool:
            same = [k for k, c in enumerate(classes) if all(c[p] == classes[0][p] for p in subset)]
            return same == [0]

        subsets = [frozenset(s) for n in range(1, 6) for s in combinations("abcde", n)]
        enough = [s for s in subsets if sufficient(s)]
        expected = {s for s in enough if not any(other < s for other in enough)}
        found = minimal_sufficient(classes, 0)
        assert len(found) == len(set(found))
        assert set(found) == expected

    @given(tables)
    def test_contrast_pairs_by_definition(self, classes: list[dict[str, int]]) -> None:
        def shared(k: int) -> set[str]:
            return {p for p in "abcde" if classes[k][p] == classes[0][p]}

        pairs = [
            (i, shared(i), j, shared(j))
            for i in range(1, len(classes))
            for j in range(i + 1, len(classes))
            if len(shared(i)) == len(shared(j)) == 2 and not shared(i) & shared(j)
        ]
        found = contrast_pair(classes, 0)
        assert found == (pairs[0] if pairs else None)

    def test_a_contrast_class_shares_exactly_two_parts(self) -> None:
        own, three, two, other = (
            dict(zip("abcde", digits, strict=True))
            for digits in ("00000", "00011", "11100", "00122")
        )
        assert contrast_pair([own, three, two], 0) is None
        expected = (2, frozenset("de"), 3, frozenset("ab"))
        assert contrast_pair([own, three, two, other], 0) == expected

    def test_the_generated_classes(self) -> None:
        classes = GeneratedBirds(count=1).classes
        for label in range(50):
            assert minimal_sufficient(classes, label)
            assert contrast_pair(classes, label) is not None


def test_pictures_of_the_toy_are_what_they_claim() -> None:
    """Of a picture without a part only the part's own pixels change, and no two parts touch."""
    data = ToyBirds(8)
    for k in range(8):
        whole = np.asarray(data.image(k)).astype(int)
        for part, mask in data.masks(k).items():
            less = np.asarray(data.with_parts(k, [p for p in data.parts if p != part])).astype(int)
            assert ((whole != less).any(2) == mask).all()
        masks = [*data.masks(k).values(), *data.background_masks(k)]
        grown = dilated(torch.from_numpy(np.stack(masks)), 3)
        assert grown.sum(0).max() == 1
