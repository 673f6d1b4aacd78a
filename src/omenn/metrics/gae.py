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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omenn.check import whole
from omenn.errors import InputError
from omenn.metrics.explainers import Explainer
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_targets,
    constant_maps,
    explained,
    logits_of,
    not_finite,
    of_targets,
)
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.score import Score

FLOOR = 1e-9
LARGEST = 80.0  # exponent


class GAEScore(NamedTuple):
    """One value a mosaic each; ``gae`` = local consistency × contrastiveness."""

    local_consistency: Score
    contrastiveness: Score
    gae: Score


@dataclass(frozen=True, eq=False)
class _Masked:
    """The n states of one order of masking."""

    images: Tensor  # (n, B, C, H, W)
    logits: Tensor  # (n, B), of the target
    shares: Tensor  # (B, C, H, W): a, which adds up to 1 for each state, summed over them


@metric(
    "gae",
    Measure("local consistency", axis=True),
    Measure("contrastiveness", axis=True),
    Measure("gae", headline=True),
    family="composite",
    summary="local consistency × contrastiveness, on mosaics of four pictures",
    source="arXiv 2412.09311",
)
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

    ``published=True`` is the published code with batches of four (with others it makes mosaics of
    other pictures than it asks about): at step k the elements zeroed are k/n *more* in the order
    MoRF (0, .1, .3, .6, 1 of all, so the two curves do not compare), the four classes of the
    contrast are ``labels``, f_0 is the raw logit, and a map may have channels (B, C, H, W), each
    rectified and scored on its own, as the published methods return them; without, it counts for
    all channels alike. By default each step zeroes 1/n of the
    elements in both orders, the classes are the predicted ones, and f_0 is at least the standard
    deviation of the picture's logits, in magnitude.

    A map that is not finite counts as zero everywhere. Such maps are counted, and of the positive
    pictures and the mosaics the maps that are constant, and those without a positive value, for
    which F or the contrastiveness is 0.

    Args:
        f: images (n, C, H, W) → logits, differentiable.
        images: (B, C, H, W) with even sides; a rest of B modulo 4 is left out, and counted.
        labels: (B,), for ``published``.
        steps: n, the number of states of each order, the picture itself among them.
        seed: of the shuffle and the choice of positive pictures; ``chunk`` does not change them.
        tick: called after each chunk of mosaics.

    Raises:
        InputError: fewer than four pictures, odd sides, no labels for ``published``, fewer than two
            steps, a model without gradients, maps of another shape.
        TargetError: labels that are not one for each picture, or not among the logits.

    Source: arXiv 2412.09311, section 4.
    """
    images = checked_images(images)
    count = len(images) // 4
    if not count or images.shape[2] % 2 or images.shape[3] % 2:
        raise InputError(
            f"mosaics need four pictures or more, with even sides; got {tuple(images.shape)}.",
            argument="images",
            got=str(tuple(images.shape)),
        )
    whole("steps", steps, 2)
    logits = logits_of(f, images, chunk)
    names = _names(logits, labels) if published else logits.argmax(1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)[: 4 * count].view(count, 4)
    luck = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    asked = _Explainer(explain, channels=published)
    game = _Game(f, asked, images, logits, names, steps, published, chunk)
    found = []
    for parts in zip(*(t.split(max(1, chunk // 4)) for t in (order, luck)), strict=True):
        found.append(game.judged(*(part.to(images.device) for part in parts)))
        tick()
    lc, c = (torch.cat(values) for values in zip(*found, strict=True))
    prefix = "published " if published else ""
    notes = {"pictures left over": len(images) - 4 * count, **asked.counted}
    named = {"local consistency": lc, "contrastiveness": c, "gae": lc * c}
    return GAEScore(*(Score(f"{prefix}{name}", values, notes) for name, values in named.items()))


def _names(logits: Tensor, labels: Tensor | None) -> Tensor:
    """The labels as classes that the logits have."""
    if labels is None:
        raise InputError(
            "published=True compares with the true classes: give labels=.", argument="labels"
        )
    names = checked_targets(labels, len(logits), logits.device)
    of_targets(logits, names)
    return names


@dataclass(frozen=True, eq=False)
class _Game:
    """The pictures with their logits, and the classes (B,) that the contrast is about."""

    f: Model
    asked: _Explainer
    images: Tensor
    logits: Tensor
    names: Tensor
    steps: int
    published: bool
    chunk: int

    def judged(self, some: Tensor, luck: Tensor) -> tuple[Tensor, Tensor]:
        """Local consistency and contrastiveness of the mosaics (M, 4) of these pictures."""
        four = self.images[some.flatten()].view(len(some), 4, *self.images.shape[1:])
        mosaic, classes = mosaics(four), self.logits.argmax(1)[some]
        positive = self._drawn(mosaic, classes, luck)
        rows = torch.arange(len(some), device=some.device)
        own, y = self.logits[some[rows, positive]], classes[rows, positive]
        consistency = self._consistency(four[rows, positive], y, own)
        score = _score_map(own.gather(1, self.names[some]), positive, mosaic)
        contrast = _share(score, self.asked(mosaic, y, alone=True))
        return consistency.clamp(min=0) / 2, contrast.clamp(min=0)

    def _drawn(self, mosaic: Tensor, classes: Tensor, luck: Tensor) -> Tensor:
        """Which picture is the positive one, drawn by the softmax of the mosaic's logits."""
        likely = logits_of(self.f, mosaic, self.chunk).gather(1, classes).softmax(1)
        # where the sum of those before passes the number
        return (likely.cumsum(1)[:, :3] < luck.to(likely)).sum(1)

    def _consistency(self, x: Tensor, y: Tensor, own: Tensor) -> Tensor:
        """F + R of the positive pictures."""
        r = self.asked(x, y, alone=True)
        masked = (
            _masked(self.f, x, y, self.steps, first, self.published) for first in (True, False)
        )
        morf, lerf = masked
        start = _start(own, y, self.published)
        return _faithfulness(r, morf, lerf) + _robustness(self.asked, r, y, morf, lerf, start)


