"""Constants of several inputs: to each in equal parts, whichever of them comes first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import omenn
from opcases.case import draw

X, ROW = draw(2, 3, 4), draw(2, 4, seed=1)
B, W = draw(4, seed=2), draw(4, 4, seed=3)


def written(x: Tensor) -> Tensor:
    """Something made of x is written into a constant, of which the first token stays."""
    out = B.expand_as(x).clone()
    out[:, 1:] = x[:, :-1]
    return out


def through_a_view(x: Tensor) -> Tensor:
    out = B.expand_as(x).clone()
    out[:, 1:].copy_(x[:, :-1])
    return out


def scattered(x: Tensor) -> Tensor:
    index = torch.zeros(x.shape[1], dtype=torch.long)
    return torch.zeros_like(x).index_add(1, index, x) + B


def both(
    model: Callable[..., Tensor], **options: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The maps with ``row`` last and with ``row`` first."""
    given = {"x": X, "row": ROW}
    return tuple(
        omenn.explain(model, {k: given[k] for k in order}, 1, **options).matrix
        for order in (("x", "row"), ("row", "x"))
    )


def alike(model: Callable[..., Tensor], **options: str) -> dict[str, Tensor]:
    one, other = both(model, **options)
    for key in ("x", "row"):
        torch.testing.assert_close(one[key], other[key])
    return one


@pytest.mark.parametrize("bias", ["spatial", "attention", "uniform"])
@pytest.mark.parametrize("step", [written, through_a_view, scattered])
def test_a_branch_keeps_its_constants(step: Callable[[Tensor], Tensor], bias: str) -> None:
    """What only x flows into is of x, though it has the batch of the row as well."""

    def model(x: Tensor, row: Tensor) -> Tensor:
        return step(x).sum(1) + row

    found = alike(model, bias=bias)
    torch.testing.assert_close(found["x"].sum(1), step(X).sum(1)[:, 1])
    torch.testing.assert_close(found["row"], F.one_hot(torch.tensor(1), 4) * ROW)


def test_a_sum_shares_evenly() -> None:
    def model(x: Tensor, row: Tensor) -> Tensor:
        return (x + row[:, None] + B).sum(1)

    found = alike(model)
    torch.testing.assert_close(found["x"], X[..., 1] + B[1] / 2)
    torch.testing.assert_close(found["row"].sum(1), 3 * (ROW[:, 1] + B[1] / 2))


def test_a_token_shares_at_its_place() -> None:
    """The row goes into the first token alone: half of a constant there, half of the row's."""

    def model(x: Tensor, row: Tensor) -> Tensor:
        return x.sum(1) + (x[:, :1] + (row @ W)[:, None] + B).sum(1)

    found = alike(model)
    torch.testing.assert_close(found["x"][:, 1:], X[:, 1:, 1])
    torch.testing.assert_close(found["x"][:, 0], 2 * X[:, 0, 1] + B[1] / 2)
    torch.testing.assert_close(found["row"].sum(1), (ROW @ W)[:, 1] + B[1] / 2)


@pytest.mark.parametrize("turned", [False, True])
def test_channels_side_by_side(turned: bool) -> None:
    """Two pictures that are joined along the channels share the constants of the next layer."""
    weight, constant = draw(4, 8, seed=4), draw(4, seed=5)
    other = draw(2, 3, 4, seed=6)

    def model(x: Tensor, row: Tensor) -> Tensor:
        parts = [row, x] if turned else [x, row]
        return F.linear(torch.cat(parts, -1), weight, constant).sum(1)

    e = omenn.explain(model, {"x": X, "row": other}, 1)
    for key in ("x", "row"):
        plain = e.contribution[key].sum(-1)
        torch.testing.assert_close(e.matrix[key], plain + constant[1] / 2)


def test_ids_of_two_inputs_in_one_table() -> None:
    """Ids that are joined before they are looked up are of both inputs."""
    table, a, b = draw(5, 4), torch.tensor([[1, 2]]), torch.tensor([[3]])

    def model(a: Tensor, b: Tensor) -> Tensor:
        return (F.embedding(torch.cat([a, b], 1), table) + B).sum(1)

    for given in ({"a": a, "b": b}, {"b": b, "a": a}):
        e = omenn.explain(model, given, 1)
        torch.testing.assert_close(e.matrix["a"], table[a][..., 1] + B[1])
        torch.testing.assert_close(e.matrix["b"], table[b][..., 1] + B[1])


def test_alone_as_in_a_batch() -> None:
    """A constant with a place in some samples is not shared otherwise in the others."""

    def model(x: Tensor, row: Tensor) -> Tensor:
        first = torch.cat([x[:, :1] + (row @ W)[:, None], x[:, 1:]], 1)
        ordered = first.sort(1).values.transpose(0, 1)
        return torch.tanh(F.linear(ordered, W, B)).sum(0)

    whole = omenn.explain(model, {"x": X, "row": ROW}, 1).matrix
    for k in range(2):
        one = omenn.explain(model, {"x": X[k : k + 1], "row": ROW[k : k + 1]}, 1).matrix
        for key in ("x", "row"):
            torch.testing.assert_close(one[key][0], whole[key][k])


def test_one_place_of_several_rows_is_the_whole_sample() -> None:
    """The mean of all tokens, repeated: it has no location, in a batch as alone."""

    def model(x: Tensor, row: Tensor) -> Tensor:
        first = torch.cat([x[:, :1] + (row * B)[:, None], x[:, 1:]], 1)
        rows = first.mean(1, keepdim=True).expand_as(x).reshape(-1, 4)
        return F.linear(rows, W, B).view_as(x).sum(1)

    for samples in (slice(0, 2), slice(1, 2)):
        e = omenn.explain(model, {"x": X[samples], "row": ROW[samples]}, 1)
        assert e.reasons == {"pooled": 1.0}
        torch.testing.assert_close(e.bias["x"], (B[1] / 2).expand(e.bias["x"].shape))
        torch.testing.assert_close(e.bias["row"], (3 * B[1] / 8).expand(e.bias["row"].shape))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_a_derivative_of_ones_own_in_a_method_that_keeps_derivatives() -> None:
    """What unseen code returns is of the inputs that it was made of."""

    def model(x: Tensor, row: Tensor) -> Tensor:
        return Doubled.apply(x).sum(1) + row + B

    e = omenn.explain(model, {"x": X, "row": ROW}, 1, method="input-x-gradient")
    torch.testing.assert_close(e.matrix["x"], 2 * X[..., 1])
    torch.testing.assert_close(e.matrix["row"], F.one_hot(torch.tensor(1), 4) * ROW)
