"""Integer inputs: each has its own part of an additive network, whatever floats are made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from opcases.case import draw

TABLE, HEAD = draw(20, 4), draw(4)
ONE, FLAGS = draw(20), draw(3)
IDS = torch.tensor([[3, 7, 11], [7, 0, 19]])
X, DEEP = draw(2, 5), draw(5)
FLOAT = torch.float64


def rows(ids: Tensor) -> Tensor:
    """What each id adds where the network sums up its row: (B, T)."""
    return TABLE[ids] @ HEAD


def bag(**options: Any) -> Callable[[Tensor], Tensor]:
    return lambda a: F.embedding_bag(a, TABLE, **options) @ HEAD


def select(a: Tensor) -> Tensor:
    return torch.index_select(TABLE, 0, a.reshape(-1)).reshape(2, 3, 4).sum(1) @ HEAD


LARGEST = TABLE[IDS].max(1).indices
WEIGHTS = draw(2, 3)
# name -> (the part of the network, what it adds at each id)
LOOKUPS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "embedding": (lambda a: F.embedding(a, TABLE).sum(1) @ HEAD, rows(IDS)),
    "parameter": (lambda a: TABLE[a].sum(1) @ HEAD, rows(IDS)),
    "parameter, all columns": (lambda a: TABLE[a, :].sum(1) @ HEAD, rows(IDS)),
    "parameter, the rest": (lambda a: TABLE[a, ...].sum(1) @ HEAD, rows(IDS)),
    "index_select": (select, rows(IDS)),
    "time first": (lambda a: F.embedding(a.t(), TABLE).sum(0) @ HEAD, rows(IDS)),
    "flat": (lambda a: F.embedding(a.flatten(), TABLE).view(2, 3, 4).sum(1) @ HEAD, rows(IDS)),
    "slices": (
        lambda a: F.embedding(a[:, :1], TABLE).sum(1) @ HEAD
        + F.embedding(a[:, 1:], TABLE).sum(1) @ HEAD,
        rows(IDS),
    ),
    "flipped": (lambda a: F.embedding(a.flip(1), TABLE).sum(1) @ HEAD, rows(IDS)),
    "twice": (
        lambda a: F.embedding(a, TABLE).sum(1) @ HEAD + F.embedding(a, ONE[:, None]).sum((1, 2)),
        rows(IDS) + ONE[IDS],
    ),
    "sum": (bag(mode="sum"), rows(IDS)),
    "mean": (bag(mode="mean"), rows(IDS) / 3),
    "weighted": (
        lambda a: F.embedding_bag(a, TABLE, mode="sum", per_sample_weights=WEIGHTS) @ HEAD,
        rows(IDS) * WEIGHTS,
    ),
    "max": (bag(mode="max"), torch.zeros(2, 3, dtype=FLOAT).scatter_add(
        1, LARGEST, TABLE[IDS].max(1).values * HEAD)),
    "mean, padded": (
        bag(mode="mean", padding_idx=7),
        rows(IDS) * (IDS != 7) / (IDS != 7).sum(1, keepdim=True),
    ),
    "shifted": (lambda a: F.embedding((a + 1) % 20, TABLE).sum(1) @ HEAD, rows((IDS + 1) % 20)),
    "joined": (
        lambda a: F.embedding(torch.cat([a, a], 1), TABLE).sum(1) @ HEAD, 2 * rows(IDS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("bias", ["spatial", "uniform", "attention", "separate"])
def test_lookups_have_their_part_at_their_ids(name: str, bias: str) -> None:
    wide, right = LOOKUPS[name]
    e = omenn.explain(lambda a, x: wide(a) + x @ DEEP + 3, (IDS, X), lambda f: f, bias=bias)
    ids, numbers = e.matrix
    if bias != "separate":
        ids, numbers = ids - e.bias[0], numbers - e.bias[1]
    torch.testing.assert_close(ids, right, rtol=0, atol=1e-12)
    torch.testing.assert_close(numbers, X * DEEP, rtol=0, atol=1e-12)
    assert e.exact
    assert not e.frozen_constants


@pytest.mark.parametrize("name", sorted({*LOOKUPS} - {"index_select", "flat", "weighted"}))
def test_lookups_of_one_sample_are_those_of_it_in_a_batch(name: str) -> None:
    wide, right = LOOKUPS[name]
    e = omenn.explain(wide, IDS[1:], lambda f: f)
    torch.testing.assert_close(e.matrix, right[1:], rtol=0, atol=1e-12)


def test_rows_of_a_flat_bag_are_at_their_ids() -> None:
    ids, offsets = torch.tensor([3, 7, 11, 7]), torch.tensor([0, 3])
    for mode, share in (("sum", [1, 1, 1, 1]), ("mean", [1 / 3] * 3 + [1])):
        e = omenn.explain(
            lambda a, o, mode=mode: F.embedding_bag(a, TABLE, o, mode=mode) @ HEAD,
            (ids, offsets),
            lambda f: f.sum(),
        )
        right = rows(ids) * torch.tensor(share, dtype=FLOAT)
        torch.testing.assert_close(e.matrix[0].flatten(), right, rtol=0, atol=1e-12)
        assert e.matrix[1] is None


# Floats made of ids otherwise: constants of that input, where they lie.
FLOATS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "one-hot": (lambda a: (F.one_hot(a, 20).double() @ ONE).sum(1), ONE[IDS]),
    "counts": (lambda a: a.double() @ FLAGS, IDS * FLAGS),
    "comparison": (lambda a: (a > 5).double() @ FLAGS, (IDS > 5) * FLAGS),
    "truth values": (lambda a: (a > 5).logical_and(a < 9).double() @ FLAGS, (IDS == 7) * FLAGS),
    "where": (lambda a: torch.where(a > 5, 2.0, -1.0).double() @ FLAGS,
              torch.where(IDS > 5, 2.0, -1.0) * FLAGS),
    "column of a table": (lambda a: ONE[a].sum(1), ONE[IDS]),
    "gather": (lambda a: ONE.expand(2, 20).gather(1, a).sum(1), ONE[IDS]),
    "transposed": (lambda a: (a.t().double() * FLAGS[:, None]).sum(0), IDS * FLAGS),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("order", ["ids first", "numbers first"])
def test_floats_of_ids_are_constants_of_the_ids(name: str, order: str) -> None:
    wide, right = FLOATS[name]
    both = (lambda a, x: wide(a) + x @ DEEP) if order == "ids first" else None
    e = omenn.explain(both or (lambda a, x: x @ DEEP + wide(a)), {"a": IDS, "x": X}, lambda f: f)
    torch.testing.assert_close(e.matrix["x"], X * DEEP, rtol=0, atol=1e-12)
    torch.testing.assert_close(e.matrix["a"].sum(1), right.sum(1), rtol=0, atol=1e-12)
    assert torch.equal(e.matrix["a"], e.bias["a"])
    assert not e.weight["a"].any()
    assert e.weight["a"].shape == IDS.shape
    assert e.frozen_constants == ("",)
    assert e.exact


@pytest.mark.parametrize("bias", ["spatial", "uniform", "attention"])
def test_a_constant_of_each_id_is_at_its_id(bias: str) -> None:
    def model(a: Tensor, x: Tensor) -> Tensor:
        return (a.double() * FLAGS + x[:, :3]).sum(1)

    e = omenn.explain(model, (IDS, X), lambda f: f, bias=bias)
    right = (IDS * FLAGS).double()
    if bias == "uniform":
        right = right.mean(1, keepdim=True).expand(2, 3)
    torch.testing.assert_close(e.matrix[0], right, rtol=0, atol=1e-12)


def test_an_input_has_its_entry_whatever_its_values_are() -> None:
    flags = torch.zeros(2, 3, dtype=torch.bool)
    e = omenn.explain(lambda a, x: a.double() @ FLAGS + x @ DEEP, (flags, X), lambda f: f)
    assert e.matrix[0].shape == (2, 3)
    assert not e.matrix[0].any()


def test_masks_and_lengths_are_coefficients() -> None:
    x, mask = draw(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])

    def model(x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.unsqueeze(-1).to(x.dtype)
        return (x * kept).sum(1) / kept.sum(1) @ HEAD

    e = omenn.explain(model, {"x": x, "mask": mask}, lambda f: f)
    assert list(e.matrix) == ["x"]
    right = (x @ HEAD) * mask / mask.sum(1, keepdim=True)
    torch.testing.assert_close(e.matrix["x"], right, rtol=0, atol=1e-12)
    assert not e.frozen_constants


def test_a_mask_on_attention_scores_adds_nothing() -> None:
    x, mask = draw(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])

    def model(x: Tensor, mask: Tensor) -> Tensor:
        scores = x @ x.mT + (1 - mask[:, None].to(x.dtype)) * -1e9
        return (scores.softmax(-1) @ x).sum(1) @ HEAD

    e = omenn.explain(model, {"x": x, "mask": mask}, lambda f: f)
    assert list(e.matrix) == ["x"]
    assert not e.frozen_constants
    assert e.exact


def test_an_8_bit_picture_is_explained_at_its_pixels() -> None:
    picture = torch.randint(0, 255, (2, 3, 4, 5), dtype=torch.uint8)
    w = draw(3, 4, 5)
    right = (picture.double() / 255 * w).sum(1)
    forms: list[Callable[[Tensor], Tensor]] = [
        lambda a: a.double() / 255,
        lambda a: a.to(FLOAT) / 255,
        lambda a: a.double().div_(255),
        lambda a: a * torch.tensor(1 / 255, dtype=FLOAT)[None],
        lambda a: a.double().permute(0, 2, 3, 1).permute(0, 3, 1, 2) / 255,
    ]
    for form in forms:
        e = omenn.explain(
            lambda a, x, form=form: (form(a) * w).sum((1, 2, 3)) + x @ DEEP,
            {"a": picture, "x": X},
            lambda f: f,
        )
        torch.testing.assert_close(e.matrix["a"], right, rtol=0, atol=1e-12)
        torch.testing.assert_close(e.matrix["x"], X * DEEP, rtol=0, atol=1e-12)
        assert e.weight["a"].shape == picture.shape
        assert e.exact
        alone = omenn.explain(
            lambda a, form=form: (form(a) * w).sum((1, 2, 3)), picture[1:], lambda f: f
        )
        torch.testing.assert_close(alone.matrix, right[1:], rtol=0, atol=1e-12)


STEPS = torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=FLOAT)


def test_a_column_that_is_looked_up_keeps_its_part() -> None:
    x, rest = torch.tensor([[2.0, 0.3, -1.0], [4.0, 0.7, 0.2]], dtype=FLOAT), draw(2)
    uses: dict[str, Callable[[Tensor], Tensor]] = {
        "embedding": lambda c: F.embedding(c.long(), TABLE) @ HEAD,
        "parameter": lambda c: TABLE[c.to(torch.int64)] @ HEAD,
        "one-hot": lambda c: F.one_hot(c.int().long(), 20).double() @ ONE,
        "comparison": lambda c: (c > 3).double() * 2.5 + 0,
        "rounded": lambda c: c.round().double() * 1.5,
        "searched": lambda c: ONE[torch.searchsorted(STEPS, c.contiguous())],
    }
    for name, use in uses.items():
        e = omenn.explain(lambda x, use=use: x[:, 1:] @ rest + use(x[:, 0]), x, lambda f: f)
        right = torch.cat([use(x[:, :1].squeeze(1))[:, None], x[:, 1:] * rest], 1)
        torch.testing.assert_close(e.matrix, right, rtol=0, atol=1e-12, msg=name)
        assert e.frozen_constants == ("",), name
        assert e.exact


def test_constants_of_a_branch_stay_on_its_input() -> None:
    """A layer that mixes places has no place for its bias; it still has its input."""
    layer = nn.Linear(6, 1).double()

    def model(x: Tensor, y: Tensor) -> Tensor:
        return (x @ DEEP) + layer(y.flatten(1).sort(1).values).squeeze(1)

    y = draw(2, 3, 2)
    e = omenn.explain(model, (X, y), lambda f: f)
    torch.testing.assert_close(e.matrix[0], X * DEEP, rtol=0, atol=1e-12)
    assert e.exact


def test_integers_alone_that_nothing_is_looked_up_by() -> None:
    with pytest.raises(omenn.InputError, match="never reached an embedding"):
        omenn.explain(lambda a: a.double() @ FLAGS, IDS, lambda f: f)


def test_a_sum_of_counts_lies_at_none_of_them() -> None:
    counts, x = torch.randint(1, 9, (2, 4)), torch.randn(2, 3).double()
    w = torch.randn(4).double()

    def one_by_one(counts: Tensor, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) + sum(counts[:, t : t + 1].double() * w[t] for t in range(4))

    def together(counts: Tensor, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) + (counts.double() * w).sum(1, keepdim=True)

    got = omenn.explain(one_by_one, (counts, x), 0).matrix
    even = ((counts * w).sum(1, keepdim=True) / 4).expand(2, 4)
    torch.testing.assert_close(got[0], even)
    torch.testing.assert_close(got[1], x)
    torch.testing.assert_close(omenn.explain(together, (counts, x), 0).matrix[0], even)
