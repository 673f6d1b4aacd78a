"""``bias="bilinear"``: constants of coarse maps lie smoothly on the input, with the same sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.attribution.lrp import gamma
from opcases.case import draw
from opcases.linear import seeded
from overlaps import shares

IMAGES = draw(3, 3, 15, 14)


class Sums(nn.Module):
    """Σ w x + Σ c: a convolution of 1 × 1 with a stride, and a constant at each of its cells."""

    def __init__(self, stride: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, stride, bias=False)
        self.known = nn.Parameter(draw(2, *size))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + self.known).sum((1, 2, 3)).unsqueeze(1)


class Stages(nn.Module):
    """Stages that halve the size, one padded by hand, with a shortcut, gates and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)
        self.main, self.short = nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(4, 5, 1, 2)
        self.last, self.head = nn.Conv2d(5, 4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(F.pad(x, (0, 1, 0, 1)))))
        x = F.gelu(self.main(x)) + self.short(x)
        return self.head(F.softplus(self.last(x)).mean((2, 3)))


STAGES = seeded(Stages())
CALLS: dict[str, dict[str, Any]] = {
    "omenn": {},
    "contrast": {"target": omenn.Contrast(0, 2)},
    "gamma": {"method": "gamma", "gamma": 0.2, "complete": True},
    "epsilon": {"method": "epsilon", "epsilon": 0.1, "complete": True},
    "composite": {"method": "composite", "complete": True},
    "omenn-clear": {"method": "omenn-clear"},
    "omenn-focused": {"method": "omenn-focused"},
    "depths": {"at": ["input", "stem"]},
    "module": {"at": "stem"},
}


def explained(call: str, x: Tensor = IMAGES, bias: str = "bilinear") -> omenn.Explanation:
    return omenn.explain(STAGES, x, **{"target": 1, "bias": bias, **CALLS[call]})


# --- where it goes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "size"), [(2, (8, 7)), (3, (5, 5)), (4, (4, 4))])
@pytest.mark.parametrize("bias", ["spatial", "bilinear"])
def test_known_parts_lie_where_their_cells_are(
    bias: str, stride: int, size: tuple[int, int]
) -> None:
    net = seeded(Sums(stride, size))
    e = omenn.explain(net, IMAGES, 0, bias=bias)
    down, across = (shares(bias, h, n) for h, n in zip((15, 14), size, strict=True))
    wanted = down.T @ net.known.detach().sum(0) @ across
    torch.testing.assert_close(e.bias, wanted.expand(3, -1, -1), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(e.matrix, e.contribution.sum(1) + wanted)
    assert (e.bias_placement, e.located, e.exact) == (bias, 1.0, True)


def test_between_the_middles_of_cells_a_map_is_linear() -> None:
    """Constants on a slope are a slope on the input, where no border is near."""
    net = seeded(Sums(2, (8, 7)))
    net.known.data.copy_(torch.arange(7.0).expand(2, 8, 7))
    e = omenn.explain(net, draw(1, 3, 16, 14), 0, bias="bilinear")
    steps = e.bias[0, 3, 1:-1].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 0.25))
    blocks = omenn.explain(net, draw(1, 3, 16, 14), 0)
    assert (blocks.bias[0, 3].diff()[::2].abs() < 1e-12).all()


def test_it_is_smoother_through_stages() -> None:
    """The largest step is less than a quarter of that of blocks, behind three stages."""
    net = lambda x: F.avg_pool2d(F.avg_pool2d(F.avg_pool2d(x, 2), 2), 2) + draw(4, 4)  # noqa: E731
    found = {}
    for bias in ("spatial", "bilinear"):
        e = omenn.explain(net, draw(1, 1, 32, 32), lambda y: y.sum((1, 2, 3)), bias=bias)
        found[bias] = float(e.bias.diff(dim=2).abs().max())
    assert found["bilinear"] < found["spatial"] / 4


