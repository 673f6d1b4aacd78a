"""Of a model that ends in probabilities the logits before them are explained, and it is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.linear import seeded

CORE = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
ONE = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)))
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()


def over(z: Tensor) -> Tensor:
    """The logits are written over, the result is not."""
    return torch.sigmoid_(z)


LAST: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "Sigmoid": (nn.Sigmoid(), "sigmoid"),
    "torch.sigmoid": (torch.sigmoid, "sigmoid"),
    "F.sigmoid": (F.sigmoid, "sigmoid"),
    ".sigmoid": (lambda z: z.sigmoid(), "sigmoid"),
    "expit": (torch.special.expit, "sigmoid"),
    "in place": (over, "sigmoid"),
    "LogSigmoid": (nn.LogSigmoid(), "logsigmoid"),
    "F.logsigmoid": (F.logsigmoid, "logsigmoid"),
    "Softmax": (nn.Softmax(1), "softmax"),
    "F.softmax": (lambda z: F.softmax(z, -1), "softmax"),
    ".softmax": (lambda z: z.softmax(1), "softmax"),
    "special.softmax": (lambda z: torch.special.softmax(z, 1), "softmax"),
    "LogSoftmax": (nn.LogSoftmax(1), "log_softmax"),
    "F.log_softmax": (lambda z: F.log_softmax(z, dim=-1), "log_softmax"),
    ".log_softmax": (lambda z: z.log_softmax(1), "log_softmax"),
    "log of softmax": (lambda z: z.softmax(1).log(), "log_softmax"),
    "exp of log_softmax": (lambda z: z.log_softmax(1).exp(), "softmax"),
    "pixels": (lambda z: z[:, :, None, None].softmax(1).flatten(1), "softmax"),
    "squeezed": (lambda z: z.unsqueeze(1).softmax(2).squeeze(1), "softmax"),
    "transposed": (lambda z: z.T.log_softmax(0).T, "log_softmax"),
    "other type": (lambda z: z.sigmoid().float().double(), "sigmoid"),
    "kept apart": (lambda z: z.softmax(1).clone().detach(), "softmax"),
    "reordered": (lambda z: z.sigmoid()[:, [2, 0, 1]][:, [1, 2, 0]], "sigmoid"),
    "joined": (lambda z: torch.cat([z[:, :1].sigmoid(), z[:, 1:].sigmoid()], 1), "sigmoid"),
    "stacked": (lambda z: torch.stack([z[:, k].sigmoid() for k in range(3)], 1), "sigmoid"),
    "dropped out": (lambda z: F.dropout(z.softmax(1), training=False), "softmax"),
}
TARGETS: dict[str, Any] = {
    "largest": None,
    "class": 1,
    "classes": torch.tensor([0, 2, 1, 0]),
    "contrast": omenn.Contrast(0, 2),
    "runner-up": omenn.Contrast(1, "runner-up"),
}


def same(e: omenn.Explanation, other: omenn.Explanation) -> None:
    for name in ("output", "target", "weight", "contribution", "bias", "matrix"):
        torch.testing.assert_close(getattr(e, name), getattr(other, name))


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("target", TARGETS)
def test_the_logit_is_explained(name: str, target: str) -> None:
    last, operator = LAST[name]
    net = lambda x: last(CORE(x))  # noqa: E731
    e, other = (omenn.explain(m, X, TARGETS[target]) for m in (net, CORE))
    same(e, other)
    assert e.exact
    assert e.explains == f"the logit before {operator}"
    assert "logit" in repr(e)
    assert other.explains == ""


@pytest.mark.parametrize("name", LAST)
def test_certificates_and_rows(name: str) -> None:
    net = lambda x: LAST[name][0](CORE(x))  # noqa: E731
    certificate = omenn.certify(net, X, 2)
    assert certificate.exact
    assert certificate.fidelity == 0  # of what the model returns
    rows, others = (omenn.rows(m, X, [0, 2]) for m in (net, CORE))
    torch.testing.assert_close(rows.weight, others.weight)
    torch.testing.assert_close(rows.bias, others.bias)


def test_an_operator_is_of_what_the_model_returns() -> None:
    with omenn.operator(lambda x: torch.sigmoid(CORE(x)), X[:1]) as op:
        assert op.exact
        torch.testing.assert_close(op.value, torch.sigmoid(CORE(X[:1])).flatten().detach())


@pytest.mark.parametrize(
    "last",
    [
        torch.sigmoid,
        lambda z: torch.sigmoid(z)[:, 0],
        lambda z: torch.sigmoid(z.squeeze(1)),
        lambda z: torch.sigmoid(z).squeeze(),
    ],
    ids=["column", "first", "before", "after"],
)
@pytest.mark.parametrize("count", [1, 4])
def test_one_probability(last: Any, count: int) -> None:
    e = omenn.explain(lambda x: last(ONE(x)), X[:count])
    same(e, omenn.explain(ONE, X[:count]))
    assert e.explains == "the logit before sigmoid"


def test_a_function_gets_what_the_model_returned() -> None:
    net = nn.Sequential(CORE, nn.Sigmoid()).eval()
    e = omenn.explain(net, X, lambda out: out[:, 1])
    torch.testing.assert_close(e.output, net(X)[:, 1].detach())
    assert e.explains == ""
    assert e.exact


def test_the_number_that_is_chosen() -> None:
    net = lambda x: {"p": torch.sigmoid(CORE(x)), "z": 2 * CORE(x)}  # noqa: E731
    same(omenn.explain(net, X, 1, output="p"), omenn.explain(CORE, X, 1))
    assert omenn.explain(net, X, 1, output="z").explains == ""


@pytest.mark.parametrize("method", ["omenn", "attnlrp", "fullgrad", "xgradient", "cp-lrp"])
def test_other_methods_explain_the_same_number(method: str) -> None:
    net = nn.Sequential(CORE, nn.Softmax(1)).eval()
    e, other = (omenn.explain(m, X, 1, method=method) for m in (net, CORE))
    same(e, other)


def test_with_derivatives() -> None:
    net = nn.Sequential(CORE, nn.LogSoftmax(1)).eval()
    found = []
    for model in (net, CORE):
        e = omenn.explain(model, X, 1, create_graph=True)
        (g,) = torch.autograd.grad(e.matrix.square().sum(), [*CORE.parameters()][:1])
        found.append(g)
    torch.testing.assert_close(*found)


def test_a_later_module_and_a_file(tmp_path: Any) -> None:
    net = nn.Sequential(CORE, nn.Sigmoid()).eval()
    e = omenn.explain(net, X, 1, at="0.1")
    same(e, omenn.explain(CORE, X, 1, at="1"))
    again = omenn.Explanation.load(e.save(tmp_path / "e.safetensors"))
    assert again.explains == "the logit before sigmoid"
    for name in ("e.json", "e.html"):
        assert "the logit before sigmoid" in e.save(tmp_path / name).read_text()


@pytest.mark.parametrize(
    "last",
    [
        lambda z: z.softmax(0),
        lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2,
        lambda z: z.softmax(1)[:, 1],
        lambda z: z.softmax(1)[:, [0, 1]],
    ],
    ids=["over samples", "mixture", "one of them", "two of them"],
)
def test_softmax_that_is_no_row_of_classes(last: Any) -> None:
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(lambda x: last(CORE(x)), X)
    assert caught.value.operator == "softmax"
    assert not omenn.certify(lambda x: last(CORE(x)), X).exact


def test_what_is_made_of_probabilities_is_explained_as_it_is() -> None:
    for last in (lambda z: 2 * z.sigmoid(), lambda z: z.sigmoid().mul_(2), written):
        e = omenn.explain(lambda x, last=last: last(CORE(x)), X, 1)
        torch.testing.assert_close(e.output, last(CORE(X))[:, 1].detach())
        assert e.explains == ""
        assert e.exact


def written(z: Tensor) -> Tensor:
    p = z.sigmoid()
    p[0].mul_(3)
    return p


def test_logits_that_are_written_over() -> None:
    def net(x: Tensor) -> Tensor:
        z = CORE(x)
        p = torch.sigmoid(z)
        z.relu_()
        return p

    with pytest.raises(omenn.TargetError, match="sigmoid"):
        omenn.explain(net, X, 1)
    assert omenn.explain(net, X, lambda out: out[:, 1]).exact
