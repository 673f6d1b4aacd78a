"""The networks that come with omenn: what they are, what they can, what their cards say."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import asdict

import pytest
import torch

from omenn import xdnn
from omenn.data import birds
from omenn.data.birds.arrays import scene_arrays
from omenn.errors import ModelError, WeightsError
from omenn.models import bundled, training
from omenn.models.architectures import ARCHITECTURES
from omenn.models.recipes import RECIPES
from refusals import refused

PROMISED = {
    "birds-resnet": 0.95,
    "birds-vit": 0.90,
    "birds-convnet": 0.90,
    "birds-xconvnet": 0.95,
}


@pytest.fixture(scope="module")
def fresh():
    """Complete scenes of another seed than training, validation and test had."""
    return scene_arrays("test", 200, seed=2026)


def test_names():
    assert bundled.names() == tuple(PROMISED)
    assert set(bundled.names()) <= set(ARCHITECTURES) == set(RECIPES)
    assert bundled.CLASS_NAMES is birds.CLASS_NAMES


@pytest.mark.parametrize("name", PROMISED)
def test_networks_are_small_and_ready(name):
    network = bundled.load(name)
    assert not any(module.training for module in network.modules())
    assert sum(p.numel() for p in network.parameters()) <= 950_000
    assert bundled.weights_path(name).stat().st_size <= 4_000_000
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in network.parameters())


def test_loading_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    bundled.load("birds-convnet")
    assert torch.rand(3).equal(expected)


def test_the_three_families_differ_as_promised():
    kinds = {
        name: {type(module).__name__ for module in bundled.load(name).modules()}
        for name in bundled.names()
    }
    assert "BatchNorm2d" in kinds["birds-resnet"]
    assert "LayerNorm" in kinds["birds-vit"]
    assert not any("Norm" in kind for kind in kinds["birds-convnet"])
    assert kinds["birds-xconvnet"] == kinds["birds-convnet"]
    names = [name for name, _ in bundled.load("birds-xconvnet").named_parameters()]
    assert not any(name.endswith("bias") for name in names)


def test_the_x_network_is_homogeneous(fresh):
    found = xdnn.check(bundled.load("birds-xconvnet"), training.normalised(fresh.images[:4]))
    assert found.homogeneous, str(found)


@pytest.mark.parametrize(("name", "promised"), PROMISED.items())
def test_networks_know_the_birds(name, promised, fresh):
    assert training.accuracy(bundled.load(name), fresh) >= promised
    result = bundled.card(name)["result"]
    assert result["test_interval_95"][0] >= promised
    assert result["test_interval_95"][0] <= result["test_top1"] <= result["test_interval_95"][1]


@pytest.mark.parametrize("name", PROMISED)
def test_networks_read_every_part(name):
    """Shown one part alone they answer a class that has it; without it they are less sure."""
    network = bundled.load(name)
    scenes = [birds.sample_scene(index, "test", seed=2026) for index in range(25)]
    labels = torch.tensor([scene.class_index for scene in scenes])

    def logits(without: Collection[str]) -> torch.Tensor:
        pictures = [birds.render(scene, bundled.SIZE, without=without) for scene in scenes]
        with torch.no_grad():
            return network(training.normalised(torch.stack([_tensor(p) for p in pictures])))

    def lead(found: torch.Tensor) -> float:
        """Mean logit of the class above that of the best other class."""
        own = torch.nn.functional.one_hot(labels, 50).bool()
        return float((found[own] - found.masked_fill(own, -torch.inf).amax(1)).mean())

    whole = lead(logits(()))
    for part in birds.PARTS:
        answers = logits([other for other in birds.PARTS if other != part]).argmax(1)
        agree = [
            int(answer) in birds.compatible({part: scene.parts[part]})
            for answer, scene in zip(answers, scenes, strict=True)
        ]
        assert sum(agree) >= 0.9 * len(agree), part
        assert lead(logits([part])) < whole - 0.5, part


def _tensor(picture) -> torch.Tensor:
    channels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return channels.view(picture.height, picture.width, 3).permute(2, 0, 1)


@pytest.mark.parametrize("name", PROMISED)
def test_cards_tell_how_the_weights_came_about(name):
    card = bundled.card(name)
    assert card["name"] == name
    assert card["sha256"] == hashlib.sha256(bundled.weights_path(name).read_bytes()).hexdigest()
    assert card["parameters"] == sum(p.numel() for p in bundled.load(name).parameters())
    assert card["recipe"] == asdict(RECIPES[name])  # so the command gives it again
    assert card["command"] == f"omenn train birds --arch {name} --seed 0"
    assert card["input"] == {
        "size": bundled.SIZE,
        "mean": list(bundled.MEAN),
        "std": list(bundled.STD),
    }


def test_unknown_names_and_damaged_files(tmp_path, monkeypatch):
    with refused("bundled model", "birds-vti", ModelError):
        bundled.load("birds-vti")
    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    with refused("path", "birds-vit.safetensors", WeightsError):
        bundled.load("birds-vit")
    with refused("path", "birds-vit", WeightsError):
        bundled.card("birds-vit")
    (tmp_path / "birds-vit.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError):
        bundled.load("birds-vit")
