"""absLRP against its formula, written out; its invariances, its contrast, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from attribution import oracles as o
from nets import Plain, Residual, Tokens, draw, seeded
from omenn import Contrast
from omenn.errors import InputError, TargetError, UnsupportedOperator


def close(found: Tensor, expected: Tensor, bound: float = 1e-6) -> None:
    """The same up to the stabilisers 1e-9, where both are scaled to a largest |R| of one."""
    assert expected.abs().amax() > 0
    found, expected = (t.detach() / t.detach().abs().amax() for t in (found, expected))
    torch.testing.assert_close(found.reshape(-1), expected.reshape(-1), rtol=0, atol=bound)


def positive(net, x: Tensor, target: int | Callable = 1, **options) -> Tensor:
    e = omenn.explain(net, x[None], target, method="abslrp", **options)
    return e.contribution[0]


def unit(classes: int, target: int) -> Tensor:
    return F.one_hot(torch.tensor(target), classes).double()


# --- the rule of a layer --------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(2, 6), st.booleans(), st.booleans(), st.integers(0, 10_000))
def test_two_times_the_positive_parts_is_the_derivative_of_h_and_its_absolute(
    inputs: int, outputs: int, bias: bool, signed: bool, seed: int
) -> None:
    x, w, b = draw(inputs, seed=seed), draw(outputs, inputs, seed=seed + 1), draw(outputs, seed=9)
    x = x if signed else x.abs()
    b = b if bias else torch.zeros(outputs).double()
    r = draw(outputs, seed=seed + 2).abs()
    leaf = x.clone().requires_grad_()
    h = w @ leaf + b
    s = r / (h.detach().abs() + o.TINY)
    (grad,) = torch.autograd.grad((s * (h + w.abs() @ leaf.abs() + b.abs())).sum(), leaf)
    expected = o.normal(x * grad)
    torch.testing.assert_close(o.absolute(x, w, b, r), expected, rtol=1e-9, atol=1e-12)
    f = lambda t: F.linear(t, w, b if bias else None)  # noqa: E731
    net = lambda t: f(t) * (r / f(x))  # noqa: E731, so that R at the outputs is r
    found = positive(net, x, lambda y: y.sum(1))
    if expected.abs().amax() > 0:
        close(found, expected)
    else:
        assert not found.any()


CONVOLUTIONS = {
    "plain": {},
    "stride": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": (1, 2)},
    "groups": {"groups": 2},
    "same": {"padding": "same"},
}


@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("signed", [True, False])
def test_a_convolution_is_a_layer(options: str, dims: int, signed: bool) -> None:
    given = CONVOLUTIONS[options]
    if dims == 1 and options == "dilation":
        given = {"dilation": 2, "padding": 1}
    size = (4, *[5] * dims)
    x = draw(*size) if signed else draw(*size).abs()
    w, b = draw(6, 4 // given.get("groups", 1), *[3] * dims, seed=2), draw(6, seed=3)
    f = lambda t: getattr(F, f"conv{dims}d")(t, w, b, **given)  # noqa: E731
    weight = draw(*f(x[None]).shape, seed=4).abs()
    found = positive(f, x, lambda y: (y * weight).sum(tuple(range(1, y.ndim))))
    h = f(x[None])
    # The sum behind it is an operator, too; and so is the factor, which passes R on.
    total = (h * weight).reshape(-1)
    one = torch.ones(1).double()
    r = o.absolute(total, torch.ones_like(total)[None], 0 * one, one)
    close(found, o.absolute(x.reshape(-1), *o.dense(lambda t: f(t[None])[0], x), r))


# --- whole networks -------------------------------------------------------------------------------


def through_plain(net: Plain, x: Tensor, r: Tensor, divided: bool) -> Tensor:
    """R of a VGG in small: batch norm on its own, the pool divided by |h| or not."""
    first = net.first(x[None])[0].detach()
    normed = net.norm(first[None])[0].detach()
    relu = F.relu(normed)
    pool = F.max_pool2d(relu, 2)
    second = net.second(pool[None])[0].detach()
    deep = F.relu(second)
    mean = deep.mean((1, 2))
    hidden = net.hidden(mean).detach()
    r = o.absolute(F.relu(hidden), net.head.weight.detach(), net.head.bias.detach(), r)
    r = o.absolute_of(F.relu, hidden, r)
    r = o.absolute(mean, net.hidden.weight.detach(), net.hidden.bias.detach(), r)
    r = o.absolute(deep.reshape(-1), *o.dense(lambda t: t.mean((1, 2)), deep), r)
    r = o.absolute_of(F.relu, second, r.reshape(second.shape))
    r = o.absolute(
        pool.reshape(-1), *o.dense(lambda t: net.second(t[None])[0], pool), r.reshape(-1)
    )
    s = r.reshape(pool.shape) / (pool.abs() + o.TINY if divided else 1)
    r = o.normal(2 * relu * o.winners(relu, pool, s))
    r = o.absolute_of(F.relu, normed, r)
    norm = o.dense(lambda t: net.norm(t[None])[0], first)
    r = o.absolute(first.reshape(-1), *norm, r.reshape(-1))
    return o.absolute(x.reshape(-1), *o.dense(lambda t: net.first(t[None])[0], x), r)


@pytest.mark.parametrize("pooling", ["auto", "divided", "undivided"])
def test_a_plain_network_divides_no_max_pool_unless_told(pooling: str) -> None:
    net, x = seeded(Plain(), seed=13), draw(2, 4, 4)
    expected = through_plain(net, x, unit(3, 1), pooling == "divided")
    close(positive(net, x, contrastive=False, pooling=pooling), expected)
    other = through_plain(net, x, unit(3, 1), pooling != "divided")
    assert (o.normal(expected) - o.normal(other)).abs().amax() > 1e-3


def test_the_target_stands_against_all_other_classes() -> None:
    net, x = seeded(Plain(), seed=13), draw(2, 4, 4)
    through = partial(through_plain, net, x, divided=False)
    for target in range(3):
        rest = (1 - unit(3, target)) / 2
        expected = through(unit(3, target)) - through(rest)
        close(positive(net, x, target), expected)
        close(positive(net, x, Contrast(target, "rest")), expected)


def test_the_largest_share_of_each_sample_is_one() -> None:
    e = omenn.explain(seeded(Plain(), seed=13), draw(3, 2, 4, 4), method="abslrp")
    top = e.contribution.abs().flatten(1).amax(1)
    torch.testing.assert_close(top, torch.ones(3).double(), rtol=0, atol=1e-12)


def test_contrast_starts_at_its_second_class() -> None:
    net, x = seeded(Plain(), seed=13), draw(2, 4, 4)
    through = partial(through_plain, net, x, divided=False)
    close(positive(net, x, Contrast(2, 0)), through(unit(3, 2)) - through(unit(3, 0)))
    logits = net(x[None])[0].detach()
    second = int(logits.argsort()[-2])
    top = int(logits.argmax())
    expected = through(unit(3, top)) - through(unit(3, second))
    close(positive(net, x, Contrast(top, "runner-up")), expected)


def test_shortcut_and_branch_have_the_same_mass() -> None:
    net, x = seeded(Residual(), seed=1), draw(2, 4, 4)
    stem = net.stem(x[None])[0].detach()
    relu = F.relu(stem)
    pool = F.max_pool2d(relu, 2)
    conv = net.conv(pool[None])[0].detach()
    branch = net.norm(conv[None])[0].detach()
    last = F.relu(branch + pool)
    mean = last.mean((1, 2))
    r = o.absolute(mean, net.head.weight.detach(), net.head.bias.detach(), unit(3, 1))
    r = o.absolute(last.reshape(-1), *o.dense(lambda t: t.mean((1, 2)), last), r)
    r = o.absolute_of(F.relu, branch + pool, r.reshape(last.shape))
    to_branch, to_pool = o.absolute_each(torch.add, [branch, pool], r)
    assert to_branch.abs().sum() == pytest.approx(1, abs=1e-6)
    assert to_pool.abs().sum() == pytest.approx(1, abs=1e-6)
    norm = o.dense(lambda t: net.norm(t[None])[0], conv)
    r = o.absolute(conv.reshape(-1), *norm, to_branch.reshape(-1))
    r = o.absolute(pool.reshape(-1), *o.dense(lambda t: net.conv(t[None])[0], pool), r)
    r = r.reshape(pool.shape) + to_pool
    r = o.normal(2 * relu * o.winners(relu, pool, r / (pool.abs() + o.TINY)))  # divided
    r = o.absolute_of(F.relu, stem, r)
    r = o.absolute(x.reshape(-1), *o.dense(lambda t: net.stem(t[None])[0], x), r.reshape(-1))
    close(positive(net, x, contrastive=False), r)
    close(positive(net, x, contrastive=False, pooling="divided"), r)


@pytest.mark.parametrize("fused", [True, False])
def test_a_transformer_block_is_as_its_operators_one_by_one(fused: bool) -> None:
    net, x = seeded(Tokens(fused=fused)), draw(3, 4)
    n, d = x.shape

    def layer(module: nn.Linear, at: Tensor, r: Tensor) -> Tensor:
        wide = o.dense(module, at)
        return o.absolute(at.reshape(-1), *wide, r.reshape(-1)).reshape(at.shape)

    normed = net.norm(x).detach()
    q, k, v = net.qkv(normed).detach().chunk(3, -1)
    product = q @ k.T
    weights = torch.softmax(product * d**-0.5, -1)
    out = net.out(weights @ v).detach()
    one = x + out
    mlp = net.mlp(one).detach()
    two = one + F.gelu(mlp)
    r = o.absolute(two.mean(0), net.head.weight.detach(), net.head.bias.detach(), unit(3, 1))
    r = o.absolute(two.reshape(-1), *o.dense(lambda t: t.mean(0), two), r).reshape(n, d)
    r, branch = o.absolute_each(torch.add, [one, F.gelu(mlp)], r)
    r = r + layer(net.mlp, one, o.absolute_of(F.gelu, mlp, branch))
    r, branch = o.absolute_each(torch.add, [x, out], r)
    branch = layer(net.out, weights @ v, branch)
    to_weights, to_v = o.absolute_each(torch.matmul, [weights, v], branch)
    to_logits = o.absolute_softmax(product * d**-0.5, to_weights)  # the scale passes R on
    to_q, to_k = o.absolute_each(lambda s, t: s @ t.T, [q, k], to_logits)
    branch = layer(net.qkv, normed, torch.cat([to_q, to_k, to_v], -1))
    sigma = (x.var(-1, unbiased=False, keepdim=True) + net.norm.eps).sqrt()
    gamma = net.norm.weight.detach() / sigma  # mean and deviation are constants
    rest = normed - gamma * x
    r = r + o.absolute(
        x.reshape(-1), torch.diag(gamma.reshape(-1)), rest.reshape(-1), branch.reshape(-1)
    ).reshape(n, d)
    close(positive(net, x, contrastive=False), r)


# --- what is refused ------------------------------------------------------------------------------


def test_an_unknown_pooling_is_told() -> None:
    with pytest.raises(InputError) as raised:
        omenn.explain(nn.Linear(2, 2).eval(), torch.ones(1, 2), method="abslrp", pooling="max")
    assert str(raised.value) == (
        "pooling='max' is not known. Choose one of: auto, divided, undivided."
    )


def test_a_contrast_needs_other_classes() -> None:
    net, x = nn.Linear(2, 2).eval(), torch.ones(1, 2)
    with pytest.raises(TargetError) as raised:
        omenn.explain(net, x, lambda y: y[:, 0], method="abslrp", contrastive=True)
    assert str(raised.value) == (
        "contrastive=True needs a class as the target: a callable has no other classes. Give an "
        "index or a Contrast, or omit contrastive."
    )
    with pytest.raises(TargetError) as raised:
        omenn.explain(net, x, Contrast(0, 1), method="abslrp", contrastive=False)
    assert str(raised.value) == (
        "contrastive=False contradicts the target, a Contrast. Give the class alone."
    )
    with pytest.raises(TargetError, match="the model has one output, so there is nothing to"):
        omenn.explain(nn.Linear(2, 1).eval(), x, method="abslrp", contrastive=True)
    assert omenn.explain(nn.Linear(2, 1).eval(), x, method="abslrp").promise == "none"


REFUSED = {
    "fft_fft": lambda t: torch.fft.fft(t).real,
    "view_as_complex": lambda t: torch.view_as_complex(t.unflatten(1, (-1, 2))).real,
    "diff": lambda t: t.diff(dim=1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_magnitudes_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedOperator) as raised:
        omenn.explain(REFUSED[name], torch.ones(1, 4), 0, method="abslrp")
    assert str(raised.value) == (
        f"operator '{name}' in module '(model)': absLRP compares magnitudes of real numbers, for "
        "which it has no rule. Explain at a later module with at=, or with another method."
    )
