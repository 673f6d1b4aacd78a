"""Recurrent layers over the native kernel's states, against the same unrolled in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import omenn
from omenn.engine.operators import recurrent
from opcases.case import draw
from products import spread

KINDS: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "lstm with projection": lambda *a, **k: nn.LSTM(*a, proj_size=2, **k),
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}
X, LENGTHS = draw(2, 5, 4), torch.tensor([3, 5])


def layers(kind: str, number: int, both: bool, bias: bool) -> nn.Module:
    torch.manual_seed(3)
    options = {"num_layers": number, "bidirectional": both, "bias": bias, "batch_first": True}
    return KINDS[kind](4, 3, **options).double().eval()


def states(module: nn.Module) -> tuple[Tensor, ...]:
    """Initial states of a batch of two."""
    assert isinstance(module, nn.RNNBase)
    n = module.num_layers * (2 if module.bidirectional else 1)
    hidden = draw(n, 2, module.proj_size or 3, seed=1)
    return (hidden, draw(n, 2, 3, seed=2)) if isinstance(module, nn.LSTM) else (hidden,)


def weighted(out: Tensor) -> Tensor:
    out = out.transpose(0, 1) if out.shape[1] == 2 != out.shape[0] else out
    return ((out + 0.3).reshape(2, -1) * draw(2, out[0].numel(), seed=4)).sum(1)


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    return weighted(module(x)[0])


def last(module: nn.Module, x: Tensor) -> Tensor:
    ends = module(x)[1]
    ends = ends if isinstance(ends, tuple) else (ends,)
    return torch.stack([weighted(t.transpose(0, 1).square()) for t in ends]).sum(0)


def begun(module: nn.Module, x: Tensor) -> Tensor:
    """Initial states that are constants."""
    begin = states(module)
    return weighted(module(x, begin if len(begin) > 1 else begin[0])[0])


def packed(module: nn.Module, x: Tensor) -> Tensor:
    sequence = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    out, ends = module(sequence)
    ends = ends if isinstance(ends, tuple) else (ends,)
    y = pad_packed_sequence(out, batch_first=True)[0]
    return weighted(y) + torch.stack([weighted(t.transpose(0, 1)) for t in ends]).sum(0)


def compared(
    monkeypatch: pytest.MonkeyPatch, explain: Callable[[], list[Tensor]], native: bool = True
) -> None:
    taken: list[Any] = []
    inner = recurrent._over_states

    def noted(*args: Any) -> Any:
        taken.append(0)
        return inner(*args)

    monkeypatch.setattr(recurrent, "_over_states", noted)
    found = explain()
    assert bool(taken) == native
    monkeypatch.setattr(recurrent, "_native", lambda *args: False)
    for got, wanted in zip(found, explain(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


def parts(e: omenn.Explanation) -> list[Tensor]:
    assert e.exact
    constants = [v for v in e.sources.values() if v.any()]
    return [e.output, e.weight, e.matrix, e.bias, *constants, torch.tensor(e.located)]


@pytest.mark.parametrize(
    ("kind", "number", "both", "bias", "model"),
    spread(KINDS, (1, 2), (False, True), (True, False), [outputs, last, begun, packed], one_in=4),
)
def test_the_same_as_unrolled(
    kind: str, number: int, both: bool, bias: bool, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = layers(kind, number, both, bias)
    compared(monkeypatch, lambda: parts(omenn.explain(lambda x: model(module, x), X, lambda f: f)))


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_explained(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = layers(kind, 1, True, True)

    def explain() -> list[Tensor]:
        e = omenn.explain(
            lambda x, *begin: module(x, begin if len(begin) > 1 else begin[0])[0],
            (X, *states(module)),
            lambda out: weighted(out).sum(),
        )
        assert e.exact
        return [*e.weight, *e.matrix]

    compared(monkeypatch, explain)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_operators_and_one_sequence(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = layers(kind, 2, True, True)

    def explain() -> list[Tensor]:
        rows = omenn.rows(lambda x: module(x)[0][:, -1], X, range(4), chunk=3)
        op = omenn.operator(lambda x: module(x)[0][:, 2:4], X[:1], chunk=4)
        one = omenn.explain(lambda x: module(x)[0], X[0], lambda out: out.square().sum())
        assert rows.exact
        assert op.exact
        return [rows.weight, rows.bias, op.to_dense(), op.columns([0, 5]), op.constant, one.matrix]

    compared(monkeypatch, explain)


def test_second_derivatives_take_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    module = layers("lstm", 1, False, True)

    def explain() -> list[Tensor]:
        e = omenn.explain(lambda x: outputs(module, x), X, lambda f: f, create_graph=True)
        return [e.matrix.detach()]

    compared(monkeypatch, explain, native=False)
