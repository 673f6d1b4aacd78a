"""What each rule book must satisfy, on networks small enough to write the answer down."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import nets
import omenn
from nets import Plain, Residual, Tokens, convnet, seeded

CLASSIC = ["epsilon", "zplus", "alpha1beta0", "gamma"]
BOOKS = ["cp-lrp", "attnlrp", "reslrp", "abslrp", "epsilon", "zplus", "alpha1beta0", "gamma"]


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def tokens(n: int = 3) -> Tensor:
    return torch.randn(n, 5, 8, generator=torch.Generator().manual_seed(2)).double()


CASES = [
    pytest.param(convnet, images, id="cnn"),
    pytest.param(lambda: Tokens(8), tokens, id="tokens"),
]


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
    e = omenn.explain(seeded(convnet()), images(), 1, method=method)
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


@pytest.mark.parametrize("build", [Plain, Residual])
@pytest.mark.parametrize("method", CLASSIC)
def test_classic_rules_conserve_relevance_without_bias(method: str, build: type[nn.Module]) -> None:
    net, x = nets.seeded(build(bias=False, norm=False), seed=9), nets.draw(3, 2, 4, 4)
    e = omenn.explain(net, x, 1, method=method, epsilon=1e-12)
    total = e.matrix.flatten(1).sum(1)
    assert e.output.abs().amin() > 1e-3
    torch.testing.assert_close(total, net(x)[:, 1].detach(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(e.residual, e.output - total, rtol=0, atol=1e-12)


@given(
    st.integers(1, 3),
    st.integers(3, 9),
    st.integers(3, 9),
    st.integers(1, 3),
    st.sampled_from(["max", "average", "none"]),
    st.sampled_from(CLASSIC),
)
def test_classic_rules_conserve_relevance_at_any_shape(
    channels: int, height: int, width: int, kernel: int, pool: str, method: str
) -> None:
    pools = {"max": nn.MaxPool2d(2, 1), "average": nn.AvgPool2d(2, 1), "none": nn.Identity()}
    layers = [nn.Conv2d(channels, 5, kernel, padding=1, bias=False), nn.ReLU(), pools[pool]]
    layers += [nn.Conv2d(5, 4, 2, stride=2, bias=False), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net, x = nets.seeded(nn.Sequential(*layers)), nets.draw(2, channels, height, width)
    e = omenn.explain(net, x, 1, method=method, epsilon=1e-12)
    assert e.contribution.shape == x.shape
    found = e.matrix.flatten(1).sum(1)
    torch.testing.assert_close(found, e.output, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", BOOKS)
def test_the_order_of_the_classes_does_not_matter(method: str) -> None:
    net, x, order = seeded(convnet()), images(), torch.tensor([3, 0, 4, 1, 2])
    before = [omenn.explain(net, x, k, method=method).matrix for k in range(5)]
    with torch.no_grad():
        for t in (net[-1].weight, net[-1].bias):
            t.copy_(t[order].clone())
    for k in range(5):
        found = omenn.explain(net, x, k, method=method).matrix
        torch.testing.assert_close(found, before[order[k]], rtol=1e-9, atol=1e-12)


def test_cp_lrp_is_the_frozen_weight_part_without_bias() -> None:
    net, x = seeded(convnet(bias=False)), images()
    frozen = omenn.explain(net, x, 1)
    found = omenn.explain(net, x, 1, method="cp-lrp", epsilon=1e-12)
    torch.testing.assert_close(found.contribution, frozen.contribution, rtol=1e-6, atol=1e-9)
