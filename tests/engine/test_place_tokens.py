"""Places through what transformers and mixers do with tokens: windows, merging, mixing, folding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets.small import unwindowed, windows
from opcases.case import draw
from opcases.linear import seeded

IMAGE = draw(2, 3, 8, 8)


def constants(f: Callable[[Tensor], Tensor], x: Tensor = IMAGE, **options) -> omenn.Explanation:
    """The explanation of the sum over all of the output."""
    e = omenn.explain(f, x, lambda y: y.reshape(len(y), -1).sum(1), **options)
    assert e.exact
    return e


def quadrant(size: int) -> Tensor:
    """A (1, size, size, 1) map that is one in the lower left quarter."""
    mask = torch.zeros(1, size, size, 1, dtype=torch.float64)
    mask[:, size // 2 :, : size // 2] = 1
    return mask


def share_in_quadrant(e: omenn.Explanation) -> Tensor:
    size = e.bias.shape[-1]
    return (e.bias.abs() * quadrant(size)[..., 0]).sum((1, 2)) / e.bias.abs().sum((1, 2))


# --- windows, shifted ------------------------------------------------------------------------


class ShiftedWindows(nn.Module):
    """Attention in shifted windows; a constant that is switched on by position inside them."""

    def __init__(self, dim: int, size: int, heads: int = 2) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.project = nn.Linear(dim, dim, bias=False)
        self.size, self.heads, self.amount = size, heads, draw(dim)

    def attend(self, tokens: Tensor, fused: bool) -> Tensor:
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.project(out.transpose(1, 2).reshape(tokens.shape))

    def forward(self, x: Tensor, fused: bool) -> Tensor:
        b, h, w, _ = x.shape
        there = lambda t: windows(t.roll((-1, -1), (1, 2)), self.size)  # noqa: E731
        switch = there(quadrant(h).expand(b, h, w, 1))  # by window and position inside it
        tokens = self.attend(there(x), fused) + switch * self.amount
        return x + unwindowed(tokens, self.size, h, w).roll((1, 1), (1, 2))


class SwinLike(nn.Module):
    """Two stages with patch merging between; all constants belong to one quarter of the image."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 1, bias=False)
        self.first, self.second = ShiftedWindows(4, 4), ShiftedWindows(8, 2)
        self.merge, self.fused = nn.Linear(16, 8, bias=False), fused

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.embed(x).permute(0, 2, 3, 1), self.fused)
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.second(self.merge(x), self.fused).mean((1, 2))


@pytest.mark.parametrize("fused", [True, False])
def test_constants_of_shifted_windows_are_found_in_their_quadrant(fused: bool) -> None:
    e = constants(seeded(SwinLike(fused)))
    assert e.located == 1.0
    assert e.bias_share.abs().min() > 0.01
    torch.testing.assert_close(share_in_quadrant(e), torch.ones(2, dtype=torch.float64))


def test_a_constant_outside_of_the_quadrant_is_not_found_in_it() -> None:
    """The measure of the test above can fail: the same constants without the shift."""

    class Unshifted(ShiftedWindows):
        def forward(self, x: Tensor, fused: bool) -> Tensor:
            switch = windows(quadrant(8).expand(2, 8, 8, 1), self.size)
            tokens = windows(x.roll((-1, -1), (1, 2)), self.size) + switch * self.amount
            return unwindowed(tokens, self.size, 8, 8).roll((1, 1), (1, 2))

    net = seeded(Unshifted(3, 4))
    e = constants(lambda x: net(x.permute(0, 2, 3, 1), True))
    assert share_in_quadrant(e).max() < 0.9


# --- each layout on its own: the constant is added where the map is one -----------------------

HALF = nn.AvgPool2d(2)


def merged(x: Tensor) -> Tensor:
    parts = [x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2]]
    return torch.cat(parts, 1)


