"""Training on with deleted cells: by hand on a tiny case, resumed, and on nothing but a copy."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.errors import InputError, ModelError, OutputError, TargetError, WeightsError
from omenn.metrics.idsds import falls
from omenn.metrics.in_domain import Recipe, deleted, fine_tune
from refusals import refused


def network(drop: float = 0.0) -> nn.Module:
    torch.manual_seed(4)
    parts = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(drop), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(144, 3)).eval()


def pictures(count: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 2, 8, 8, generator=generator)
    return images, torch.arange(count) % 3


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_plain_steps_by_hand() -> None:
    """One batch an epoch and no deletion: SGD with momentum, whose rate falls after two epochs."""
    net, (images, labels) = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double(), pictures()
    images = images.double()
    recipe = Recipe(epochs=4, batch=10, rate=0.1, momentum=0.8, decay=0.01, step=2, share=0)
    losses: list[float] = []
    tuned = fine_tune(net, (images, labels), recipe, tick=lambda epoch, loss: losses.append(loss))
    weight, bias = (p.detach().clone() for p in net.parameters())
    speed: list[Any] = [0, 0]
    for epoch in range(4):
        p = (images.flatten(1) @ weight.T + bias).softmax(1)
        expected = -p[range(10), labels].log().mean()
        assert losses[epoch] == pytest.approx(float(expected))
        error = (p - F.one_hot(labels, 3)) / 10
        for k, (value, grad) in enumerate(
            ((weight, error.T @ images.flatten(1)), (bias, error.sum(0)))
        ):
            speed[k] = 0.8 * speed[k] + grad + 0.01 * value
            value -= (0.1 if epoch < 2 else 0.01) * speed[k]
    assert torch.allclose(tuned[1].weight, weight)
    assert torch.allclose(tuned[1].bias, bias)


def test_the_default_is_as_published() -> None:
    expected = {
        "epochs": 30, "batch": 256, "rate": 0.001, "momentum": 0.9, "decay": 1e-4, "step": 10,
        "share": 0.5, "cells": 4, "fill": "zeros",
    }  # fmt: skip
    assert {name: getattr(Recipe(), name) for name in expected} == expected


def test_half_of_the_pictures_lack_one_cell_each_as_likely() -> None:
    images = torch.ones(4000, 1, 8, 8)
    generator = torch.Generator().manual_seed(1)
    out = deleted(images, Recipe(), generator)
    cells = out.view(4000, 4, 2, 4, 2).transpose(2, 3).flatten(3).flatten(1, 2)
    gone = (cells == 0).all(2)
    assert ((cells == 0).any(2) == gone).all()
    assert set(gone.sum(1).tolist()) == {0, 1}
    assert gone.any(1).double().mean() == pytest.approx(0.5, abs=0.03)
    shares = gone.double().sum(0) / gone.sum()
    assert shares.tolist() == pytest.approx([1 / 16] * 16, abs=0.02)
    assert torch.equal(deleted(images, Recipe(share=0), generator), images)
    assert (deleted(images, Recipe(share=1), generator) == 0).flatten(1).any(1).all()
    noise = deleted(images, Recipe(share=1, fill="random"), generator)
    assert (noise < 1).flatten(1).sum(1).tolist() == [4] * 4000


def test_deletions_become_harmless() -> None:
    """What the model says of a picture without a cell that does not matter comes to be the same."""
    generator = torch.Generator().manual_seed(6)
    labels = torch.arange(64) % 2
    images = torch.randn(64, 1, 8, 8, generator=generator) * 0.3 + 1
    images[:, :, :2, :2] = (2.0 * labels - 1)[:, None, None, None]  # only the first cell tells
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    recipe = Recipe(epochs=60, batch=16, rate=0.02, step=60)
    tuned = fine_tune(net, (images, labels), recipe)
    logits = tuned(images)
    assert (logits.argmax(1) == labels).all()
    drops = falls(tuned, images, labels).abs().mean(0)
    assert drops.argmax() == 0
    assert drops[0] > 3 * drops[1:].max()


def test_the_model_and_the_random_numbers_stay_as_they_were() -> None:
    net = network(0.3)
    net[0].weight.requires_grad_(False)
    net.train()
    before, state = copy.deepcopy(net), torch.get_rng_state()
    with torch.no_grad():
        tuned = fine_tune(net, pictures(), Recipe(epochs=2, batch=4))
        assert not torch.is_grad_enabled()
    assert same(net, before)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not tuned.training
    assert [p.requires_grad for p in tuned.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in tuned.parameters())
    assert not torch.equal(tuned[0].weight, net[0].weight)
    assert not torch.equal(tuned[1].running_mean, net[1].running_mean)


def test_the_same_seed_gives_the_same_weights() -> None:
    tuned = []
    for number, seed in enumerate((1, 1, 2)):
        net = network(0.3)
        torch.manual_seed(number)  # has no say
        tuned.append(fine_tune(net, pictures(), Recipe(epochs=2, batch=4, seed=seed)))
    assert same(tuned[0], tuned[1])
    assert not same(tuned[0], tuned[2])


def test_each_epoch_has_its_own_order_of_all_pictures() -> None:
    asked: list[int] = []

    class Set(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    images, labels = pictures(12)
    data = Set(zip(images, labels.tolist(), strict=True))
    fine_tune(network(), data, Recipe(epochs=3, batch=4))
    orders = [asked[k : k + 12] for k in (1, 13, 25)]  # the first one was looked at for its size
    assert [sorted(order) for order in orders] == [list(range(12))] * 3
    assert len({tuple(order) for order in orders}) == 3


def test_interrupted_and_resumed_is_like_uninterrupted(tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, batch=4, rate=0.05, step=3)
    whole = fine_tune(network(0.3), pictures(), recipe)

    def interrupt(epoch: int, loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    file, state = tmp_path / "new/run.pt", torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(network(0.3), pictures(), recipe, checkpoint=file, tick=interrupt)
    assert torch.equal(state, torch.get_rng_state())
    epochs: list[int] = []
    resumed = fine_tune(
        network(0.3), pictures(), recipe, checkpoint=file, tick=lambda e, _: epochs.append(e)
    )
    assert epochs == [3, 4]
    assert same(whole, resumed)
    assert same(whole, fine_tune(network(0.3), pictures(), recipe, checkpoint=str(file)))
    assert [path.name for path in file.parent.iterdir()] == ["run.pt"]


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    fine_tune(network(), pictures(), Recipe(epochs=1), checkpoint=file)
    with pytest.raises(
        WeightsError, match=r"run\.pt belongs to another training: epochs, rate dif"
    ):
        fine_tune(network(), pictures(), Recipe(epochs=2, rate=0.1), checkpoint=file)
    with pytest.raises(
        WeightsError, match=r"another training: pictures differ\. Remove it, or choos"
    ):
        fine_tune(network(), pictures(9), Recipe(epochs=1), checkpoint=file)
    changed = network()
    changed[5].bias.data[0] += 1
    with pytest.raises(WeightsError, match="another training: weights differ"):
        fine_tune(changed, pictures(), Recipe(epochs=1), checkpoint=file)
    file.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"run\.pt cannot be read: .*Remove it to start"):
        fine_tune(network(), pictures(), Recipe(epochs=1), checkpoint=file)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        fine_tune(network(), pictures(), Recipe(epochs=1), checkpoint=tmp_path / "file/run.pt")


def test_a_picture_that_would_be_alone_joins_the_batch_before() -> None:
    sizes: list[int] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(labels))
        return F.cross_entropy(logits, labels)

    fine_tune(network(), pictures(9), Recipe(epochs=1, batch=4), loss=loss)
    fine_tune(network(), pictures(10), Recipe(epochs=1, batch=4), loss=loss)
    fine_tune(network(), pictures(8), Recipe(epochs=1, batch=4), loss=loss)
    assert sizes == [4, 5, 4, 4, 2, 4, 4]


def test_data_by_number() -> None:
    class Set:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return pictures()[0][index], index % 3

    recipe = Recipe(epochs=1, batch=4)
    assert same(fine_tune(network(), Set(), recipe), fine_tune(network(), pictures(), recipe))


def test_data_that_cannot_be_trained_with() -> None:
    images, labels = pictures()
    for data, message in (
        (3, r"data must be \(images, labels\) or have a length and .*, got int"),
        ([], "data holds no pictures to train with"),
        ([images], r"data\[0\] must be a picture, a tensor \(C, H, W\), and its class, got Tensor"),
        ([(images[0, :, :7], 0)], "cells=4 must divide the sides of the pictures, 7 x 8 pixels"),
        ([(images[0], 0), (images[0, :, :4], 0)], r"different shapes, \(2, 4, 8\) and \(2, 8, 8\)"),
        ((images[0], labels), r"images must be \(B, C, H, W\)"),
    ):
        wrong: Any = data
        with pytest.raises(InputError, match=message):
            fine_tune(network(), wrong)
    with pytest.raises(TargetError, match="targets must be class indices from 0"):
        fine_tune(network(), (images, labels[:3]))
    with pytest.raises(TargetError, match="target 4 is not among the 3 classes"):
        fine_tune(network(), (images, labels + 2))


def test_models_that_cannot_be_trained() -> None:
    with pytest.raises(ModelError, match="the model has no parameters, so there is nothing to tra"):
        fine_tune(nn.Flatten(), pictures())
    with pytest.raises(
        InputError, match=r"must return logits \(n, classes\) .* shape \(10, 4, 6, 6"
    ):
        fine_tune(nn.Conv2d(2, 4, 3), pictures())
    net, recipe = network(), Recipe(epochs=3, rate=1e30, batch=5)
    before, state = copy.deepcopy(net), torch.get_rng_state()
    with pytest.raises(
        ModelError, match=r"the loss is (nan|inf) in epoch \d. Choose a smaller rate"
    ):
        fine_tune(net, pictures(), recipe)
    assert same(net, before)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0), ("cells", 1), ("seed", True), ("batch", 2.5), ("share", 1.5), ("rate", -1),
        ("decay", math.inf), ("momentum", "0.9"),
    ],
)  # fmt: skip
def test_recipes(option: str, value: Any) -> None:
    with refused(option, repr(value)):
        Recipe(**{option: value})


def test_an_unknown_filling() -> None:
    wrong: Any = "grey"
    with pytest.raises(InputError, match="fill='grey' is not known"):
        fine_tune(network(), pictures(), Recipe(epochs=1, fill=wrong))
