"""omenn-clear: exact, led by the relevance of the pixels, and left where it cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn.attribution.lrp import gamma
from omenn.attribution.question import Question


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
    options = {"gamma_linear": 0.1} | options
    return omenn.explain(net, x, target, method="omenn-clear", **options)


def test_the_sum_is_the_output_and_nothing_else_changes() -> None:
    net, x = seen()
    e = clear(net, x)
    base = omenn.explain(net, x, 0, method="gamma", gamma=0.1, complete=True)
    assert e.exact
    assert (e.method, e.promise) == ("omenn-clear", "exact")
    assert float(e.residual.abs()) < 1e-12
    for name in ("weight", "contribution", "bias", "output"):
        torch.testing.assert_close(getattr(e, name), getattr(base, name))


def test_what_is_kept_lies_where_the_network_looked() -> None:
    net, x = seen()
    base = omenn.explain(net, x, 0, method="gamma", gamma=0.1, complete=True).matrix[0]
    found = clear(net, x, reach=0.5).matrix[0]
    spot = (slice(17, 27), slice(5, 15))
    before, after = (float(m[spot].sum() / m.sum()) for m in (base, found))
    assert before < 0.25, "nearly even, as a pooled unit has no place"
    assert after > 0.75


def test_a_region_far_away_keeps_what_it_has() -> None:
    """Mass is moved within ``reach``: a left half that is all constant stays in the left half."""
    net, x = seen()
    e = clear(net, x, reach=0.02)
    base = omenn.explain(net, x, 0, method="gamma", gamma=0.1, complete=True)
    left = lambda m: float(m[0, :, 20:].sum())  # noqa: E731
    assert left(e.matrix) == pytest.approx(left(base.matrix), rel=0.05)
    torch.testing.assert_close(clear(net, x, reach=0).matrix, base.matrix)


def leveled() -> tuple[nn.Module, Tensor]:
    """A network whose constants lie at 256, 64 and 16 cells, and nowhere; two pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4),
            nn.GELU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, 3),
        )  # fmt: skip
        return net.eval().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)


def test_what_is_kept_is_told_by_the_size_of_its_cells() -> None:
    net, x = leveled()
    question = Question(net, x, 1)
    run = question.run_under(gamma(gamma=0.1), bias="spatial")
    f, index = question.number(run)
    g, cells = run.pull_back_by_cells(f)
    e = run.wrap(f, index, g)
    assert list(cells) == [256, 64, 16]
    levels = {n: part.reshape(2, 16, 16) for n, (part,) in cells.items()}
    pooled = e.sources["9"] + e.sources["8"] if "8" in e.sources else e.sources["9"]
    rest = e.bias - sum(levels.values())
    torch.testing.assert_close(rest.sum((1, 2)), pooled)
    torch.testing.assert_close(levels[256].sum((1, 2)), e.sources["0"])
    torch.testing.assert_close(levels[16].sum((1, 2)), e.sources["5"])
    alike = levels[16].unflatten(1, (4, 4)).unflatten(3, (4, 4))
    torch.testing.assert_close(alike, alike[:, :, :1, :, :1].expand_as(alike))


def test_one_gamma_for_convolutions_and_one_for_the_rest() -> None:
    net, x = leveled()
    found = clear(net, x, 1, gamma=0.2, gamma_linear=0.0)
    rules = [("conv", "gamma"), ("linear", "epsilon")]
    base = omenn.explain(net, x, 1, method="composite", rules=rules, gamma=0.2, complete=True)
    for name in ("contribution", "bias"):
        torch.testing.assert_close(getattr(found, name), getattr(base, name))
    torch.testing.assert_close(clear(net, x, 1, gamma=0.2, gamma_linear=0.0, reach=0).matrix,
                               base.matrix)  # fmt: skip


def test_mass_stays_within_a_few_sides_of_its_cell() -> None:
    """A unit of 4 x 4 pixels in a corner; what the network saw is in the other one."""
    net = nn.Conv2d(1, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        net.weight.fill_(1)
        net.bias.fill_(2)  # type: ignore[union-attr]
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[0, 0, 60:, 60:] = 1
    e = clear(lambda t: net(t).flatten(1)[:, :1], x + 1e-6, 0, reach=0.5)
    assert float(e.matrix[0, :16, :16].sum()) == pytest.approx(2, rel=1e-3)


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
     ({"gamma": -1}, "gamma"), ({"gamma_linear": -1}, "gamma_linear")],
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
