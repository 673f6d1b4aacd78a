"""Keep and remove pixels in the order of a map: KPM, KNM, KAM, RPM, RNM, RAM.

A map puts the pixels of a picture in an order: by their positive part, by their negated negative
part, or by their absolute value. The first ones are kept and all others blurred away, or they are
blurred away and all others kept, for 16 shares of the pixels. What the model then says makes a
curve over the shares, and the area below it is the score.

Source: Lundberg et al. 2020, arXiv 1905.04610; fractions, blur and ``published=True`` of Hesse et
al. 2021, arXiv 2111.07668.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omenn.check import choose, positive, whole, wrong
from omenn.errors import InputError
from omenn.filters import gaussian_filter
from omenn.metrics.maps import (
    Model,
    checked_images,
    checked_maps,
    checked_targets,
    constant_maps,
    descending,
)
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.perturbation import Outcome, curve
from omenn.metrics.score import Score


class Variant(NamedTuple):
    """One of the six scores.

    ``keep``: the first pixels are kept, else removed. ``sign``: of the pixels that are ordered, 1,
    −1, or 0 for all by their absolute value. ``higher``: whether more is better.
    """

    keep: bool
    sign: int
    higher: bool


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "kpm": Variant(keep=True, sign=1, higher=True),
        "knm": Variant(keep=True, sign=-1, higher=False),
        "kam": Variant(keep=True, sign=0, higher=True),
        "rpm": Variant(keep=False, sign=1, higher=False),
        "rnm": Variant(keep=False, sign=-1, higher=True),
        "ram": Variant(keep=False, sign=0, higher=False),
    }
)
"""Keep or remove, by positive, negative or absolute mask."""

FRACTIONS = tuple(10 ** (-2 + 2 * k / 15) for k in range(16))  # geomspace(0.01, 1, 16)
SIDE, KERNEL, SIGMA = 224, 51, 41.0  # the published blur, and the pictures it was published for


@dataclass(frozen=True, eq=False, repr=False)
class KeepRemove:
    """The scores of B maps.

    ``curves``: variant → (B, fractions), float64: the target's logit, or for the absolute masks 1
    where the label has the largest logit and 0 elsewhere. ``areas``: variant → (B,), the area
    below each curve over ``fractions`` by trapezoids. ``constant``: how many of the maps have the
    same value everywhere. ``empty``: variant → how many have no pixel of its sign.
    """

    fractions: Tensor
    curves: Mapping[str, Tensor]
    areas: Mapping[str, Tensor]
    constant: int
    empty: Mapping[str, int]

    @property
    def means(self) -> dict[str, float]:
        """Variant → mean area over the images; that of accuracies is the area of the accuracy."""
        return {name: float(areas.mean()) for name, areas in self.areas.items()}

    @property
    def scores(self) -> tuple[Score, ...]:
        """A score for each variant, by the area."""
        return tuple(
            Score(
                name,
                areas,
                {
                    "constant maps": self.constant,
                    f"maps without a pixel of the sign of {name}": self.empty[name],
                },
                higher=VARIANTS[name].higher,
            )
            for name, areas in self.areas.items()
        )

    def __repr__(self) -> str:
        scores = ", ".join(f"{name}={mean:.4g}" for name, mean in self.means.items())
        images = len(next(iter(self.areas.values())))
        return f"KeepRemove({scores}, images={images}, constant={self.constant})"


@metric(
    "keep-remove",
    *(Measure(name, v.higher, headline=name in ("kam", "ram")) for name, v in VARIANTS.items()),
    family="faithfulness",
    summary="keep or remove the first pixels by positive, negative or absolute values",
    source="arXiv 1905.04610",
    hidden=("variants", "fractions"),
)
def keep_remove(
    f: Model,
    images: Tensor,
    targets: int | Tensor,
    maps: Tensor,
    *,
    labels: Tensor | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    fractions: Sequence[float] = FRACTIONS,
    kernel: int | None = None,
    sigma: float | None = None,
    published: bool = False,
    seed: int = 0,
    chunk: int = 64,
) -> KeepRemove:
    """How well maps say which pixels speak for the target, and which against it.

    For each fraction r the first k = min(round(r·H·W), pixels of the sign) pixels of the order are
    selected. ``kpm`` and ``knm`` keep the selected ones alone and ``rpm`` and ``rnm`` remove them,
    by positive and by negative values; the curve is the target's logit. ``kam`` and ``ram`` do so
    by absolute values, of which all pixels have one; the curve is the accuracy. What is not kept is
    replaced by the :func:`blurred` picture. With ``published=True`` rpm, rnm and ram are those of
    the X-DNN paper, which keep the *last* k of the pixels of the sign and blur all others, also
    those of the other sign; the other three are the same. By default they are SHAP's. Better is
    more for kpm, kam, rnm, and less for knm, ram, rpm (``VARIANTS``). An area depends on the scale
    of the logits: compare maps of one model.

    Pixels with the same value come in random order, another for each image: the i-th image always
    has the same one for a seed. So a constant map is scored like random ones (of its sign: a map
    of zeros has no positive pixel, so its kpm curve is the blurred picture's logit all along), is
    counted, and has no advantage by where the subject lies.

    Args:
        f: images (n, C, H, W) → logits (n, classes), of a model in evaluation mode; called without
            gradients.
        images: (B, C, H, W), as f takes them.
        targets: class index of each image, (B,), or one for all.
        maps: (B, H, W), or (B, C, H, W), of which the mean over channels is taken.
        labels: right classes (B,), whose accuracy kam and ram are; the targets if not given.
        variants: names of ``VARIANTS``.
        fractions: shares of the pixels, rising, in (0, 1].
        kernel, sigma: of the blur; published are 51 and 41 for a side of 224, and by default they
            are in proportion to the shorter side.
        published: the remove-metrics of Hesse et al. 2021 in place of SHAP's.
        seed: of the order among equal values.
        chunk: how many pictures f gets at once, at most.

    Raises:
        InputError: shapes that do not fit, a map that is not finite, unknown or useless options,
            logits that are not finite or not (n, classes).
        TargetError: a class that the logits do not have.

    Example:
        >>> import torch
        >>> weight = torch.linspace(-1, 1, 64)
        >>> net = lambda images: torch.stack([images.flatten(1) @ weight] * 2, 1)
        >>> x = torch.randn(3, 1, 8, 8)
        >>> exact = weight.view(8, 8) * (x - blurred(x))[:, 0]
        >>> found, other = (keep_remove(net, x, 0, m) for m in (exact, torch.rand(3, 8, 8)))
        >>> assert (found.areas["kpm"] >= other.areas["kpm"]).all()

    Source: the module's docstring.
    """
    images = checked_images(images)
    values = checked_maps(maps, images).flatten(1)
    targets = checked_targets(targets, len(images), images.device)
    named = targets if labels is None else checked_targets(labels, len(images), images.device)
    shares = _checked_options(variants, fractions, seed, chunk)
    blur = blurred(images, kernel, sigma)
    selected = {s: _Selection.of(values, s, seed) for s in {VARIANTS[v].sign for v in variants}}
    curves = {}
    for name in variants:
        keep, sign, _ = VARIANTS[name]
        order = selected[sign].last_first() if published and not keep else selected[sign].order
        counts = selected[sign].counts(shares)
        outcome: Outcome = "logit" if sign else "accuracy"
        options: Any = {"restore": keep or published, "outcome": outcome, "chunk": chunk}
        asked = targets if sign else named
        curves[name] = curve(f, images, asked, order, blur, counts, **options)
    x = torch.tensor(shares, dtype=torch.float64, device=images.device)
    return KeepRemove(
        fractions=x,
        curves=curves,
        areas={name: torch.trapezoid(y, x) for name, y in curves.items()},
        constant=int(constant_maps(values).sum()),
        empty={v: int((selected[VARIANTS[v].sign].available == 0).sum()) for v in variants},
    )


def blurred(
    images: Tensor,
    kernel: int | None = None,
    sigma: float | None = None,
    border: str = "reflect",
) -> Tensor:
    """The pictures without detail: a kernel exp(−(d/2σ)²) along rows and columns, edges reflected.

    ``kernel`` is its width in pixels, odd. By default 51 and σ = 41 for a shorter side of 224, and
    in proportion for others (at least 3 pixels). ``border="zeros"``: as if there were zeros beyond
    the edges, which darken them. (B, C, H, W) → the same shape.

    Raises:
        InputError: a kernel that is not odd, or too wide to be reflected.

    Example:
        >>> import torch
        >>> assert torch.allclose(blurred(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 8, 8))
    """
    side = min(images.shape[2:])
    if kernel is None:
        kernel = max(3, 2 * round((KERNEL * side / SIDE - 1) / 2) + 1)
    sigma = SIGMA * side / SIDE if sigma is None else sigma
    if whole("kernel", kernel, 3) % 2 == 0:
        raise wrong("kernel", kernel, "an odd number of pixels")
    positive("sigma", sigma)
    reach = kernel // 2
    if border == "reflect" and reach >= side:
        raise InputError(
            f"a blur of {kernel} pixels cannot be reflected at the edges of pictures of "
            f"{images.shape[2]} x {images.shape[3]} pixels.",
            argument="kernel",
            got=str(kernel),
            remedy="Half of it must be below their side.",
        )
    # exp(−(d/2σ)²) is the bell of σ√2
    return gaussian_filter(images, math.sqrt(2) * sigma, reach, border)


@dataclass(frozen=True, eq=False)
class _Selection:
    """``order`` (B, pixels): those that count come first, ``available`` (B,) of them."""

    order: Tensor
    available: Tensor

    @classmethod
    def of(cls, values: Tensor, sign: int, seed: int) -> _Selection:
        strength = values * sign if sign else values.abs()
        counted = strength > 0 if sign else torch.ones_like(strength, dtype=torch.bool)
        return cls(descending(strength, seed), counted.sum(1))

    def last_first(self) -> Tensor:
        """The order in which those that count are turned round, and still come first."""
        place = torch.arange(self.order.shape[1], device=self.order.device)
        turned = (self.available[:, None] - 1 - place) % self.order.shape[1]
        return self.order.gather(1, turned)

    def counts(self, shares: Sequence[float]) -> Tensor:
        """(B, shares): these shares of the pixels, as far as there are any of the sign."""
        most = [round(share * self.order.shape[1]) for share in shares]
        return torch.minimum(self.available[:, None], torch.tensor(most).to(self.available))


def _checked_options(variants: Any, fractions: Any, seed: Any, chunk: Any) -> list[float]:
    if isinstance(variants, str) or not variants:
        raise wrong("variants", variants, f"a list of names: {', '.join(VARIANTS)}")
    for name in variants:
        choose("variants", name, tuple(VARIANTS))
    shares = list(fractions)
    numbers = all(isinstance(r, (int, float)) for r in shares)
    if len(shares) < 2 or not numbers or not _rising([0.0, *shares]) or shares[-1] > 1:
        raise wrong("fractions", shares, "two or more rising numbers above 0 and up to 1")
    whole("seed", seed, 0)
    whole("chunk", chunk, 1)
    return shares


def _rising(numbers: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(numbers))