def tokens_of(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
    "patch merging": merged,
    "unfold": lambda x: F.unfold(x, 2, stride=2),
    "unfold, padded": lambda x: F.unfold(x, 3, padding=1),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "tokens joined": lambda x: torch.cat([tokens_of(x[:, :, :3]), tokens_of(x[:, :, 3:])], 1),
    "pooled tokens": lambda x: HALF(tokens_of(x).mT.unflatten(-1, (8, 8))).flatten(2).mT,
    "blocks": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4),
    "grid": lambda x: x.reshape(2, 3, 4, 2, 4, 2).permute(0, 3, 5, 2, 4, 1).flatten(1, 2),
    "gathered": lambda x: tokens_of(x)[:, torch.randperm(64)],
    "taken by an index of its own": lambda x: tokens_of(x).gather(
        1, torch.arange(64).flip(0)[None, :, None].expand(2, 64, 3)
    ),
    "every second": lambda x: tokens_of(x).index_select(1, torch.arange(0, 64, 2)),
    "stacked": lambda x: torch.stack([x, x.flip(1)], 2),
    "channels of two grids": lambda x: torch.cat([HALF(x), x[:, :, ::2, ::2]], 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_keeps_the_quadrant(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            marker = LAYOUTS[name](quadrant(8).permute(0, 3, 1, 2).expand_as(x))
            torch.manual_seed(0)
            return LAYOUTS[name](x) + marker

    e = constants(model)
    assert e.located == 1.0
    torch.testing.assert_close(share_in_quadrant(e), torch.ones(2, dtype=torch.float64))


def test_merged_patches_lie_over_all_four() -> None:
    mix = seeded(nn.Conv2d(12, 2, 1))
    for parts in (merged, lambda x: F.pixel_unshuffle(x, 2)):
        e = omenn.explain(lambda x, f=parts: mix(f(x)), IMAGE, lambda y: y[:, 1, 3, 0])
        wanted = torch.zeros(2, 8, 8, dtype=torch.float64)
        wanted[:, 6:, :2] = mix.bias[1].item() / 4
        torch.testing.assert_close(e.bias, wanted)


def test_shifted_channels_keep_their_own_place() -> None:
    parts = lambda x: torch.cat([x.roll(1, 3), x.roll(-1, 3)], 1) + 1  # noqa: E731
    for channel, column in ((0, 3), (3, 5)):
        e = omenn.explain(parts, IMAGE, lambda y, k=channel: y[:, k, 2, 4])
        wanted = torch.zeros(2, 8, 8, dtype=torch.float64)
        wanted[:, 2, column] = 1
        torch.testing.assert_close(e.bias, wanted)


def test_a_sampled_map_lies_where_it_was_taken_from() -> None:
    """A spatial transformer that turns the picture by 180 degrees."""
    turned = torch.tensor([[[-1.0, 0, 0], [0, -1, 0]]]).double().expand(2, 2, 3)

    def model(x: Tensor) -> Tensor:
        grid = F.affine_grid(turned, [2, 3, 8, 8], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False) + 1

    e = omenn.explain(model, IMAGE, lambda y: y[:, 0, 1, 2])
    wanted = torch.zeros(2, 8, 8, dtype=torch.float64)
    wanted[:, 6, 5] = 1
    torch.testing.assert_close(e.bias, wanted)


def test_overlapping_windows_are_laid_back_around_their_cell() -> None:
    """Each element of a window knows its own cell, so folding gives every cell itself."""
    fold = lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)  # noqa: E731
    e = omenn.explain(lambda x: fold(x) + 1, IMAGE, lambda y: y[:, 0, 3, 5])
    wanted = torch.zeros(2, 8, 8, dtype=torch.float64)
    wanted[:, 3, 5] = 1
    torch.testing.assert_close(e.bias, wanted)


def test_windows_placed_at_their_centre_fold_to_a_blob_around_the_cell() -> None:
    """Outlook attention: windows hold mixtures, placed at the window's own position."""

    def model(x: Tensor) -> Tensor:
        gate = x.mean(1).flatten(1)[:, None, :, None, None].sigmoid()
        v = F.unfold(x, 3, padding=1).view(2, 3, 9, 64).permute(0, 1, 3, 2)[..., None]
        mixed = (gate * torch.ones(9, 9)).softmax(-1) @ v
        return F.fold(mixed.squeeze(-1).permute(0, 1, 3, 2).flatten(1, 2), (8, 8), 3, padding=1) + 1

    e = omenn.explain(model, IMAGE, lambda y: y[:, 0, 3, 5])
    wanted = torch.zeros(2, 8, 8, dtype=torch.float64)
    wanted[:, 2:5, 4:7] = 1 / 9
    torch.testing.assert_close(e.bias, wanted)
    corner = omenn.explain(model, IMAGE, lambda y: y[:, 0, 0, 0])  # fewer windows fall on it
    wanted = torch.zeros(2, 8, 8, dtype=torch.float64)
    wanted[:, :2, :2] = 1 / 4
    torch.testing.assert_close(corner.bias, wanted)


def test_many_windows() -> None:
    """A large index, in which the channels are laid out before they are split off again."""
    x = draw(1, 16, 32, 32)

    def model(x: Tensor) -> Tensor:
        return F.unfold(x, 3, padding=1).view(1, 16, 9, 1024) + 1

    e = omenn.explain(model, x, lambda y: y[:, 7, 5, 3 * 32 + 4])  # right of the middle
    wanted = torch.zeros(1, 32, 32, dtype=torch.float64)
    wanted[:, 3, 5] = 1
    torch.testing.assert_close(e.bias, wanted)


# --- mixing of tokens and of channels ---------------------------------------------------------


def only_token(f: Callable[[Tensor], Tensor], k: int) -> None:
    """The constants of f(tokens) (B, N, C), read at token k, lie at token k."""
    e = omenn.explain(f, draw(2, 6, 4), lambda y: y[:, k].sum(1))
    assert e.exact
    assert e.located == 1.0
    assert e.bias[:, k].abs().min() > 0
    assert not e.bias[:, [j for j in range(6) if j != k]].any()


def scores(x: Tensor) -> Tensor:
    return (x @ x.transpose(-2, -1)).softmax(-1)


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda x: scores(x) @ x,
    "keys first": lambda x: (x.mT @ scores(x).mT).mT,
    "across channels": lambda x: (scores(x.mT) @ x.mT).mT,
    "across channels, fused": lambda x: F.scaled_dot_product_attention(x.mT, x.mT, x.mT).mT,
    "linear": lambda x: x.softmax(-1) @ (x.softmax(1).mT @ x),
    "einsum": lambda x: torch.einsum("b i j, b j c -> b i c", scores(x), x),
    "einsum with ellipsis": lambda x: torch.einsum("...ij,...jc->...ic", scores(x), x),
    "einsum without arrow": lambda x: torch.einsum("...ij,...jc", scores(x), x).mT,
    "bmm": lambda x: torch.bmm(scores(x), x),
    "baddbmm": lambda x: torch.baddbmm(torch.zeros(()).double(), scores(x), x),
    "constant matrix": lambda x: draw(6, 6) @ x,
    "fused": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0],
    "talking heads": lambda x: F.linear(scores(x)[..., None], draw(1, 1))[..., 0] @ x,
    "talking heads by convolution": lambda x: (
        F.conv2d(scores(x)[:, None], torch.ones(1, 1, 1, 1).double())[:, 0] @ x
    ),
    "filter of frequencies": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), 6, dim=1),
}


