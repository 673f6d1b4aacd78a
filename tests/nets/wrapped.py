"""A small network to wrap, compile, hook and write into, and the plain one it stands for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nets.small import ROWS
from opcases.linear import seeded

X = ROWS  # (3, 4)
BODY, HEAD = seeded(nn.Linear(4, 4)), seeded(nn.Linear(4, 3))


def network() -> nn.Sequential:
    return nn.Sequential(copy.deepcopy(BODY), nn.ReLU(), copy.deepcopy(HEAD)).eval()


def plain(x: Tensor) -> Tensor:
    return HEAD(torch.relu(BODY(x)))


def both(inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A part whose loss would be silent: the output depends on the input beside it too."""
    return lambda x: HEAD(x) + inner(BODY(x))[:, :3]


def beside(x: Tensor) -> Tensor:
    return HEAD(x) + BODY(x)[:, :3]


def plain_body(x: Tensor) -> Tensor:
    return torch.relu(BODY(x))


def changed(change: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Module]:
    """A network after ``change``, which may return another one."""

    def make() -> nn.Module:
        net = network()
        out = change(net)
        return out if isinstance(out, nn.Module) else net

    return make
