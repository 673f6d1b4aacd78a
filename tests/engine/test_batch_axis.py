"""The samples are followed, wherever they lie: each as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from opcases.case import draw
from opcases.linear import seeded

SEVERAL = [(2, 6), (2, 7), (3, 3), (4, 2)]
GRU = seeded(nn.GRU(3, 4))
LAST = draw(4)


def time_first(x: Tensor) -> Tensor:
    return GRU(x)[0][-1] @ LAST


@pytest.mark.parametrize(("batch", "time"), SEVERAL)
def test_a_model_that_wants_time_first(batch: int, time: int) -> None:
    x = draw(time, batch, 3)
    e = omenn.explain(time_first, x, lambda f: f)
    assert e.matrix.shape == (batch, time)
    for k in range(batch):
        alone = omenn.explain(time_first, x[:, k : k + 1], lambda f: f.sum())
        torch.testing.assert_close(e.matrix[k], alone.matrix[0, :, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_state_of_a_recurrent_layer(layers: int) -> None:
    gru = seeded(nn.GRU(3, 4, num_layers=layers, batch_first=True))
    x, state = draw(2, 5, 3), draw(layers, 2, 4)

    def model(x: Tensor, state: Tensor) -> Tensor:
        return gru(x, state)[0][:, -1] @ LAST

    e = omenn.explain(model, (x, state), lambda f: f)
    assert e.exact
    for k in range(2):
        alone = omenn.explain(model, (x[k : k + 1], state[:, k : k + 1]), lambda f: f)
        for both, one in zip(e.matrix, alone.matrix, strict=True):
            torch.testing.assert_close(both[k], one[0].reshape(both[k].shape), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_number_of_samples_is_that_of_the_output(order: tuple[str, str]) -> None:
    """Two towers: one picture and three texts."""
    given = {"a": draw(1, 4), "b": draw(3, 4)}

    def model(a: Tensor, b: Tensor) -> Tensor:
        return a @ b.T  # (1, 3)

    e = omenn.explain(model, {name: given[name] for name in order}, 1)
    assert list(e.matrix) == list(order)
    right = (given["a"] * given["b"][1:2] / 2)[0]
    torch.testing.assert_close(e.matrix["a"].flatten(), right, rtol=0, atol=1e-12)
    torch.testing.assert_close(e.matrix["b"][1], right, rtol=0, atol=1e-12)
    assert e.exact


def test_windows_at_a_module_belong_to_their_sample() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x.view(-1, 2, 3)).view(len(x), -1).tanh() @ draw(12)

    x = draw(2, 12)
    e = omenn.explain(Windows().eval(), x, lambda f: f, at="inside", resample="none")
    right = x.tanh() * draw(12)
    assert e.exact
    torch.testing.assert_close(e.matrix.reshape(2, -1).sum(1), right.sum(1), rtol=0, atol=1e-12)


def test_samples_that_are_interleaved_are_not_guessed() -> None:
    class Interleaved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return (
                self.inside(x.view(2, 3, 4).transpose(0, 1).reshape(6, 4)).view(3, 2, 4).sum((0, 2))
            )

    with pytest.raises(omenn.TargetError):
        omenn.explain(Interleaved().eval(), draw(2, 12), lambda f: f, at="inside", resample="none")


def test_more_numbers_than_samples_are_refused() -> None:
    with pytest.raises(omenn.TargetError):
        omenn.explain(lambda x: (x @ draw(4, 4))[0], draw(3, 4), lambda f: f)


def test_one_step_of_as_many_as_there_are_samples() -> None:
    """(T, B, D) with T = B, of which the first step alone matters: that of sample 1 tells."""
    x = draw(2, 2, 4)
    e = omenn.explain(lambda x: x[0] * 2, x, 1)
    torch.testing.assert_close(e.matrix, torch.stack([x[0, :, 1] * 2, torch.zeros(2)], 1))


def test_a_quotient_that_is_kept_out_says_nothing_about_the_samples() -> None:
    """0/0 inside of ``where`` gives NaN gradients, which are zero."""

    def model(x: Tensor) -> Tensor:
        large = x > 99
        n = large.sum(0).to(x.dtype)
        return x.sum(0) + torch.where(n > 0, (x * large).sum(0) / n, 0)

    x = draw(4, 2, 3)
    e = omenn.explain(model, x, 1)
    assert e.exact
    torch.testing.assert_close(e.matrix, x[..., 1].T)


def _steps(into: Tensor, x: Tensor) -> None:
    for t in range(len(into)):
        into[t].copy_(x[:, t])


def _added(into: Tensor, x: Tensor) -> None:
    for t in range(len(into)):
        into.select(0, t).add_(x[:, t])


def _samples(into: Tensor, x: Tensor) -> None:
    for k in range(len(x)):
        into.view(-1, x.shape[-1])[k :: len(x)] = x[k]


def _parts(into: Tensor, x: Tensor) -> None:
    into.permute(1, 0, 2)[..., :2].copy_(x[..., :2])
    into.transpose(0, 1)[..., 2:] = x[..., 2:]


@pytest.mark.parametrize("write", [_steps, _samples, _parts])
@pytest.mark.parametrize(("batch", "time"), SEVERAL)
def test_written_time_first_through_views(batch: int, time: int, write: Any) -> None:
    x, weight, constant = draw(batch, time, 3), draw(3, 4, seed=1), draw(4, seed=2)

    def model(x: Tensor) -> Tensor:
        steps = torch.zeros(time, batch, 3, dtype=x.dtype)
        earlier = steps.transpose(0, 1)
        write(steps, x)
        return (steps @ weight + constant).relu().sum(0) @ LAST + earlier.sum((1, 2))

    e = omenn.explain(model, x, lambda f: f)
    acts = (x @ weight + constant > 0) * LAST
    torch.testing.assert_close(e.matrix, (acts * (x @ weight + constant)).sum(-1) + x.sum(-1))


@pytest.mark.parametrize(("batch", "time"), SEVERAL)
def test_what_stays_of_a_constant_that_is_written_into(batch: int, time: int) -> None:
    x = draw(batch, time, 3)

    def model(x: Tensor) -> Tensor:
        steps = torch.ones(time, batch, 3, dtype=x.dtype)
        _added(steps, x)
        return (steps * 2).sum((0, 2))

    e = omenn.explain(model, x, lambda f: f)
    torch.testing.assert_close(e.matrix, 2 * x.sum(-1) + 6)
