"""A batch norm behind a convolution is one map with it: the same numbers as one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.operators import convolution
from omenn.engine.run import FrozenRun
from omenn.engine.trace.autograd_nodes import Affine
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


def nodes(f: Tensor, kind: type) -> int:
    """How many nodes of a kind lie behind f."""
    seen, todo = set(), [f.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return sum(isinstance(n, kind) for n in seen)


@pytest.mark.parametrize("bias", ["spatial", "separate"])
@pytest.mark.parametrize("name", CASES)
def test_same_as_one_after_the_other(name: str, bias: str, monkeypatch) -> None:
    net, x = CASES[name]
    joined = omenn.explain(net, x, number, bias=bias)
    monkeypatch.setattr(convolution, "behind", lambda y: None)
    apart = omenn.explain(net, x, number, bias=bias)
    near = {"rtol": 1e-12, "atol": 1e-12}
    assert joined.exact
    assert joined.residual.abs().max() <= 1e-12 * (1 + joined.magnitude.max())
    assert torch.equal(joined.output, apart.output)
    torch.testing.assert_close(joined.weight, apart.weight, **near)
    torch.testing.assert_close(joined.bias, apart.bias, **near)
    torch.testing.assert_close(joined.matrix, apart.matrix, **near)
    assert joined.sources.keys() == apart.sources.keys()
    for module, share in joined.sources.items():
        torch.testing.assert_close(share, apart.sources[module], **near)
    assert joined.located == pytest.approx(apart.located, rel=1e-12)


def convolutions(net: nn.Module, x: Tensor) -> int:
    """Native convolutions that the backward pass of an explanation goes through."""
    run = FrozenRun(net, x, None, "spatial", None, {"products": "half", "create_graph": False})
    f, _ = run.target(number)
    kind = type(F.conv1d(torch.ones(1, 1, 1, requires_grad=True), torch.ones(1, 1, 1)).grad_fn)
    assert nodes(f, Affine._backward_cls)
    return nodes(f, kind)


@pytest.mark.parametrize("name", LAYERS)
def test_the_batch_norm_takes_the_place_of_the_convolution(name: str) -> None:
    assert convolutions(*LAYERS[name]) == 0


@pytest.mark.parametrize(("name", "expected"), [("changed", 2), ("shifted", 2), ("dynamic", 2),
                                                ("consumers", 3), ("twice", 1)])  # fmt: skip
def test_a_convolution_that_is_needed_stays(name: str, expected: int) -> None:
    """In the nets a last convolution has no batch norm; one is used twice."""
    assert convolutions(NETS[name], IMAGE) == expected


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


def test_derivatives_are_those_of_separate_layers() -> None:
    net, x = LAYERS["bias"]
    grown = omenn.explain(net, x, number, create_graph=True)
    torch.testing.assert_close(grown.matrix.detach(), omenn.explain(net, x, number).matrix)
    assert torch.autograd.grad(grown.matrix.square().sum(), net[0].weight)[0].abs().sum() > 0


def test_rows_share_the_nodes() -> None:
    net = seeded(nn.Sequential(*LAYERS["bias"][0], nn.Flatten(), nn.Linear(36, 3)))
    found = omenn.rows(net, IMAGE, [0, 2])
    assert found.exact
    for k, target in enumerate((0, 2)):
        torch.testing.assert_close(found.weight[:, k], omenn.explain(net, IMAGE, target).weight)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_in_both_layouts(layout: torch.memory_format) -> None:
    net = behind(nn.Conv2d(4, 8, 3)).float()
    e = omenn.explain(net, IMAGE.float().to(memory_format=layout), number)
    assert e.exact
