"""The loader of FunnyBirds' layout, on a small generated set."""

from __future__ import annotations

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from omenn.data import birds
from omenn.data.birds.dataset import scene_of
from omenn.data.funnybirds import FunnyBirds
from omenn.errors import InputError
from refusals import refused

SIZE = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return birds.write(
        tmp_path_factory.mktemp("sets") / "birds", train_scenes=50, test_scenes=50, size=SIZE
    )


def same(image, other) -> bool:
    return bool((np.asarray(image) == np.asarray(other)).all())


def test_generated_set_reads_back(root):
    data = FunnyBirds(root)
    assert len(data) == 50
    assert data.classes == birds.CLASSES
    assert {part: len(entries) for part, entries in data.parts.items()} == birds.INSTANCES
    assert repr(data) == f"FunnyBirds({str(root)!r}, split='test', pictures=50)"
    for index in (0, 17, 49):
        scene = birds.sample_scene(index, "test")
        assert scene_of(data.records[index]) == scene
        assert data.label(index) == scene.class_index == index
        assert data.visible_parts(index) == scene.parts == data.classes[index]
        assert same(data.image(index), birds.render(scene, SIZE))
        assert same(data.part_map(index), birds.part_map(scene, SIZE))
        assert data.background_count(index) == len(scene.backdrop)


def test_training_pictures_know_their_missing_parts(root):
    data = FunnyBirds(root, "train")
    for index in range(50):
        parts = birds.sample_scene(index).parts
        assert data.visible_parts(index) == parts
        assert data.compatible(parts) == birds.compatible(parts)


def test_interventions(root):
    data = FunnyBirds(root)
    scene = birds.sample_scene(8, "test")
    for count in range(6):
        for kept in combinations(birds.PARTS, count):
            removed = [part for part in birds.PARTS if part not in kept]
            assert same(data.with_parts(8, kept), birds.render(scene, SIZE, without=removed))
    assert same(data.with_parts(8, ["wing", "beak"]), data.with_parts(8, ("beak", "wing")))
    assert scene.backdrop
    for number in range(len(scene.backdrop)):
        drawn = birds.render(scene, SIZE, without_background=[number])
        assert same(data.without_background(8, number), drawn)


def test_layout_on_disk_is_the_official_one(root):
    names = {path.name for path in root.iterdir()} - {"omenn-birds.json"}
    assert names == {
        "classes.json",
        "parts.json",
        "dataset_train.json",
        "dataset_test.json",
        "train",
        "train_part_map",
        "test",
        "test_part_map",
        "test_interventions",
    }
    folder = root / "test_interventions/8/000008"
    bodies = {path.name for path in folder.glob("body_*.png")}
    assert len(bodies) == 32
    assert {"body_.png", "body_eye_wing.png", "body_beak_eye_foot_tail_wing.png"} <= bodies


def test_masks(root):
    data = FunnyBirds(root)
    colours = np.asarray(data.part_map(8)).astype(int)
    masks = data.masks(8)
    assert list(masks) == list(birds.PARTS)
    feet = (colours[..., 0] == 255) & (colours[..., 1] == 0)
    assert feet.any()
    assert (masks["foot"] == feet).all()
    assert sum(mask.astype(int) for mask in masks.values()).max() == 1
    backdrop = data.background_masks(8)
    assert backdrop.shape == (data.background_count(8), SIZE, SIZE)
    assert (backdrop.any(axis=0) == (colours[..., 0] == 204)).all()


def test_masks_join_the_two_eyes_of_the_official_maps(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    data = FunnyBirds(copy)
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[2, 3], pixels[4, 5] = (255, 255, 253), (255, 255, 254)
    Image.fromarray(pixels).convert("RGBA").save(copy / "test_part_map/8/000008.png")
    assert np.argwhere(data.masks(8)["eye"]).tolist() == [[2, 3], [4, 5]]
    assert not data.masks(8)["wing"].any()


def test_a_scene_without_background_objects(root):
    data = FunnyBirds(root)
    empty = next(k for k in range(50) if data.background_count(k) == 0)
    assert data.background_masks(empty).shape == (0, SIZE, SIZE)
    with refused("number", "0"):
        data.without_background(empty, 0)


def test_requests_without_sense(root):
    data = FunnyBirds(root)
    with pytest.raises(InputError, match=r"no picture 50 in .*split='test', pictures=50"):
        data.image(50)
    with pytest.raises(InputError, match="no picture -1 in"):
        data.label(-1)
    with refused("kept", "claw"):
        data.with_parts(0, ["claw"])
    with pytest.raises(InputError, match="The set is not complete"):
        FunnyBirds(root, "train").with_parts(0, [])


def test_folders_that_are_no_such_set(root, tmp_path):
    with pytest.raises(
        InputError, match=r"dataset_test\.json' cannot be read: it does not exist\. Give the folder"
    ):
        FunnyBirds(tmp_path)
    with refused("path", "dataset_other.json"):
        FunnyBirds(root, "other")
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "classes.json").write_text("[{]")
    with pytest.raises(InputError, match="is not JSON"):
        FunnyBirds(copy)
    (copy / "classes.json").write_text("{}")
    with pytest.raises(InputError, match="holds a dict, FunnyBirds a list"):
        FunnyBirds(copy)
    (copy / "classes.json").write_text(json.dumps([{"class_idx": 0, "parts": {"beak": 1}}]))
    with pytest.raises(InputError, match="does not hold FunnyBirds' layout"):
        FunnyBirds(copy)


def test_truncated_pictures(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / "test/3/000003.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"000003\.png cannot be read"):
        FunnyBirds(copy).image(3)
    path.unlink()
    with refused("path", "000003.png"):
        FunnyBirds(copy).image(3)
