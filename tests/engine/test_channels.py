"""Which dimension the map is summed over: named, none, or as the first convolution tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from opcases.case import draw
from opcases.linear import seeded

SHAPES = [(2, 3, 5), (2, 4, 3, 5), (2, 2, 3, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", ["spatial", "attention", "uniform", "separate"])
def test_0_keeps_every_dimension(shape: tuple[int, ...], bias: str) -> None:
    x, w = draw(*shape), draw(*shape[1:])

    def model(x: Tensor) -> Tensor:
        return ((x + 1) * w).flatten(1).sum(1)

    e = omenn.explain(model, x, lambda f: f, channel_dim=0, bias=bias)
    assert e.matrix.shape == shape
    own = e.matrix if bias == "separate" else e.matrix - e.bias
    torch.testing.assert_close(own, x * w, rtol=0, atol=1e-12)
    if bias == "spatial":
        torch.testing.assert_close(e.bias, w.expand(shape), rtol=0, atol=1e-12)
    assert e.exact
    assert e.channel_dim == 0


def test_0_in_an_image_network_adds_up_to_the_map_that_is_summed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    net = net.double().eval()
    x = draw(2, 3, 6, 6)
    every, summed = (omenn.explain(net, x, 1, channel_dim=c) for c in (0, None))
    torch.testing.assert_close(every.matrix.sum(1), summed.matrix, rtol=0, atol=1e-12)
    rows = omenn.rows(net, x, [0, 1], channel_dim=0)
    torch.testing.assert_close(rows.bias[:, 1], every.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "channel"), [((2, 3, 5), -3), ((2, 5), -2), ((2, 3, 4, 4), -4)])
def test_the_batch_is_no_channel(shape: tuple[int, ...], channel: int) -> None:
    with pytest.raises(omenn.InputError):
        omenn.explain(lambda x: x.flatten(1).sum(1), draw(*shape), lambda f: f, channel_dim=channel)


def signals(leads: int) -> nn.Module:
    layers = nn.Conv1d(leads, 4, 5, stride=2), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("leads", [1, 6])
@pytest.mark.parametrize("before", [None, "centred", "normed"])
def test_signals_have_a_place_in_time(leads: int, before: str | None) -> None:
    first = nn.BatchNorm1d(leads).double() if before == "normed" else nn.Identity()
    net = nn.Sequential(first, signals(leads)).eval()
    model = (lambda x: net(x - 0.5)) if before == "centred" else net
    x = draw(2, leads, 40)
    found, named = (omenn.explain(model, x, 1, channel_dim=c) for c in (None, -2))
    assert found.matrix.shape == (2, 40)
    assert found.channel_dim == -2
    torch.testing.assert_close(found.matrix, named.matrix, rtol=0, atol=0)
    assert omenn.explain(model, x, 1, channel_dim=-1).matrix.shape == (2, leads)


def test_signals_at_depths_and_by_other_methods() -> None:
    net, x = signals(6).eval(), draw(1, 6, 40)
    assert omenn.explain(net, x, 1, at="1").matrix.shape == (1, 40)
    assert omenn.explain(net, x, 1, at=["input", "1"]).matrix.shape == (1, 40)
    assert omenn.explain(net, x, 1, method="fullgrad").matrix.shape == (1, 40)
    assert omenn.explain(net, x, 1, method="grad-cam").matrix.shape == (1, 40)


def test_the_time_axis_in_front_of_a_convolution() -> None:
    """(B, T, F) that the model turns itself: the default is right and stays."""
    net = signals(6).eval()
    e = omenn.explain(lambda x: net(x.transpose(1, 2)), draw(2, 40, 6), 1)
    assert e.matrix.shape == (2, 40)
    assert e.channel_dim == -1


@pytest.mark.parametrize(
    ("form", "shape", "channel"),
    [
        (lambda x: x.permute(0, 3, 1, 2), (2, 6, 5, 3), -1),  # channels last
        (lambda x: x.unsqueeze(1), (2, 6, 5), 0),  # a map of leads and time
    ],
)
def test_other_layouts(form: Any, shape: tuple[int, ...], channel: int) -> None:
    conv, w = seeded(nn.Conv2d(3 if len(shape) > 3 else 1, 2, 3)), draw(2, 4, 3)
    x = draw(*shape)
    e = omenn.explain(lambda x: (conv(form(x)).tanh() * w).sum((1, 2, 3)), x, lambda f: f)
    assert e.channel_dim == channel
    assert e.matrix.shape == (shape if channel == 0 else shape[:-1])
    assert e.exact
