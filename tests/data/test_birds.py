"""The generated birds: classes, scenes, pictures, exact interventions, files."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from omenn.data import birds
from omenn.data.birds.arrays import bird_mask, scene_arrays
from omenn.data.birds.dataset import instance_table, record_of, scene_of
from omenn.data.birds.painting import MAP_COLOURS
from omenn.errors import InputError, OutputError
from refusals import refused

# What this very scene and class have been since the bundled networks were trained on them.
PINNED = (12, -1, 1, 8, 0.0360598370564732, 0.9276406546402255, 0.08127891137751868)
PINNED_CLASS = [3, 2, 1, 6, 4]


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def touched(scene, part: str, size: int) -> np.ndarray:
    """Pixels that a part may touch: where it alone changes the bare bird, grown by one pixel."""
    others = [other for other in birds.PARTS if other != part]
    alone = pixels(birds.render(scene, size, without=others))
    bare = pixels(birds.render(scene, size, without=birds.PARTS))
    grown = np.zeros((size + 2, size + 2), bool)
    for row, column in np.argwhere((alone != bare).any(axis=2)):
        grown[row : row + 3, column : column + 3] = True
    return grown[1:-1, 1:-1]


# Classes ------------------------------------------------------------------------------------


def test_fifty_classes_differ_in_two_parts_or_more():
    assert len(birds.CLASSES) == len(set(birds.CLASS_NAMES)) == 50
    for one, other in combinations(birds.CLASSES, 2):
        assert sum(one[part] != other[part] for part in birds.PARTS) >= 2
    assert all(0 <= c[part] < birds.INSTANCES[part] for c in birds.CLASSES for part in birds.PARTS)


def test_every_instance_occurs_in_some_class():
    for part, count in birds.INSTANCES.items():
        assert {c[part] for c in birds.CLASSES} == set(range(count))


def test_every_class_has_a_pair_for_target_sensitivity():
    for index, own in enumerate(birds.CLASSES):
        shared = [
            frozenset(part for part in birds.PARTS if own[part] == other[part])
            for k, other in enumerate(birds.CLASSES)
            if k != index
        ]
        pairs = [s for s in shared if len(s) == 2]
        assert any(not a & b for a, b in combinations(pairs, 2)), birds.CLASS_NAMES[index]


def test_compatible_classes_shrink_to_the_class():
    assert birds.compatible({}) == tuple(range(50))
    for index, own in enumerate(birds.CLASSES):
        assert birds.compatible(own) == (index,)
        assert index in birds.compatible({"beak": own["beak"], "wing": own["wing"]})


# Scenes -------------------------------------------------------------------------------------


def test_a_scene_is_a_function_of_its_arguments():
    assert birds.sample_scene(7) == birds.sample_scene(7)
    others = [birds.sample_scene(57), birds.sample_scene(7, "test"), birds.sample_scene(7, seed=1)]
    assert all(replace(o, class_index=7) != birds.sample_scene(7) for o in others)


def test_a_scene_is_the_same_on_every_machine():
    scene = birds.sample_scene(12, "test")
    assert (scene.class_index, scene.facing, scene.sky, len(scene.backdrop)) == PINNED[:4]
    assert (scene.tilt, scene.scale, scene.light) == pytest.approx(PINNED[4:], abs=1e-12)
    assert list(birds.CLASSES[0].values()) == PINNED_CLASS


def test_half_of_the_training_scenes_may_miss_parts_and_no_others():
    held = [len(birds.sample_scene(k).parts) for k in range(600)]
    incomplete = sum(count < 5 for count in held) / len(held)
    assert 0.42 < incomplete < 0.58  # half of the scenes
    assert min(held) == 0
    for split in ("validation", "test"):
        assert all(len(birds.sample_scene(k, split).parts) == 5 for k in range(100))


def test_classes_take_turns():
    assert [birds.sample_scene(k).class_index for k in range(100)] == [*range(50), *range(50)]
    assert birds.sample_scene(3, class_index=40).class_index == 40


def test_no_scene_without_sense():
    with refused("index", "-1"):
        birds.sample_scene(-1)
    with refused("split", "dev"):
        birds.sample_scene(0, "dev")  # pyright: ignore[reportArgumentType]
    with refused("class_index", "50"):
        birds.sample_scene(0, class_index=50)


# Pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 64, 96, 200])
def test_pictures_have_the_size_asked_for(size):
    scene = birds.sample_scene(1)
    for image in (birds.render(scene, size), birds.part_map(scene, size)):
        assert (image.size, image.mode) == ((size, size), "RGB")


def test_every_part_can_be_seen_in_every_complete_scene():
    for index in range(100):
        found = pixels(birds.part_map(birds.sample_scene(index, "test"), 64)).reshape(-1, 3)
        for name in ("beak", "eye", "foot", "tail", "wing", "body"):
            assert (found == MAP_COLOURS[name]).all(axis=1).sum() >= 10, (index, name)


def test_all_instances_look_different():
    for part, count in birds.INSTANCES.items():
        scene = birds.sample_scene(0, "test")
        looks = [pixels(birds.render(replace(scene, **{part: k}), 64)) for k in range(count)]
        for one, other in combinations(looks, 2):
            assert (np.abs(one - other).max(axis=2) > 40).sum() >= 8


def test_edges_are_antialiased():
    scene = replace(birds.sample_scene(0, "test"), backdrop=(), light=0.0)
    tail = pixels(birds.render(scene, 64, without=["beak", "eye", "foot", "wing"]))
    assert len(np.unique(tail.reshape(-1, 3), axis=0)) > 200


@given(
    index=st.integers(0, 5000),
    removed=st.sets(st.sampled_from(birds.PARTS)),
    split=st.sampled_from(["train", "test"]),
)
@settings(max_examples=25, deadline=None)
def test_removing_parts_changes_their_pixels_alone(index, removed, split):
    scene = birds.sample_scene(index, split)
    whole, without = (pixels(birds.render(scene, 48, without=w)) for w in ((), removed))
    changed = (whole != without).any(axis=2)
    allowed = np.zeros((48, 48), bool)
    for part in removed & set(scene.parts):
        allowed |= touched(scene, part, 48)
    assert not (changed & ~allowed).any()
    if removed & set(scene.parts):
        assert changed.any()


def test_removing_a_part_equals_a_bird_that_never_had_it():
    scene = birds.sample_scene(9, "test")
    for part in birds.PARTS:
        bare = replace(scene, **{part: None})
        assert (
            pixels(birds.render(bare, 64)) == pixels(birds.render(scene, 64, without=[part]))
        ).all()


def test_removing_one_background_object_leaves_the_rest():
    scene = next(
        s for s in (birds.sample_scene(k, "test") for k in range(50)) if len(s.backdrop) >= 8
    )
    whole = pixels(birds.render(scene, 64))
    for number, item in enumerate(scene.backdrop):
        without = pixels(birds.render(scene, 64, without_background=[number]))
        others = tuple(o for k, o in enumerate(scene.backdrop) if k != number)
        assert (without == pixels(birds.render(replace(scene, backdrop=others), 64))).all()
        rows, columns = np.nonzero((whole != without).any(axis=2))
        reach = 1.4 * item.size + 2 / 64
        assert (np.abs((columns + 0.5) / 64 - item.x) <= reach).all()
        assert (np.abs((rows + 0.5) / 64 - item.y) <= reach).all()


def test_part_map_numbers_the_background_objects():
    scene = replace(birds.sample_scene(0), beak=None, eye=None, foot=None, tail=None, wing=None)
    corner = birds.Backdrop(kind=0, colour=0, x=0.1, y=0.1, size=0.08, angle=0.0)
    scene = replace(scene, backdrop=(replace(corner, x=0.9), corner))
    found = birds.part_map(scene, 100)
    assert (found.getpixel((90, 10)), found.getpixel((10, 10))) == (
        (204, 204, 204),
        (204, 204, 205),
    )
    assert found.getpixel((50, 50)) == (170, 170, 170)


def test_no_picture_without_sense():
    scene = replace(birds.sample_scene(0), backdrop=())
    with refused("size", "4"):
        birds.render(scene, 4)
    with refused("without", "claw"):
        birds.render(scene, 64, without=["claw"])
    with refused("number", "0"):
        birds.part_map(scene, 64, without_background=[0])


# Arrays -------------------------------------------------------------------------------------


def test_arrays_hold_the_scenes(tmp_path):
    arrays = scene_arrays("train", 60, size=16, cache=tmp_path)
    again = scene_arrays("train", 60, size=16, cache=tmp_path)
    assert len(arrays) == 60
    assert len(list(tmp_path.iterdir())) == 1
    assert (arrays.images == again.images).all()
    for row in (0, 7, 59):
        scene = birds.sample_scene(row)
        assert (arrays.images[row].permute(1, 2, 0).numpy() == birds.render(scene, 16)).all()
        agree = birds.compatible(scene.parts)
        assert arrays.compatible[row].nonzero().flatten().tolist() == list(agree)
        assert float(arrays.compatible[row].sum()) == pytest.approx(1)
        assert arrays.parts[row].tolist() == [scene.parts.get(p, -1) for p in birds.PARTS]


def test_masks_cover_the_bird_and_are_kept(tmp_path):
    arrays = scene_arrays("train", 40, size=48, masks=True, cache=tmp_path)
    again = scene_arrays("train", 40, size=48, masks=True, cache=tmp_path)
    bare = scene_arrays("train", 40, size=48, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert arrays.masks is not None
    assert again.masks is not None
    assert bare.masks is None
    assert (arrays.masks.shape, arrays.masks.dtype) == ((40, 1, 48, 48), torch.bool)
    assert arrays.masks.equal(again.masks)
    assert arrays.images.equal(bare.images)
    assert (arrays.masks.float().mean((1, 2, 3)) > 0.1).all()
    assert (arrays.masks.float().mean((1, 2, 3)) < 0.6).all()
    for row in range(40):
        scene, mask = birds.sample_scene(row), arrays.masks[row, 0].numpy()
        owned = pixels(birds.part_map(scene, 48))
        bird = [(owned == colour).all(axis=2) for colour in MAP_COLOURS.values()]
        assert mask[np.any(bird, axis=0)].all()
        without = pixels(birds.render(scene, 48, without=birds.PARTS))
        changed = (pixels(birds.render(scene, 48)) != without).any(axis=2)
        assert not (changed & ~mask).any()  # parts, with their soft edges, lie on the bird


def test_masks_leave_the_background_alone():
    scene = birds.sample_scene(3, "test")
    bare = replace(scene, backdrop=())
    assert (bird_mask(scene, 64) == bird_mask(bare, 64)).all()


# Files --------------------------------------------------------------------------------------


def test_records_give_the_scene_back():
    for index in range(40):
        scene = birds.sample_scene(index)
        assert scene_of(json.loads(json.dumps(record_of(scene)))) == scene
    with pytest.raises(InputError, match="holds no scene of a generated bird"):
        scene_of({"class_idx": 3})


def test_instance_table_has_official_counts():
    table = instance_table()
    assert {part: len(entries) for part, entries in table.items()} == birds.INSTANCES
    assert all(
        len({tuple(e.items()) for e in entries}) == len(entries) for entries in table.values()
    )


def test_writing_is_resumable_and_silent(tmp_path, capsys):
    options = {"train_scenes": 50, "test_scenes": 0, "size": 8}
    out = birds.write(tmp_path / "birds", **options)
    first = out / "train/4/000004.png"
    content = first.read_bytes()
    first.unlink()
    untouched = (out / "train/5/000005.png").stat().st_mtime_ns
    birds.write(out, **options)
    assert first.read_bytes() == content
    assert (out / "train/5/000005.png").stat().st_mtime_ns == untouched
    assert not list(out.rglob(".*"))
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_writing_goes_on(tmp_path, monkeypatch):
    from omenn.data.birds import dataset

    real, calls = dataset.render, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(dataset, "render", interrupted)
    options = {"train_scenes": 50, "test_scenes": 0, "size": 8}
    with pytest.raises(KeyboardInterrupt):
        birds.write(tmp_path / "b", **options)
    assert not (tmp_path / "b/dataset_train.json").exists()
    monkeypatch.undo()
    birds.write(tmp_path / "b", **options)
    assert len(list((tmp_path / "b/train").rglob("*.png"))) == 50
    assert not list((tmp_path / "b").rglob(".*"))


def test_writing_shows_progress_on_a_terminal(tmp_path):
    console = Console(force_terminal=True, width=80, file=io.StringIO())
    birds.write(tmp_path / "b", train_scenes=50, test_scenes=0, size=8, console=console)
    assert isinstance(console.file, io.StringIO)
    assert "drawing train birds" in console.file.getvalue()


def test_writing_refuses_other_peoples_folders(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty and holds no generated birds"):
        birds.write(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        birds.write(tmp_path / "notes.txt")
    out = birds.write(tmp_path / "b", train_scenes=0, test_scenes=0)
    with pytest.raises(OutputError, match="made with other settings"):
        birds.write(out, train_scenes=0, test_scenes=0, seed=1)
    for name in ("train_scenes", "test_scenes", "size", "seed"):
        with refused(name, "-1"):
            birds.write(tmp_path / "c", **{name: -1})
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_writing_into_a_closed_folder_is_an_output_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="Choose another folder"):
        birds.write(blocked / "below", train_scenes=0, test_scenes=0)
