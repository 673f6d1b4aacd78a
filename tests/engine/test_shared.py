"""What is done once in a run in place of every time, and gives the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn.engine.location.constants import Location, fixed
from omenn.engine.model_state import modules_of


class Windows(nn.Module):
    """Equal layout operators, several times, on maps of one size and of another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for k, layer in enumerate(self.layers):
            y = torch.roll(x, (-k % 2, 1), (1, 2)).reshape(1, 2, 2, 2, 2, 3)
            y = layer(y.transpose(2, 3).reshape(4, 4, 3)[:, torch.tensor([k % 4, 1, 2, 3])])
            y = y.reshape(1, 2, 2, 2, 2, 3).transpose(2, 3).reshape(1, 4, 4, 3)
            x = x + torch.cat([y[:, 1:], y[:, :1]], 1) * 0.5
        left, right = x[:, 0:2].chunk(2, 2)
        return (left + right.flip(1)).mean((1, 2))


def test_shared_places_are_those_made_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Windows().double().eval(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    shared = omenn.explain(model, x, 1)
    monkeypatch.setattr(Location, "once", lambda self, given, key, make: make())
    apart = omenn.explain(model, x, 1)
    assert shared.exact
    torch.testing.assert_close(shared.bias, apart.bias)
    assert shared.bias.unique().numel() > 1


def test_a_place_is_made_once_for_each_key() -> None:
    calls: list[int] = []

    def make() -> Any:
        calls.append(1)
        return [None]

    known = Location({}, str)
    given = (None, None)
    assert known.once(given, "a", make) is known.once(given, "a", make)
    known.once(given, "b", make)
    assert len(calls) == 2


def test_modules_are_those_of_torch() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ModuleList()), nn.Sequential(nn.GELU()))
    model.register_module("none", None)
    model.add_module("again", model[1])
    assert modules_of(model) == list(model.named_modules())


def test_what_repr_tells() -> None:
    assert fixed((1, True, None, "a", slice(0, None, 2), ..., [torch.Size([2]), 0.5]))
    assert not fixed((1, torch.ones(1)))
    assert not fixed([torch.ones(2000).numpy()])
