"""Global Attribution Evaluation: local consistency, contrastiveness, and their product.

Four pictures, halved, make a mosaic, and one of them is the *positive* one. Local consistency asks
whether the map of the positive picture agrees with what happens when its most or its least
relevant elements are zeroed step by step; contrastiveness whether the map of the mosaic lies on the
positive picture and not on the others.

Source: Vukadin, Afrić, Šilić, Delač, "Advancing Attribution-Based Neural Network Explainability
through Relative Absolute Magnitude Layer-Wise Relevance Propagation and Multi-Component
Evaluation", ACM TIST, arXiv 2412.09311.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omenn.errors import InputError
from omenn.judge.explainers import Explainer
from omenn.judge.maps import Model, checked_images, logits_of, not_finite
from omenn.judge.score import Score

FLOOR = 1e-9


@dataclass(frozen=True, eq=False)
class GAEScore:
    """One value a mosaic each; ``gae`` = local consistency × contrastiveness."""

    local_consistency: Score
    contrastiveness: Score
    gae: Score


@dataclass(frozen=True, eq=False)
class _Masked:
    """The states of one order: pictures, the target's logit, the gradient's share (each (n, …))."""

    images: Tensor  # (n, B, C, H, W)
    logits: Tensor  # (n, B)
    shares: Tensor  # (n, B, C, H, W), each adding up to 1


def gae(
    f: Model,
    explain: Explainer,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int = 10,
    published: bool = False,
    seed: int = 0,
    chunk: int = 32,
    tick: Callable[[], Any] = lambda: None,
) -> GAEScore:
    """How faithful, robust and contrastive maps are, on mosaics of four pictures each.

    For the positive picture x with the class y that the model predicts, a = |x ⊙ ∂f_y/∂x|, made to
    add up to 1, orders its elements (pixels × channels). They are zeroed step by step, the largest
    first (MoRF) or the smallest first (LeRF), with a taken anew at each step.

    - F = Σ M r / Σ r, with r the map's positive part over its maximum and M the sign of
      Σ_LeRF a − Σ_MoRF a, both sums made to add up to 1;
    - R = 1 − 2 D(Δr, Δo), over the steps: Δr = D(r, r_MoRF) − D(r, r_LeRF),
      Δo = (f_LeRF − f_MoRF) / f_0, D(a, b) = Σ|a − b| / (Σ|a| + Σ|b|);
    - local consistency = ReLU(F + R) / 2;
    - contrastiveness = ReLU(Σ s r' / Σ r'), r' the map of the mosaic for y, s = 2 p_j / p_pos − 1
      on picture j with p the softmax of x's own logits at the four classes, and 1 on the centre.

    ``published=True`` is the published code: at step k the elements zeroed are k/n *more* in the
    order MoRF (0, .1, .3, .6, 1 of all, so the two curves do not compare), the four classes of the
    contrast are ``labels``, and f_0 is the raw logit. By default each step zeroes 1/n of the
    elements in both orders, the classes are the predicted ones, and f_0 is at least the standard
    deviation of the picture's logits, in magnitude.

    Args:
        f: images (n, C, H, W) → logits, differentiable.
        images: (B, C, H, W) with even sides; a rest of B modulo 4 is left out, and counted.
        labels: (B,), for ``published``.
        seed: of the shuffle and of the choice of positive pictures.
        tick: called after each chunk of mosaics.

    Raises:
        InputError: fewer than four pictures, odd sides, no labels for ``published``.

    Source: arXiv 2412.09311, section 4.
    """
    images = checked_images(images)
    count = len(images) // 4
    if not count or images.shape[2] % 2 or images.shape[3] % 2:
        raise InputError(
            f"mosaics need four pictures or more, with even sides; got {tuple(images.shape)}."
        )
    if published and labels is None:
        raise InputError("published=True compares with the true classes: give labels=.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)[: 4 * count].view(count, 4)
    predicted = logits_of(f, images, chunk).argmax(1)
    consistency, contrast = [], []
    counted = {"pictures left over": len(images) - 4 * count, "maps without positive values": 0}
    for some in order.split(max(1, chunk // 4)):
        four = images[some.flatten()].view(len(some), 4, *images.shape[1:])
        classes = predicted[some]
        mosaic = mosaics(four)
        likely = logits_of(f, mosaic, chunk).gather(1, classes).softmax(1).cpu()
        positive = torch.multinomial(likely, 1, generator=generator)[:, 0].to(images.device)
        rows = torch.arange(len(some), device=images.device)
        x, y = four[rows, positive], classes[rows, positive]
        r = positive_part(explain(x, y), x)
        counted["maps without positive values"] += int((r.flatten(1).sum(1) == 0).sum())
        runs = [_masked(f, x, y, steps, first, published) for first in (True, False)]
        faithful = _faithfulness(r, *runs)
        robust = _robustness(f, explain, r, y, *runs, published=published)
        consistency.append((faithful + robust).clamp(min=0) / 2)
        names = classes if labels is None or not published else labels[some].to(classes)
        contrast.append(_contrastiveness(f, explain, x, y, mosaic, names, positive))
        tick()
    lc, c = torch.cat(consistency).cpu(), torch.cat(contrast).cpu()
    prefix = "published " if published else ""
    notes = {what: n for what, n in counted.items() if n}
    return GAEScore(
        Score(f"{prefix}local consistency", lc, notes),
        Score(f"{prefix}contrastiveness", c, notes),
        Score(f"{prefix}gae", lc * c, notes),
    )


def mosaics(four: Tensor) -> Tensor:
    """Four pictures each, halved by the nearest pixel, in a square: (M, 4, C, H, W) → (M, C, H, W).

    >>> mosaics(torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 1, 2, 2))[0, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    half = four[..., ::2, ::2]
    top = torch.cat([half[:, 0], half[:, 1]], -1)
    return torch.cat([top, torch.cat([half[:, 2], half[:, 3]], -1)], -2)


def positive_part(maps: Tensor, images: Tensor) -> Tensor:
    """(B, 1, H, W) float64: max(0, map) over its maximum; zero where the map has none or is broken.

    >>> maps = torch.tensor([[[-1.0, 2.0], [4.0, 0.0]]])
    >>> positive_part(maps, torch.zeros(1, 1, 2, 2)).tolist()
    [[[[0.0, 0.5], [1.0, 0.0]]]]
    """
    if maps.shape != (len(images), *images.shape[2:]):
        raise InputError(
            f"the explainer returned maps of the shape {tuple(maps.shape)} for images of the shape "
            f"{tuple(images.shape)}. Return one map (H, W) for each image."
        )
    maps = torch.where(not_finite(maps)[:, None, None], 0.0, maps.detach().double()).clamp(min=0)
    top = maps.flatten(1).amax(1)[:, None, None]
    return (maps / torch.where(top > 0, top, 1.0))[:, None]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """D(a, b) = Σ|a − b| / (Σ|a| + Σ|b|) of each row, in [0, 1]; 0 for two that are zero.

    >>> distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).round(decimals=6).tolist()
    [1.0]
    """
    a, b = a.flatten(1), b.flatten(1)
    return (a - b).abs().sum(1) / (a.abs().sum(1) + b.abs().sum(1) + FLOOR)


def _masked(f: Model, x: Tensor, y: Tensor, steps: int, largest: bool, published: bool) -> _Masked:
    """n states, the first of them the picture itself."""
    images, logits, shares = [], [], []
    size = x[0].numel()
    gone = torch.zeros(len(x), size, dtype=torch.bool, device=x.device)
    for step in range(steps):
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logit = f(leaf).gather(1, y[:, None])[:, 0]
            (grad,) = torch.autograd.grad(logit.sum(), leaf)
        a = (leaf.detach() * grad).abs().double()
        a = a / (a.flatten(1).sum(1)[:, None, None, None] + FLOOR)
        images.append(x)
        logits.append(logit.detach().double())
        shares.append(a)
        if step == steps - 1:
            break
        flat = a.flatten(1)
        if published:
            number = int((step + 1) / steps * size)
        else:  # among those that are not gone yet, up to the same share in both orders
            number = int((step + 1) / steps * size) - int(step / steps * size)
            flat = flat.masked_fill(gone, -torch.inf if largest else torch.inf)
        chosen = flat.topk(number, dim=1, largest=largest).indices
        gone = gone.scatter(1, chosen, True)
        x = torch.where(gone.view_as(x), 0.0, x)
    return _Masked(torch.stack(images), torch.stack(logits), torch.stack(shares))


def _faithfulness(r: Tensor, morf: _Masked, lerf: _Masked) -> Tensor:
    sums = [run.shares.sum(0) for run in (lerf, morf)]
    low, high = (s / (s.flatten(1).sum(1)[:, None, None, None] + FLOOR) for s in sums)
    impact = torch.sign(low - high).mean(1, keepdim=True)  # the map is the same for all channels
    return (impact * r).flatten(1).sum(1) / (r.flatten(1).sum(1) + FLOOR)


def _robustness(
    f: Model,
    explain: Explainer,
    r: Tensor,
    y: Tensor,
    morf: _Masked,
    lerf: _Masked,
    *,
    published: bool,
) -> Tensor:
    start = morf.logits[0]
    if not published:
        with torch.no_grad():
            spread = f(morf.images[0]).double().std(1)
        start = torch.maximum(start.abs(), spread)
    moved, answered = [], []
    for step in range(1, len(morf.images)):
        maps = [
            positive_part(explain(run.images[step], y), run.images[step]) for run in (morf, lerf)
        ]
        moved.append(distance(r, maps[0]) - distance(r, maps[1]))
        answered.append((lerf.logits[step] - morf.logits[step]) / start)
    return 1 - 2 * distance(torch.stack(moved, 1), torch.stack(answered, 1))


def _contrastiveness(
    f: Model,
    explain: Explainer,
    x: Tensor,
    y: Tensor,
    mosaic: Tensor,
    classes: Tensor,
    positive: Tensor,
) -> Tensor:
    p = logits_of(f, x).gather(1, classes.to(x.device)).softmax(1)
    score = 2 * p / (p.gather(1, positive[:, None]) + 1e-300) - 1
    score = score.scatter(1, positive[:, None], 1.0)
    height, width = x.shape[2] // 2, x.shape[3] // 2
    cells = score.view(-1, 2, 2).repeat_interleave(height, 1).repeat_interleave(width, 2)
    cells[:, height - 1 : height + 1, width - 1 : width + 1] = 1.0
    r = positive_part(explain(mosaic, y), mosaic)[:, 0]
    total = (cells * r).flatten(1).sum(1) / (r.flatten(1).sum(1) + FLOOR)
    return total.clamp(min=0)
