"""Blocks of random networks on pictures (B, WIDTH, H, W); what a block is: see ``tokens.py``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuzz.dense import Dense
from fuzz.tokens import WIDTH, Map, Run, activation, attention, draw, gate, linear, norm, pick


def conv() -> tuple[Run, Map]:
    w, b = draw(WIDTH, WIDTH, 3, 3) / 3, draw(WIDTH)
    mode = pick("zeros", "reflect", "circular", "replicate")
    layer = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode=mode).double()
    layer.requires_grad_(False)
    layer.weight.copy_(w)
    layer.bias.copy_(b)
    pad = "constant" if mode == "zeros" else mode
    inner = lambda v: F.conv2d(F.pad(v, (1, 1, 1, 1), mode=pad), w)  # noqa: E731
    run = pick(layer, lambda x: inner(x) + b[:, None, None])
    return run, lambda z: z.linear(inner).plus(b[:, None, None])


def other_conv() -> tuple[Run, Map]:
    """Grouped, dilated, transposed, by windows, or strided and interpolated again."""
    w, v, b = draw(WIDTH, 1, 3, 3), draw(WIDTH, WIDTH, 1, 1), draw(WIDTH)
    square = draw(WIDTH, WIDTH, 2, 2)
    bilinear = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")  # noqa: E731
    inner = pick(
        lambda x: F.conv2d(F.conv2d(x, w, padding=1, groups=WIDTH), v),
        lambda x: F.conv2d(x, w, padding=2, dilation=2, groups=WIDTH),
        lambda x: F.conv_transpose2d(x, w, padding=1, groups=WIDTH),
        lambda x: F.conv_transpose2d(F.conv2d(x, square, stride=2), square, stride=2),
        lambda x: bilinear(F.conv2d(x, square, stride=2)),
        lambda x: F.pixel_shuffle(F.conv2d(F.pixel_unshuffle(x, 2), v.repeat(4, 4, 1, 1) / 4), 2),
        lambda x: F.fold(F.unfold(x, 2, stride=2) * 0.5, x.shape[-2:], 2, stride=2),
    )
    return (lambda x: inner(x) + b[:, None, None]), lambda z: z.linear(inner).plus(b[:, None, None])


def resampling() -> tuple[Run, Map]:
    f = pick(
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        lambda x: F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="nearest"), 2),
        lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 2), size=x.shape[-2:]),
        lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 1), size=x.shape[-2:]) + x,
        lambda x: x.flip(-1),
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.roll((1, 1), (2, 3)),
        lambda x: x - x.mean((2, 3), keepdim=True),
        lambda x: F.channel_shuffle(x, 2),
        lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
        lambda x: torch.cat([x[:, :, :1], x[:, :, 1:] * 2], 2),
    )
    return f, lambda z: z.linear(f)


def largest() -> tuple[Run, Map]:
    def dense(z: Dense) -> Dense:
        _, index = F.max_pool2d(z.value, 3, 1, 1, return_indices=True)
        flat = index.flatten(2)
        return z.linear(lambda v: v.flatten(2).gather(2, flat).view(v.shape))

    run = pick(
        lambda x: F.max_pool2d(x, 3, 1, 1),
        nn.MaxPool2d(3, 1, 1),
        lambda x: F.max_pool2d(x, 3, 1, 1, return_indices=True)[0],
    )
    return run, dense


def batch_norm() -> tuple[Run, Map]:
    mean, variance, gamma, beta = draw(WIDTH), draw(WIDTH).square() + 0.5, draw(WIDTH), draw(WIDTH)
    scale = gamma / torch.sqrt(variance + 1e-5)
    layer = nn.BatchNorm2d(WIDTH).double().eval().requires_grad_(False)
    layer.load_state_dict(
        {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}, strict=False
    )
    run = pick(layer, lambda x: F.batch_norm(x, mean, variance, gamma, beta))
    shift = (beta - mean * scale)[:, None, None]
    return run, lambda z: z.times(scale[:, None, None]).plus(shift)


def group_norm() -> tuple[Run, Map]:
    gamma, beta = draw(WIDTH)[:, None, None], draw(WIDTH)[:, None, None]
    groups = pick(1, 2, WIDTH)

    def split(v: Tensor) -> Tensor:
        return v.unflatten(1, (groups, -1))

    def dense(z: Dense) -> Dense:
        z = z.linear(split)
        centred = z.linear(lambda v: v - v.mean((2, 3, 4), keepdim=True))
        sigma = (centred.value.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
        return centred.times(1 / sigma).linear(lambda v: v.flatten(1, 2)).times(gamma).plus(beta)

    forms: list[Run] = [lambda x: F.group_norm(x, groups, gamma.flatten(), beta.flatten())]
    if groups == WIDTH:
        forms.append(lambda x: F.instance_norm(x, weight=gamma.flatten(), bias=beta.flatten()))
    return pick(*forms), dense


def squeeze_excite() -> tuple[Run, Map]:
    w, b, v = draw(WIDTH, WIDTH), draw(WIDTH), draw(WIDTH, WIDTH, 1, 1)

    def weights(x: Tensor) -> Tensor:
        return torch.sigmoid(F.linear(x.mean((2, 3)), w, b))[:, :, None, None]

    def in_place(x: Tensor) -> Tensor:
        y = F.conv2d(x, v)
        y.mul_(weights(x))
        return y

    run = pick(lambda x: F.conv2d(x, v) * weights(x), in_place)
    return run, lambda z: z.linear(lambda t: F.conv2d(t, v)).times(weights(z.value))


def residual() -> tuple[Run, Map]:
    inner, dense = pick(conv, batch_norm, resampling)()

    def in_place(x: Tensor) -> Tensor:
        y = inner(x)
        y = y.clone()
        y += x
        return F.relu(y, inplace=True)

    run = pick(lambda x: F.relu(inner(x) + x), in_place)
    return run, lambda z: (dense(z) + z).pointwise(F.relu)


def by_pixel() -> tuple[Run, Map]:
    """A block on tokens, each pixel being one."""
    run, dense = pick(activation, linear, gate, norm, attention)()
    there: Callable[[Tensor], Tensor] = lambda v: v.flatten(2).mT  # noqa: E731

    def over_pixels(x: Tensor) -> Tensor:
        return run(there(x)).mT.reshape(x.shape)

    def channels_last(x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        return run(tokens).unflatten(1, (h, w)).permute(0, 3, 1, 2)

    def mapped(z: Dense) -> Dense:
        size = z.value.shape[-2:]
        return dense(z.linear(there)).linear(lambda v: v.mT.unflatten(2, size))

    return pick(over_pixels, channels_last), mapped


PICTURE_BLOCKS = (
    conv,
    other_conv,
    resampling,
    largest,
    batch_norm,
    group_norm,
    squeeze_excite,
    residual,
    by_pixel,
    by_pixel,
)
