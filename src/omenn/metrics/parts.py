"""Part-annotated pictures as tensors: the model's outputs without some parts, and the importance
that a map gives them. The basis of the FunnyBirds protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.errors import InputError
from omenn.metrics.explainers import Explainer
from omenn.metrics.maps import Model, constant_maps, explained, logits_of, not_finite

PUBLISHED_SIDE, PUBLISHED_DILATION = 256, 5


class PartData(Protocol):
    """A folder in FunnyBirds' layout, or generated birds."""

    @property
    def classes(self) -> tuple[Mapping[str, int], ...]: ...
    @property
    def parts(self) -> Collection[str]: ...
    def __len__(self) -> int: ...
    def label(self, index: int) -> int: ...
    def image(self, index: int) -> Any: ...
    def masks(self, index: int) -> dict[str, np.ndarray]: ...
    def background_count(self, index: int) -> int: ...
    def background_masks(self, index: int) -> np.ndarray: ...
    def with_parts(self, index: int, kept: Collection[str]) -> Any: ...
    def without_background(self, index: int, number: int) -> Any: ...


Prepare = Callable[[Any], Tensor]
"""A picture of the data → what the model takes, (1, C, H, W)."""


@dataclass(frozen=True, eq=False)
class Responses:
    """A model's outputs for N pictures and for each with something removed.

    ``parts``: names, P of them. ``full`` (N, K) logits; ``kept`` (N, 2^P, K), the entry whose
    number has bit p set is the picture in which part p stays; ``backgrounds``: for each picture
    (objects, K), without that object. ``images`` (N, C, H, W), ``masks`` (N, P, H, W) and
    ``background_masks`` [(objects, H, W)] as the model sees them, not dilated. All but the images
    lie in ordinary memory.
    """

    parts: tuple[str, ...]
    classes: tuple[Mapping[str, int], ...]
    labels: Tensor
    images: Tensor
    masks: Tensor
    background_masks: list[Tensor]
    full: Tensor
    kept: Tensor
    backgrounds: list[Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> Tensor:
        return self.full.argmax(1)

    def without(self, parts: int) -> Tensor:
        """(N, K): the logits where the parts of this bit set are removed."""
        return self.kept[:, self.kept.shape[1] - 1 - parts]


def responses(
    f: Model,
    data: PartData,
    prepare: Prepare,
    *,
    indices: Sequence[int] | None = None,
    chunk: int = 64,
    tick: Callable[[], Any] = lambda: None,
) -> Responses:
    """Runs the model on every picture and on all its interventions.

    A picture has 2^P part interventions and one for each background object. ``indices``: of the
    pictures, all by default; ``tick`` is called after each.

    Raises:
        InputError: no picture, pictures of different sizes, a model with fewer classes than the
            data, what the data or the model refuse.
    """
    numbers = list(range(len(data)) if indices is None else indices)
    if not numbers:
        raise InputError("there are no pictures.", argument="indices", remedy="Give at least one.")
    parts = tuple(sorted(data.parts))
    rows: list[tuple[Tensor, ...]] = []
    for index in numbers:
        batch = _stacked(index, map(prepare, _pictures(data, index, parts)))
        x = batch[:1]
        if rows:
            _check_size(index, x, rows[0][0])
        logits = logits_of(f, batch, chunk).cpu()
        _check_classes(logits.shape[1], len(data.classes))
        masks = data.masks(index)
        part_masks = _resized(np.stack([masks[p] for p in parts]), x)
        objects = _resized(data.background_masks(index), x)
        rows.append((x.clone(), logits, part_masks, objects))
        tick()
    split = 1 + 2 ** len(parts)
    return Responses(
        parts=parts,
        classes=data.classes,
        labels=torch.tensor([data.label(index) for index in numbers]),
        images=torch.cat([row[0] for row in rows]),
        masks=torch.stack([row[2] for row in rows]),
        background_masks=[row[3] for row in rows],
        full=torch.stack([row[1][0] for row in rows]),
        kept=torch.stack([row[1][1:split] for row in rows]),
        backgrounds=[row[1][split:] for row in rows],
    )


def _check_size(index: int, x: Tensor, first: Tensor) -> None:
    got, expected = (str(tuple(each.shape)) for each in (x, first))
    if got != expected:
        raise InputError(
            f"picture {index} comes as {got}, the first as {expected}.",
            argument="prepare",
            got=got,
            expected=expected,
            remedy="Use a preprocessing with one size.",
        )


def _check_classes(outputs: int, classes: int) -> None:
    if outputs < classes:
        raise InputError(
            f"the model has {outputs} classes, the data {classes}.",
            argument="f",
            got=str(outputs),
            expected=str(classes),
            remedy="Give a model that was trained on these classes.",
        )


def _pictures(data: PartData, index: int, parts: Sequence[str]) -> Iterator[Any]:
    """A picture, the 2^P with some of the parts in the order of their bits, each object gone."""
    yield data.image(index)
    for bits in range(2 ** len(parts)):
        yield data.with_parts(index, [p for k, p in enumerate(parts) if bits >> k & 1])
    for number in range(data.background_count(index)):
        yield data.without_background(index, number)


def _stacked(index: int, pictures: Iterable[Tensor]) -> Tensor:
    """What the preprocessing made of a picture and its interventions, (pictures, C, H, W)."""
    found = list(pictures)
    shapes = sorted({tuple(x.shape) for x in found})
    if len(shapes) > 1 or len(shapes[0]) != 4 or shapes[0][0] != 1:
        raise InputError(
            f"picture {index} and its interventions come as {', '.join(map(str, shapes))}.",
            argument="prepare",
            remedy="Use a preprocessing that makes (1, C, H, W) of each, with one size.",
        )
    return torch.cat(found)


def _resized(masks: np.ndarray, like: Tensor) -> Tensor:
    """Masks (M, h, w) at the size of the model's input, by the nearest pixel."""
    found = torch.from_numpy(np.ascontiguousarray(masks, dtype=np.float32))
    size = tuple(like.shape[2:])
    if not len(found) or found.shape[1:] == size:
        return found.reshape(-1, *size) > 0.5
    return F.interpolate(found[None], size=size, mode="nearest")[0] > 0.5


@dataclass(frozen=True, eq=False)
class Importance:
    """What the maps of one class a picture say: Σ over the parts, the objects, and everything.

    ``parts`` (N, P), ``backgrounds`` [(objects,)], ``total`` (N,), float64. ``constant`` and
    ``broken``: how many maps are the same everywhere; were not finite, and count as zero;
    ``inverted``: how many sum to zero or less, where a threshold, a share of the sum, asks the
    wrong way round.
    """

    parts: Tensor
    backgrounds: list[Tensor]
    total: Tensor
    constant: int
    broken: int
    inverted: int


def dilation_for(side: int, published: bool = False) -> int:
    """The width by which masks grow: 5 pixels at a side of 256, in proportion below, 3 at least.

    >>> dilation_for(256), dilation_for(64), dilation_for(64, published=True)
    (5, 3, 5)
    """
    if published:
        return PUBLISHED_DILATION
    return max(3, 2 * round((PUBLISHED_DILATION * side / PUBLISHED_SIDE - 1) / 2) + 1)


def importance(
    explain: Explainer,
    seen: Responses,
    targets: Tensor,
    *,
    dilation: int,
    positive: bool = False,
    rows: Sequence[int] | None = None,
    chunk: int = 16,
) -> Importance:
    """Sums the maps for ``targets`` (N,) over the dilated masks of parts and background objects.

    ``positive``: of the maps' positive part. ``rows``: only these pictures are explained; the
    others get NaN.
    """
    chosen = list(range(len(seen)) if rows is None else rows)
    parts = torch.full((len(seen), len(seen.parts)), torch.nan, dtype=torch.float64)
    total = torch.full((len(seen),), torch.nan, dtype=torch.float64)
    backgrounds = [torch.full((len(b),), torch.nan, dtype=torch.float64) for b in seen.backgrounds]
    constant = broken = 0
    for start in range(0, len(chosen), chunk):
        some = chosen[start : start + chunk]
        images = seen.images[some]
        maps = explained(explain, images, targets[some].to(images.device)).cpu()
        bad = not_finite(maps)
        maps = torch.where(bad[:, None, None], 0.0, maps)
        broken += int(bad.sum())
        constant += int((constant_maps(maps) & ~bad).sum())
        maps = maps.clamp(min=0) if positive else maps
        grown = dilated(seen.masks[some], dilation)
        parts[some] = (grown * maps[:, None]).sum((2, 3))
        total[some] = maps.sum((1, 2))
        for row, m in zip(some, maps, strict=True):
            backgrounds[row] = (dilated(seen.background_masks[row], dilation) * m).sum((1, 2))
    return Importance(parts, backgrounds, total, constant, broken, int((total <= 0).sum()))


def dilated(masks: Tensor, width: int) -> Tensor:
    """Masks (…, H, W) grown by a square of ``width`` pixels, as float64 zeros and ones.

    >>> dilated(torch.eye(5)[None] > 0, 3).sum().item()
    19.0
    """
    if not masks.numel():
        return masks.double()
    flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
    return F.max_pool2d(flat, width, 1, width // 2).double().reshape(masks.shape)


def minimal_sufficient(classes: Sequence[Mapping[str, int]], label: int) -> list[frozenset[str]]:
    """The smallest sets of parts that tell a class from all others: none contains another.

    >>> two = [{"beak": 0, "wing": 0}, {"beak": 1, "wing": 0}]
    >>> minimal_sufficient(two, 0)
    [frozenset({'beak'})]
    """
    own, found = classes[label], []
    for size in range(1, len(own) + 1):
        for subset in map(frozenset, combinations(sorted(own), size)):
            if any(smaller <= subset for smaller in found):
                continue
            shared = (
                other
                for number, other in enumerate(classes)
                if number != label and all(other.get(p) == own[p] for p in subset)
            )
            if next(shared, None) is None:
                found.append(subset)
    return found


def contrast_pair(
    classes: Sequence[Mapping[str, int]], label: int
) -> tuple[int, frozenset[str], int, frozenset[str]] | None:
    """The first two classes that each share exactly two parts with this one, and not the same.

    (class, shared parts, class, shared parts), the shared parts disjoint; None if there is no such
    pair.
    """
    own = classes[label]
    near = [
        (number, frozenset(p for p in own if other.get(p) == own[p]))
        for number, other in enumerate(classes)
        if number != label
    ]
    near = [(number, shared) for number, shared in near if len(shared) == 2]
    for (first, one), (second, two) in combinations(near, 2):
        if not one & two:
            return first, one, second, two
    return None
