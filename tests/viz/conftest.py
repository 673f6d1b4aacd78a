"""Small explanations to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import omenn
from omenn import Explanation
from omenn.viz.panels import Case


class Photographs(nn.Module):
    """A small image classifier with biases, (B, 3, 16, 16) to (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Photographs().eval()


@pytest.fixture
def explanation(network: nn.Module) -> Explanation:
    return omenn.explain(network, torch.randn(2, 3, 16, 16))


@pytest.fixture
def pair(network: nn.Module, case: Callable[..., Case]) -> Case:
    """A case with the readable exact map, and the difference by the same method."""
    given = case()
    x = given.explanation.inputs
    clear = omenn.explain(network, x, 1, method="omenn-clear")
    rival = omenn.explain(network, x, omenn.Contrast(1, 2), method="omenn-clear")
    return dataclasses.replace(given, readable=clear, contrast=rival)


@pytest.fixture
def inexact(case: Callable[..., Case]) -> Case:
    """A case whose matrix misses the number by one."""
    given = case()
    wrong = dataclasses.replace(given.explanation, residual=given.explanation.residual + 1)
    return dataclasses.replace(given, explanation=wrong)


@pytest.fixture
def case(network: nn.Module) -> Callable[..., Case]:
    """A complete case; keywords replace fields."""

    def make(**fields: object) -> Case:
        x = torch.randn(1, 3, 16, 16)
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        words: dict[str, object] = {
            "name": "bird.png",
            "model": "birds-resnet",
            "target": "Larkolin",
            "explanation": omenn.explain(network, x, 1),
            "image": image,
            "contrast": omenn.explain(network, x, omenn.Contrast(1, 2)),
            "rival": "Noomi",
            "seconds": 0.25,
        }
        return Case(**(words | fields))  # type: ignore[arg-type]

    return make
