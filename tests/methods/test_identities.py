"""What each rule book must satisfy, on networks small enough to write the answer down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import omenn

BOOKS = ["cp-lrp", "attnlrp", "reslrp", "abslrp", "epsilon", "zplus", "alpha1beta0", "gamma"]


def seeded(net: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    for name, t in [*net.named_parameters(), *net.named_buffers()]:
        if t.is_floating_point():
            drawn = torch.randn(t.shape, generator=generator) / max(t[0].numel(), 1) ** 0.5
            t.data = (drawn.abs() + 0.5 if "running_var" in name else drawn).to(t.data)
    return net.to(dtype).eval()


def convnet(bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU()]
    if bias:
        layers.insert(1, nn.BatchNorm2d(6))
    layers += [nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, bias=bias), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5, bias=bias)]
    return seeded(nn.Sequential(*layers))


class Block(nn.Module):
    """Tokens with a norm, attention, a residual sum and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        x = x + nn.functional.gelu(self.mlp(x))
        return self.head(x.mean(1))


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def tokens(n: int = 3) -> Tensor:
    return torch.randn(n, 5, 8, generator=torch.Generator().manual_seed(2)).double()


CASES = [pytest.param(convnet, images, id="cnn"), pytest.param(Block, tokens, id="tokens")]


@pytest.mark.parametrize("method", BOOKS)
@pytest.mark.parametrize(("build", "given"), CASES)
def test_a_map_does_not_depend_on_its_neighbours_in_the_batch(method, build, given) -> None:
    net, x = seeded(build()), given()
    together = omenn.explain(net, x, 1, method=method).matrix
    alone = torch.cat([omenn.explain(net, row[None], 1, method=method).matrix for row in x])
    assert torch.isfinite(together).all()
    assert together.abs().sum() > 0
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", BOOKS)
def test_the_result_says_its_method_and_what_it_promises(method: str) -> None:
    e = omenn.explain(convnet(), images(), 1, method=method)
    assert e.method == method
    assert e.promise == omenn.methods()[method].promise
    assert method in repr(e)


@pytest.mark.parametrize("method", BOOKS)
@pytest.mark.parametrize(("build", "given"), CASES)
def test_single_precision_agrees_with_double(method, build, given) -> None:
    double = omenn.explain(seeded(build()), given(), 1, method=method).matrix
    single = omenn.explain(seeded(build()).float(), given().float(), 1, method=method).matrix
    scale = double.abs().amax()
    assert (single.double() - double).abs().amax() <= 1e-3 * scale


@pytest.mark.parametrize("method", ["epsilon", "zplus", "alpha1beta0", "gamma"])
def test_classic_rules_conserve_relevance_without_bias(method: str) -> None:
    net, x = convnet(bias=False), images()
    e = omenn.explain(net, x, 1, method=method)
    torch.testing.assert_close(
        e.matrix.flatten(1).sum(1), net(x)[:, 1].detach(), rtol=1e-4, atol=1e-5
    )


def test_cp_lrp_is_the_frozen_weight_part_without_bias() -> None:
    net, x = convnet(bias=False), images()
    frozen = omenn.explain(net, x, 1)
    found = omenn.explain(net, x, 1, method="cp-lrp", epsilon=1e-12)
    torch.testing.assert_close(found.contribution, frozen.contribution, rtol=1e-6, atol=1e-9)


def test_abslrp_ranks_the_same_when_a_layer_is_rescaled() -> None:
    net, x = convnet(bias=False), images()
    found = omenn.explain(net, x, 1, method="abslrp")
    before = found.matrix
    assert found.contribution.abs().amax() == pytest.approx(1, abs=1e-12)
    with torch.no_grad():
        net[0].weight.mul_(3.7)
    after = omenn.explain(net, x, 1, method="abslrp").matrix
    assert torch.equal(before.flatten(1).argsort(1), after.flatten(1).argsort(1))
    # What is left is the stabiliser, which is not rescaled with the layer.
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)
