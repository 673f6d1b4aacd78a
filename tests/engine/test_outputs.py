"""Structured outputs, and explanations at the output of any module."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import omenn
from nets.small import IMAGE, ROWS, convnet, sums_up
from omenn.explanation import leaves
from opcases.case import draw
from opcases.linear import seeded

X = ROWS

# --- outputs ---------------------------------------------------------------------------------

Named = namedtuple("Named", ["hidden", "scores"])


@dataclass
class Output:
    logits: Tensor | None
    hidden: Tensor


class Head(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.a, self.b, self.form = nn.Linear(4, 6), nn.Linear(6, 5), form

    def forward(self, x: Tensor):
        hidden = torch.tanh(self.a(x))
        return self.form(hidden, self.b(hidden))


@pytest.mark.parametrize(
    ("form", "output"),
    [
        (lambda h, y: y, None),
        (lambda h, y: (y, h), None),
        (lambda h, y: [y, h], None),
        (lambda h, y: {"logits": y, "hidden": h}, None),
        (lambda h, y: {"scores": y, "hidden": h}, None),
        (lambda h, y: Output(y, h), None),
        (lambda h, y: Named(h, y), "scores"),
        (lambda h, y: (h, y), 1),
        (lambda h, y: {"hidden": h, "scores": y}, "scores"),
        (lambda h, y: {"deep": [h, {"y": y}]}, lambda out: out["deep"][1]["y"]),
    ],
    ids=["tensor", "tuple", "list", "logits key", "first key", "logits attribute", "attribute",
         "index", "key", "callable"],
)  # fmt: skip
def test_structured_outputs(form, output) -> None:
    net = seeded(Head(form))
    e = omenn.explain(net, X, 3, output=output)
    wanted = seeded(Head(lambda h, y: y))(X)[:, 3].detach()
    torch.testing.assert_close(e.output, wanted)
    sums_up(e)
    assert omenn.certify(net, X, 3, output=output).exact


# --- at --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["0", "2", "3", "5", "6", "7"])
def test_at_every_module(at: str) -> None:
    net = convnet()
    e = omenn.explain(net, IMAGE, 1, at=at)
    hidden = net[: int(at) + 1](IMAGE).detach()
    torch.testing.assert_close(e.inputs, hidden)
    torch.testing.assert_close(e.output, net(IMAGE)[:, 1].detach())
    assert e.at == at
    sums_up(e)
    assert not any(name < at for name in e.sources), "constants before the module do not count"


def test_at_a_module_with_a_tuple_output() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out, (hidden, _) = self.rnn(x)
            return self.head(torch.cat([out.mean(1), hidden[0]], 1))

    net, x = seeded(Net()), draw(2, 5, 4)
    e = omenn.explain(net, x, 1, at="rnn")
    assert isinstance(e.weight, tuple)
    assert e.weight[0].shape == (2, 5, 3)
    torch.testing.assert_close(e.output, net(x)[:, 1].detach())
    assert e.exact


def test_at_a_module_with_a_dict_output() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.a(x), "ids": x.argmax(1)}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Inner(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.inner(x)["y"]))

    e = omenn.explain(seeded(Net()), X, 0, at="inner")
    assert e.exact
    assert leaves(e.weight)[0].shape == (3, 3)


def test_at_windows_of_a_sample() -> None:
    """The module sees (B · windows, tokens, C); each sample keeps its own sum."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            b = len(x)
            tokens = x.permute(0, 2, 3, 1).reshape(b * 3, 12, 3)
            return self.head((self.inner(tokens) + 1).view(b, 36, 3).mean(1))

    net = seeded(Windows())
    e = omenn.explain(net, IMAGE, 1, at="inner")
    assert e.weight.shape == (6, 12, 3)
    assert e.matrix.shape[0] == 2
    sums_up(e)
    e = omenn.explain(net, IMAGE, 1, at="inner", resample="none")
    assert e.matrix.shape == (6, 12)
    sums_up(e)


def test_inputs_without_a_common_batch() -> None:
    net = seeded(nn.Bilinear(4, 3, 2))

    def model(a: Tensor, b: Tensor) -> Tensor:
        return net.weight[0] @ b.sum(0) @ a.T

    with pytest.raises(
        omenn.InputError, match=r"shape \(7, 3\) has no dimension for the batch of 5"
    ):
        omenn.explain(model, (draw(5, 4), draw(7, 3)), lambda y: y)
    e = omenn.explain(model, (draw(5, 4), draw(7, 3)), lambda y: y.sum())
    assert e.exact
    assert [m.shape for m in e.matrix] == [(1, 5), (1, 7)]


def test_at_a_reused_module() -> None:
    """Each call of the module is explained; together they sum to the output."""
    layer = seeded(nn.Linear(4, 4))
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten()).eval()
    e = omenn.explain(net, X, 1, at="0")
    assert len(e.output) == 3
    assert e.exact


def test_mixture_over_depths_is_exact_again() -> None:
    net = convnet()
    early, late = omenn.explain(net, IMAGE, 0), omenn.explain(net, IMAGE, 0, at="5")
    mixed = 0.3 * early.matrix.sum((1, 2)) + 0.7 * late.matrix.sum((1, 2))
    torch.testing.assert_close(mixed, early.output)
