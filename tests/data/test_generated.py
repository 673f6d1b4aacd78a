"""Generated birds without a folder: the same as from disk, with and without a cache."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omenn.data import birds, generated
from omenn.data.funnybirds import FunnyBirds
from omenn.data.generated import GeneratedBirds
from omenn.errors import InputError, OutputError
from refusals import refused

SIZE, COUNT = 16, 2


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> FunnyBirds:
    root = tmp_path_factory.mktemp("sets") / "birds"
    return FunnyBirds(birds.write(root, train_scenes=0, test_scenes=COUNT, size=SIZE))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def same(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def everything(data: Any, index: int) -> dict[str, np.ndarray]:
    """All that a scene has to show, by name."""
    found = {"image": data.image(index), "objects": data.background_masks(index)}
    found |= {f"mask {part}": mask for part, mask in data.masks(index).items()}
    for count in range(6):
        for kept in combinations(birds.PARTS, count):
            found[f"kept {kept}"] = data.with_parts(index, kept)
    for number in range(data.background_count(index)):
        found[f"object {number}"] = data.without_background(index, number)
    return {name: np.asarray(picture) for name, picture in found.items()}


@pytest.mark.parametrize("how", ["drawn", "into the cache", "from the cache"])
def test_the_same_as_from_disk(disk: FunnyBirds, cache: Path, how: str) -> None:
    data = GeneratedBirds("test", COUNT, size=SIZE, cache=None if how == "drawn" else cache)
    assert len(data) == len(disk) == COUNT
    assert data.classes == disk.classes
    assert sorted(data.parts) == sorted(disk.parts)
    assert any(data.background_count(index) for index in range(COUNT))
    for index in range(COUNT):
        assert data.label(index) == disk.label(index)
        assert data.background_count(index) == disk.background_count(index)
        ours, theirs = everything(data, index), everything(disk, index)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not same(ours[name], theirs[name])] == []
    files = sorted(path.name for path in cache.rglob("*") if path.is_file())
    assert files == ([] if how == "drawn" else [f"{k:06d}.npz" for k in range(COUNT)])


def test_the_cache_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(GeneratedBirds("test", 1, size=SIZE, cache=cache), 0)

    def draws(*_: object, **__: object) -> None:
        raise AssertionError("drawn although it is in the cache")

    monkeypatch.setattr(generated.birds, "render", draws)
    monkeypatch.setattr(generated.birds, "part_map", draws)
    found = everything(GeneratedBirds("test", 1, size=SIZE, cache=cache), 0)
    assert all(same(found[name], expected[name]) for name in expected)


def test_a_cache_serves_one_size_seed_split_and_drawing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"size": 24}, {"seed": 5}, {"split": "train"}
    for other in others:
        options: dict[str, Any] = {"split": "test", "size": SIZE, "seed": 0, **other}
        kept = GeneratedBirds(**options, count=1, cache=cache)
        assert same(kept.image(0), GeneratedBirds(**options, count=1).image(0))
    assert len(list(cache.iterdir())) == 1 + len(others)
    monkeypatch.setattr(generated, "drawing_digest", lambda: "another drawing")
    GeneratedBirds("test", 1, size=SIZE, cache=cache).image(0)
    assert len(list(cache.iterdir())) == 2 + len(others)


def test_a_longer_set_goes_on_with_the_cache_of_a_shorter_one(tmp_path: Path) -> None:
    GeneratedBirds("train", 1, size=8, cache=tmp_path).image(0)
    longer = GeneratedBirds("train", 2, size=8, cache=tmp_path)
    assert same(longer.image(1), GeneratedBirds("train", 2, size=8).image(1))
    assert same(longer.image(0), GeneratedBirds("train", 2, size=8).image(0))
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_what_one_gets_can_be_written_to(cache: Path) -> None:
    data = GeneratedBirds("test", 1, size=SIZE, cache=cache)
    before = np.asarray(data.image(0)).copy()
    data.image(0).putpixel((0, 0), (1, 2, 3))
    assert same(data.image(0), before)


def test_only_scenes_with_all_parts() -> None:
    data = GeneratedBirds("train", 20)
    assert all(len(scene.parts) == 5 for scene in data.scenes)
    complete = (birds.sample_scene(index) for index in range(200))
    assert data.scenes == [scene for scene in complete if len(scene.parts) == 5][:20]
    assert repr(data) == "GeneratedBirds('train', 20, size=64, seed=0)"


def test_refused(tmp_path: Path) -> None:
    with refused("count", "0"):
        GeneratedBirds(count=0)
    with refused("split", "tests"):
        GeneratedBirds("tests", 1)  # type: ignore[arg-type]
    for data in (GeneratedBirds("test", 2, size=8), GeneratedBirds("test", 2, cache=tmp_path)):
        for index in (-1, 2):
            text = f"no picture {index} in GeneratedBirds"
            for ask in (data.image, data.label, data.masks, data.background_masks):
                with pytest.raises(InputError, match=text):
                    ask(index)
    with refused("kept", "horn"):
        data.with_parts(0, ["horn", "beak", "claw"])
    count = data.background_count(0)
    with refused("number", str(count)):
        data.without_background(0, count)
    with refused("size", "0"):
        GeneratedBirds("test", 1, size=0, cache=tmp_path).image(0)
    assert list(tmp_path.rglob("*.npz")) == []


def test_caches_that_cannot_be_used(tmp_path: Path) -> None:
    GeneratedBirds("test", 1, size=8, cache=tmp_path).image(0)
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", whole[:60] + bytes(40) + whole[100:], b"other"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"000000\.npz cannot be read: .* Delete it\."):
            GeneratedBirds("test", 1, size=8, cache=tmp_path).image(0)
    np.savez(path, pictures=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"000000\.npz cannot be read"):
        GeneratedBirds("test", 1, size=8, cache=tmp_path).image(0)
    with pytest.raises(OutputError, match="cannot be written"):
        GeneratedBirds("test", 1, size=8, cache=path).image(0)
