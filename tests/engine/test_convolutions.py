"""Convolutions with a batch norm behind them, as models have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import draw
from opcases.linear import seeded

IMAGE, LINE, VOLUME = draw(2, 4, 6, 5), draw(2, 4, 7), draw(2, 2, 4, 3, 4)
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def behind(conv: nn.Module, dims: int = 2, **options) -> nn.Module:
    """Convolution, batch norm, ReLU in place."""
    norm = NORMS[dims](conv.out_channels, **options)
    return seeded(nn.Sequential(conv, norm, nn.ReLU(inplace=True)))


LAYERS = {
    "plain": (behind(nn.Conv2d(4, 3, 3, bias=False)), IMAGE),
    "bias": (behind(nn.Conv2d(4, 3, 3)), IMAGE),
    "stride": (behind(nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)), IMAGE),
    "dilation": (behind(nn.Conv2d(4, 3, 2, dilation=2)), IMAGE),
    "groups": (behind(nn.Conv2d(4, 6, 3, groups=2, padding=1)), IMAGE),
    "depthwise": (behind(nn.Conv2d(4, 8, 3, groups=4, bias=False)), IMAGE),
    "one by one": (behind(nn.Conv2d(4, 3, 1, bias=False)), IMAGE),
    "strided one by one": (behind(nn.Conv2d(4, 3, 1, stride=2)), IMAGE),
    "more weights than positions": (behind(nn.Conv2d(4, 30, (6, 5), bias=False)), IMAGE),
    "same": (behind(nn.Conv2d(4, 3, 3, padding="same")), IMAGE),
    "circular": (behind(nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")), IMAGE),
    "transposed": (behind(nn.ConvTranspose2d(4, 3, 2, stride=2)), IMAGE),
    "transposed groups": (behind(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)), IMAGE),
    "output padding": (behind(nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1)), IMAGE),
    "line": (behind(nn.Conv1d(4, 5, 3), 1), LINE),
    "transposed line": (behind(nn.ConvTranspose1d(4, 3, 3, bias=False), 1), LINE),
    "volume": (behind(nn.Conv3d(2, 3, 2), 3), VOLUME),
    "not affine": (behind(nn.Conv2d(4, 3, 3), affine=False), IMAGE),
}


class Consumers(nn.Module):
    """The output of the convolution goes elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(F.silu(self.norm(y)) + y) + self.last(self.norm(y).relu_())


class Twice(Consumers):
    """One convolution, two batch norms of its output and of its output's output."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.last(self.norm(self.conv(F.gelu(y))) + y)


class Overwritten(Consumers):
    """What the convolution saw is overwritten before the batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = self.conv(x)
        x.clamp_(min=0.1)
        return self.last(self.norm(y) + x)


class Copied(Consumers):
    """The same with a copy."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        return self.last(self.norm(self.conv(x)) + x.clamp(min=0.1))


class Changed(Consumers):
    """The output of the convolution is changed in place before the batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.mul_(0.5).add_(1.5)
        return self.last(self.norm(y))


class Shifted(Consumers):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x).add_(draw(4, 1, 1, seed=8))))


class Dynamic(Consumers):
    """The weight of the convolution depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight * x.mean()
        return self.last(self.norm(F.conv2d(x, weight, self.conv.bias)))


NETS = {
    "consumers": seeded(Consumers()),
    "twice": seeded(Twice()),
    "changed": seeded(Changed()),
    "shifted": seeded(Shifted()),
    "dynamic": seeded(Dynamic()),
}
# One sample: the mean that makes the weight must not mix samples.
CASES = LAYERS | {name: (net, IMAGE[: 1 if name == "dynamic" else 2]) for name, net in NETS.items()}


def number(y: Tensor) -> Tensor:
    flat = y.flatten(1)
    return flat @ torch.linspace(-1, 1.3, flat.shape[1], dtype=y.dtype)


@pytest.mark.parametrize("bias", ["spatial", "separate"])
@pytest.mark.parametrize("name", CASES)
def test_the_sum_is_the_number(name: str, bias: str) -> None:
    net, x = CASES[name]
    e = omenn.explain(net, x, number, bias=bias)
    assert e.exact
    assert e.residual.abs().max() <= 1e-12 * (1 + e.magnitude.max())
    torch.testing.assert_close(e.output, number(net(x)).detach(), rtol=1e-12, atol=1e-12)


def test_overwriting_what_a_convolution_saw() -> None:
    found, wanted = (omenn.explain(seeded(net()), IMAGE, number) for net in (Overwritten, Copied))
    assert found.exact
    for name in ("output", "weight", "matrix", "bias"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))


def test_at_the_output_of_the_convolution() -> None:
    net, x = LAYERS["bias"]
    e = omenn.explain(net, x, number, at="0")
    assert e.exact
    assert e.weight.shape == net[0](x).shape
    assert e.sources.keys() == {"1"}


def test_gradients_between_convolution_and_batch_norm_can_be_asked_for() -> None:
    net, x = LAYERS["bias"][0], IMAGE.clone().requires_grad_()
    with omenn.frozen(x, model=net):
        y = net[0](x)
        z = number(net[2](net[1](y)))
    (w,) = torch.autograd.grad(z.sum(), y)
    assert w.abs().sum() > 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_in_both_layouts(layout: torch.memory_format) -> None:
    net = behind(nn.Conv2d(4, 8, 3)).float()
    e = omenn.explain(net, IMAGE.float().to(memory_format=layout), number)
    assert e.exact
