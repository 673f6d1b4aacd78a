"""Integrated gradients of ids: against captum's layer integrated gradients, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets import seeded
from omenn.errors import InputError

captum = pytest.importorskip("captum.attr")
METHOD = {"method": "integrated-gradients"}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.mix(self.table(ids))).mean(1))


IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]])


def test_it_is_captums_layer_integrated_gradients() -> None:
    net: Any = seeded(Words())
    path = captum.LayerIntegratedGradients(net, net.table)
    for start in (torch.zeros_like(IDS), torch.full_like(IDS, 3)):
        expected = path.attribute(IDS, start, target=1, n_steps=20).sum(-1)
        e = omenn.explain(net, IDS, 1, steps=20, baseline=start, **METHOD)
        # captum rounds the weights of its points to float32
        torch.testing.assert_close(e.matrix, expected.detach(), rtol=1e-6, atol=1e-7)
        gap = e.output - net(start)[:, 1].detach()
        torch.testing.assert_close(e.matrix.sum(1), gap, rtol=0, atol=1e-8)


def test_the_line_from_rows_of_zeros_by_hand() -> None:
    """f = (v · r)² for one row r: the integral is half of the gradient at r, times r."""
    net, v = nn.Embedding(5, 3).double(), torch.tensor([0.5, -1.0, 2.0]).double()
    model = lambda ids: (net(ids) @ v).square().sum(1, keepdim=True)  # noqa: E731
    ids = torch.tensor([[1, 4]])
    e = omenn.explain(model, ids, 0, steps=4, **METHOD)
    rows = net(ids).detach()
    expected = rows * v * (rows @ v)[..., None]
    torch.testing.assert_close(e.contribution, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(e.matrix.sum(1), e.output, rtol=1e-9, atol=1e-12)


def test_one_sample_alone_is_as_in_the_batch() -> None:
    net = seeded(Words())
    both = omenn.explain(net, IDS, 2, steps=6, **METHOD).matrix
    alone = torch.cat([omenn.explain(net, ids[None], 2, steps=6, **METHOD).matrix for ids in IDS])
    torch.testing.assert_close(both, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("baseline", [1.5, torch.zeros(2, 4).long(), torch.zeros(2, 5), "pad"])
def test_a_baseline_that_does_not_fit_is_refused(baseline: Any) -> None:
    with pytest.raises(InputError):
        omenn.explain(seeded(Words()), IDS, 1, baseline=baseline, **METHOD)


def test_ids_of_two_tables_are_refused() -> None:
    one, two, head = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 2)
    model = lambda ids: head((one(ids) + two(ids)).mean(1))  # noqa: E731
    with pytest.raises(InputError, match="several tables"):
        omenn.explain(model, IDS, 1, **METHOD)
