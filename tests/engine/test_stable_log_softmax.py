"""A log-softmax written out with its largest logit taken off has the map of the operator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import omenn
from opcases.case import draw

W, B = draw(4, 3, seed=1), draw(3, seed=2)
Form = Callable[[Tensor], Tensor]


def stable(y: Tensor, m: Tensor) -> Tensor:
    z = y - m
    return z - torch.log(torch.exp(z).sum(-1, keepdim=True))


def spelled_twice(y: Tensor) -> Tensor:
    total = torch.sum(torch.exp(y - y.max(-1, keepdim=True)[0]), -1, keepdim=True)
    return (y - y.max(-1, keepdim=True)[0]) - torch.log(total)


def methods(y: Tensor) -> Tensor:
    z = y.sub(y.amax(-1)[:, None])
    return z.sub(z.exp().sum(-1).log().unsqueeze(-1))


def by_logsumexp(y: Tensor) -> Tensor:
    z = y - y.amax(-1, keepdim=True)
    return z - torch.logsumexp(z, -1, keepdim=True)


def with_epsilon(y: Tensor) -> Tensor:
    z = y - y.amax(-1, keepdim=True)
    return z - torch.log(z.exp().sum(-1, keepdim=True) + 1e-300)


def added_again(y: Tensor) -> Tensor:
    m = y.max(-1, keepdim=True)[0]
    return y - (m + torch.log(torch.exp(y - m).sum(-1, keepdim=True)))


def transposed(y: Tensor) -> Tensor:
    z = y.T - y.T.amax(0)
    return (z - torch.log(torch.exp(z).sum(0))).T


FORMS: dict[str, Form] = {
    "max": lambda y: stable(y, y.max(-1, keepdim=True)[0]),
    "max detached": lambda y: stable(y, y.max(-1, keepdim=True).values.detach()),
    "data": lambda y: stable(y, y.max(-1, keepdim=True)[0].data),
    "amax": lambda y: stable(y, torch.amax(y, -1, True)),
    "unsqueezed": lambda y: stable(y, y.max(-1)[0].unsqueeze(-1)),
    "of all": lambda y: stable(y, y.max()),
    "twice": spelled_twice,
    "methods": methods,
    "logsumexp": by_logsumexp,
    "epsilon": with_epsilon,
    "added again": added_again,
    "transposed": transposed,
}


def second(out: Tensor) -> Tensor:
    return out[:, 1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", ["spatial", "uniform", "separate"])
def test_the_logit_less_a_constant(form: str, bias: str) -> None:
    x = draw(2, 4)
    e = omenn.explain(lambda x: FORMS[form](x @ W + B), x, second, bias=bias)
    right = omenn.explain(lambda x: torch.log_softmax(x @ W + B, -1), x, second, bias=bias)
    assert e.exact
    torch.testing.assert_close(e.weight, W[:, 1].expand(2, 4))
    for name in ("output", "matrix", "bias"):
        torch.testing.assert_close(getattr(e, name), getattr(right, name))
    assert e.frozen_constants == right.frozen_constants
    assert e.reasons == pytest.approx(right.reasons)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives(form: str) -> None:
    def trained(form: Form) -> Tensor:
        w = W.clone().requires_grad_()
        model = lambda x: form(torch.tanh(x @ w))  # noqa: E731
        e = omenn.explain(model, draw(2, 4), second, create_graph=True)
        return torch.autograd.grad((e.matrix**3).sum(), w)[0]

    right = trained(lambda y: torch.log_softmax(y, -1))
    torch.testing.assert_close(trained(FORMS[form]), right)


def test_each_pixel() -> None:
    x, w = draw(2, 3, 4, 4), draw(5, 3, 1, 1, seed=1)

    def by_hand(x: Tensor) -> Tensor:
        y = torch.conv2d(x, w)
        z = y - y.max(1, keepdim=True).values
        return z - z.exp().sum(1, keepdim=True).log()

    pixel = lambda out: out[:, 2, 1, 3]  # noqa: E731
    e = omenn.explain(by_hand, x, pixel)
    right = omenn.explain(lambda x: torch.log_softmax(torch.conv2d(x, w), 1), x, pixel)
    assert e.exact
    torch.testing.assert_close(e.matrix, right.matrix)
    torch.testing.assert_close(e.weight, right.weight)


def test_large_logits() -> None:
    """What the form is written for: no digits are lost, and hidden logits are left out."""
    x = 1e4 * draw(2, 4).float()
    hidden = torch.tensor([False, False, True])

    def model(x: Tensor) -> Tensor:
        return FORMS["max"]((x @ W.float() + B.float()).masked_fill(hidden, -torch.inf))

    e = omenn.explain(model, x, second)
    assert e.exact
    torch.testing.assert_close(e.output, model(x)[:, 1])
    torch.testing.assert_close(e.weight, W[:, 1].float().expand(2, 4))


# --- what is no log-softmax stays as it is -------------------------------------------------------


def largest_of(x: Tensor) -> Tensor:
    return W.T[(x @ W + B).argmax(-1)]


def test_the_largest_logit_alone() -> None:
    x = draw(2, 4)

    def energy(y: Tensor) -> Tensor:
        m = y.amax(-1, keepdim=True)
        return m + torch.log(torch.exp(y - m).sum(-1, keepdim=True))

    e = omenn.explain(lambda x: energy(x @ W + B), x, lambda out: out[:, 0])
    torch.testing.assert_close(e.weight, largest_of(x))
    margin = omenn.explain(lambda x: (x @ W + B) - (x @ W + B).amax(-1, keepdim=True), x, second)
    torch.testing.assert_close(margin.weight, W[:, 1] - largest_of(x))
    assert e.exact
    assert margin.exact


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_another_held_number(scale: float) -> None:
    x = draw(2, 4)

    def model(x: Tensor) -> Tensor:
        y = x @ W + B
        z = y - y.amax(-1, keepdim=True)
        return z - torch.log(scale * torch.exp(z).sum(-1, keepdim=True))

    e = omenn.explain(model, x, second)
    assert e.exact
    torch.testing.assert_close(e.weight, W[:, 1] - largest_of(x))


def test_another_shift() -> None:
    """As the operator has it: what is taken off before a log-softmax is a part of its logits."""
    x = draw(2, 4)

    def centred(x: Tensor) -> Tensor:
        y = x @ W + B
        return y - y.mean(-1, keepdim=True)

    e = omenn.explain(lambda x: FORMS["logsumexp"](centred(x)), x, second)
    right = omenn.explain(lambda x: torch.log_softmax(centred(x), -1), x, second)
    torch.testing.assert_close(e.weight, right.weight)

    def plain(x: Tensor) -> Tensor:
        z = centred(x)
        return z - torch.logsumexp(z, -1, keepdim=True)

    torch.testing.assert_close(omenn.explain(plain, x, second).weight, right.weight)


def test_a_largest_logit_that_is_written_over() -> None:
    x = draw(2, 4)

    def model(x: Tensor) -> Tensor:
        y = x @ W + B
        m = y.amax(-1, keepdim=True)
        z = y - m
        m *= 2
        return z - torch.logsumexp(z, -1, keepdim=True)

    e = omenn.explain(model, x, second)
    assert e.exact
    torch.testing.assert_close(e.weight, W[:, 1] - largest_of(x))


def test_a_number_that_does_not_fit_the_logits_is_none_of_them() -> None:
    """Differences of all pairs: the number held has more columns than what it is taken off."""
    x = draw(2, 4)

    def held(x: Tensor) -> Tensor:
        y = x.unsqueeze(-1)
        z = y - y.amax(1, keepdim=True)
        return (z - torch.softmax(x @ W, -1).unsqueeze(1)).flatten(1)

    def carried(x: Tensor) -> Tensor:
        m = x.amax(-1)[:, None, None] + torch.softmax(x @ W, -1).unsqueeze(1)
        return (x.unsqueeze(-1) - m).flatten(1)

    for model in (held, carried):
        e = omenn.explain(model, x, second)
        assert e.exact
        torch.testing.assert_close(e.output, model(x)[:, 1])
        expected = torch.zeros(2, 4)
        expected[:, 0] += 1
        expected[torch.arange(2), x.argmax(1)] -= 1
        torch.testing.assert_close(e.weight, expected.to(e.weight))