# --- what stays the same -----------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_sums_are_those_of_blocks(call: str) -> None:
    smooth, blocks = explained(call), explained(call, bias="spatial")
    assert smooth.exact
    torch.testing.assert_close(smooth.weight, blocks.weight)
    torch.testing.assert_close(smooth.contribution, blocks.contribution)
    for name in ("bias", "matrix"):
        a, b = getattr(smooth, name), getattr(blocks, name)
        torch.testing.assert_close(a.sum((1, 2)), b.sum((1, 2)), rtol=1e-11, atol=1e-12)
    assert (smooth.bias - blocks.bias).abs().max() > 1e-3 * blocks.bias.abs().max()
    assert smooth.sources.keys() == blocks.sources.keys()
    for name, source in smooth.sources.items():
        torch.testing.assert_close(source, blocks.sources[name])
    if call != "omenn-focused":  # it counts how much is located along its path, which differs
        assert smooth.located == pytest.approx(blocks.located)
    torch.testing.assert_close(smooth.matrix.sum((1, 2)), smooth.output)


@pytest.mark.parametrize("call", CALLS)
def test_a_sample_has_the_same_map_alone_and_in_any_order(call: str) -> None:
    together = explained(call)
    alone = explained(call, IMAGES[1:2])
    torch.testing.assert_close(together.matrix[1:2], alone.matrix)
    torch.testing.assert_close(together.bias[1:2], alone.bias)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(explained(call, IMAGES[order]).matrix, together.matrix[order])


def test_rows_and_certificate_take_it() -> None:
    rows = omenn.rows(STAGES, IMAGES, [0, 1], bias="bilinear")
    for k in range(2):
        e = omenn.explain(STAGES, IMAGES, k, bias="bilinear")
        torch.testing.assert_close(rows.bias[:, k], e.bias)
    assert rows.exact
    by_rules = omenn.rows(STAGES, IMAGES, [1], bias="bilinear", rules=gamma(gamma=0.2))
    e = explained("gamma")
    torch.testing.assert_close(by_rules.bias[:, 0], e.bias)
    found = omenn.certify(STAGES, IMAGES, 1, bias="bilinear")
    assert found.exact
    assert found.explanation.bias_placement == "bilinear"


# --- derivatives -------------------------------------------------------------------------------


def test_derivatives_of_the_map_by_its_constants() -> None:
    """⟨M, Aᵀ c A⟩ has the derivative A M Aᵀ by c."""
    net, weights = seeded(Sums(2, (8, 7))), draw(15, 14)
    e = omenn.explain(net, IMAGES[:1], 0, bias="bilinear", create_graph=True)
    (found,) = torch.autograd.grad((e.bias[0] * weights).sum(), net.known)
    down, across = shares("bilinear", 15, 8), shares("bilinear", 14, 7)
    torch.testing.assert_close(found, (down @ weights @ across.T).expand(2, -1, -1))


@pytest.mark.parametrize("call", ["omenn", "gamma"])
def test_derivatives_of_the_map_are_those_of_differences(call: str) -> None:
    net, weights = seeded(Stages()), draw(3, 15, 14)

    def value(**options: Any) -> Tensor:
        given = {"target": 1, "bias": "bilinear", **CALLS[call], **options}
        return (omenn.explain(net, IMAGES, **given).bias * weights).sum()

    (found,) = torch.autograd.grad(value(create_graph=True), net.short.bias)
    for k in (0, 3):
        moved = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                net.short.bias[k] += step
            moved.append(float(value()))
            with torch.no_grad():
                net.short.bias[k] -= step
        assert float(found[k]) == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4, abs=1e-7)


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["smooth", "Bilinear", None, 2])
def test_another_word_is_refused(given: Any) -> None:
    with pytest.raises(omenn.InputError) as caught:
        omenn.explain(STAGES, IMAGES, 1, bias=given)
    assert caught.value.argument == "bias"
    assert "bilinear" in str(caught.value)


def test_rules_that_keep_a_part_have_no_place_for_it() -> None:
    with pytest.raises(omenn.InputError) as caught:
        omenn.explain(STAGES, IMAGES, 1, method="gamma", bias="bilinear")
    assert (caught.value.argument, caught.value.got) == ("bias", "'bilinear'")
