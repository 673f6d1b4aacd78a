"""absLRP beyond layers: masks, constants and sums; the samples apart; a layer rescaled."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from attribution import oracles as o
from attribution.test_abslrp import close, positive
from nets import Plain, Residual, Tokens, draw, seeded


def test_a_mask_that_hides_by_a_large_number_hides_in_the_magnitudes_too() -> None:
    x = draw(3, 5)
    seen = torch.tensor([True, True, False, True, False])
    weight = draw(3, 5, seed=4).abs()
    maps = []
    for low in (-torch.inf, torch.finfo(torch.float64).min, -1e4, -100.0):
        mask = torch.zeros(5).double().masked_fill(~seen, low)
        net = lambda t, m=mask: torch.softmax(t + m, -1) * weight  # noqa: E731
        maps.append(positive(net, x, lambda y: y.sum((1, 2))))
    assert not maps[0][:, ~seen].any()
    for found in maps[1:]:
        close(found, maps[0], 1e-9)


# --- constants ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["x @ w + b", "b + x @ w", "addmm", "+=", "minus", "numbers"])
def test_a_bias_is_a_bias_however_it_is_spelled(spelling: str) -> None:
    x, w, b = draw(3, 4), draw(4, 5, seed=2), draw(5, seed=3)
    if spelling == "numbers":
        b = torch.full((5,), 0.3).double()

    def written(t: Tensor) -> Tensor:
        y = t @ w
        y += b
        return y

    nets = {
        "x @ w + b": lambda t: t @ w + b,
        "b + x @ w": lambda t: b + t @ w,
        "addmm": lambda t: torch.addmm(b, t, w),
        "+=": written,
        "minus": lambda t: t @ w - (-b),
        "numbers": lambda t: t @ w + 0.3,
    }
    whole = lambda t: F.linear(t, w.T, b)  # noqa: E731
    for target in range(5):
        expected = omenn.explain(whole, x, target, method="abslrp").matrix
        found = omenn.explain(nets[spelling], x, target, method="abslrp").matrix
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_position_embedding_is_an_input_of_the_sum() -> None:
    x, positions, w = draw(3, 4), draw(3, 4, seed=2), draw(1, 12, seed=3)
    net = lambda t: F.linear((t + positions).flatten(1), w)  # noqa: E731
    r = o.absolute((x + positions).reshape(-1), w, torch.zeros(1).double(), torch.ones(1).double())
    r, _ = o.absolute_each(torch.add, [x, positions], r.reshape(3, 4))
    close(positive(net, x, 0), r)
    # What adds nothing changes nothing, element by element.
    half = positions.clone()
    half[1] = 0
    net = lambda t: F.linear((t + half).flatten(1), w)  # noqa: E731
    r = o.absolute((x + half).reshape(-1), w, torch.zeros(1).double(), torch.ones(1).double())
    r = r.reshape(3, 4)
    alone = 2 * x * (x > 0) * r / ((x + half).abs() + o.TINY)
    close(positive(net, x, 0), torch.where(half == 0, r, alone))


def test_a_constant_of_each_sample_is_a_bias_in_a_batch_too() -> None:
    table, w = draw(2, 5, seed=2), draw(5, 4, seed=3)
    flags = torch.tensor([[True, False], [True, True], [False, True]])

    def net(x: Tensor, flags: Tensor) -> Tensor:
        return x @ w.T + flags.double() @ table

    x = draw(3, 4)
    together, of_flags = omenn.explain(net, (x, flags), 1, method="abslrp").matrix
    rows = zip(x.split(1), flags.split(1), strict=True)
    alone = torch.cat([omenn.explain(net, row, 1, method="abslrp").matrix[0] for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    assert of_flags is None  # decisions carry nothing


def test_constants_are_what_they_were_when_they_were_added() -> None:
    x, w = draw(4), draw(3, 4, seed=2)

    def reused(t: Tensor) -> Tensor:
        buffer = draw(3, seed=3)[None].clone()
        y = F.linear(t, w) + buffer
        buffer.zero_()
        return y

    def into(t: Tensor) -> Tensor:
        buffer = draw(3, seed=3)[None].clone()
        buffer += F.linear(t, w)
        return buffer

    expected = positive(lambda t: F.linear(t, w, draw(3, seed=3)), x)
    close(positive(reused, x), expected)
    close(positive(into, x), expected)


SUMS = {
    "cumsum": lambda t: t.cumsum(-1),
    "index_add": lambda t: t.new_zeros(1, 2).index_add(1, torch.tensor([0, 1, 0, 1, 1]), t),
    "scatter_add_": lambda t: t.new_zeros(1, 2).scatter_add_(1, torch.tensor([[0, 1, 0, 1, 1]]), t),
    "interpolate": lambda t: F.interpolate(t[None], 3, mode="linear")[0],
    "avg_pool": lambda t: F.avg_pool1d(t, 2, 1),
    "einsum": lambda t: torch.einsum("bi,ji->bj", t, draw(3, 5, seed=5)),
}


@pytest.mark.parametrize("name", SUMS)
def test_every_sum_lets_what_is_positive_pass(name: str) -> None:
    x, f = draw(5), SUMS[name]
    y = f(x[None])[0]
    net = lambda t: f(t) / y  # noqa: E731, so that R is the same at all outputs
    found = positive(net, x, lambda out: out.sum(1))
    close(found, o.absolute(x, *o.dense(lambda t: f(t[None])[0], x), torch.ones_like(y)))


# --- invariances ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.05, 30.0])
def test_a_map_stays_the_same_when_a_layer_is_rescaled(factor: float) -> None:
    x = draw(3, 2, 4, 4)
    net = seeded(Residual(), seed=1)
    before = omenn.explain(net, x, 1, method="abslrp").matrix
    with torch.no_grad():  # the function stays what it is
        for t in (net.stem.weight, net.stem.bias, net.conv.bias, net.norm.bias):
            t.mul_(factor)
        net.norm.running_mean.mul_(factor)
        net.head.weight.div_(factor)
    after = omenn.explain(net, x, 1, method="abslrp").matrix
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)  # the stabiliser stays
    assert torch.equal(before.flatten(1).argsort(1), after.flatten(1).argsort(1))


class Windows(nn.Module):
    """Attention within windows, which lie side by side in the dimension of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Tokens(fused=False), nn.Linear(4, 3)
        self.block.head, self.shift = nn.Identity(), draw(4, 1, 4, 4, seed=6)

    def forward(self, x: Tensor) -> Tensor:  # (B, 4, 4, D), channels last
        w = x.unflatten(1, (2, 2)).unflatten(3, (2, 2)).permute(0, 1, 3, 2, 4, 5)
        w = w.reshape(-1, 4, x.shape[-1])
        q, k, v = self.block.qkv(self.block.norm(w)).chunk(3, -1)
        logits = q @ k.transpose(-2, -1)
        hidden = torch.where(self.shift > 0.5, -100.0, 0.0)
        logits = logits.view(-1, 4, 1, 4, 4) + hidden
        w = w + torch.softmax(logits.view(-1, 4, 4), -1) @ v
        return self.head(w.reshape(len(x), -1, x.shape[-1]).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, 2, bidirectional=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D), but the layer wants (T, B, D)
        return self.head(self.lstm(x.transpose(0, 1))[0][-1])


