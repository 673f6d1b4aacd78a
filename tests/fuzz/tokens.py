"""Blocks of random networks on tokens: linear maps, activations, gates, norms, attention.

A block maps tokens (B, T, D) to tokens of the same shape. It draws its weights when it is made and
returns two functions: ``run``, what the explained model does, and ``dense``, what must come of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzz.dense import Dense, half

WIDTH = 4  # channels of every token

Run = Callable[[Tensor], Tensor]
Map = Callable[[Dense], Dense]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) / math.sqrt(shape[-1])


def pick(*choices):
    return choices[int(torch.randint(len(choices), ()))]


# --- linear maps ---------------------------------------------------------------------------------


def linear() -> tuple[Run, Map]:
    w, b = draw(WIDTH, WIDTH), draw(WIDTH)
    run = pick(
        lambda x: F.linear(x, w, b),
        lambda x: x @ w.T + b,
        lambda x: torch.einsum("btd,ed->bte", x, w) + b,
        lambda x: torch.baddbmm(b, x, w.T.expand(len(x), -1, -1)),
        lambda x: torch.tensordot(x, w, ([2], [1])) + b,
        lambda x: torch.addmm(b, x.reshape(-1, WIDTH), w.T).view_as(x),
        lambda x: torch.vmap(lambda row, s: row @ s, (None, 1), 1)(w, torch.eye(WIDTH).double()).T
        .mul(0).sum() + F.linear(x, w, b),
    )  # fmt: skip
    return run, lambda z: z.linear(lambda v: v @ w.T).plus(b)


def conv_over_time() -> tuple[Run, Map]:
    w, b = draw(WIDTH, WIDTH, 3), draw(WIDTH)
    inner = lambda v: F.conv1d(v.mT, w, padding=1).mT  # noqa: E731
    run = pick(
        lambda x: F.conv1d(x.mT, w, b, padding=1).mT,
        lambda x: F.conv2d(x.mT[:, :, None], w[:, :, None], b, padding=(0, 1))[:, :, 0].mT,
        lambda x: F.conv1d(F.pad(x.transpose(1, 2), (1, 1)), w, b).transpose(2, 1),
    )
    return run, lambda z: z.linear(inner).plus(b)


def mixing_of_positions() -> tuple[Run, Map]:
    f = pick(
        lambda v: v.roll(1, 1),
        lambda v: v.flip(1),
        lambda v: v.cumsum(1),
        lambda v: v - v.mean(1, keepdim=True),
        lambda v: v.sum(1, keepdim=True).expand_as(v) / 3,
        lambda v: F.avg_pool1d(v.mT, 3, 1, 1).mT,
        lambda v: torch.cat([v[:, 1:], v[:, :1]], 1),
        lambda v: torch.stack(v.unbind(1)[::-1], 1),
        lambda v: v.reshape(len(v), -1).view(len(v), v.shape[2], -1).mT,
        lambda v: torch.fft.irfft(torch.fft.rfft(v, dim=2) * 0.5, n=WIDTH, dim=2),
        lambda v: torch.view_as_real(
            torch.view_as_complex(v.reshape(*v.shape[:2], 2, 2).contiguous()) * (0.3 + 0.8j)
        ).flatten(2),
        lambda v: v.mean(1, keepdim=True).expand_as(v),
        lambda v: v.mT.reshape(len(v), -1).view_as(v),
        lambda v: v.repeat_interleave(2, 1)[:, ::2],
        lambda v: v.unfold(1, 1, 1).squeeze(-1) * 2,
        lambda v: v.permute(2, 0, 1).contiguous().movedim(0, -1),
    )
    return f, lambda z: z.linear(f)


def scattered() -> tuple[Run, Map]:
    def index(v: Tensor) -> Tensor:
        return torch.arange(v.shape[1]).flip(0)

    def added(v: Tensor) -> Tensor:
        return torch.zeros_like(v).index_add(1, index(v) // 2, v)

    run = pick(
        added,
        lambda x: torch.zeros_like(x).index_add_(1, index(x) // 2, x),
        lambda x: torch.zeros(x.shape).double().scatter_add(
            1, (index(x) // 2)[None, :, None].expand_as(x), x
        ),
    )  # fmt: skip
    return run, lambda z: z.linear(added)


def affine_norm() -> tuple[Run, Map]:
    mean, scale, gamma, beta = draw(WIDTH), draw(WIDTH).square() + 0.5, draw(WIDTH), draw(WIDTH)
    fused = lambda x: F.batch_norm(x.mT, mean, scale, gamma, beta).mT  # noqa: E731
    plain = lambda x: (x - mean) / torch.sqrt(scale + 1e-5) * gamma + beta  # noqa: E731
    k = gamma / torch.sqrt(scale + 1e-5)
    return pick(fused, plain), lambda z: z.times(k).plus(beta - mean * k)


# --- activations, gates, norms -------------------------------------------------------------------

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "relu": (F.relu, torch.relu, lambda x: x.clamp(min=0), lambda x: torch.where(x > 0, x, 0.0)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), nn.LeakyReLU(0.1)),
    "gelu": (F.gelu, nn.GELU()),
    "silu": (F.silu, nn.SiLU(), lambda x: x * torch.sigmoid(x)),
    "tanh": (torch.tanh, lambda x: x.tanh()),
    "sigmoid": (torch.sigmoid, lambda x: x.sigmoid()),
    "softplus": (F.softplus,),
    "abs": (torch.abs, abs),
    "sin": (torch.sin,),
    "exp": (lambda x: torch.exp(0.3 * x),),
    "hardswish": (F.hardswish,),
    "mish": (F.mish,),
    "square": (torch.square, lambda x: x**2, lambda x: x * x),
}


def activation() -> tuple[Run, Map]:
    forms = pick(*ACTIVATIONS.values())
    return pick(*forms), lambda z: z.pointwise(forms[0])


def in_place_activation() -> tuple[Run, Map]:
    w = draw(WIDTH, WIDTH)
    name, f = pick(("relu_", F.relu), ("tanh_", torch.tanh), ("sigmoid_", torch.sigmoid))

    def run(x: Tensor) -> Tensor:
        y = x @ w
        getattr(y, name)()
        y += x
        return y

    return run, lambda z: z.linear(lambda v: v @ w).pointwise(f) + z


def gate() -> tuple[Run, Map]:
    """A sigmoid times what is not bounded, which a linear layer makes sure of."""
    v, w, b = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH)

    def in_place(x: Tensor) -> Tensor:
        y = x @ v
        y *= torch.sigmoid(F.linear(x, w, b))
        return y

    run = pick(
        lambda x: x @ v * torch.sigmoid(F.linear(x, w, b)),
        lambda x: torch.mul(torch.sigmoid(x @ w.T + b), x @ v),
        lambda x: F.glu(torch.cat([x @ v, F.linear(x, w, b)], -1)),
        in_place,
    )
    return run, lambda z: z.linear(lambda t: t @ v).times(torch.sigmoid(F.linear(z.value, w, b)))


def even_product() -> tuple[Run, Map]:
    v, w = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)
    run = lambda x: (x @ v) * (x @ w)  # noqa: E731
    return run, lambda z: half(z.linear(lambda t: t @ v), z.linear(lambda t: t @ w))


def norm() -> tuple[Run, Map]:
    gamma, beta, eps = draw(WIDTH), draw(WIDTH), 1e-5

    def by_hand(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * gamma + beta

    def dense(z: Dense) -> Dense:
        centred = z.linear(lambda v: v - v.mean(-1, keepdim=True))
        sigma = (centred.value.square().mean(-1, keepdim=True) + eps).sqrt()
        return centred.times(gamma / sigma).plus(beta)

    def rms(z: Dense) -> Dense:
        return z.times(gamma / (z.value.square().mean(-1, keepdim=True) + eps).sqrt())

    return pick(
        (lambda x: F.layer_norm(x, (WIDTH,), gamma, beta, eps), dense),
        (by_hand, dense),
        (lambda x: F.rms_norm(x, (WIDTH,), gamma, eps), rms),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gamma, rms),
    )


def quotient() -> tuple[Run, Map]:
    w = draw(WIDTH, WIDTH)
    below = lambda v: (v @ w).square() + 1  # noqa: E731
    return lambda x: x / below(x), lambda z: z.times(1 / below(z.value))


def attention() -> tuple[Run, Map]:
    q, k, v = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)
    causal = pick(False, True)

    def weights(x: Tensor) -> Tensor:
        scores = (x @ q) @ (x @ k).mT / math.sqrt(WIDTH)
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
        return scores.softmax(-1)

    run = pick(
        lambda x: weights(x) @ (x @ v) + x,
        lambda x: F.scaled_dot_product_attention(x @ q, x @ k, x @ v, is_causal=causal) + x,
        lambda x: torch.einsum("bij,bjd->bid", weights(x), x @ v) + x,
    )

    def dense(z: Dense) -> Dense:
        held = weights(z.value)
        return z.linear(lambda t: held @ (t @ v)) + z

    return run, dense


def multihead() -> tuple[Run, Map]:
    """PyTorch's layer, whose projections are one matrix."""
    layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True).double().eval().requires_grad_(False)
    layer.in_proj_bias.normal_()
    layer.out_proj.bias.normal_()
    w, b = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)

    def heads(v: Tensor) -> Tensor:
        return v.unflatten(-1, (2, -1)).transpose(-3, -2)

    def dense(z: Dense) -> Dense:
        q, k = (heads(z.value @ w[i].T + b[i]) for i in (0, 1))
        held = (q @ k.mT / math.sqrt(WIDTH / 2)).softmax(-1)
        v = z.linear(lambda t: t @ w[2].T).plus(b[2])
        mixed = v.linear(lambda t: (held @ heads(t)).transpose(-3, -2).flatten(-2))
        return mixed.linear(lambda t: t @ layer.out_proj.weight.T).plus(layer.out_proj.bias) + z

    needed = pick(False, True)
    run = pick(
        lambda x: layer(x, x, x, need_weights=needed)[0] + x,
        lambda x: layer(x, x, x, torch.zeros(x.shape[:2]).bool(), need_weights=needed)[0] + x,
    )
    return run, dense
