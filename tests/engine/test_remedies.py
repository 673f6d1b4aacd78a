"""Errors name a way out that works; what can be meant in one way only is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.linear import seeded


def told(model: Any, inputs: Any, target: Any = None, **options: Any) -> str:
    with pytest.raises(omenn.TargetError) as caught:
        omenn.explain(model, inputs, target, **options)
    return str(caught.value)


def remedy(text: str) -> Callable[[Tensor], Tensor]:
    """The target that a message proposes."""
    (found,) = re.findall(r"target=(lambda out: [^.]*?[\])](?:\.sum\([^)]*\)\))?)\.?(?:$| )", text)
    return eval(found)


def linear(outputs: int) -> nn.Linear:
    return cast(nn.Linear, seeded(nn.Linear(4, outputs, bias=False)))


class Squeezed(nn.Module):
    """A regression net: one number a sample, which is no dimension of its own for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(x)).squeeze()


def test_one_number_for_one_sample() -> None:
    net, x = seeded(Squeezed()), torch.randn(3, 4).double()
    together = omenn.explain(net, x)
    for k in range(3):
        alone = omenn.explain(net, x[k : k + 1])
        assert alone.exact
        assert alone.matrix.shape == (1, 4)
        assert torch.equal(alone.target, torch.tensor([0]))
        torch.testing.assert_close(alone.matrix[0], together.matrix[k])


@pytest.mark.parametrize("target", [None, 0, [0], np.array([0])], ids=str)
def test_one_row_of_logits_for_many_nodes(target: Any) -> None:
    net = linear(1)
    nodes = torch.randn(5, 4).double()
    e = omenn.explain(lambda x: net(x).mean(0, keepdim=True), nodes, target)
    assert e.exact
    assert e.output.shape == (1,)
    torch.testing.assert_close(e.contribution.reshape(5, 4), nodes * net.weight.detach() / 5)


def test_one_row_of_classes_for_many_nodes() -> None:
    net = linear(3)
    nodes = torch.randn(5, 4).double()
    e = omenn.explain(lambda x: net(x).mean(0, keepdim=True), nodes, 2)
    assert e.exact
    assert e.target.tolist() == [2]
    torch.testing.assert_close(e.contribution.reshape(5, 4), nodes * net.weight.detach()[2] / 5)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda x: x.unsqueeze(1).expand(-1, 5, -1) * 2, (2, 3)),
        (lambda x: x.expand(-1, 4, -1, -1) * 2, (2, 1, 3, 3)),
        (lambda x: x.expand(-1, 4, -1, -1, -1) * 2, (2, 1, 3, 3, 3)),
    ],
    ids=["tokens", "pixels", "voxels"],
)
def test_the_target_that_is_proposed_works(model: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).double()
    target = remedy(told(model, x, 0))
    e = omenn.explain(model, x, target)
    assert e.exact
    assert e.output.shape == (2,)
    torch.testing.assert_close(e.output, target(model(x)))


def test_numbers_that_are_no_samples() -> None:
    x = torch.randn(5, 4).double()
    text = told(lambda x: x[:2] * 2, x, 1)
    e = omenn.explain(lambda x: x[:2] * 2, x, remedy(text))
    assert e.exact
    assert float(e.output) == float(2 * x[1, 1])


def test_missing_batch_dimension() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(-3), nn.Linear(4, 2)
    )
    x = torch.randn(3, 8, 8).double()
    assert "x.unsqueeze(0)" in told(seeded(net), x, 0)
    assert omenn.explain(net, x.unsqueeze(0), 0).exact


@pytest.mark.parametrize(
    ("last", "word"),
    [
        (lambda y: y.argmax(1), "argmax"),
        (lambda y: y > 0, "comparison"),
        (lambda y: torch.fft.fft(y), "complex"),
        (lambda y: y[:, :0], "empty"),
        (lambda y: y[:0], "empty"),
    ],
    ids=["class numbers", "decisions", "complex", "no classes", "no samples"],
)
@pytest.mark.parametrize(
    "target", [None, 0, omenn.Contrast(0, 1), lambda out: out.reshape(-1)[:2]], ids=type
)
def test_outputs_without_a_number(last: Any, word: str, target: Any) -> None:
    x = torch.randn(2, 4).double()
    assert word in told(last, x, target)
    for call in (omenn.operator, omenn.certify):
        with pytest.raises(omenn.TargetError, match=word):
            call(last, x)
    with pytest.raises(omenn.TargetError, match=word):
        omenn.rows(last, x, [target])


@pytest.mark.parametrize(
    "target",
    [[1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2], dtype=torch.uint16)],
    ids=["list", "tuple", "array", "uint16"],
)
def test_targets_of_each_sample(target: Any) -> None:
    net, x = linear(3), torch.randn(2, 4).double()
    e = omenn.explain(net, x, target)
    assert e.target.tolist() == [1, 2]
    torch.testing.assert_close(e.weight, net.weight.detach()[[1, 2]])