class ClassToken(nn.Module):
    """A learned query that attends to the tokens, and is added to what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.kv, self.head = (
            nn.Parameter(draw(1, 1, 4)),
            nn.Linear(4, 8),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(len(x), -1, -1)
        k, v = self.kv(torch.cat([token, x], 1)).chunk(2, -1)
        return self.head((token + F.scaled_dot_product_attention(token, k, v))[:, 0])


@pytest.mark.parametrize("build", [Windows, Recurrent, ClassToken])
def test_the_samples_are_normalised_one_by_one_wherever_they_lie(build: type) -> None:
    net = seeded(build())
    x = draw(3, 4, 4, 4) if build is Windows else draw(3, 4, 4)
    x = x * torch.tensor([1.0, 10.0, 0.1]).reshape(3, *[1] * (x.ndim - 1))
    explain = partial(omenn.explain, net, target=1, method="abslrp", contrastive=False)
    together = explain(x).matrix
    alone = torch.cat([explain(row[None]).matrix for row in x])
    assert (together.abs().flatten(1).sum(1) > 0).all()
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-9)


def test_a_unit_that_is_zero_gives_nothing_and_no_nan() -> None:
    net = seeded(Plain(), seed=13).float()
    x = torch.zeros(2, 2, 4, 4)
    x[1] = draw(2, 4, 4).float()
    e = omenn.explain(net, x, 1, method="abslrp")
    assert torch.isfinite(e.matrix).all()
    assert not e.matrix[0].any()
    roots = omenn.explain(lambda t: t.relu().sqrt(), draw(2, 3), 1, method="abslrp")
    assert torch.isfinite(roots.matrix).all()
