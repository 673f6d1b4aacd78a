"""Training on renders in a zip: the command as a person gives it, on a zip of two classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

import omenn
from experiments import official_birds, official_birds_training
from experiments.official_birds_data import held_out, read
from experiments.official_birds_training import normalised, varied
from omenn.errors import InputError, WeightsError
from omenn.models import sources
from omenn.models.cards import wilson

PARTS = {"beak": 2, "tail": 3}
CLASSES = ({"beak": 0, "tail": 1}, {"beak": 0, "tail": 2})
Main = Callable[..., tuple[str, str]]


def record(index: int, held: dict[str, int]) -> dict[str, Any]:
    shown = {f"{part}_model": "placeholder" for part in PARTS}
    shown |= {f"{part}_model": f"{part}{number}.glb" for part, number in held.items()}
    return {"class_idx": index, **shown}


def picture(index: int, row: int) -> bytes:
    """The class is the brighter half, so that a network can learn it."""
    pixels = np.random.default_rng(row).integers(0, 60, (70, 70, 3))
    pixels[35 * index : 35 * index + 35] += 150
    file = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def content() -> dict[str, bytes]:
    """Members of a zip with 2 x 12 pictures; every third bird has its beak alone."""
    members: dict[str, Any] = {
        "classes.json": [{"class_idx": k, "parts": parts} for k, parts in enumerate(CLASSES)],
        "parts.json": {
            part: [{"model": f"{part}{number}.glb"} for number in range(count)]
            for part, count in PARTS.items()
        },
    }
    pictures: dict[str, bytes] = {}
    for tag in "ab":
        records = []
        for row in range(12):
            index = row % 2
            held = {"beak": 0} if row % 3 == 2 else CLASSES[index]
            records.append(record(index, held))
            pictures[f"train_{tag}/{index}/{row:06d}.jpg"] = picture(index, row)
        members[f"dataset_train_{tag}.json"] = records
    return {name: json.dumps(entry).encode() for name, entry in members.items()} | pictures


def zipped(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "pictures.zip"
    with ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zipped(tmp_path_factory.mktemp("zip"), content())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path) -> Main:
    """``python -m experiments.official_birds``: standard output, and the words it ended with."""

    def runner(*words: object, arch: str = "resnet", zip: Path = pictures) -> tuple[str, str]:
        said = ""
        usual = ["--zip", zip, "--arch", arch, "--size", 64, "--validation", 4, "--out", tmp_path]
        try:
            official_birds.main([str(word) for word in (*usual, *words)])
        except SystemExit as exit:
            said = str(exit.code)
        except KeyboardInterrupt:
            said = "interrupted"
        out, err = capsys.readouterr()
        return out + err, said

    return runner


class TestPictures:
    def test_they_are_what_the_zip_says(self, pictures: Path, tmp_path: Path) -> None:
        renders = read(pictures, 64, tmp_path)
        assert renders.images.shape == (24, 3, 64, 64)
        assert renders.images.dtype == torch.uint8
        assert renders.instances == (2, 3)
        assert renders.labels.tolist() == [0, 1] * 12
        assert renders.parts[:3].tolist() == [[0, 1], [0, 2], [0, -1]]
        assert renders.compatible[:3].tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
        image = Image.open(BytesIO(picture(1, 3))).convert("RGB")
        wanted = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
        assert np.array_equal(renders.images[15].permute(1, 2, 0), wanted)

    def test_the_second_time_they_come_from_the_cache(self, tmp_path: Path) -> None:
        members = content()
        first = read(zipped(tmp_path, members), 64, tmp_path)
        (kept,) = tmp_path.glob("*.npy")
        np.save(kept, np.zeros_like(np.load(kept)))
        assert not read(tmp_path / "pictures.zip", 64, tmp_path).images.any()
        for note in (b"a", b"b"):  # another zip has another cache
            other = read(zipped(tmp_path, members | {"note": note}), 64, tmp_path)
            assert other.images.equal(first.images)
        assert len(list(tmp_path.glob("*.npy"))) == 3

    def test_complete_birds_are_held_out_as_many_of_each_class(
        self, pictures: Path, tmp_path: Path
    ) -> None:
        renders = read(pictures, 64, tmp_path)
        training, held = held_out(renders, 6)
        assert sorted([*training.tolist(), *held.tolist()]) == list(range(24))
        assert renders.labels[held].bincount().tolist() == [3, 3]
        assert (renders.parts[held] >= 0).all()
        assert (renders.parts[training] < 0).any()

    @pytest.mark.parametrize(
        ("count", "words"),
        [
            (5, "--validation is 5; it must be a positive multiple of the 2 classes"),
            (30, "class 0 has 8 complete birds, --validation 30 needs 15; choose a smaller number"),
        ],
    )
    def test_too_few_for_validation(
        self, pictures: Path, tmp_path: Path, count: int, words: str
    ) -> None:
        with pytest.raises(InputError) as caught:
            held_out(read(pictures, 64, tmp_path), count)
        assert str(caught.value) == words


class TestZipsThatCannotBeUsed:
    def test_none(self, run: Main, tmp_path: Path) -> None:
        path = tmp_path / "no.zip"
        assert run(zip=path)[1] == f"official_birds: there is no zip '{path}'. Check --zip."

    def test_no_zip_at_all(self, run: Main, tmp_path: Path) -> None:
        (tmp_path / "text.zip").write_text("words")
        said = run(zip=tmp_path / "text.zip")[1]
        assert "cannot be read as a zip: File is not a zip file. Use an intact copy" in said

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"dataset_train_a.json": None, "dataset_train_b.json": None},
                "must hold classes.json",
            ),
            ({"classes.json": None}, "has no classes.json; it must hold classes.json, parts.json,"),
            ({"parts.json": b"{"}, "parts.json in "),
            ({"classes.json": b"{}"}, "holds a dict, FunnyBirds a list"),
            ({"dataset_train_b.json": b"[]", "dataset_train_a.json": b"[]"}, "lists no pictures"),
            ({"train_b/1/000003.jpg": None}, "has no train_b/1/000003.jpg, which dataset_train_b"),
            ({"train_b/1/000003.jpg": b"x"}, "train_b/1/000003.jpg in "),
            ({"dataset_train_a.json": b'[{"class_idx": 7}]'}, "does not hold FunnyBirds' layout"),
        ],
    )
    def test_another_layout(
        self, run: Main, tmp_path: Path, changes: dict[str, bytes | None], words: str
    ) -> None:
        members = {k: v for k, v in (content() | changes).items() if v is not None}
        said = run(zip=zipped(tmp_path, members))[1]
        assert said.startswith("official_birds: ")
        assert words in said
        assert str(tmp_path / "pictures.zip") in said


class TestTraining:
    @pytest.mark.parametrize("arch", ["resnet", "vit", "convnet"])
    def test_weights_and_card_can_be_loaded_and_explained(
        self, run: Main, tmp_path: Path, arch: str
    ) -> None:
        out, said = run("--epochs", 1, arch=arch)
        assert said == ""
        assert f"{arch}-64 epoch 1/1: loss " in out
        card = json.loads((tmp_path / f"{arch}-64.json").read_text())
        assert card["data"]["training"] == 20
        low, high = wilson(card["validation"]["top1"], 4)
        assert card["validation"]["interval_95"] == [round(low, 4), round(high, 4)]
        network, prepare = official_birds.load(tmp_path, arch)
        assert not network.training
        x = prepare(Image.open(BytesIO(picture(0, 0))))
        assert x.shape == (1, 3, 64, 64)
        explanation = omenn.explain(network, x, 1)
        assert explanation.exact

    def test_an_interrupted_training_ends_like_one_at_a_stretch(
        self, run: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        run("--epochs", 3, "--out", whole)
        judged, rounds = official_birds_training.accuracy, iter([True, False])

        def interrupted(*arguments: Any) -> float:
            if next(rounds, False):
                return judged(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(official_birds_training, "accuracy", interrupted)
            assert run("--epochs", 3, "--out", parts)[1] == "interrupted"
        out, _ = run("--epochs", 3, "--out", parts)
        assert "epoch 1/3" not in out
        assert "epoch 2/3" in out
        first, second = (
            official_birds.load(folder / "resnet-64.safetensors", "resnet")[0].state_dict()
            for folder in (whole, parts)
        )
        assert all(first[name].equal(second[name]) for name in first)

    def test_no_epoch_begins_after_the_minutes(self, run: Main, tmp_path: Path) -> None:
        out, said = run("--epochs", 2, "--minutes", 0)
        assert said == ""
        assert "0 minutes are over; the same command goes on" in out
        assert not list(tmp_path.glob("*.safetensors"))

    def test_random_numbers_of_the_caller_go_on(self, run: Main) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        run("--epochs", 1)
        assert torch.get_rng_state().equal(before)

    def test_it_learns(self, run: Main, tmp_path: Path) -> None:
        run("--epochs", 12)
        history = json.loads((tmp_path / "resnet-64.json").read_text())["history"]
        assert history[-1]["loss"] < 0.7 * history[0]["loss"]

    def test_the_average_is_one_of_the_steps(self, run: Main, tmp_path: Path) -> None:
        run("--epochs", 1)  # one step
        state = torch.load(tmp_path / "resnet-64.checkpoint.pt", weights_only=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = official_birds.build("resnet", 64, 2).state_dict()["stem.0.weight"]
        last = state["student"]["network.stem.0.weight"]
        assert not last.equal(first)
        wanted = 0.1 * first + 0.9 * last
        torch.testing.assert_close(state["average"]["stem.0.weight"], wanted, rtol=0, atol=1e-7)

    def test_official_pictures_are_read_at_the_end(self, run: Main, tmp_path: Path) -> None:
        root = tmp_path / "official"
        (root / "test/0").mkdir(parents=True)
        for name, data in content().items():
            if name in ("classes.json", "parts.json"):
                (root / name).write_bytes(data)
        (root / "dataset_test.json").write_text(json.dumps([record(0, CLASSES[0])] * 2))
        for row in range(2):
            pixels = Image.open(BytesIO(picture(0, row)))
            pixels.resize((90, 90)).save(root / f"test/0/{row:06d}.png")
        out, said = run("--epochs", 1, "--test", root)
        assert said == ""
        card = json.loads((tmp_path / "resnet-64.json").read_text())
        assert card["official_test"]["pictures"] == 2
        assert card["official_test"]["top1"] in (0.0, 0.5, 1.0)
        assert out.index("epoch 1/1") < out.index("official test pictures")
        said = run("--test", tmp_path)[1]
        assert "dataset_test.json' cannot be read: it does not exist. Give the folder" in said

    def test_a_checkpoint_of_another_training(self, run: Main, tmp_path: Path) -> None:
        run("--epochs", 1)
        said = run("--epochs", 2, "--seed", 4)[1]
        assert "belongs to another training: seed, epochs differ. Remove it" in said
        (tmp_path / "resnet-64.checkpoint.pt").write_bytes(b"damaged")
        said = run("--epochs", 1)[1]
        assert "resnet-64.checkpoint.pt cannot be read: " in said
        assert "Remove it to start afresh." in said

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [("--arch", "renset", "invalid choice: 'renset'"), ("--epochs", 0, "no positive number")],
    )
    def test_options(self, run: Main, option: str, value: object, words: str) -> None:
        out, said = run(option, value)
        assert said == "2"
        assert words in out


class TestAStemThatWasTrained:
    def test_the_vit_begins_with_half_of_the_resnet(self, run: Main, tmp_path: Path) -> None:
        run("--epochs", 1, "--seed", 3)
        weights = tmp_path / "resnet-64.safetensors"
        assert run("--epochs", 1, "--stem", weights, arch="vit")[1] == ""
        half = official_birds.load(weights, "resnet")[0].first_half().state_dict()  # pyright: ignore
        vit = official_birds.load(tmp_path, "vit")[0].stem[0].state_dict()  # pyright: ignore
        kernels = [name for name, value in half.items() if value.ndim == 4]
        assert len(kernels) == 9
        for name in kernels:  # after one step at a millionth
            torch.testing.assert_close(vit[name], half[name], rtol=0, atol=1e-5)
        assert json.loads(weights.with_suffix(".json").read_text())["stem"] == "drawn at random"
        said = json.loads((tmp_path / "vit-64.json").read_text())["stem"]
        assert f"sha256 {sha256(weights.read_bytes()).hexdigest()}; then trained" in said
        said = run("--epochs", 1, arch="vit")[1]
        assert "belongs to another training: stem differ. Remove it" in said

    def test_pictures_that_it_has_seen(self, run: Main, tmp_path: Path) -> None:
        run("--epochs", 1)
        weights = tmp_path / "resnet-64.safetensors"
        said = run("--validation", 6, "--stem", weights, arch="vit")[1]
        assert f"'{weights}' was trained on pictures that are held out here: 4 complete" in said
        assert ", here 6 complete birds" in said
        assert "Train it with the same --zip and --validation." in said
        assert not list(tmp_path.glob("vit-*"))

    def test_what_cannot_be_used(self, run: Main, tmp_path: Path) -> None:
        said = run("--stem", tmp_path / "no.safetensors", arch="vit")[1]
        assert f"the card '{tmp_path / 'no.json'}' cannot be read: " in said
        out, said = run("--stem", tmp_path / "no.safetensors")
        assert said == "2"
        assert "--stem is for --arch vit, not resnet" in out
        run("--epochs", 1, arch="vit")
        said = run("--stem", tmp_path / "vit-64.safetensors", arch="vit")[1]
        assert "holds a vit, asked for was a resnet" in said


class TestLoad:
    def test_what_is_not_there_is_named(self, run: Main, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"must hold one vit-<size>.safetensors, found none"):
            official_birds.load(tmp_path, "vit")
        run("--epochs", 1)
        weights = tmp_path / "resnet-64.safetensors"
        with pytest.raises(WeightsError, match="holds a resnet, asked for was a vit"):
            official_birds.load(weights, "vit")
        (tmp_path / "resnet-96.safetensors").write_bytes(b"")
        with pytest.raises(WeightsError, match=r"resnet-64.safetensors, resnet-96.safetensors"):
            official_birds.load(tmp_path, "resnet")
        (tmp_path / "resnet-64.json").write_text("{}")
        with pytest.raises(WeightsError, match=r"the card '.*resnet-64.json' cannot be read"):
            official_birds.load(weights, "resnet")

    def test_an_unknown_architecture(self) -> None:
        with pytest.raises(InputError, match=r"'vti': did you mean 'vit'"):
            official_birds.build("vti", 64)

    @pytest.mark.parametrize("arch", ["resnet", "vit", "convnet"])
    def test_omenn_takes_the_builders_by_file_and_name(self, arch: str) -> None:
        source = sources.load(f"{official_birds.__file__}:{arch}")
        assert source.preprocessing.size == (official_birds.SIZE[arch],) * 2
        side = source.preprocessing.size[0]
        assert source.model(torch.zeros(1, 3, side, side)).shape == (1, 50)


def test_variation_keeps_the_picture_recognisable() -> None:
    images = torch.full((4, 3, 64, 64), 255, dtype=torch.uint8)
    images[:, :, :32] = 0
    found = varied(normalised(images), torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert (found[:, :, :20].mean((1, 2, 3)) < -0.8).all()
    assert (found[:, :, 44:].mean((1, 2, 3)) > 0.8).all()
    again = varied(normalised(images), torch.Generator().manual_seed(0))
    assert found.equal(again)