def mosaics(four: Tensor) -> Tensor:
    """Four pictures each, halved by the nearest pixel, in a square: (M, 4, C, H, W) → (M, C, H, W).

    >>> mosaics(torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 1, 2, 2))[0, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    half = four[..., ::2, ::2]
    top = torch.cat([half[:, 0], half[:, 1]], -1)
    return torch.cat([top, torch.cat([half[:, 2], half[:, 3]], -1)], -2)


class _Explainer:
    """The positive parts of an explainer's maps, and how many are broken or have none."""

    def __init__(self, explain: Explainer, channels: bool = False) -> None:
        self.explain, self.channels = explain, channels
        self.counted = {
            "constant maps": 0,
            "maps that are not finite": 0,
            "maps without positive values": 0,
        }

    def __call__(self, images: Tensor, targets: Tensor, alone: bool = False) -> Tensor:
        """``alone``: of pictures that are not masked; only theirs should have positive values."""
        maps = explained(self.explain, images, targets, self.channels)
        r = positive_part(maps)
        self.counted["maps that are not finite"] += int(not_finite(maps).sum())
        if alone:
            empty = (r.flatten(1).amax(1) == 0) & ~not_finite(maps)
            self.counted["maps without positive values"] += int(empty.sum())
            self.counted["constant maps"] += int(constant_maps(maps).sum())
        return r


def positive_part(maps: Tensor) -> Tensor:
    """(B, 1, H, W) float64: max(0, map) over its maximum; zero where the map has none or is broken.

    Maps with channels (B, C, H, W) keep them.

    >>> positive_part(torch.tensor([[[-1.0, 2.0], [4.0, 0.0]]])).tolist()
    [[[[0.0, 0.5], [1.0, 0.0]]]]
    """
    maps = maps if maps.ndim == 4 else maps[:, None]
    broken = not_finite(maps).view(-1, 1, 1, 1)
    maps = torch.where(broken, 0.0, maps.detach().double()).clamp(min=0)
    top = maps.flatten(1).amax(1).view(-1, 1, 1, 1)
    return maps / torch.where(top > 0, top, 1.0)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """D(a, b) = Σ|a − b| / (Σ|a| + Σ|b|) of each row, in [0, 1]; 0 for two that are zero.

    >>> distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).round(decimals=6).tolist()
    [1.0]
    """
    a, b = a.flatten(1), b.flatten(1)
    return (a - b).abs().sum(1) / (a.abs().sum(1) + b.abs().sum(1) + FLOOR)


