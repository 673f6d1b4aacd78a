"""Tensors and modules of other libraries: subclasses with metadata, weights that hooks bring."""

from __future__ import annotations

import copy
from typing import Any

import accelerate
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors

import omenn
from opcases.case import draw
from opcases.linear import seeded


class MetaTensor(torch.Tensor):
    """What matters of MONAI's: metadata that every call copies in depth."""

    meta: dict[str, Any]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        first = next((a for a in args if isinstance(a, MetaTensor)), None)
        if isinstance(out, MetaTensor) and first is not None:
            out.__dict__ = {k: copy.deepcopy(v) for k, v in first.__dict__.items()}
        return out


def with_meta(x: Tensor) -> Tensor:
    made = x.clone().as_subclass(MetaTensor)
    made.meta = {"affine": torch.eye(4)}
    return made


NET: Any = seeded(
    nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
)
IMAGE = draw(2, 1, 6, 6)


def test_tensors_of_a_class_of_their_own_are_explained_as_plain_ones() -> None:
    right = omenn.explain(NET, IMAGE, 1)
    for given in (with_meta(IMAGE), tv_tensors.Image(IMAGE), nn.Parameter(IMAGE)):
        for inputs in (given, (given,), {"input": given}):
            e = omenn.explain(NET, inputs, 1)
            matrix = e.matrix
            matrix = matrix["input"] if isinstance(matrix, dict) else matrix
            matrix = matrix[0] if isinstance(matrix, tuple) else matrix
            assert type(matrix) is Tensor
            assert torch.equal(matrix, right.matrix)
    assert omenn.certify(NET, with_meta(IMAGE), 1).exact


def test_weights_that_a_hook_brings() -> None:
    """accelerate keeps them elsewhere, and on the meta device between two calls."""
    net = seeded(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.BatchNorm1d(6), nn.Linear(6, 3)))
    x = draw(3, 4)
    right = omenn.explain(net, x, 1)
    away = accelerate.cpu_offload(copy.deepcopy(net), execution_device=torch.device("cpu"))
    e = omenn.explain(away, x, 1)
    assert e.exact
    torch.testing.assert_close(e.weight, right.weight)
    torch.testing.assert_close(e.matrix, right.matrix)
    assert all(p.is_meta for p in away.parameters())


def test_an_empty_selection_is_nobodys() -> None:
    """A mask that chooses nothing gives a tensor without memory, of which nothing is unknown."""

    weight = torch.tensor([[2.0]]).double()  # of unknown origin, so the model is watched

    def model(x: Tensor) -> Tensor:
        codes = F.one_hot(x[:, 0].long(), 3).to(x.dtype)  # a constant, of which rows are chosen
        first = codes[:, 0] > 0
        codes[first] = (codes * weight)[first]
        return x * weight + codes[:, :1]

    e = omenn.explain(model, torch.tensor([[1.0, 0.5]]).double(), 1)
    torch.testing.assert_close(e.weight, torch.tensor([[0.0, 2.0]]).double())
