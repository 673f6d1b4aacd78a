"""A generated set on disk, in FunnyBirds' official layout.

    classes.json, parts.json, dataset_train.json, dataset_test.json
    train/<class>/<index>.png, train_part_map/…, test/…, test_part_map/…
    test_interventions/<class>/<index>/body_<kept parts>.png        32 subsets, also none
    test_interventions/<class>/<index>/background_interventions/<n>.png   object n removed

Each picture's record in ``dataset_*.json`` has FunnyBirds' entries for class, parts and
background objects, and under "scene" all parameters of our own scene.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.console import Console

from omenn.check import whole
from omenn.data.birds.painting import part_map, render
from omenn.data.birds.scenes import (
    CLASSES,
    INSTANCES,
    PARTS,
    Backdrop,
    PartName,
    Scene,
    Split,
    sample_scene,
)
from omenn.data.birds.shapes import BEAK_COLOURS, DYES
from omenn.errors import InputError, OutputError
from omenn.files.atomic import replacing
from omenn.files.locks import NAME
from omenn.files.reading import read_json
from omenn.progress import progress_bar

_SETTINGS = "omenn-birds.json"
_SHAPES: dict[PartName, int] = {"beak": 4, "eye": 3, "foot": 4, "tail": 3, "wing": 2}


def instance_table() -> dict[str, list[dict[str, str]]]:
    """The content of ``parts.json``: for each part its instances, as model and colour.

    >>> instance_table()["wing"][3]
    {'model': 'wing02', 'color': 'green'}
    """
    table: dict[str, list[dict[str, str]]] = {}
    for part in PARTS:
        entries = []
        for instance in range(INSTANCES[part]):
            entry = {"model": f"{part}{instance % _SHAPES[part] + 1:02d}"}
            if part == "beak":
                entry["color"] = BEAK_COLOURS[instance]
            elif part in ("tail", "wing"):
                entry["color"] = tuple(DYES)[instance // _SHAPES[part]]
            entries.append(entry)
        table[part] = entries
    return table


def record_of(scene: Scene) -> dict[str, Any]:
    """The entry of a scene in ``dataset_*.json``.

    >>> record_of(sample_scene(0, "test"))["class_idx"]
    0
    """
    record: dict[str, Any] = {"class_idx": scene.class_index}
    table = instance_table()
    for part in PARTS:
        instance = scene.parts.get(part)
        for key in table[part][0]:
            value = "placeholder" if instance is None else table[part][instance][key]
            record[f"{part}_{key}"] = value
    record["bg_objects"] = "".join(f"{item.kind}," for item in scene.backdrop)
    record["bg_color"] = "".join(f"{item.colour}," for item in scene.backdrop)
    record["scene"] = asdict(scene)
    return record


def scene_of(record: dict[str, Any]) -> Scene:
    """The scene of a record that ``record_of`` made. Raises InputError for any other record.

    >>> scene = sample_scene(5)
    >>> scene_of(json.loads(json.dumps(record_of(scene)))) == scene
    True
    """
    try:
        fields = dict(record["scene"])
        backdrop = tuple(Backdrop(**item) for item in fields.pop("backdrop"))
        return Scene(**fields, backdrop=backdrop)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"the record holds no scene of a generated bird ({error}); only sets that omenn "
            "generated can be drawn again",
            argument="record",
        ) from error


def _pictures(
    scene: Scene, split: Split, index: int, size: int
) -> Iterator[tuple[str, Callable[[], Image]]]:
    """Relative name of every file of a scene, with a function that draws it."""
    place = f"{scene.class_index}/{index:06d}"
    yield f"{split}/{place}.png", lambda: render(scene, size)
    yield f"{split}_part_map/{place}.png", lambda: part_map(scene, size)
    if split != "test":
        return
    folder = f"test_interventions/{place}"
    for count in range(len(PARTS) + 1):
        for kept in combinations(PARTS, count):
            removed = [part for part in PARTS if part not in kept]
            name = f"{folder}/body_{'_'.join(sorted(kept))}.png"
            yield name, lambda removed=removed: render(scene, size, without=removed)
    for number in range(len(scene.backdrop)):
        name = f"{folder}/background_interventions/{number}.png"
        yield name, lambda number=number: render(scene, size, without_background=[number])


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(content), encoding="utf-8")


def _claim(out: Path, settings: dict[str, int]) -> None:
    """Make ``out`` ours, or make sure that it holds the same set, perhaps unfinished."""
    if out.exists() and not out.is_dir():
        raise OutputError(
            f"{out} is a file.", argument="out", got=str(out), remedy="Choose a folder."
        )
    path = out / _SETTINGS
    if path.exists():
        try:
            found = read_json(path, "list")
        except InputError:
            found = None
        if found != settings:
            raise OutputError(
                f"{out} holds a set made with other settings ({found}).",
                argument="out",
                got=str(out),
                remedy="Choose another folder.",
            )
    elif out.exists() and any(inside.name != NAME for inside in out.iterdir()):
        raise OutputError(
            f"{out} is not empty and holds no generated birds.",
            argument="out",
            got=str(out),
            remedy="Choose a new folder.",
        )
    _write_json(path, settings)


def write(
    out: Path,
    *,
    train_scenes: int = 1000,
    test_scenes: int = 100,
    size: int = 256,
    seed: int = 0,
    console: Console | None = None,
) -> Path:
    """Write a generated set to the folder ``out`` in FunnyBirds' layout; returns ``out``.

    Scene k of a split is ``sample_scene(k, split, seed=seed)``, so fifty more scenes are one more
    of each class. An interrupted run goes on where it stopped when it is called again with the
    same arguments; no file is ever half written. The bar appears where ``console`` (standard
    error by default) is a terminal.

    Raises InputError for bad numbers, OutputError where ``out`` cannot be used.

    >>> import tempfile
    >>> folder = write(Path(tempfile.mkdtemp()) / "b", train_scenes=3, test_scenes=0, size=8)
    >>> len(list(folder.glob("train/*/*.png")))
    3
    """
    counts: dict[Split, int] = {"train": train_scenes, "test": test_scenes}
    for name, value, least in (
        ("train_scenes", train_scenes, 0),
        ("test_scenes", test_scenes, 0),
        ("size", size, 8),
        ("seed", seed, 0),
    ):
        whole(name, value, least)
    out = Path(out)
    _claim(out, {"seed": seed, "size": size, "train": train_scenes, "test": test_scenes})
    _write_json(out / "parts.json", instance_table())
    classes = [{"class_idx": k, "parts": dict(parts)} for k, parts in enumerate(CLASSES)]
    _write_json(out / "classes.json", classes)
    with progress_bar(console) as progress:
        for split, count in counts.items():
            scenes = [sample_scene(index, split, seed=seed) for index in range(count)]
            bar = progress.track(scenes, description=f"drawing {split} birds")
            for index, scene in enumerate(bar):
                _write_pictures(out, _pictures(scene, split, index, size))
            _write_json(out / f"dataset_{split}.json", [record_of(scene) for scene in scenes])
    return out


def _write_pictures(out: Path, pictures: Iterator[tuple[str, Callable[[], Image]]]) -> None:
    for name, draw in pictures:
        path = out / name
        if not path.exists():
            with replacing(path) as beside:
                draw().save(beside, format="PNG")
