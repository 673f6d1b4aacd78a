"""Training on generated birds: repeatable, resumable, nothing half written. Tiny runs only."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from omenn.data import birds
from omenn.data.birds.arrays import scene_arrays
from omenn.errors import InputError, ModelError, OutputError, WeightsError
from omenn.models import training
from omenn.models.architectures import ARCHITECTURES
from omenn.models.training import accuracy, augmented, normalised, train_birds


@pytest.fixture(autouse=True)
def tiny_recipes(monkeypatch):
    """Every recipe cut down to three steps an epoch, in float32."""
    for name, recipe in training.RECIPES.items():
        cut = replace(
            recipe,
            epochs=2,
            batch_size=8,
            train_scenes=24,
            validation_scenes=10,
            test_scenes=10,
            precision="float32",
        )
        monkeypatch.setitem(training.RECIPES, name, cut)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_training_writes_weights_and_card(arch, tmp_path, cache, capsys):
    path = train_birds(arch, tmp_path / "out", cache=cache)
    assert path == tmp_path / f"out/{arch}.safetensors"
    ARCHITECTURES[arch]().load_state_dict(load_file(path))
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["command"] == f"omenn train birds --arch {arch} --seed 0"
    assert card["recipe"]["epochs"] == 2
    assert 0 <= card["result"]["test_top1"] <= 1
    assert sorted(p.name for p in path.parent.iterdir()) == [
        f"{arch}.checkpoint.pt",
        f"{arch}.json",
        f"{arch}.safetensors",
    ]
    printed, logged = capsys.readouterr()
    assert printed == ""
    assert [line.split(":")[0] for line in logged.splitlines()] == [
        f"{arch} epoch 1/2",
        f"{arch} epoch 2/2",
    ]


def test_bfloat16_trains_too(tmp_path, cache, monkeypatch):
    recipe = replace(training.RECIPES["birds-vit"], precision="bfloat16", epochs=1)
    monkeypatch.setitem(training.RECIPES, "birds-vit", recipe)
    state = load_file(train_birds("birds-vit", tmp_path, cache=cache))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())


def test_same_seed_same_weights_other_seed_others(tmp_path, cache):
    runs = [
        load_file(train_birds("birds-convnet", tmp_path / str(k), seed=seed, cache=cache))
        for k, seed in enumerate((0, 0, 1))
    ]
    assert all(runs[0][name].equal(runs[1][name]) for name in runs[0])
    assert not runs[0]["head.weight"].equal(runs[2]["head.weight"])


def test_the_callers_random_state_is_left_alone(tmp_path, cache):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_birds("birds-convnet", tmp_path, epochs=1, cache=cache)
    assert torch.rand(3).equal(expected)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, cache, monkeypatch):
    whole = load_file(train_birds("birds-resnet", tmp_path / "whole", cache=cache))
    step, steps = training._Run._step, []

    def interrupted(self, *args):
        steps.append(args)
        if len(steps) == 5:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(training._Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_birds("birds-resnet", tmp_path / "cut", cache=cache)
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["birds-resnet.checkpoint.pt"]
    resumed = load_file(train_birds("birds-resnet", tmp_path / "cut", cache=cache))
    assert len(steps) == 5 + 3  # the second epoch alone was done again
    assert all(whole[name].equal(resumed[name]) for name in whole)


def test_checkpoints_that_do_not_fit(tmp_path, cache):
    train_birds("birds-convnet", tmp_path, epochs=1, cache=cache)
    with pytest.raises(WeightsError, match="belongs to another training"):
        train_birds("birds-convnet", tmp_path, epochs=1, seed=3, cache=cache)
    checkpoint = tmp_path / "birds-convnet.checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"cannot be read .* Remove it to start afresh"):
        train_birds("birds-convnet", tmp_path, epochs=1, cache=cache)


def test_requests_without_sense(tmp_path, cache):
    with pytest.raises(ModelError, match=r"unknown architecture 'birds-restnet'.*'birds-resnet'"):
        train_birds("birds-restnet", tmp_path)
    with pytest.raises(InputError, match="epochs is 0"):
        train_birds("birds-vit", tmp_path, epochs=0)
    with pytest.raises(InputError, match="train_scenes 7; at least 1 and 8"):
        train_birds("birds-vit", tmp_path, train_scenes=7)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another folder"):
        train_birds("birds-convnet", tmp_path / "file", epochs=1, cache=cache)


def test_multi_target_loss_is_the_mean_over_compatible_classes():
    student = training._Student(ARCHITECTURES["birds-convnet"]())
    images = torch.randn(2, 3, 64, 64)
    targets = torch.zeros(2, 50)
    targets[0, [4]], targets[1, [1, 7, 9]] = 1.0, 1 / 3
    nothing = torch.full((2, 5), -1)
    logs = student.network(images).detach().log_softmax(1)
    expected = -(logs[0, 4] + logs[1, [1, 7, 9]].mean()) / 2
    assert float(student(images, targets, nothing, 1.0).detach()) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_part_loss_counts_visible_parts_alone():
    student = training._Student(ARCHITECTURES["birds-convnet"]())
    images, targets = torch.randn(2, 3, 64, 64), torch.full((2, 50), 0.02)
    parts = torch.tensor([[2, -1, -1, -1, -1], [-1, -1, -1, -1, -1]])
    bare = student(images, targets, torch.full_like(parts, -1), 1.0)
    beak = student.parts[0](student.network.features(images))[0].log_softmax(0)[2].detach()
    with_beak = student(images, targets, parts, 1.0)
    assert float((with_beak - bare).detach()) == pytest.approx(
        float(-beak) / len(birds.PARTS), rel=1e-4
    )


def test_augmentation_moves_and_tints_but_keeps_the_bird():
    scenes = scene_arrays("test", 12)
    images = normalised(scenes.images)
    changed = augmented(images, torch.Generator().manual_seed(0))
    again = augmented(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert changed.equal(again)
    assert not changed.equal(images)
    flat = augmented(torch.full((4, 3, 64, 64), 0.5), torch.Generator().manual_seed(0))
    assert (flat.flatten(2).std(2) < 1e-6).all()
    assert 0.2 < float(flat.min()) < float(flat.max()) < 0.8


def test_accuracy_counts_right_answers_and_restores_the_mode():
    scenes = scene_arrays("test", 100, size=16)

    class Always(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return torch.eye(50)[7].expand(len(images), -1) + self.weight

    network = Always().train()
    assert accuracy(network, scenes, batch_size=30) == 0.02
    assert network.training


def test_learning_rate_rises_then_falls_to_zero():
    recipe = replace(training.RECIPES["birds-vit"], warmup=0.1)
    rates = [training._rate(step, 100, recipe) for step in range(100)]
    peak = max(range(100), key=rates.__getitem__)
    assert peak in (9, 10)
    assert rates[peak] == pytest.approx(recipe.learning_rate)
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert 0 < rates[-1] < 0.01 * recipe.learning_rate
