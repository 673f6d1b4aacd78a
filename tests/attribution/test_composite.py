"""Composites against zennit, and by hand: rules by the kind of layer, by name, by order."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from nets import draw, seeded
from omenn.errors import InputError


def network() -> nn.Module:
    return seeded(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 4),
        )
    )  # fmt: skip


def picture() -> Tensor:
    """Values from −1 to 1, some of which are zero: black pixels have relevance, too."""
    x = draw(2, 3, 8, 8).clamp(-1, 1)
    return torch.where(x.abs() < 0.2, 0, x)


def by_zennit(name: str, net: nn.Module, x: Tensor, target: int) -> Tensor:
    pytest.importorskip("torchvision")
    composites = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    low, high = torch.full_like(x, -1), torch.ones_like(x)
    made = {
        "epsilon-plus": composites.EpsilonPlus,
        "epsilon-plus-flat": composites.EpsilonPlusFlat,
        "epsilon-alpha2-beta1": composites.EpsilonAlpha2Beta1,
        "epsilon-gamma-box": lambda: composites.EpsilonGammaBox(low=low, high=high),
    }[name]()
    start = torch.zeros(len(x), 4).double()
    start[:, target] = net(x)[:, target].detach()
    with attribution.Gradient(copy.deepcopy(net), made) as attributor:
        return attributor(x, start)[1].detach()


@pytest.mark.parametrize(
    "name", ["epsilon-plus", "epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-gamma-box"]
)
def test_the_well_known_ones_are_those_of_zennit(name: str) -> None:
    net, x = network(), picture()
    bounds = {"low": -1, "high": 1} if "box" in name else {}
    expected = by_zennit(name, net, x, 2)
    e = omenn.explain(net, x, 2, method="composite", rules=name, **bounds)
    largest = float(expected.abs().amax())
    assert largest > 0
    torch.testing.assert_close(e.contribution, expected, rtol=0, atol=1e-6 * largest)
    torch.testing.assert_close(e.matrix, expected.sum(1), rtol=0, atol=1e-6 * largest)
    assert torch.equal(e.inputs, x)
    assert not e.weight[x == 0].any()


def test_rules_by_name_and_order() -> None:
    """γ for one layer by its name, the flat rule for the first, the ε-rule for the rest."""
    a, b = nn.Linear(5, 6), nn.Linear(6, 3)
    net, x = seeded(nn.Sequential(a, nn.ReLU(), b)), draw(1, 5)
    rules = [("first", "flat"), ("2", "gamma"), ("linear", "epsilon")]
    e = omenn.explain(net, x, 1, method="composite", rules=rules, gamma=0.5, epsilon=1e-12)
    with torch.no_grad():
        z = a(x).clamp(min=0)[0]
        out = net(x)[0, 1]
        sign = torch.sign(out)
        parts = z * b.weight[1]
        up = parts + 0.5 * torch.where(parts * sign > 0, parts, 0)
        bias = b.bias[1] + 0.5 * torch.where(b.bias[1] * sign > 0, b.bias[1], 0)
        hidden = out * up / (up.sum() + bias)
        expected = (hidden.sum() / 5).expand(5)
    torch.testing.assert_close(e.contribution[0], expected, rtol=1e-9, atol=1e-12)


def test_the_box_rule_by_hand() -> None:
    net, x = seeded(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten())), draw(1, 1, 3).clamp(-1, 1)
    x[0, 0, 1] = 0
    rules = [("first", "box")]
    options: dict[str, Any] = {"low": -1, "high": 2, "epsilon": 1e-14}
    e = omenn.explain(net, x, 0, method="composite", rules=rules, **options)
    with torch.no_grad():
        w = net[0].weight[0, 0]  # type: ignore[index]
        z = x[0, 0] * w + w.clamp(min=0) - 2 * w.clamp(max=0)
        expected = z / z.sum() * net(x)[0, 0]
    torch.testing.assert_close(e.contribution[0, 0], expected, rtol=1e-9, atol=1e-12)
    assert float(e.contribution[0, 0, 1]) != 0


def test_a_batch_norm_is_folded_into_its_layer() -> None:
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    net = seeded(nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    x = draw(2, 3, 4, 4)
    e = omenn.explain(net, x, 1, method="composite", rules=[("conv", "zplus"), ("linear", "pass")])
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    merged = copy.deepcopy(conv)
    with torch.no_grad():
        merged.weight.mul_(scale.view(-1, 1, 1, 1))
        shift = norm.bias - norm.running_mean * scale  # type: ignore[operator]
        merged.bias = nn.Parameter(conv.bias * scale + shift)  # type: ignore[operator]
    plain = nn.Sequential(merged, *list(net.children())[2:]).eval()
    rules = [("conv", "zplus"), ("linear", "pass")]
    expected = omenn.explain(plain, x, 1, method="composite", rules=rules)
    torch.testing.assert_close(e.matrix, expected.matrix, rtol=1e-9, atol=1e-12)


BOX = {"rules": "epsilon-gamma-box"}
# Options → the argument at fault, how it is quoted, and a word of the message.
REFUSED = [
    ({"rules": "epsilon-plos"}, "rules", "epsilon-plos", "epsilon-plus"),
    ({"rules": [("conv", "zpluss")]}, "rules", "zpluss", "zplus"),
    ({"rules": [("conv",)]}, "rules", "('conv',)", "pairs"),
    ({"rules": 3}, "rules", "3", "pairs"),
    (BOX, "low", "None", "number"),
    (BOX | {"low": 0}, "high", "None", "number"),
    (BOX | {"low": 1, "high": 0}, "high", "0", "above low=1"),
    (BOX | {"low": -0.5, "high": 1}, "low", "-0.5", "has the value -1"),
    (BOX | {"low": -1, "high": 0.5}, "high", "0.5", "has the value 1"),
    ({"low": 0.0}, "low", "0.0", "'box', which is not used"),
    ({"high": 1}, "high", "1", "'box', which is not used"),
    ({"epsilon": -1}, "epsilon", "-1", "at least 0"),
]


@pytest.mark.parametrize(("options", "argument", "got", "word"), REFUSED)
def test_what_is_refused(options: dict[str, Any], argument: str, got: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        omenn.explain(network(), picture(), 2, method="composite", **options)
    assert (caught.value.argument, caught.value.got) == (argument, got)


def test_a_table_that_is_read_twice() -> None:
    """Each lookup has weights of its own; of two equal lookups each has half of the map."""
    table, head = draw(5, 3), seeded(nn.Linear(3, 2, bias=False))
    ids = torch.tensor([[1, 4, 2]])
    twice = omenn.explain(
        lambda i: head((table[i] + table[i]).sum(1)),
        ids,
        1,
        method="composite",
        rules="epsilon-plus",
    )
    once = omenn.explain(
        lambda i: head(2 * table[i].sum(1)), ids, 1, method="composite", rules="epsilon-plus"
    )
    assert len(twice.weight) == 2
    assert torch.equal(twice.inputs[0], table[ids])
    torch.testing.assert_close(twice.matrix, once.matrix)


def test_the_result_has_memory_of_its_own() -> None:
    x = picture()
    kept = x.clone()
    e = omenn.explain(network(), x, 2, method="composite", rules="epsilon-plus")
    x.zero_()
    assert torch.equal(e.inputs, kept)
