"""A map at a module's output, brought to the input: the same sum, at the right place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets.small import seeded, strided, sums_up
from omenn.engine.depth import boxed, levels_of

SHAPE = (2, 3, 16, 16)


def image(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape or SHAPE, generator=generator, dtype=torch.float64)


def at(net: nn.Module, name: str, x: Tensor | None = None, **options: Any) -> omenn.Explanation:
    return omenn.explain(net, image() if x is None else x, 1, at=name, **options)


@pytest.mark.parametrize("name", ["0", "1", "2", "3"])
@pytest.mark.parametrize("resample", ["bilinear", "nearest"])
def test_the_map_has_the_size_of_the_input_and_the_sum_of_the_logit(name, resample) -> None:
    e = at(strided(), name, resample=resample)
    assert e.matrix.shape == e.bias.shape == (2, 16, 16)
    assert e.resample == resample
    assert e.contribution.shape[0] == 2
    assert e.contribution.shape[2] == {"0": 8, "1": 8, "2": 4, "3": 4}[name]
    sums_up(e)


@pytest.mark.parametrize(("name", "side"), [("1", 2), ("3", 4)])
def test_nearest_spreads_a_cell_evenly_over_its_block(name: str, side: int) -> None:
    own = at(strided(), name, resample="none")
    assert own.resample == "none"
    blocks = own.matrix.repeat_interleave(side, 1).repeat_interleave(side, 2) / side**2
    torch.testing.assert_close(at(strided(), name, resample="nearest").matrix, blocks)


@pytest.mark.parametrize(("name", "side"), [("1", 2), ("3", 4)])
def test_bilinear_is_bilinear_away_from_the_border(name: str, side: int) -> None:
    own = at(strided(), name, resample="none").matrix
    wanted = F.interpolate(own[:, None], scale_factor=side, mode="bilinear")[:, 0] / side**2
    found = at(strided(), name).matrix
    inner = slice(side, -side)
    torch.testing.assert_close(found[:, inner, inner], wanted[:, inner, inner])
    torch.testing.assert_close(found.sum((1, 2)), own.sum((1, 2)))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("size", [1, 4, 8, 9])
def test_the_moving_mean_keeps_every_entry_and_a_constant(width: int, size: int) -> None:
    identity = torch.eye(size, dtype=torch.float64)
    columns = boxed(identity, 1, width)  # row k: where the entry k goes
    torch.testing.assert_close(columns.sum(1), torch.ones(size, dtype=torch.float64))
    flat = torch.full((1, size), 2.5, dtype=torch.float64)
    torch.testing.assert_close(boxed(flat, 1, width), flat)


class ChannelsLast(nn.Module):
    """As in Swin: patches, then (B, H, W, C), in shifted windows."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.patches, self.shift = nn.Conv2d(3, 4, 4, 4), shift
        self.last, self.windows, self.head = nn.Identity(), nn.Identity(), nn.Linear(4, 3)
        self.block = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.patches(x).permute(0, 2, 3, 1))
        y = torch.roll(y, (self.shift, self.shift), (1, 2))
        b, h, w, c = y.shape
        y = y.view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        y = self.windows(self.block(y).relu())
        y = y.view(b, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(b, h, w, c)
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        return self.head(y.mean((1, 2)))


@pytest.mark.parametrize("shift", [0, 1])
def test_channels_last_and_shifted_windows_lie_where_they_were_cut(shift: int) -> None:
    net = seeded(ChannelsLast(shift))
    last, windows = at(net, "last", resample="nearest"), at(net, "windows", resample="nearest")
    assert last.matrix.shape == windows.matrix.shape == (2, 16, 16)
    sums_up(last)
    sums_up(windows)
    # The value of a cell, in any layout, is that of its patch: between the two lies one layer per
    # cell, so both depths give each patch the same, but for the constants, which lie there too.
    patch = lambda m: m.unflatten(2, (4, 4)).unflatten(1, (4, 4)).sum((2, 4))  # noqa: E731
    hidden = F.relu(net.block(net.patches(image()).permute(0, 2, 3, 1)))
    wanted = hidden @ net.head.weight[1] / 16 + net.head.bias[1] / 16
    torch.testing.assert_close(patch(windows.matrix), wanted.detach())


def test_what_lies_in_one_quadrant_is_found_there() -> None:
    net, x = seeded(ChannelsLast(1)), torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    x[..., :8, 8:] = 3.0
    with torch.no_grad():
        for layer in (net.patches, net.block, net.head):
            layer.bias.zero_()
            layer.weight.abs_()
    e = at(net, "windows", x, resample="nearest")
    assert e.matrix[0, :8, 8:].sum() == pytest.approx(float(e.output), rel=1e-12)
    e = at(net, "windows", x)  # bilinear reaches half a cell beyond
    assert e.matrix[0, :10, 6:].sum() == pytest.approx(float(e.output), rel=1e-12)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, 4)
        self.cls = nn.Parameter(torch.ones(1, 1, 4))
        self.blocks = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
        self.pick, self.head = nn.Identity(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1)
        y = self.blocks(tokens)
        return self.head(self.pick(y[:, 0] + y[:, 5]))


