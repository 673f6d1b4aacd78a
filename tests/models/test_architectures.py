"""The networks without additive terms, beside those that they are made of."""

from __future__ import annotations

import pytest
import torch

from omenn.models.architectures import ARCHITECTURES, Classifier
from omenn.models.recipes import RECIPES
from omenn.xdnn import check

TWINS = {
    "birds-resnet": "birds-xresnet",
    "birds-vit": "birds-xvit",
    "birds-convnet": "birds-xconvnet",
}


def built(name: str) -> Classifier:
    torch.manual_seed(3)
    return ARCHITECTURES[name]()


@pytest.mark.parametrize("name", TWINS.values())
def test_x_networks_are_homogeneous(name):
    network = built(name)
    network(torch.randn(8, 3, 64, 64))  # in training mode, so that norms have seen something
    x = torch.randn(2, 3, 64, 64)
    network.eval()
    assert check(network, x)
    logits = network(x).detach()
    assert float(logits.abs().max()) > 1e-3
    for factor in (0.1, 3.0):
        torch.testing.assert_close(
            network(factor * x).detach(), factor * logits, rtol=1e-4, atol=1e-5
        )
    assert not network(0 * x).detach().any()
    assert network.head.bias is None
    assert network.head(network.features(x)).detach().equal(logits)


@pytest.mark.parametrize("name", TWINS)
def test_regular_networks_are_not(name):
    assert not check(built(name).eval(), torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(("name", "twin"), TWINS.items())
def test_twins_start_from_the_same_weights_and_see_as_much(name, twin):
    one, other = (dict(built(n).named_parameters()) for n in (name, twin))
    matrices = [n for n, p in one.items() if p.ndim > 1 and n not in ("class_token", "position")]
    assert len(matrices) >= 9
    assert all(one[n].equal(other[n]) for n in matrices)
    assert not any(n.endswith("bias") for n in other)
    assert RECIPES[name].epochs == RECIPES[twin].epochs
    assert RECIPES[name].train_scenes == RECIPES[twin].train_scenes


def test_the_x_transformer_has_no_constants():
    network = built("birds-xvit")
    for name in ("class_token", "position"):
        constant = network.get_parameter(name)
        assert not constant.any()
        assert not constant.requires_grad
