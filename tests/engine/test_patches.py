"""Patch embeddings: their own backward pass is that of the convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.kernels import patches
from omenn.engine.trace.autograd_nodes import Frozen
from opcases.case import draw
from opcases.linear import seeded

CASES = {
    "line": (nn.Conv1d(2, 3, 16, 16), draw(2, 2, 48)),
    "line and a rest": (nn.Conv1d(2, 3, 16, 16), draw(2, 2, 39)),
    "image": (nn.Conv2d(3, 5, 4, 4), draw(2, 3, 8, 12)),
    "image without bias": (nn.Conv2d(3, 5, 4, 4, bias=False), draw(2, 3, 8, 12)),
    "image and a rest": (nn.Conv2d(3, 5, 4, 4), draw(2, 3, 11, 14)),
    "oblong": (nn.Conv2d(3, 5, (2, 8), (2, 8)), draw(1, 3, 7, 17)),
    "one patch": (nn.Conv2d(3, 5, 4, 4), draw(2, 3, 5, 4)),
    "video": (nn.Conv3d(2, 3, (2, 2, 4), (2, 2, 4)), draw(2, 2, 5, 4, 9)),
}
OTHERS = {
    "overlap": (nn.Conv2d(3, 5, 4, 3), draw(2, 3, 8, 12)),
    "gaps": (nn.Conv2d(3, 5, 4, 5), draw(2, 3, 9, 12)),
    "padding": (nn.Conv2d(3, 5, 4, 4, padding=1), draw(2, 3, 8, 12)),
    "valid": (nn.Conv2d(3, 5, 4, 4, padding="valid"), draw(2, 3, 8, 12)),
    "dilation": (nn.Conv2d(3, 5, 4, 4, dilation=2), draw(2, 3, 8, 12)),
    "groups": (nn.Conv2d(4, 6, 4, 4, groups=2), draw(2, 4, 8, 12)),
    "small": (nn.Conv2d(3, 5, 2, 2), draw(2, 3, 8, 12)),
    "transposed": (nn.ConvTranspose2d(3, 5, 4, 4), draw(2, 3, 8, 12)),
}


def each(cases: dict[str, tuple[nn.Module, Tensor]]):
    return pytest.mark.parametrize(("layer", "x"), cases.values(), ids=cases.keys())


@each(CASES | OTHERS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradient_is_that_of_the_convolution(layer, x: Tensor, create_graph: bool) -> None:
    layer = seeded(layer)
    leaf = x.clone().requires_grad_()
    with omenn.frozen(leaf, model=layer, create_graph=create_graph):
        y = layer(leaf)
    ordinary = x.clone().requires_grad_()
    wanted = layer(ordinary)
    assert torch.equal(y, wanted)
    grad = draw(*y.shape, seed=4)
    (got,) = torch.autograd.grad(y, leaf, grad)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, ordinary, grad)[0])


@each(CASES)
@pytest.mark.parametrize("bias", ["spatial", "uniform", "separate"])
def test_explained(layer, x: Tensor, bias: str, monkeypatch) -> None:
    layer = seeded(layer)
    direction = draw(*layer(x)[0].shape, seed=5)
    call = lambda t: (layer(t) * direction).flatten(1).sum(1, keepdim=True)  # noqa: E731
    got = omenn.explain(call, x, 0, bias=bias)
    monkeypatch.setattr(patches, "LEAST", 1 << 20)
    wanted = omenn.explain(call, x, 0, bias=bias)
    assert got.exact
    for name in ("weight", "bias", "matrix"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name))


@each(CASES)
def test_the_product_is_taken(layer, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    with omenn.frozen(leaf):
        y = seeded(layer)(leaf)
    assert isinstance(y.grad_fn, Frozen._backward_cls)


@each(OTHERS)
def test_other_convolutions_are_left_to_the_kernel(layer, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    with omenn.frozen(leaf):
        y = seeded(layer)(leaf)
    assert not isinstance(y.grad_fn, Frozen._backward_cls)


def test_a_bias_that_shuts_channels_out() -> None:
    """−∞ at a channel that the output does not see must not become NaN."""
    layer = seeded(nn.Conv2d(3, 5, 4, 4))
    with torch.no_grad():
        layer.bias[2] = -torch.inf
    e = omenn.explain(lambda x: F.relu(layer(x)).flatten(1), draw(1, 3, 8, 8), 0)
    assert e.exact
