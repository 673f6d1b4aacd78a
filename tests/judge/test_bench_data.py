"""Data of a benchmark by name: generated birds, folders in FunnyBirds' layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from omenn.data import birds
from omenn.errors import InputError
from omenn.judge.bench_data import KINDS, MASKS, PARTS, evenly, open_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("birds") / "set"
    birds.write(root, train_scenes=50, test_scenes=6, size=16)
    return root


def test_splits_of_generated_birds_are_other_pictures() -> None:
    pictures = [open_data("birds", split, 2, side=16) for split in KINDS["birds"].splits]
    drawn = [np.asarray(data.pictures.image(0)) for data in pictures]
    assert not any(np.array_equal(drawn[0], other) for other in drawn[1:])
    assert all(data.indices == (0, 1) and data.classes == 50 for data in pictures)
    other = open_data("birds", "test", 2, side=16, options={"seed": 1})
    assert not np.array_equal(np.asarray(other.pictures.image(0)), drawn[0])


def test_a_mask_of_birds_is_their_parts() -> None:
    data = open_data("birds", "test", 1, side=32)
    masks = data.pictures.masks(0)
    assert np.array_equal(data.mask(0), sum(masks.values()) > 0)
    assert 0 < data.mask(0).sum() < data.mask(0).size


def test_a_folder_is_spread_over_its_classes(folder: Path) -> None:
    data = open_data(f"funnybirds:{folder}", "test", 3)
    assert [data.pictures.label(k) for k in data.indices] == [0, 2, 4]
    assert data.gives == {PARTS, MASKS}
    assert open_data(f"funnybirds:{folder}", "test", 1000).indices == tuple(range(6))
    assert open_data(f"funnybirds:{folder}", "train", 5).gives == set()


def test_evenly() -> None:
    assert evenly(3, 8) == (0, 1, 2)
    assert evenly(500, 64)[-1] < 500
    assert len(set(evenly(500, 64))) == 64


@pytest.mark.parametrize(
    ("text", "split", "words"),
    [
        ("bird", "test", "unknown data 'bird': did you mean 'birds'"),
        ("cats", "test", r"unknown data 'cats': known are .* Write birds, funnybirds:FOLDER"),
        ("funnybirds", "test", r"data 'funnybirds' is not complete. Write funnybirds:FOLDER\."),
        ("funnybirds:", "test", "is not complete"),
        ("birds:here", "test", r"is not complete. Write birds\."),
        ("birds", "tset", "data 'birds' has no split 'tset': did you mean 'test'"),
        ("funnybirds:x", "validation", "has no split 'validation'"),
        (
            "funnybirds:nowhere",
            "test",
            r"nowhere/dataset_test.json does not exist",
        ),
    ],
)
def test_refused(text: str, split: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_data(text, split, 4)


def test_an_empty_split(folder: Path, tmp_path: Path) -> None:
    for name in ("classes.json", "parts.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "dataset_test.json").write_text("[]")
    with pytest.raises(InputError, match="has no picture in split 'test'"):
        open_data(f"funnybirds:{tmp_path}", "test", 4)
