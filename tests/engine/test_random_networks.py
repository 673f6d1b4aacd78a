"""Random small networks: fidelity, structure and sum of the certificate, for whatever is built."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.explain import BIASES
from opcases.case import draw
from opcases.linear import seeded

WIDTH = 4  # channels of images and of tokens


class Block(nn.Module):
    """A module with parts, and what it does with them."""

    def __init__(self, run: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.run = nn.ModuleList(parts), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.parts)


def conv(size: int = 3, **options) -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, size, padding="same", **options)


def norm_residual(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = b(a(x))
    y += x
    return y


def squeeze_excite(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    gate = torch.sigmoid(b(F.relu(a(x.mean((2, 3), keepdim=True)))))
    return x * gate


def split_and_join(x: Tensor, a: nn.Module) -> Tensor:
    left, right = x.chunk(2, 1)
    return a(torch.cat([right, F.silu(left)], 1))


def written(x: Tensor, a: nn.Module) -> Tensor:
    out = torch.ones_like(x)
    out[:, 1:] = a(x)[:, :-1]
    out[:, 0] *= 2
    return out


IMAGE_BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "conv": conv,
    "pointwise conv": lambda: conv(1, bias=False),
    "depthwise conv": lambda: conv(groups=WIDTH),
    "reflected conv": lambda: conv(padding_mode="reflect"),
    "down and up": lambda: Block(
        lambda x, a, b: b(a(x))[:, :, : x.shape[2], : x.shape[3]],
        nn.Conv2d(WIDTH, WIDTH, 2, 2, 1),
        nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2),
    ),
    "batch norm": lambda: nn.BatchNorm2d(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "instance norm": lambda: nn.InstanceNorm2d(WIDTH, affine=True),
    "layer norm of channels": lambda: Block(
        lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(WIDTH)
    ),
    "relu in place": lambda: Block(lambda x, a, r: r(a(x)), conv(1), nn.ReLU(inplace=True)),
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "relu6 in place": lambda: Block(lambda x, a, r: r(a(x)), conv(1), nn.ReLU6(inplace=True)),
    "gelu": lambda: nn.GELU(),
    "silu in place": lambda: Block(lambda x, a, r: r(a(x)), conv(1), nn.SiLU(inplace=True)),
    "hardswish": lambda: nn.Hardswish(),
    "softplus": lambda: nn.Softplus(),
    "prelu": lambda: nn.PReLU(WIDTH),
    "residual in place": lambda: Block(norm_residual, conv(), nn.BatchNorm2d(WIDTH)),
    "residual": lambda: Block(lambda x, a: x + F.gelu(a(x)), conv()),
    "squeeze and excite": lambda: Block(squeeze_excite, nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)),
    "spatial gate": lambda: Block(lambda x, a: x * torch.sigmoid(a(x)), conv()),
    "even product": lambda: Block(lambda x, a, b: a(x) * b(x), conv(1), conv(1)),
    "reuse": lambda: Block(lambda x, a: a(F.relu(a(x))), conv()),
    "max pool": lambda: nn.MaxPool2d(3, 1, 1),
    "average pool": lambda: nn.AvgPool2d(3, 1, 1),
    "blur": lambda: Block(lambda x: F.interpolate(F.avg_pool2d(x, 2), x.shape[2:])),
    "split and join": lambda: Block(split_and_join, conv(1)),
    "write": lambda: Block(written, conv(1)),
    "arithmetic": lambda: Block(lambda x: (2 - x) * 0.5 + x / 3 - 0.1),
    "layer scale": lambda: Block(lambda x, s: x * s.weight[None, :, :1, None], nn.Linear(1, 4)),
    "roll and flip": lambda: Block(lambda x: x.roll(1, 2).flip(3)),
    "normalise": lambda: Block(lambda x: F.normalize(x, dim=1)),
    "response norm": lambda: nn.LocalResponseNorm(3),
    "dropout": lambda: nn.Dropout2d(0.5),
}


def attention(fused: bool) -> Callable[[], nn.Module]:
    def run(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
        b, t, _ = x.shape
        q, k, v = qkv(x).view(b, t, 3, 2, 2).permute(2, 0, 3, 1, 4)
        if fused:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=t > 5)
        else:
            mixed = ((q * 0.7) @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + out(mixed.transpose(1, 2).reshape(b, t, WIDTH))

    return lambda: Block(run, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH))


def linear_attention(x: Tensor, a: nn.Module) -> Tensor:
    q, k = F.elu(x) + 1, F.elu(a(x)) + 1
    weights = (q @ k.mT).detach()
    return weights / weights.sum(-1, keepdim=True) @ x


def masked(x: Tensor, a: nn.Module) -> Tensor:
    keep = torch.arange(x.shape[1]) % 3 != 1
    return a(x).masked_fill(~keep[:, None], 0.5) + x


TOKEN_BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "mlp": lambda: Block(
        lambda x, a, b: x + b(F.gelu(a(x))), nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)
    ),
    "swiglu": lambda: Block(
        lambda x, a, b: F.silu(a(x)) * b(x), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    ),
    "glu": lambda: Block(lambda x, a: F.glu(a(x)), nn.Linear(WIDTH, 2 * WIDTH)),
    "fused attention": attention(True),
    "attention": attention(False),
    "multi-head attention": lambda: Block(
        lambda x, m: m(x, x, x)[0], nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    ),
    "multi-head attention without weights": lambda: Block(
        lambda x, m: x + m(x, x, x, need_weights=False)[0],
        nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_bias_kv=True),
    ),
    "encoder layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 6, batch_first=True),
    "encoder layer, norm first": lambda: nn.TransformerEncoderLayer(
        WIDTH, 2, 6, batch_first=True, norm_first=True, activation="gelu"
    ),
    "linear attention": lambda: Block(linear_attention, nn.Linear(WIDTH, WIDTH)),
    "lstm": lambda: Block(lambda x, m: m(x)[0], nn.LSTM(WIDTH, WIDTH, batch_first=True)),
    "gru both ways": lambda: Block(
        lambda x, m: m(x)[0], nn.GRU(WIDTH, 2, batch_first=True, bidirectional=True)
    ),
    "token mixing": lambda: Block(
        lambda x: torch.einsum("btc,ts->bsc", x, draw(*[x.shape[1]] * 2))
    ),
    "class token": lambda: Block(
        lambda x, t: torch.cat([t.weight[:1].expand(len(x), 1, -1), x], 1), nn.Embedding(1, WIDTH)
    ),
    "position": lambda: Block(lambda x, p: x + p.weight[: x.shape[1]], nn.Embedding(20, WIDTH)),
    "window": lambda: Block(lambda x: x.roll(1, 1) * 0.5 + x.roll(-1, 1)),
    "convolution": lambda: Block(
        lambda x, c: c(x.transpose(1, 2)).transpose(1, 2), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
    ),
    "mask": lambda: Block(masked, nn.Linear(WIDTH, WIDTH)),
    "time first": lambda: Block(
        lambda x, a: torch.tanh(a(x.transpose(0, 1))).transpose(0, 1), nn.Linear(WIDTH, WIDTH)
    ),
    "fourier": lambda: Block(lambda x: torch.fft.fft2(x).real * 0.3),
    "sort": lambda: Block(lambda x: x.sort(1).values),
    "cumulative": lambda: Block(lambda x: x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]),
    "standardise": lambda: Block(
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 0.1).sqrt()
    ),
}


class Network(nn.Module):
    """Blocks one after the other, an outer residual if asked for, and a linear head."""

    def __init__(self, blocks: list[nn.Module], pool: tuple[int, ...], skip: bool) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(WIDTH, 3)
        self.pool, self.skip = pool, skip

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        for block in self.blocks:
            y = block(y)
        if self.skip:
            y = y.mean(self.pool, keepdim=True) + x
        return self.head(y.mean(self.pool))


def check(net: Network, x: Tensor, bias: str, at: str | None) -> None:
    """The three properties of the certificate, and that the samples do not mix."""
    ordinary = net(x).detach()
    found = omenn.certify(net, x, 1, bias=bias, at=at)
    assert not found.violations, str(found)
    assert found.fidelity <= 1e-12, str(found)
    assert float(found.relative.max()) <= 1e-12, str(found)
    assert found.exact
    e = found.explanation
    assert e is not None
    torch.testing.assert_close(e.output, ordinary[:, 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        sum(e.sources.values(), torch.zeros(len(x))), e.bias_share, rtol=1e-9, atol=1e-12
    )
    assert 0 <= e.located <= 1


networks = {
    "bias": st.sampled_from(["spatial", "attention", "uniform", "separate"]),
    "skip": st.booleans(),
    "deep": st.booleans(),
}


@settings(max_examples=60)
@given(names=st.lists(st.sampled_from(sorted(IMAGE_BLOCKS)), min_size=1, max_size=7), **networks)
def test_random_image_network(names: list[str], bias: str, skip: bool, deep: bool) -> None:
    net = seeded(Network([IMAGE_BLOCKS[n]() for n in names], (2, 3), skip))
    at = f"blocks.{len(names) // 2}" if deep else None
    check(net, draw(2, WIDTH, 6, 6), bias, at)


@settings(max_examples=60)
@given(names=st.lists(st.sampled_from(sorted(TOKEN_BLOCKS)), min_size=1, max_size=6), **networks)
def test_random_token_network(names: list[str], bias: str, skip: bool, deep: bool) -> None:
    skip = skip and "class token" not in names
    net = seeded(Network([TOKEN_BLOCKS[n]() for n in names], (1,), skip))
    at = f"blocks.{len(names) // 2}" if deep else None
    check(net, draw(2, 5, WIDTH), bias, at)


@settings(max_examples=25)
@given(names=st.lists(st.sampled_from(sorted(TOKEN_BLOCKS)), min_size=1, max_size=5))
def test_every_place_for_the_constants_keeps_the_sum(names: list[str]) -> None:
    """Read at a class token, which the blocks may mix with the others."""
    blocks = [TOKEN_BLOCKS[n]() for n in ("class token", *names)]
    net = seeded(nn.Sequential(*blocks, Block(lambda x: x[:, 0]), nn.Linear(WIDTH, 3)))
    x = draw(2, 5, WIDTH)
    found = {bias: omenn.explain(net, x, 1, bias=bias) for bias in BIASES}
    for e in found.values():
        assert float((e.residual.abs() / (1 + e.magnitude)).max()) <= 1e-9
        torch.testing.assert_close(e.bias_share, found["spatial"].bias_share)
        torch.testing.assert_close(e.weight, found["spatial"].weight)
        assert e.located + sum(e.reasons.values()) == pytest.approx(1.0)


@settings(max_examples=15)
@given(
    image=st.lists(st.sampled_from(sorted(IMAGE_BLOCKS)), min_size=1, max_size=3),
    tokens=st.lists(st.sampled_from(sorted(TOKEN_BLOCKS)), min_size=1, max_size=3),
)
def test_random_hybrid(image: list[str], tokens: list[str]) -> None:
    """Convolutions, then tokens."""
    to_tokens = Block(lambda x: x.flatten(2).transpose(1, 2))
    blocks = [IMAGE_BLOCKS[n]() for n in image] + [to_tokens] + [TOKEN_BLOCKS[n]() for n in tokens]
    check(seeded(Network(blocks, (1,), False)), draw(2, WIDTH, 3, 3), "spatial", None)


@settings(max_examples=10)
@given(names=st.lists(st.sampled_from(sorted(IMAGE_BLOCKS)), min_size=1, max_size=5))
def test_random_network_in_single_precision(names: list[str]) -> None:
    net = seeded(Network([IMAGE_BLOCKS[n]() for n in names], (2, 3), False)).float()
    assert omenn.certify(net, draw(2, WIDTH, 6, 6).float(), 0).exact


def test_every_block_alone() -> None:
    for blocks, x, pool in (
        (IMAGE_BLOCKS, draw(2, WIDTH, 6, 6), (2, 3)),
        (TOKEN_BLOCKS, draw(2, 5, WIDTH), (1,)),
    ):
        for name, make in blocks.items():
            net = seeded(Network([make()], pool, False))
            assert omenn.certify(net, x, 2).exact, name
