"""Rules of layers under autocast and in inference mode, where a user's program often is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn

METHODS = [
    ("omenn-clear", {}),
    ("gamma", {"gamma": 0.1, "complete": True}),
    ("epsilon", {"complete": True}),
    ("rules", {"gamma": (0.3, 0.1), "beta": 0.5}),
]


def net() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
        )  # fmt: skip
        return net.eval(), torch.rand(2, 3, 17, 17)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_autocast_changes_a_map_by_its_rounding_alone(method: str, options: Any) -> None:
    model, x = net()
    base = omenn.explain(model, x, 1, method=method, **options)
    with torch.autocast("cpu", torch.bfloat16):
        found = omenn.explain(model, x, 1, method=method, **options)
    assert found.exact
    distance = (found.matrix - base.matrix).abs().sum()
    assert float(distance / base.matrix.abs().sum()) < 0.03


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_inference_mode_changes_nothing(method: str, options: Any) -> None:
    model, x = net()
    base = omenn.explain(model, x, 1, method=method, **options)
    with torch.inference_mode():
        found = omenn.explain(model, x, 1, method=method, **options)
    torch.testing.assert_close(found.matrix.clone(), base.matrix, rtol=0, atol=0)
