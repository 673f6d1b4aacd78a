"""Normalisation: γ (I − 11ᵀ/n)/σ, block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opcases.case import Case, draw, table
from oracle import held, normalised

X = draw(2, 4, 3)
IMAGE = draw(2, 4, 3, 2)
ROWS, CHANNELS = draw(3, seed=1), draw(4, seed=2)
BETA, SHIFT = draw(3, seed=3), draw(4, seed=4)
MEAN, VARIANCE = draw(4, seed=5), draw(4, low=0.3, seed=6)


def last(n: int):
    """One block for each position before the last n dimensions."""

    def groups(x: Tensor) -> Tensor:
        lead = x.shape[: x.ndim - n]
        index = torch.arange(int(torch.tensor(lead).prod()) if lead else 1)
        return index.reshape(*lead, *[1] * n).expand_as(x)

    return groups


def channels(n: int):
    """One block for each sample and group of n channels."""

    def groups(x: Tensor) -> Tensor:
        size = x.shape[1] // n
        index = torch.arange(x.shape[0])[:, None] * size + torch.arange(x.shape[1])[None] // n
        return index.reshape(*x.shape[:2], *[1] * (x.ndim - 2)).expand_as(x)

    return groups


def column(v: Tensor, ndim: int) -> Tensor:
    return v.reshape(-1, *[1] * (ndim - 2))


def running(ndim: int, gamma: Tensor | None, beta: Tensor | None, eps: float = 1e-5):
    """γ (z − m)/√(v + ε) + β with given statistics."""

    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        out = (z[0] - column(MEAN, ndim)) / (column(VARIANCE, ndim) + eps) ** 0.5
        if gamma is not None:
            out = out * column(gamma, ndim)
        return out if beta is None else out + column(beta, ndim)

    return held(g)


def batch(module: nn.Module, affine: bool = True) -> nn.Module:
    module = module.double().eval()
    module.running_mean.copy_(MEAN)
    module.running_var.copy_(VARIANCE)
    if affine:
        module.weight.data.copy_(CHANNELS)
        module.bias.data.copy_(SHIFT)
    return module


def divided(p: float, dim: int, eps: float = 1e-12):
    return held(
        lambda z, x: z[0] / (x[0].abs() ** p).sum(dim, keepdim=True).pow(1 / p).clamp(min=eps)
    )


def local(size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
    """z ⟦(k + α/n Σ x²)^−β⟧, channel by channel."""

    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        out = torch.zeros_like(z[0])
        for c in range(out.shape[1]):
            low, high = max(0, c - size // 2), c + (size - 1) // 2 + 1
            total = x[0][:, low:high].square().sum(1) / size
            out[:, c] = z[0][:, c] * (k + alpha * total) ** -beta
        return out

    return held(g)


LAYER: list[Case] = [
    *table("layer_norm", {
        "function": lambda x: F.layer_norm(x, (3,), ROWS, BETA, 1e-5),
        "keyword": lambda x: F.layer_norm(input=x, normalized_shape=[3], weight=ROWS, bias=BETA),
        "torch": lambda x: torch.layer_norm(x, (3,), ROWS, BETA),
    }, X, oracle=normalised(last(1), eps=1e-5, gamma=ROWS, beta=BETA)),
    *table("layer_norm", {"plain": nn.LayerNorm(3, elementwise_affine=False, eps=1e-3).double()}, X,
           oracle=normalised(last(1), eps=1e-3)),
    *table("layer_norm", {"no shift": lambda x: F.layer_norm(x, (3,), ROWS)}, X,
           oracle=normalised(last(1), eps=1e-5, gamma=ROWS)),
    *table("layer_norm", {"shift alone": lambda x: F.layer_norm(x, (3,), None, BETA)}, X,
           oracle=normalised(last(1), eps=1e-5, beta=BETA)),
    *table("layer_norm",
           {"two dimensions": nn.LayerNorm((4, 3), elementwise_affine=False).double()},
           X, oracle=normalised(last(2), eps=1e-5)),
    *table("rms_norm", {
        "function": lambda x: F.rms_norm(x, (3,), ROWS, 1e-6),
        "keyword": lambda x: F.rms_norm(input=x, normalized_shape=(3,), weight=ROWS, eps=1e-6),
    }, X, oracle=normalised(last(1), eps=1e-6, centred=False, gamma=ROWS)),
    *table("rms_norm", {"module": nn.RMSNorm(3, elementwise_affine=False).double()}, X,
           oracle=normalised(last(1), eps=torch.finfo(torch.float64).eps, centred=False)),
]  # fmt: skip

GROUP: list[Case] = [
    *table("group_norm", {
        "function": lambda x: F.group_norm(x, 2, CHANNELS, SHIFT),
        "keyword": lambda x: F.group_norm(input=x, num_groups=2, weight=CHANNELS, bias=SHIFT,
                                          eps=1e-5),
        "torch": lambda x: torch.group_norm(x, 2, CHANNELS, SHIFT),
    }, IMAGE,
    oracle=normalised(channels(2), eps=1e-5, gamma=column(CHANNELS, 4), beta=column(SHIFT, 4))),
    *table("group_norm", {"plain": nn.GroupNorm(4, 4, affine=False).double(),
                          }, X, oracle=normalised(channels(1), eps=1e-5)),
    *table("group_norm", {"one group": nn.GroupNorm(1, 4, eps=1e-2).double()}, IMAGE,
           oracle=normalised(channels(4), eps=1e-2)),
    *table("instance_norm", {
        "function": lambda x: F.instance_norm(x, weight=CHANNELS, bias=SHIFT),
        "torch": lambda x: torch.instance_norm(x, CHANNELS, SHIFT, None, None, True, 0.1, 1e-5,
                                               False),
    }, IMAGE,
    oracle=normalised(channels(1), eps=1e-5, gamma=column(CHANNELS, 4), beta=column(SHIFT, 4))),
    *table("instance_norm", {"1d": nn.InstanceNorm1d(4).double(),
                             "function 1d": F.instance_norm}, X,
           oracle=normalised(channels(1), eps=1e-5)),
    *table("instance_norm", {"2d": nn.InstanceNorm2d(4).double()}, IMAGE,
           oracle=normalised(channels(1), eps=1e-5)),
    *table("instance_norm",
           {"running": batch(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))},
           IMAGE, oracle=running(4, CHANNELS, SHIFT)),
]  # fmt: skip

BATCH: list[Case] = [
    *table("batch_norm", {
        "2d": batch(nn.BatchNorm2d(4)),
        "function": lambda x: F.batch_norm(x, MEAN, VARIANCE, CHANNELS, SHIFT),
        "keyword": lambda x: F.batch_norm(input=x, running_mean=MEAN, running_var=VARIANCE,
                                          weight=CHANNELS, bias=SHIFT, training=False),
        "torch": lambda x: torch.batch_norm(x, CHANNELS, SHIFT, MEAN, VARIANCE, False, 0.1, 1e-5,
                                            False),
    }, IMAGE, oracle=running(4, CHANNELS, SHIFT)),
    *table("batch_norm", {"1d": batch(nn.BatchNorm1d(4))}, X, oracle=running(3, CHANNELS, SHIFT)),
    *table("batch_norm", {"rows": batch(nn.BatchNorm1d(4))}, draw(3, 4),
           oracle=running(2, CHANNELS, SHIFT)),
    *table("batch_norm", {"3d": batch(nn.BatchNorm3d(4))}, draw(1, 4, 2, 2, 2),
           oracle=running(5, CHANNELS, SHIFT)),
    *table("batch_norm", {"plain": batch(nn.BatchNorm2d(4, affine=False, eps=1e-2), False)}, IMAGE,
           oracle=running(4, None, None, 1e-2)),
    *table("batch_norm", {"no shift": lambda x: F.batch_norm(x, MEAN, VARIANCE, CHANNELS)}, IMAGE,
           oracle=running(4, CHANNELS, None)),
]  # fmt: skip

LENGTH: list[Case] = [
    *table("normalize", {"default": F.normalize,
                         "keyword": lambda x: F.normalize(input=x, p=2.0, dim=1)},
           X, oracle=divided(2, 1)),
    *table("normalize", {"last": lambda x: F.normalize(x, dim=-1),
                         "positional": lambda x: F.normalize(x, 2, -1)},
           X, oracle=divided(2, -1)),
    *table("normalize", {"p = 1": lambda x: F.normalize(x, 1.0, -1)}, X, oracle=divided(1, -1)),
    *table("normalize", {"p = 3": lambda x: F.normalize(x, p=3, dim=2, eps=0.1)}, X,
           oracle=divided(3, 2, 0.1)),
    *table("normalize", {"eps": lambda x: F.normalize(x, dim=2, eps=100.0)}, X,
           oracle=divided(2, 2, 100.0)),
    *table("local_response_norm", {"module": nn.LocalResponseNorm(3),
                                   "function": lambda x: F.local_response_norm(x, 3)},
           IMAGE, oracle=local(3)),
    *table("local_response_norm", {"even": lambda x: F.local_response_norm(x, 2, 0.5, 0.6, 2.0)}, X,
           oracle=local(2, 0.5, 0.6, 2.0)),
    *table("local_response_norm",
           {"3d": lambda x: F.local_response_norm(x, size=5, alpha=0.3, k=1.5)},
           draw(1, 4, 2, 2, 2), oracle=local(5, 0.3, 0.75, 1.5)),
]  # fmt: skip

CASES = LAYER + GROUP + BATCH + LENGTH
