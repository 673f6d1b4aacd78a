"""CIFAR-10 as pictures, on a tiny folder of the same form."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omenn.data.cifar10 import CLASSES, Cifar10
from omenn.data.dataset_registry import TRAINING, kind_of, open_data
from omenn.errors import InputError
from refusals import refused


def picture(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (colour, 0, 0)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Written in another order than that of the labels, and of file names."""
    for name in ("truck", "cat", "airplane"):
        for k in (1, 0):
            picture(tmp_path / "test" / name / f"{k:04d}.png", 10 * CLASSES.index(name) + k)
    return tmp_path


def test_pictures_with_the_numbers_of_their_classes(root: Path) -> None:
    data = Cifar10(root)
    assert [data.label(k) for k in range(len(data))] == [0, 0, 3, 3, 9, 9]
    assert [np.asarray(data.image(k))[0, 0, 0] for k in range(6)] == [0, 1, 30, 31, 90, 91]
    assert (data.image(0).size, data.image(0).mode) == ((32, 32), "RGB")
    assert data.path(2) == root / "test" / "cat" / "0000.png"
    assert repr(data).endswith("split='test', pictures=6)")


def test_what_is_no_picture_is_left_alone(root: Path) -> None:
    (root / "test" / "cat" / "notes.txt").write_text("no picture")
    (root / "test" / "labels.txt").write_text("no folder")
    assert len(Cifar10(root)) == 6


def test_another_layout_says_what_was_expected_and_found(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"x")
    words = (
        f"{tmp_path} does not hold CIFAR-10 as pictures. Expected: test/<class>/<name>.png or "
        f".jpg, the classes being {', '.join(CLASSES)}. Found: data_batch_1."
    )
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        Cifar10(tmp_path)
    with pytest.raises(InputError, match=r"nowhere does not hold .* Found: no such folder\."):
        Cifar10(tmp_path / "nowhere")


def test_a_folder_that_is_no_class(root: Path) -> None:
    (root / "test" / "plane").mkdir()
    with pytest.raises(InputError, match=r"plane is named like no class of CIFAR-10: did you mean"):
        Cifar10(root)


def test_empty_classes(tmp_path: Path) -> None:
    (tmp_path / "test" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has no picture in its class folders.*Found: cat/\."):
        Cifar10(tmp_path)


def test_a_picture_that_is_not_there(root: Path) -> None:
    with pytest.raises(InputError, match="no picture 6 in Cifar10"):
        Cifar10(root).image(6)


class TestBench:
    def test_by_name_and_by_what_lies_there(self, root: Path) -> None:
        for text in (f"cifar10:{root}", str(root)):
            kind, _ = kind_of(text)
            data = open_data(text, "test", 3)
            assert (kind.name, data.classes, data.gives) == ("cifar10", 10, frozenset())
            assert [data.label(k) for k in data.indices] == [0, 3, 9]

    def test_training_pictures_if_they_are_there(self, root: Path) -> None:
        for name in CLASSES[:4]:
            picture(root / "train" / name / "0000.png", 5)
        data = open_data(f"cifar10:{root}", "test", 6)
        assert data.gives == {TRAINING}
        assert data.train is not None
        assert [data.train(4).samples.label(k) for k in range(4)] == [0, 1, 2, 3]

    def test_classes_and_splits(self, root: Path) -> None:
        data = open_data(f"cifar10:{root}", "test", 9, classes=[9])
        assert [data.label(k) for k in data.indices] == [9, 9]
        with refused("classes", "test"):
            open_data(f"cifar10:{root}", "test", 9, classes=[5])
        with pytest.raises(InputError, match=r"does not hold CIFAR-10 .* Expected: train/<class>/"):
            open_data(f"cifar10:{root}", "train", 9)
