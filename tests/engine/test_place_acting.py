"""Constants without a place go to what acts: the map of a sample alone, in a batch and padded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import omenn
from omenn.engine.location import REASONS
from opcases.case import draw

torch.manual_seed(0)
GRU = nn.GRU(5, 6, 2, batch_first=True, bidirectional=True).double().eval()
LAYER = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
INTO, HEAD = nn.Linear(5, 8).double(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
OUT = nn.Linear(12, 1).double()
HEAD.double()
SHORT, LONG = draw(1, 3, 5), draw(1, 7, 5, seed=1)
Model = Callable[[Tensor, Tensor], Tensor]


def seen(x: Tensor, n: Tensor) -> Tensor:
    return (torch.arange(x.shape[1]) < n[:, None]).unsqueeze(-1)


def unpacked(x: Tensor, n: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(GRU(packed)[0], batch_first=True)[0]


def masked_mean(x: Tensor, n: Tensor) -> Tensor:
    y = LAYER(INTO(x), src_key_padding_mask=~seen(x, n).squeeze(-1))
    return HEAD((y * seen(x, n)).sum(1) / n[:, None])


MODELS: dict[str, Model] = {
    "packed, masked mean": lambda x, n: OUT((unpacked(x, n) * seen(x, n)).sum(1) / n[:, None]),
    "packed, last state": lambda x, n: OUT(
        GRU(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[1][-2:]
        .transpose(0, 1)
        .flatten(1)
    ),
    "transformer, masked mean": masked_mean,
    "masked maximum": lambda x, n: HEAD(
        INTO(x).tanh().masked_fill(~seen(x, n), -torch.inf).amax(1)
    ),
    "embedding of the whole": lambda x, n: HEAD((INTO(x) * seen(x, n)).sum(1)) + 3,
}


@pytest.mark.parametrize("bias", ["spatial", "uniform", "attention"])
@pytest.mark.parametrize("name", MODELS)
def test_a_short_sequence_beside_a_longer_one(name: str, bias: str) -> None:
    model = MODELS[name]
    both = torch.cat([torch.cat([SHORT, torch.zeros(1, 4, 5).double()], 1), LONG])
    n = torch.tensor([3, 7])
    alone = omenn.explain(lambda x: model(x, n[:1]), SHORT, 0, bias=bias)
    e = omenn.explain(lambda x: model(x, n), both, 0, bias=bias)
    assert e.exact
    torch.testing.assert_close(e.matrix[0, :3], alone.matrix[0])
    assert not e.matrix[0, 3:].any()
    (row,) = omenn.rows(lambda x: model(x, n), both, [0], bias=bias).bias.unbind(1)
    torch.testing.assert_close(row, e.bias)
    other = omenn.explain(lambda x: model(x, n[1:]), LONG, 0, bias=bias)
    torch.testing.assert_close(e.matrix[1], other.matrix[0])


def test_padding_that_is_read_without_a_mask_is_no_part_of_a_step() -> None:
    """Σ over all steps of (y + 1): of the four padded ones the constants go evenly to three."""
    n = torch.tensor([3, 7])
    both = torch.cat([torch.cat([SHORT, torch.zeros(1, 4, 5).double()], 1), LONG])
    plain = omenn.explain(lambda x: unpacked(x, n).sum((1, 2)), both, lambda out: out)
    more = omenn.explain(lambda x: (unpacked(x, n) + 1).sum((1, 2)), both, lambda out: out)
    added = more.matrix - plain.matrix
    torch.testing.assert_close(added[0, :3], torch.full((3,), 12 + 4 * 12 / 3).double())
    assert not added[0, 3:].any()
    torch.testing.assert_close(added[1], torch.full((7,), 12.0).double())


def graph(x: Tensor, edges: Tensor, of: Tensor, count: int) -> Tensor:
    """One round of messages and a sum over the nodes of each graph."""
    h = torch.tanh(INTO(x))
    h = h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
    return HEAD(torch.zeros(count, 8).double().index_add(0, of, h))


@pytest.mark.parametrize("bias", ["spatial", "uniform"])
def test_nodes_of_another_graph_get_nothing(bias: str) -> None:
    edges, ring = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.zeros(3, dtype=torch.long)
    one, two = draw(3, 5), draw(3, 5, seed=1)
    first = lambda out: out[0, 0]  # noqa: E731
    alone = omenn.explain(lambda x: graph(x, edges, ring, 1), one, first, bias=bias)
    both = torch.cat([edges, edges + 3], 1)
    of = torch.tensor([0, 0, 0, 1, 1, 1])
    e = omenn.explain(lambda x: graph(x, both, of, 2), torch.cat([one, two]), first, bias=bias)
    assert e.exact
    torch.testing.assert_close(e.matrix[0, :3], alone.matrix[0])
    assert not e.matrix[0, 3:].any()


def test_of_several_inputs_those_share_that_act() -> None:
    """3 a + 0 b + 8: all of 8 to a; 3 a + 2 b + 8: half each, evenly over what acts."""
    w = torch.tensor([3.0, 0.0, 3.0]).double()
    v = torch.tensor([2.0, 0.0]).double()
    a, b = torch.ones(2, 3).double(), torch.ones(2, 2).double()

    def model(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return (a * w).sum(1) + s * (b * v).sum(1) + 8

    s = torch.tensor([0.0, 1.0]).double()
    e = omenn.explain(lambda a, b: model(a, b, s), (a, b), lambda out: out)
    assert e.bias[0].tolist() == [[4.0, 0.0, 4.0], [2.0, 0.0, 2.0]]
    assert e.bias[1].tolist() == [[0.0, 0.0], [4.0, 0.0]]
    assert e.exact


def test_where_nothing_acts_all_of_the_sample_shares() -> None:
    e = omenn.explain(lambda x: (0 * x).sum(1, keepdim=True) + 8, torch.ones(2, 4), 0)
    assert e.matrix.tolist() == [[2.0] * 4] * 2
    assert e.reasons == {"pooled": 1.0}


class WithClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.join = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = ~seen(x, torch.tensor([3, 7])).squeeze(-1)
        hidden = torch.cat([torch.zeros_like(hidden[:, :1]), hidden], 1)
        y = self.join(torch.cat([torch.ones(len(x), 1, 8).double(), INTO(x)], 1))
        return HEAD(LAYER(y, src_key_padding_mask=hidden)[:, 0])


@pytest.mark.parametrize("resample", ["nearest", "bilinear"])
def test_a_class_token_at_a_depth_goes_to_the_tokens_that_act(resample: str) -> None:
    both = torch.cat([torch.cat([SHORT, torch.zeros(1, 4, 5).double()], 1), LONG])
    net = WithClassToken().eval()
    own = omenn.explain(net, both, 0, at="join", resample="none")
    e = omenn.explain(net, both, 0, at="join", resample=resample)
    wanted = own.matrix[:, 1:].clone()
    wanted[0, :3] += own.matrix[0, :1] / 3
    wanted[1] += own.matrix[1, :1] / 7
    assert not e.matrix[0, 3:].any()
    torch.testing.assert_close(e.matrix, wanted)


def test_a_reference_beside_each_sample_stays_with_it() -> None:
    """w x_k + b − (w r_k + b) with r appended to the batch: the constant of k is −w r_k."""
    x, r, w = draw(3, 5), draw(3, 5, seed=1), INTO.weight[:1]

    def model(x: Tensor) -> Tensor:
        y = torch.cat([x, r]) @ w.T + 2
        return y[:3] - y[3:]

    e = omenn.explain(model, x, 0)
    torch.testing.assert_close(e.bias_share, -(r @ w.T)[:, 0])
    torch.testing.assert_close(e.weight, w.expand(3, 5))
    assert e.exact


def test_the_share_has_derivatives() -> None:
    """Of f = Σ_seen w x + b the seen two get b/2 each."""
    b = nn.Parameter(torch.tensor(6.0).double())
    keep = torch.tensor([1.0, 0.0, 1.0]).double()
    e = omenn.explain(
        lambda x: (x * keep).sum(1) + b, torch.ones(1, 3).double(), lambda out: out,
        create_graph=True,
    )  # fmt: skip
    assert e.matrix.tolist() == [[4.0, 0.0, 4.0]]
    (found,) = torch.autograd.grad(e.matrix.square().sum(), b)
    assert float(found) == 8.0
    assert set(e.reasons) <= set(REASONS)
