"""omenn-clear: exact, led by the relevance of the pixels, and left where it cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn


def seen(side: int = 32) -> tuple[nn.Module, Tensor]:
    """A network of one coarse unit that answers to a bright spot, and a picture of one."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(side), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.3)
        net[4].bias.fill_(5.0)
    x = torch.zeros(1, 1, side, side, dtype=torch.float64)
    x[0, 0, 20:24, 8:12] = 1
    return net.eval().double(), x


def clear(net: Any, x: Any, target: Any = 0, **options: Any) -> omenn.Explanation:
    return omenn.explain(net, x, target, method="omenn-clear", **options)


def test_the_sum_is_the_output_and_nothing_else_changes() -> None:
    net, x = seen()
    e = clear(net, x)
    base = omenn.explain(net, x, 0, method="gamma", gamma=0.07, complete=True)
    assert e.exact
    assert (e.method, e.promise) == ("omenn-clear", "exact")
    assert float(e.residual.abs()) < 1e-12
    for name in ("weight", "contribution", "bias", "output"):
        torch.testing.assert_close(getattr(e, name), getattr(base, name))


def test_what_is_kept_lies_where_the_network_looked() -> None:
    net, x = seen()
    base = omenn.explain(net, x, 0, method="gamma", gamma=0.07, complete=True).matrix[0]
    found = clear(net, x, reach=0.5).matrix[0]
    spot = (slice(17, 27), slice(5, 15))
    before, after = (float(m[spot].sum() / m.sum()) for m in (base, found))
    assert before < 0.25, "nearly even, as a pooled unit has no place"
    assert after > 0.75


def test_a_region_far_away_keeps_what_it_has() -> None:
    """Mass is moved within ``reach``: a left half that is all constant stays in the left half."""
    net, x = seen()
    e = clear(net, x, reach=0.02)
    base = omenn.explain(net, x, 0, method="gamma", gamma=0.07, complete=True)
    left = lambda m: float(m[0, :, 20:].sum())  # noqa: E731
    assert left(e.matrix) == pytest.approx(left(base.matrix), rel=0.05)
    torch.testing.assert_close(clear(net, x, reach=0).matrix, base.matrix)


def test_samples_and_contrasts() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(196, 3)
        )
        net, x = net.eval().double(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    together = clear(net, x, 1)
    torch.testing.assert_close(clear(net, x[1:2], 1).matrix, together.matrix[1:2])
    assert clear(net, x, omenn.Contrast(0, 2)).exact
    in_a_dict = clear(lambda pixels: net(pixels), {"pixels": x}, 1)
    torch.testing.assert_close(in_a_dict.matrix["pixels"], together.matrix)


def test_channels_may_come_last() -> None:
    """A cube of numbers: the shape alone does not tell what R is summed over."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(12, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(300, 2))
        net, x = net.eval().double(), torch.rand(2, 12, 12, 12, dtype=torch.float64)
    last = clear(lambda t: net(t.permute(0, 3, 1, 2)), x, channel_dim=-1)
    assert last.exact
    torch.testing.assert_close(last.matrix, clear(net, x.permute(0, 3, 1, 2)).matrix)


@pytest.mark.parametrize(
    ("options", "argument"),
    [({"reach": -1}, "reach"), ({"smooth": 0}, "smooth"), ({"bias": "separate"}, "bias"),
     ({"gamma": -1}, "gamma")],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any], argument: str) -> None:
    net, x = seen()
    with pytest.raises(omenn.InputError) as error:
        clear(net, x, **options)
    assert error.value.argument == argument


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 4)])
def test_other_inputs_are_refused(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Linear(shape[-1], 3), nn.ReLU()).eval()
    with pytest.raises(omenn.InputError) as error:
        clear(net, torch.randn(shape), lambda out: out.flatten(1).sum(1))
    assert error.value.argument == "inputs"
    assert "complete=True" in (error.value.remedy or "")