@pytest.mark.parametrize("name", MIXES)
def test_rows_of_a_mixture_stay_where_they_are(name: str) -> None:
    only_token(lambda x: MIXES[name](x) + draw(4), 2)


class TokenMixing(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, hidden), nn.Linear(hidden, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x.mT))).mT


def test_output_k_of_a_token_mixing_layer_stands_at_token_k() -> None:
    net = seeded(TokenMixing(6))
    nn.init.zeros_(net.up.bias)
    only_token(net, 4)


def test_hidden_units_of_token_mixing_have_no_place() -> None:
    net = seeded(TokenMixing(5))
    e = omenn.explain(net, draw(2, 6, 4), lambda y: y[:, 4].sum(1))
    assert 0 < e.located < 1
    assert e.unlocated.keys() == {"up"}
    assert e.reasons.keys() == {"pooled"}


def test_gated_token_mixing_comes_back_to_its_tokens() -> None:
    up, down = seeded(nn.Linear(6, 10, bias=False)), seeded(nn.Linear(5, 6))

    def model(x: Tensor) -> Tensor:
        a, b = up(x.mT).chunk(2, -1)
        return down(a * F.silu(b)).mT

    only_token(model, 1)


def test_a_square_layer_over_a_table_does_not_keep_the_columns() -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    assert omenn.explain(net, draw(2, 4), 1).located == 0.0


def test_a_learned_query_has_no_place() -> None:
    """Also where there are as many queries as values."""
    queries = draw(1, 6, 4)
    attend = lambda x: F.scaled_dot_product_attention(queries.expand(2, 6, 4), x, x)  # noqa: E731
    e = omenn.explain(lambda x: attend(x) + 1, draw(2, 6, 4), lambda y: y[:, 2].sum(1))
    assert e.located == 0.0
