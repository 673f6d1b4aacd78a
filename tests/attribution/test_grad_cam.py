"""Grad-CAM of inputs of several kinds."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn.errors import InputError

pytest.importorskip("captum")


class Masked(nn.Module):
    """Features of a picture, times a number for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, scale: Tensor, x: Tensor) -> Tensor:
        return self.head((self.body(x).relu() * scale[:, None, None, None]).mean((2, 3)))


def test_grad_cam_beside_integers() -> None:
    """They are no input that it explains, whichever comes first."""
    net, x, scale = Masked().double().eval(), torch.rand(2, 1, 6, 6).double(), torch.tensor([1, 1])
    e = omenn.explain(net, (scale, x), 1, method="grad-cam", layer="body")
    net.forward = partial(net.forward, scale)  # type: ignore[method-assign]
    alone = omenn.explain(net, x, 1, method="grad-cam", layer="body")
    assert e.matrix[0] is None
    torch.testing.assert_close(e.matrix[1], alone.matrix)


class Titled(nn.Module):
    """Ids in a table, and numbers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(5, 3), nn.Conv1d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.head(self.body(self.table(ids).mT).relu().mean(2)) + x


def test_grad_cam_of_ids_beside_numbers_is_refused() -> None:
    inputs = {"ids": torch.tensor([[1, 2, 3, 4]]), "x": torch.rand(1, 2)}
    with pytest.raises(InputError, match="ids"):
        omenn.explain(Titled().eval(), inputs, 1, method="grad-cam")


def test_all_dimensions_are_kept_on_demand() -> None:
    """The channels have the map evenly, so that it is their sum."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).eval()
    x = torch.rand(2, 3, 8, 8)
    e = omenn.explain(net, x, 1, method="grad-cam", channel_dim=0, relu=False)
    summed = omenn.explain(net, x, 1, method="grad-cam", relu=False)
    assert e.matrix.shape == x.shape
    torch.testing.assert_close(e.matrix.sum(1), summed.matrix)


class Folded(nn.Module):
    """Features of a signal that is laid out as a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 3, 2, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.unflatten(1, (1, 8, 8))).relu().mean((2, 3)))


def test_a_layer_with_more_dimensions_than_the_input() -> None:
    e = omenn.explain(Folded().eval(), torch.rand(2, 64), 1, method="grad-cam", layer="body")
    assert e.matrix.shape == (2, 64)
    assert bool(e.matrix.any())


def test_what_grad_cam_refuses() -> None:
    with pytest.raises(InputError) as refused:
        omenn.explain(Folded().eval(), torch.rand(2, 64), 1, method="grad-cam", relu=3)
    assert refused.value.argument == "relu"
