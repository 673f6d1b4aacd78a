"""The Gaussian filter is scipy's, whatever lies beyond the border."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from omenn.filters import gaussian_filter


@pytest.mark.parametrize(
    ("border", "mode"), [("symmetric", "reflect"), ("reflect", "mirror"), ("zeros", "constant")]
)
@pytest.mark.parametrize(("sigma", "reach"), [(0.7, 3), (7.0, 5)])
def test_it_is_scipys(border: str, mode: str, sigma: float, reach: int) -> None:
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    found = gaussian_filter(x, sigma, reach, border)
    wanted = ndimage.gaussian_filter(x.numpy(), sigma, mode=mode, radius=reach, axes=(2, 3))
    torch.testing.assert_close(found, torch.from_numpy(wanted))


def test_autocast_around_a_filter_rounds_nothing() -> None:
    pictures = torch.rand(2, 9, 12)
    with torch.autocast("cpu", torch.bfloat16):
        found = gaussian_filter(pictures, 1.5)
    torch.testing.assert_close(found, gaussian_filter(pictures, 1.5), rtol=0, atol=0)
