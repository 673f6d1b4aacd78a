"""Data of a benchmark by name: generated birds, folders in the official layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import bench_trees
from bench_trees import BOX, GOLDFISH, RETRIEVER, SIZE, TENCH
from omenn.bench.trial import Subject
from omenn.data import birds, imagenet
from omenn.data.dataset_registry import MASKS, PARTS, TRAINING, datasets, evenly, kind_of, open_data
from omenn.errors import InputError, MissingExtra
from omenn.metrics.localisation import energy_pointing_game
from omenn.modalities.image.pictures import Pictures
from omenn.modalities.image.preprocessing import Preprocessing
from refusals import refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("birds") / "set"
    birds.write(root, train_scenes=50, test_scenes=6, size=16)
    return root


def test_splits_of_generated_birds_are_other_pictures() -> None:
    pictures = [open_data("birds", split, 2, side=16) for split in datasets()["birds"].splits]
    drawn = [np.asarray(data.sample(0)) for data in pictures]
    assert not any(np.array_equal(drawn[0], other) for other in drawn[1:])
    assert all(data.indices == (0, 1) and data.classes == 50 for data in pictures)
    other = open_data("birds", "test", 2, side=16, options={"seed": 1})
    assert not np.array_equal(np.asarray(other.sample(0)), drawn[0])


def test_a_mask_of_birds_is_their_parts() -> None:
    data = open_data("birds", "test", 1, side=32)
    masks = data.samples.masks(0)
    assert np.array_equal(data.mask(0), sum(masks.values()) > 0)
    assert 0 < data.mask(0).sum() < data.mask(0).size


def test_a_folder_is_spread_over_its_classes(folder: Path) -> None:
    data = open_data(f"funnybirds:{folder}", "test", 3)
    assert [data.label(k) for k in data.indices] == [0, 2, 4]
    assert data.gives == {PARTS, MASKS, TRAINING}
    assert open_data(f"funnybirds:{folder}", "test", 1000).indices == tuple(range(6))
    assert open_data(f"funnybirds:{folder}", "train", 5).gives == {TRAINING}
    assert data.train is not None
    assert data.train(10).indices == tuple(range(0, 50, 5))


def test_evenly() -> None:
    assert evenly(3, 8) == (0, 1, 2)
    assert evenly(500, 64)[-1] < 500
    assert len(set(evenly(500, 64))) == 64


@pytest.mark.parametrize(
    ("text", "split", "words"),
    [
        ("bird", "test", "unknown data 'bird': did you mean 'birds'"),
        ("cats", "test", r"unknown data 'cats': known are .* Write birds, cifar10:FOLDER, f"),
        ("imagnet:/data", "val", "unknown data 'imagnet:/data': did you mean 'imagenet'"),
        ("./nowhere", "test", r"nowhere does not hold data of a known layout\. .* no such folder"),
        ("funnybirds", "test", r"data 'funnybirds' is not complete. Write funnybirds:FOLDER\."),
        ("funnybirds:", "test", "is not complete"),
        ("birds:here", "test", r"is not complete. Write birds\."),
        ("birds", "tset", "data 'birds' has no split 'tset': did you mean 'test'"),
        ("funnybirds:x", "validation", "has no split 'validation'"),
        (
            "funnybirds:nowhere",
            "test",
            r"nowhere does not hold FunnyBirds\. Expected: classes\.json, parts\.json, "
            r"dataset_test\.json and .* Found: no such folder",
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
    with refused("split", "test"):
        open_data(f"funnybirds:{tmp_path}", "test", 4)


SQUARE = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
SQUARE[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True


class TestClasses:
    def test_of_generated_birds(self) -> None:
        for split in ("test", "train"):
            data = open_data("birds", split, 5, side=16, classes=[49, 3])
            labels = [data.label(k) for k in data.indices]
            assert len(labels) == 5
            assert set(labels) == {3, 49}
        first = open_data("birds", "test", 60, side=16)
        again = open_data("birds", "test", 1, side=16, classes=[3])
        (index,) = again.indices
        assert first.samples.label(index) == 3
        picture = np.asarray(first.sample(index))
        assert np.array_equal(np.asarray(again.sample(index)), picture)

    def test_of_a_folder(self, folder: Path) -> None:
        data = open_data(f"funnybirds:{folder}", "test", 9, classes=[4, 1])
        assert [data.label(k) for k in data.indices] == [1, 4]

    @pytest.mark.parametrize(
        ("classes", "words"),
        [
            ([50], r"the data has no class 50: its 50 classes are numbered from 0 to 49\."),
            ([9, 8], "has no picture of class 9, 8 in split 'test'. Choose another split or class"),
        ],
    )
    def test_refused(self, folder: Path, classes: list[int], words: str) -> None:
        with pytest.raises(InputError, match=words):
            open_data(f"funnybirds:{folder}", "test", 9, classes=classes)
        if classes == [50]:
            with pytest.raises(InputError, match=words):
                open_data("birds", "test", 9, classes=classes)


class TestImageNet:
    def test_pictures_boxes_and_numbers_of_models(self, tmp_path: Path) -> None:
        data = open_data(f"imagenet:{bench_trees.imagenet(tmp_path)}", "val", 64)
        assert [data.label(k) for k in data.indices] == [0, 0, 1, 1, 207, 207]
        assert (data.classes, data.gives) == (1000, {MASKS})
        assert np.array_equal(data.mask(4), SQUARE)

    def test_one_class(self, tmp_path: Path) -> None:
        root = bench_trees.imagenet(tmp_path, each=3)
        data = open_data(f"imagenet:{root}", "val", 2, classes=[207])
        assert [data.samples.path(k).parent.name for k in data.indices] == [RETRIEVER] * 2
        with refused("classes", "val"):
            open_data(f"imagenet:{root}", "val", 2, classes=[208])

    def test_without_all_boxes(self, tmp_path: Path) -> None:
        some = open_data(f"imagenet:{bench_trees.imagenet(tmp_path / 'a', boxes=1)}", "val", 9)
        assert some.gives == {MASKS}
        assert [bool(some.mask(k).any()) for k in some.indices] == [True, False] * 3
        assert some.mask(1).shape == SQUARE.shape
        none = open_data(f"imagenet:{bench_trees.imagenet(tmp_path / 'b', boxes=0)}", "val", 9)
        assert none.gives == set()

    def test_other_numbers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = bench_trees.imagenet(tmp_path / "set")
        text = f"imagenet:{root}"

        def labels(**options: str) -> list[int]:
            data = open_data(text, "val", 3, options=options)
            return [data.label(k) for k in data.indices]

        assert labels(mapping="folders") == [0, 1, 2]
        (tmp_path / "list.txt").write_text(f"{RETRIEVER} dog\n{TENCH} fish\n{GOLDFISH} fish\n")
        assert labels(mapping=str(tmp_path / "list.txt")) == [1, 2, 0]
        shutil.copy(tmp_path / "list.txt", root / "LOC_synset_mapping.txt")
        assert labels() == [1, 2, 0]
        (root / "LOC_synset_mapping.txt").unlink()
        monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match="ImageNet's classes needs the package 'timm'"):
            labels()

    def test_training_pictures(self, tmp_path: Path) -> None:
        data = open_data(f"imagenet:{bench_trees.imagenet(tmp_path, train=True)}", "val", 9)
        assert TRAINING in data.gives
        assert data.train is not None
        some = data.train(3)
        assert [some.samples.label(k) for k in some.indices] == [0, 1, 207]
        assert all("_t" in some.samples.path(k).name for k in some.indices)


def test_imagenet_s(tmp_path: Path) -> None:
    data = open_data(f"imagenet-s:{bench_trees.imagenet_s(tmp_path)}", "validation", 64)
    assert [data.label(k) for k in data.indices] == [0, 0, 1, 1, 207, 207]
    assert (data.classes, data.gives) == (1000, {MASKS})
    assert all(np.array_equal(data.mask(k), SQUARE) for k in data.indices)
    own = {"mapping": "folders"}
    data = open_data(f"imagenet-s:{tmp_path}", "validation", 3, options=own)
    assert [data.label(k) for k in data.indices] == [0, 1, 2]


def test_boxes_are_taken_as_they_are(tmp_path: Path) -> None:
    """Two boxes in opposite corners are no box around both."""
    root = bench_trees.imagenet(tmp_path / "a", each=1)
    corners = [(0, 0, 4, 4), (16, 12, 20, 16)]
    for path in (root / "Annotations").rglob("*.xml"):
        text = path.read_text()
        one = text[text.index("<object>") : text.index("</annotation>")]
        objects = ""
        for corner in corners:
            new = one
            for key, old, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX, corner, strict=True):
                new = new.replace(f"<{key}>{old}<", f"<{key}>{value}<")
            objects += new
        path.write_text(text.replace(one, objects))
    data = open_data(f"imagenet:{root}", "val", 3)
    assert data.boxes
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 20, 1000)).eval()
    plain = Preprocessing(size=(16, 20), mean=(0.0,) * 3, std=(1.0,) * 3)
    subject = Subject(model, data, Pictures(plain))
    assert subject.boxes.sum((1, 2)).tolist() == [32, 32, 32]
    assert bool(subject.boxes[:, 0, 0].all())
    assert not bool(subject.boxes[:, 8, 10].any())
    between = torch.zeros(3, 16, 20)
    between[:, 8, 10] = 1.0
    assert energy_pointing_game(between, subject.masks, subject.boxes).mean == 0
    assert not open_data(f"voc:{bench_trees.voc(tmp_path / 'b')}", "val", 1).boxes
    options = {"task": "detection"}
    assert open_data(f"voc:{tmp_path / 'b'}", "val", 1, options=options).boxes


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_voc(tmp_path: Path, task: str) -> None:
    text = f"voc:{bench_trees.voc(tmp_path)}"
    data = open_data(text, "val", 64, options={"task": task})
    assert [data.label(k) for k in data.indices] == [0, 2, 7, 11]
    assert (data.classes, data.gives) == (20, {MASKS, TRAINING})
    assert all(np.array_equal(data.mask(k), SQUARE) for k in data.indices)
    assert data.train is not None
    assert data.train(2).indices == (0, 2)


class TestLayouts:
    def test_a_folder_is_known_by_what_lies_in_it(self, folder: Path, tmp_path: Path) -> None:
        made = {
            "imagenet": bench_trees.imagenet(tmp_path / "a"),
            "imagenet-s": bench_trees.imagenet_s(tmp_path / "b"),
            "voc": bench_trees.voc(tmp_path / "c"),
            "funnybirds": folder,
        }
        for name, root in made.items():
            kind, place = kind_of(str(root))
            assert (kind.name, place) == (name, str(root))
            assert open_data(place, kind.splits[0], 2).indices
        for inside in ("", "/VOC2012"):
            assert kind_of(f"{tmp_path}/c/VOCdevkit{inside}")[0].name == "voc"
        assert kind_of(str(tmp_path / "a/val"))[0].name == "imagenet"
        (tmp_path / "d/ILSVRC/Data").mkdir(parents=True)
        shutil.copytree(tmp_path / "a/val", tmp_path / "d/ILSVRC/Data/CLS-LOC/val")
        assert kind_of(str(tmp_path / "d"))[0].name == "imagenet"

    def test_another_layout(self, tmp_path: Path) -> None:
        (tmp_path / "cats").mkdir()
        (tmp_path / "list.txt").touch()
        words = (
            rf"{tmp_path} does not hold data of a known layout\. Expected: cifar10: "
            r".*; funnybirds: classes\.json, .*; imagenet: val/<synset>/ .*; voc: .*\. "
            r"Found: cats/, list\.txt\."
        )
        with pytest.raises(InputError, match=words):
            kind_of(str(tmp_path))
        with pytest.raises(InputError, match=r"does not hold ImageNet's layout.* Found: cats/"):
            open_data(f"imagenet:{tmp_path}", "val", 4)
        with pytest.raises(InputError, match=r"does not hold Pascal VOC.* Found: cats/"):
            open_data(f"voc:{tmp_path}", "val", 4)
        with pytest.raises(InputError, match=r"does not hold ImageNet-S.* Found: cats/"):
            open_data(f"imagenet-s:{tmp_path}", "validation", 4)
