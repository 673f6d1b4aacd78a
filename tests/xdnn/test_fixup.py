"""Fixup: which weights are zero, which are smaller, and what is drawn."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from omenn.errors import ModelError
from omenn.models.architectures import BirdsResNet
from omenn.xdnn import convert
from omenn.xdnn.fixup import initialise, scales
from omenn.xdnn.model_scan import scan
from omenn.xdnn.obstacle_check import copied

IMAGES = torch.zeros(1, 3, 32, 32).uniform_(generator=torch.Generator().manual_seed(0))


def both(model: nn.Module, inputs: Tensor = IMAGES) -> list[dict[str, float]]:
    """The factors by the tree of modules, and by a run."""
    found = scan(copied(model), inputs)
    return [scales(model, None), scales(model, found)]


def test_a_network_of_basic_blocks() -> None:
    small = 8 ** (-1 / 2)  # 8 blocks of two convolutions
    expected = {"fc.weight": 0.0}
    for stage in range(1, 5):
        for block in range(2):
            expected[f"layer{stage}.{block}.conv1.weight"] = small
            expected[f"layer{stage}.{block}.conv2.weight"] = 0.0
    for found in both(torchvision.models.resnet18()):
        assert found == pytest.approx(expected)


def test_a_network_of_bottlenecks() -> None:
    model = timm.create_model("resnet26t", num_classes=4)  # 8 blocks of three convolutions
    for found in both(model):
        assert found["layer1.0.conv1.weight"] == pytest.approx(8 ** (-1 / 4))
        assert found["layer4.1.conv2.weight"] == pytest.approx(8 ** (-1 / 4))
        assert found["layer4.1.conv3.weight"] == found["fc.weight"] == 0
        assert not any("downsample" in name or "conv1.0" in name for name in found)
        assert len(found) == 8 * 3 + 1


def test_blocks_are_found_alike_by_the_tree_and_by_a_run() -> None:
    tree, run = both(BirdsResNet())
    assert tree == run
    assert sorted(name for name, scale in run.items() if scale == 0)[:2] == [
        "head.weight",
        "stages.0.0.conv2.weight",
    ]


def test_only_a_run_finds_blocks_without_a_class() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.c, self.d = nn.Linear(4, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.b(torch.relu(self.a(x)))
            x += self.d(torch.relu(self.c(x)))
            return self.head(x)

    tree, run = both(Net(), torch.ones(1, 4))
    assert tree == {"head.weight": 0.0}
    half = 2**-0.5
    assert run == pytest.approx(
        {"a.weight": half, "b.weight": 0, "c.weight": half, "d.weight": 0, "head.weight": 0}
    )


def test_gates_and_strides_make_no_block() -> None:
    model = timm.create_model("efficientnet_lite0", num_classes=4)
    gated = timm.create_model("mobilenetv3_small_050", num_classes=4)
    tree, run = both(model)
    gates = both(gated)
    assert {n for n, s in tree.items() if s == 0} == {n for n, s in run.items() if s == 0}
    assert not any(".se." in name for found in gates for name in found)
    assert "blocks.1.0.conv_pwl.weight" not in tree  # it halves the side, and has no shortcut


@pytest.mark.parametrize("left", [True, False])
def test_a_gate_of_the_same_form_lies_beside_the_branch(left: bool) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.gate, self.head = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(torch.relu(self.a(x)))
            g = torch.sigmoid(self.gate(y))
            return self.head(x + (g * y if left else y * g))

    _, run = both(Gated(), torch.ones(1, 4))
    assert run == {"a.weight": 1.0, "b.weight": 0.0, "head.weight": 0.0}


def test_two_layers_side_by_side_are_no_block() -> None:
    class Sides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.a(x) + self.b(x)))

    _, run = both(Sides(), torch.ones(1, 4))
    assert run == {"head.weight": 0.0}


def test_what_is_around_several_blocks_is_no_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(torch.relu(self.a(x)))

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.end = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.blocks(self.stem(x)))

    net = nn.Sequential(Body(), nn.Flatten(1), nn.Linear(3 * 32 * 32, 2))
    tree, run = both(net)
    assert tree == run
    assert sorted(n for n in tree if tree[n] == 0) == [
        "0.blocks.0.b.weight",
        "0.blocks.1.b.weight",
        "2.weight",
    ]


def test_a_plain_network_has_a_zero_head_only() -> None:
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1)]
    net = nn.Sequential(*body, nn.Linear(4 * 30 * 30, 4), nn.ReLU(), nn.Linear(4, 2))
    for found in both(net):
        assert found == {"6.weight": 0.0}


def test_a_sum_at_the_end_is_no_head() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.b(torch.relu(self.a(x)))

    _, run = both(Body(), torch.ones(1, 4))
    assert run == {"a.weight": 1.0, "b.weight": 0.0}


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(400, 300), 400),
        (nn.Conv2d(32, 64, 3), 32 * 9),
        (nn.Conv2d(64, 64, 5, groups=64), 25),
        (nn.ConvTranspose2d(64, 32, 4, stride=2, groups=2), 32 * 16 / 4),
        (nn.Bilinear(20, 30, 40), 600),
        (nn.MultiheadAttention(64, 2), 64),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v),
)
def test_he_keeps_the_second_moment(layer: nn.Module, fan_in: float) -> None:
    initialise(layer, {}, seed=0)
    name = "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"
    weight = getattr(layer, name)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.08)
    assert abs(weight.mean().item()) < 4 * weight.std() / math.sqrt(weight.numel())


def test_factors_multiply_and_zero_is_zero() -> None:
    net = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    whole = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    initialise(net, {"0.weight": 0.25, "1.weight": 0.0}, seed=3)
    initialise(whole, {}, seed=3)
    assert torch.allclose(net[0].weight, whole[0].weight / 4)
    assert not net[1].weight.any()


def test_draws_by_seed_and_leaves_the_generator_alone() -> None:
    model = BirdsResNet(widths=(4, 4, 4, 4))
    before = torch.get_rng_state()
    one, same, other = (convert(model, "fixup", seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    weights = [m.stem[0].weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_branches_together_add_as_much_as_one_would() -> None:
    model = BirdsResNet(widths=(16, 16, 16, 16), blocks=(4, 4, 4, 4))
    grown = []
    for factors in (scales(model, None), {}):
        free = convert(model, "scale")
        # The last convolution of a branch as training may leave it: no longer zero.
        initialise(free, {name: s or 1.0 for name, s in factors.items()}, seed=0)
        for module in free.modules():
            if module._parameters.get("weight") is not None and hasattr(module, "running_square"):
                module.register_forward_hook(lambda m, args, out: args[0])
        with torch.no_grad():
            stem = free.eval().stem(IMAGES * 2 - 1)
            end = free.stages[0](stem)  # no stride and no projection
        grown.append((end.square().mean() / stem.square().mean()).item())
    assert grown[0] < 2 < 4 < grown[1]


def test_a_shared_weight_is_drawn_once_and_zero_wins() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    initialise(net, {"1.weight": 0.0}, seed=0)
    assert net[0].weight is net[1].weight
    assert not net[0].weight.any()


def test_a_parametrised_weight_is_refused() -> None:
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU()
    )
    text = (
        "the weight of module '0' is computed from other parameters, so that it cannot be "
        "initialised. Remove the parametrisation "
        r"\(torch.nn.utils.parametrize.remove_parametrizations\), or use norm='scale'."
    )
    with pytest.raises(ModelError, match=text):
        convert(net, "fixup")
    assert convert(net, "scale")[0].bias is None
