"""Tokens are a picture where they lie as one on the input, whatever their number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omenn.engine.location.token_grid import token_grid


class Tokens(nn.Module):
    """Patches p × q of a picture in ``order``, behind ``front`` learned tokens."""

    def __init__(self, p: int, q: int, front: int = 1, order: str = "lines") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, (p, q), stride=(p, q))
        self.first = nn.Parameter(torch.ones(1, front, 4))
        self.order, self.body = order, nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        x = x.transpose(-1, -2) if self.order == "columns" else x
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        return self.head(self.body(x).mean(1))


@pytest.mark.parametrize("front", [0, 1, 5])
@pytest.mark.parametrize(("p", "q", "grid"), [(4, 4, (4, 6)), (8, 4, (2, 6)), (2, 24, (8, 1))])
def test_the_grid_is_that_of_the_patches(p: int, q: int, grid: tuple[int, int], front: int) -> None:
    assert token_grid(Tokens(p, q, front).eval(), torch.randn(2, 3, 16, 24), "body") == grid


def test_patches_by_columns_are_no_grid_by_lines() -> None:
    net = Tokens(4, 4, 1, "columns").eval()
    assert token_grid(net, torch.randn(1, 3, 16, 24), "body") is None


def test_a_square_number_of_tokens_of_a_text_is_no_grid() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(64, 2)).eval()
    assert token_grid(net, torch.randn(1, 16, 3), "0") is None


def test_a_feature_map_is_no_row_of_tokens() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()
    assert token_grid(net, torch.randn(1, 3, 6, 6), "0") is None
