"""Training on generated birds: repeatable, resumable, nothing half written. Tiny runs only."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from omenn.data import birds
from omenn.data.birds.arrays import scene_arrays
from omenn.errors import ModelError, OutputError, WeightsError
from omenn.models import fit, training
from omenn.models.architectures import ARCHITECTURES
from omenn.models.augmentation import augmented, drawn_move, normalised
from omenn.models.checkpoints import load_weights
from omenn.models.recipes import RECIPES, recipe_of
from omenn.models.training import accuracy, train_birds
from refusals import refused

pytestmark = pytest.mark.usefixtures("tiny_recipes")


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
    recipe = replace(RECIPES["birds-vit"], precision="bfloat16", epochs=1)
    monkeypatch.setitem(RECIPES, "birds-vit", recipe)
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


def test_checkpoints_that_do_not_fit(tmp_path, cache):
    train_birds("birds-convnet", tmp_path, epochs=1, cache=cache)
    with pytest.raises(WeightsError, match="belongs to another training"):
        train_birds("birds-convnet", tmp_path, epochs=1, seed=3, cache=cache)
    checkpoint = tmp_path / "birds-convnet.checkpoint.pt"
    whole = checkpoint.read_bytes()
    torch.save([1, 2], checkpoint)
    with pytest.raises(WeightsError, match="belongs to another training"):
        train_birds("birds-convnet", tmp_path, epochs=1, cache=cache)
    checkpoint.write_bytes(whole[:1000])
    with refused("path", str(checkpoint), WeightsError):
        train_birds("birds-convnet", tmp_path, epochs=1, cache=cache)


def test_requests_without_sense(tmp_path, cache):
    with refused("architecture", "birds-restnet", ModelError):
        train_birds("birds-restnet", tmp_path)
    with refused("epochs", "0"):
        train_birds("birds-vit", tmp_path, epochs=0)
    with refused("train_scenes", "7"):
        train_birds("birds-vit", tmp_path, train_scenes=7)
    with refused("learning_rate", "-1"):
        train_birds("birds-vit", tmp_path, learning_rate=-1)
    with refused("learning_rate", "1e+38"):
        train_birds("birds-vit", tmp_path, learning_rate=1e38)
    with refused("seed", "4294967296"):
        train_birds("birds-vit", tmp_path, seed=2**32)
    (tmp_path / "file").write_text("")
    with refused("path", "file", OutputError):
        train_birds("birds-convnet", tmp_path / "file", epochs=1, cache=cache)


def test_multi_target_loss_is_the_mean_over_compatible_classes():
    student = training.Student(ARCHITECTURES["birds-convnet"](), list(birds.INSTANCES.values()))
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
    student = training.Student(ARCHITECTURES["birds-convnet"](), list(birds.INSTANCES.values()))
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


def test_a_move_takes_pictures_and_masks_alike():
    scenes = scene_arrays("train", 30, masks=True)
    assert scenes.masks is not None
    move = drawn_move(30, 64, torch.Generator().manual_seed(1))
    painted = torch.where(scenes.masks, 255, scenes.images // 2)
    moved, mask = move(painted), move(scenes.masks)
    assert mask.dtype == torch.bool
    assert ((moved == 255).all(1, keepdim=True) == mask).all()
    assert not mask.equal(scenes.masks)


def test_a_move_shifts_by_three_pixels_and_mirrors_half():
    ramp = torch.arange(64.0)
    image = (ramp[:, None] + 100 * ramp).expand(200, 1, 64, 64)
    moved = drawn_move(200, 64, torch.Generator().manual_seed(2))(image)
    middle = moved[:, 0, 32, 31]
    rows, columns = middle % 100 - 32, middle.div(100, rounding_mode="floor")
    turned = moved[:, 0, 32, 32] < middle
    assert 70 < int(turned.sum()) < 130
    shifts = torch.where(turned, columns - 32, columns - 31)
    assert set(rows.tolist()) == set(shifts.tolist()) == set(range(-3, 4))


def test_a_recipe_can_be_changed():
    assert recipe_of("birds-vit") == RECIPES["birds-vit"]
    changed = recipe_of("birds-vit", epochs=7, learning_rate=0.5, train_scenes=None)
    assert changed == replace(RECIPES["birds-vit"], epochs=7, learning_rate=0.5)


def test_the_card_has_the_command_for_what_was_changed(tmp_path, cache):
    path = train_birds("birds-convnet", tmp_path, epochs=1, learning_rate=0.002, cache=cache)
    card = json.loads(path.with_suffix(".json").read_text())
    words = "omenn train birds --arch birds-convnet --seed 0 --epochs 1 --learning-rate 0.002"
    assert card["command"] == words
    assert card["recipe"]["learning_rate"] == 0.002
    assert card["prior"] is None


def test_a_checkpoint_is_a_weights_file(tmp_path, cache):
    path = train_birds("birds-xresnet", tmp_path, cache=cache)
    network = ARCHITECTURES["birds-xresnet"]()
    load_weights(network, tmp_path / "birds-xresnet.checkpoint.pt")
    state = network.state_dict()
    assert all(value.equal(state[name]) for name, value in load_file(path).items())


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
    rates = [fit.rate(step, 100, 0.01, warmup=0.1) for step in range(100)]
    peak = max(range(100), key=rates.__getitem__)
    assert peak in (9, 10)
    assert rates[peak] == pytest.approx(0.01)
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert 0 < rates[-1] < 1e-4