def test_tokens_lie_on_their_patches_and_a_class_token_on_those_that_act() -> None:
    net = seeded(Tokens())
    own, e = at(net, "blocks", resample="none"), at(net, "blocks", resample="nearest")
    assert own.matrix.shape == (2, 17)
    sums_up(e)
    wanted = own.matrix[:, 1:].reshape(2, 4, 4) / 16
    wanted[:, 1, 0] += own.matrix[:, 0] / 16  # token 5, the only one that is read beside it
    torch.testing.assert_close(
        e.matrix, wanted.repeat_interleave(4, 1).repeat_interleave(4, 2), rtol=1e-9, atol=1e-12
    )


def test_what_has_no_place_stays_as_it_is() -> None:
    e = at(strided(), "5")
    assert e.matrix.shape == (2, 5)
    assert e.resample == "none"
    sums_up(e)


def test_ids_are_found_at_their_tokens() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(9, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.layer(self.table(ids)).relu().mean(1))

    e = omenn.explain(seeded(Net()), torch.tensor([[1, 2, 3, 4]]), 1, at="layer")
    assert e.matrix.shape == (1, 4)
    sums_up(e)


def test_an_operator_without_a_rule_in_front_of_the_module() -> None:
    """Where the map lies cannot be followed: its cells count as those of the input."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.head = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.special.bessel_j0(x)
            return self.head(self.map(x).relu().mean((2, 3)))

    net = seeded(Net())
    with pytest.raises(omenn.UnsupportedOperator, match="bessel_j0"):
        omenn.explain(net, image(), 1)
    own, e = at(net, "map", resample="none"), at(net, "map", resample="nearest")
    blocks = own.matrix.repeat_interleave(4, 1).repeat_interleave(4, 2) / 16
    torch.testing.assert_close(e.matrix, blocks)


def test_alone_or_in_a_batch() -> None:
    net, x = strided(), image()
    alone = torch.cat([at(net, "3", row[None]).matrix for row in x])
    torch.testing.assert_close(at(net, "3", x).matrix, alone)


def test_a_module_that_is_called_twice_and_one_that_returns_several() -> None:
    layer = seeded(nn.Conv2d(3, 3, 3, padding=1))
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(768, 3).double()).eval()
    e = at(net, "0")
    assert e.matrix.shape == (2, 16, 16)
    sums_up(e)

    class Split(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :1] * 2, x[:, 1:].relu()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.split = Split()

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.split(x)
            return torch.cat([a, b], 1).mean((2, 3))

    e = at(Net().eval(), "split")
    assert isinstance(e.weight, tuple)
    assert e.matrix.shape == (2, 16, 16)
    sums_up(e)


def test_the_map_can_be_trained_on() -> None:
    net = strided()
    e = at(net, "1", create_graph=True)
    wanted = torch.autograd.grad(net(image())[:, 1].sum(), net[0].weight)[0]
    found = torch.autograd.grad(e.matrix.sum(), net[0].weight)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_no_hook_stays_whatever_happens() -> None:
    net = strided()
    at(net, "1")
    levels_of(net, image())
    with pytest.raises(omenn.TargetError):
        omenn.explain(net, image(), 99, at="1")
    assert not any(m._forward_hooks for m in net.modules())


def test_an_unknown_resampling() -> None:
    with pytest.raises(omenn.InputError) as error:
        at(strided(), "1", resample="cubic")
    assert str(error.value) == (
        "resample='cubic' is not known. Choose one of: bilinear, nearest, none."
    )


# --- levels ----------------------------------------------------------------------------------


def test_levels_are_the_last_of_each_resolution_and_not_inside_of_stages() -> None:
    stage = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())  # noqa: E731
    net = seeded(
        nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Sequential(stage(3, 4), stage(4, 4)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
    )
    assert levels_of(net, image()) == {"1.0": 64, "1": 16}
    assert levels_of(seeded(Tokens()), image()) == {"blocks": 16}
    assert levels_of(lambda x: x, image()) == {}