@pytest.mark.parametrize(
    "target",
    [
        10**30,
        -(10**30),
        [10**30],
        np.array([1.5, 2]),
        np.array(["cat", "dog"]),
        [[1, 2]],
        [],
        torch.tensor(0, device="meta"),
        torch.tensor([0, 1]).to_sparse(),
        torch.tensor(1j),
        omenn.Contrast(0, 10**30),
        omenn.Contrast(None, 1),  # pyright: ignore[reportArgumentType]
    ],
    ids=str,
)
def test_targets_that_are_none(target: Any) -> None:
    told(seeded(nn.Linear(4, 3)), torch.randn(2, 4).double(), target)


def test_targets_of_rows_from_a_generator() -> None:
    net, x = linear(3), torch.randn(1, 4).double()
    found = omenn.rows(net, x, (k for k in range(3)))
    torch.testing.assert_close(found.weight[0], net.weight.detach())


def test_dropout_that_is_not_told_of_the_mode() -> None:
    class Net(nn.Module):
        on = True

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5) if self.on else F.dropout(x, 0.5, training=self.training)

    net, x = Net().eval(), torch.randn(1, 4).double()
    with pytest.raises(omenn.UnsupportedOperator, match=r"training=self\.training"):
        omenn.explain(net, x, 0)
    net.on = False
    assert omenn.explain(net, x, 0).exact


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (torch.ones(1, 4).to(torch.float8_e4m3fn), lambda x: x.float()),
        (nn.parameter.UninitializedParameter(), lambda x: torch.ones(1, 4)),
        (nn.parameter.UninitializedBuffer(), lambda x: torch.ones(1, 4)),
    ],
    ids=["float8", "parameter", "buffer"],
)
def test_inputs_without_numbers(value: Any, remedy: Any) -> None:
    net = nn.Linear(4, 3).eval()
    for call in (omenn.explain, omenn.certify, omenn.operator):
        with pytest.raises(omenn.InputError):
            call(net, value)
    assert omenn.explain(net, remedy(value), 0).exact


def test_an_automatic_depth_blames_the_input() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    with pytest.raises(omenn.InputError, match=r"shapes \(2, 5\)|\(2, 5\)"):
        omenn.explain(net, torch.randn(2, 5), 0, at="auto")
    with pytest.raises(omenn.ModelError, match=r"model\.eval\(\)"):
        omenn.explain(net.train(), torch.randn(2, 12), 0, at="auto")


class Graph(nn.Module):
    """Two rounds of messages between nodes that are given as the rows of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        near = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]])
        self.register_buffer("near", near.double())

    near: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.near @ self.b(torch.relu(self.near @ self.a(x)))


@pytest.mark.parametrize("target", [1, lambda out: out[:, 1]], ids=["class", "function"])
def test_samples_that_depend_on_each_other(target: Any) -> None:
    net, x = seeded(Graph()), torch.randn(4, 4).double()
    e = omenn.explain(net, x, target)
    assert not e.exact
    assert "depend on each other" in e.cause
    assert e.cause in repr(e)
    assert e.cause in str(omenn.certify(net, x, target))
    one = eval(e.cause[e.cause.index("lambda") :], {"target": target})
    alone = omenn.explain(net, x, one)
    assert alone.exact
    torch.testing.assert_close(alone.output[0], one(net(x)).detach())
    assert alone.cause == ""


def test_a_sum_that_rounding_misses() -> None:
    e = omenn.explain(seeded(Graph()), torch.randn(4, 4).double(), lambda out: out[2, 1])
    off = replace(e, residual=3 * e.tolerance * (1 + e.magnitude))
    assert not off.exact
    assert "double precision" in off.cause
    assert replace(off, residual=torch.ones(1).double()).cause == ""  # nobody knows


def test_hooks_on_gradients_do_not_act() -> None:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.kept = nn.Linear(4, 5), nn.Linear(5, 3), []

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if y.requires_grad:
                y.retain_grad()
                y.register_hook(lambda grad: self.kept.append(grad) or grad * 0.5).remove()
                y.register_hook(lambda grad: self.kept.append(grad) or grad * 0.5)
            return self.b(torch.relu(y))

    net: Any = seeded(Hooked())
    x = torch.randn(2, 4).double()
    e = omenn.explain(net, x, 1)
    y = net.a(x)
    torch.testing.assert_close(e.weight, (net.b.weight[1] * (y > 0)) @ net.a.weight)
    assert e.exact
    assert net.kept == []
    net(x.requires_grad_()).sum().backward()
    assert len(net.kept) == 1  # it is there as before


def test_a_model_that_takes_its_inputs_as_one() -> None:
    class Dict(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["a"] + 2 * batch["b"]

    class List(nn.Module):
        def forward(self, batch: list[Tensor]) -> Tensor:
            return batch[0] + 2 * batch[1]

    a, b = torch.randn(2, 1, 3).double().unbind()
    for model, inputs in ((Dict(), {"a": a, "b": b}), (List(), (a, b))):
        with pytest.raises(omenn.InputError) as caught:
            omenn.explain(model.eval(), inputs, 0)
        (text,) = re.findall(r"explain (lambda .*)\.$", str(caught.value))
        e = omenn.explain(eval(text, {"model": model}), inputs, 0)
        first, second = e.weight.values() if isinstance(e.weight, dict) else e.weight
        assert first.tolist() == [[1, 0, 0]]
        assert second.tolist() == [[2, 0, 0]]