def _masked(f: Model, x: Tensor, y: Tensor, steps: int, largest: bool, published: bool) -> _Masked:
    """n states, the first of them the picture itself."""
    images, logits, shares = [], [], torch.zeros_like(x, dtype=torch.float64)
    size = x[0].numel()
    gone = torch.zeros(len(x), size, dtype=torch.bool, device=x.device)
    for step in range(steps):
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logit = f(leaf).gather(1, y[:, None])[:, 0]
            if not logit.requires_grad:
                raise InputError(
                    "f has no gradient: the order of masking is that of input × gradient.",
                    argument="f",
                    remedy=(
                        "Give a function that runs the model without torch.no_grad and "
                        "torch.inference_mode."
                    ),
                )
            (grad,) = torch.autograd.grad(logit.sum(), leaf)
        a = (leaf.detach() * grad).abs().double()
        a = a / (a.flatten(1).sum(1)[:, None, None, None] + FLOOR)
        images.append(x)
        logits.append(logit.detach().double())
        shares = shares + a
        if step == steps - 1:
            break
        flat = a.flatten(1)
        if published:
            number = _published_number(size, steps, step)
        else:  # among those that are not gone yet, up to the same share in both orders
            number = (step + 1) * size // steps - step * size // steps
            flat = flat.masked_fill(gone, -torch.inf if largest else torch.inf)
        chosen = flat.topk(number, dim=1, largest=largest).indices
        gone = gone.scatter(1, chosen, True)
        x = torch.where(gone.view_as(x), 0.0, x)
    return _Masked(torch.stack(images), torch.stack(logits), shares)


def _published_number(size: int, steps: int, step: int) -> int:
    """How many elements the published code zeroes after a step.

    NOTE [one element short] Its shares are float32, rounded down: half of a picture, by ten steps,
    is one element less than half. Later steps order what is left anew, so that one element counts.
    """
    shares = torch.linspace(1 / steps, 1, steps, dtype=torch.float32, device="cpu")
    return int(shares[step] * size)


def _faithfulness(r: Tensor, morf: _Masked, lerf: _Masked) -> Tensor:
    sums = [run.shares for run in (lerf, morf)]
    low, high = (s / (s.flatten(1).sum(1)[:, None, None, None] + FLOOR) for s in sums)
    impact = torch.sign(low - high)
    if r.shape[1] == 1:  # a map without channels is the same for all
        impact = impact.mean(1, keepdim=True)
    return _share(impact, r)


def _start(logits: Tensor, y: Tensor, published: bool) -> Tensor:
    """(B,): f_0, by which differences of the logit are divided."""
    start = of_targets(logits, y)
    if published:
        return start + FLOOR
    return torch.maximum(start.abs(), logits.std(1, correction=0)) + FLOOR


def _robustness(
    asked: _Explainer, r: Tensor, y: Tensor, morf: _Masked, lerf: _Masked, start: Tensor
) -> Tensor:
    moved, answered = [], []
    for step in range(1, len(morf.images)):
        maps = [asked(run.images[step], y) for run in (morf, lerf)]
        moved.append(distance(r, maps[0]) - distance(r, maps[1]))
        answered.append((lerf.logits[step] - morf.logits[step]) / start)
    return 1 - 2 * distance(torch.stack(moved, 1), torch.stack(answered, 1))


def _score_map(logits: Tensor, positive: Tensor, mosaic: Tensor) -> Tensor:
    """(M, 1, H, W): s, from the logits (M, 4) of the positive picture at the four classes."""
    height, width = mosaic.shape[2] // 2, mosaic.shape[3] // 2
    # labels may have more than the positive one; the bound keeps numbers finite
    ratio = (logits - logits.gather(1, positive[:, None])).clamp(max=LARGEST).exp()
    cells = (2 * ratio - 1).view(-1, 1, 2, 2)
    score = cells.repeat_interleave(height, 2).repeat_interleave(width, 3)
    score[:, :, height - 1 : height + 1, width - 1 : width + 1] = 1.0
    return score


def _share(weights: Tensor, r: Tensor) -> Tensor:
    """(B,): Σ weights · r / Σ r; 0 for a map of zeros."""
    return (weights * r).flatten(1).sum(1) / (r.flatten(1).sum(1) + FLOOR)
