"""One model with its test pictures, and one method on it, evaluated by metrics."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omenn.data.dataset_registry import PARTS, Dataset, lacking
from omenn.engine.digest import content
from omenn.engine.target import pick_output
from omenn.errors import InputError
from omenn.metrics.explainers import Explainer
from omenn.metrics.funnybirds_protocol import FunnyBirdsScore
from omenn.metrics.in_domain import Recipe, fine_tune
from omenn.metrics.localisation import boxed
from omenn.metrics.maps import Model, logits_of, not_finite
from omenn.metrics.metric_registry import Metric
from omenn.metrics.parts import Responses, responses
from omenn.metrics.score import Measured, Score, Verdict
from omenn.modalities import Modality

MEMORY = 2**28  # of answers that are kept
COPIES = 3  # of all pictures at the peak of a protocol: they, what replaces them, float64 maps
REPLACED = "maps that are not finite, judged as zero"


class Remembered:
    """f, which is asked once about the same pictures: protocols draw the same sets for every map.

    What was asked longest ago is forgotten when the answers take more than ``MEMORY`` bytes.
    Pictures with a derivative are not remembered.
    """

    def __init__(self, f: Model) -> None:
        self.f, self.size = f, 0
        self.known: dict[bytes, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            return self.f(images)
        key = hashlib.sha256(str(images.shape).encode() + content(images)).digest()
        found = self.known.pop(key, None)
        if found is None:
            found = self.f(images)
            self.size += found.nbytes
        self.known[key] = found
        while self.size > MEMORY:
            self.size -= self.known.pop(next(iter(self.known))).nbytes
        return found.clone()


class Subject:
    """One model with its test pictures: what all methods share, computed once.

    ``images`` (N, C, H, W), ``labels`` and ``predicted`` (N,), on the device of the model. ``f``:
    images → logits. ``seen``, ``masks`` and what is ``tuned`` are computed when they are first
    asked for. ``folder``: where a training that is interrupted goes on from.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        modality: Modality,
        *,
        device: str = "cpu",
        seed: int = 0,
        chunk: int = 16,
        folder: Path | None = None,
    ) -> None:
        self.model, self.data, self.modality = model, data, modality
        self.folder = folder
        self._tuned: dict[tuple[int, Recipe], nn.Module] = {}
        self.device, self.seed, self.chunk = device, seed, chunk
        self.looked_at = 4 * chunk  # pictures without explanations take less memory
        self.f: Model = Remembered(lambda images: pick_output(model(images), None))
        first = modality.from_user(data.sample(data.indices[0]))
        _check_room(first, len(data.indices))
        rows = (modality.from_user(data.sample(index)) for index in data.indices[1:])
        self.images = torch.cat([first, *rows]).to(device)
        self.labels = torch.tensor([data.label(k) for k in data.indices], device=device)
        self.logits = logits_of(self.f, self.images, self.looked_at)
        if self.logits.shape[1] < data.classes:
            raise InputError(
                f"the model has {self.logits.shape[1]} outputs, the data {data.classes} classes.",
                argument="model",
                got=str(self.logits.shape[1]),
                expected=str(data.classes),
                remedy="Choose a model that was made for them.",
            )
        self.predicted = self.logits.argmax(1)

    @cached_property
    def seen(self) -> Responses:
        """The model's outputs for pictures with parts removed.

        Raises:
            InputError: the data has none.
        """
        if PARTS not in self.data.gives:
            raise lacking("pictures with parts removed")
        return responses(
            self.f,
            self.data.samples,
            lambda picture: self.modality.from_user(picture).to(self.device),
            indices=self.data.indices,
            chunk=self.looked_at,
        )

    @cached_property
    def masks(self) -> Tensor:
        """(N, H, W) bool: where the subject is, as the model sees it.

        Raises:
            InputError: the data has none.
        """
        found = [self.modality.mask(self.data.mask(index)) for index in self.data.indices]
        return torch.stack(found).to(self.device)

    @cached_property
    def boxes(self) -> Tensor:
        """(N, H, W) bool: the boxes of the data; where it has none, one around each mask."""
        return self.masks if self.data.boxes else boxed(self.masks)

    def tuned(self, pictures: int, recipe: Recipe) -> nn.Module:
        """The model, trained on with pictures that lack a cell; see :func:`in_domain.fine_tune`.

        Raises:
            InputError: the data has no training pictures; and as there.
        """
        if self.data.train is None:
            raise lacking("training pictures")
        key = (pictures, recipe)
        if key not in self._tuned:
            file = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
            self._tuned[key] = fine_tune(
                self.model,
                _Prepared(self.data.train(pictures), self.modality),
                recipe,
                checkpoint=self.folder and self.folder / f"in-domain-{file}.pt",
            )
        return self._tuned[key]

    @property
    def remark(self) -> str:
        """A warning where the model has more outputs than the data has classes."""
        outputs, classes = self.logits.shape[1], self.data.classes
        if outputs == classes:
            return ""
        return (
            f"It has {outputs} outputs and the data {classes} classes: what depends on the label "
            f"assumes that the first {classes} outputs are these classes."
        )

    def accuracy(self) -> Score:
        """The share of pictures whose class has the largest logit."""
        return Score("accuracy", self.predicted == self.labels)


def _check_room(picture: Tensor, count: int) -> None:
    """Refuse more pictures than fit: some copies of all of them are in memory at once."""
    needed, there = COPIES * count * picture.nbytes, _memory()
    if there is not None and needed > there:
        raise InputError(
            f"{count} pictures of the shape {tuple(picture.shape[1:])} are in memory at once and "
            f"would take about {needed / 2**30:.1f} GB, of {there / 2**30:.1f} GB that this "
            "machine has.",
            argument="limit",
            got=str(count),
            remedy="Lower limit.",
        )


def _memory() -> int | None:
    """Bytes of the machine; None where that cannot be had."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


class _Prepared:
    """Pictures as the model takes them, with their classes, prepared on access."""

    def __init__(self, data: Dataset, modality: Modality) -> None:
        self.data, self.modality = data, modality

    def __len__(self) -> int:
        return len(self.data.indices)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        place = self.data.indices[index]
        return self.modality.from_user(self.data.sample(place))[0], self.data.label(place)


class Trial:
    """One method on one subject: an explainer whose maps are always finite.

    It calls the method for at most ``chunk`` images at a time, replaces maps that are not finite by
    zero maps and counts them (``broken``), and explains the pictures of the subject for the
    predicted class only once, see ``maps``.
    """

    def __init__(self, subject: Subject, build: Callable[[nn.Module], Explainer]) -> None:
        self.subject, self.build = subject, build
        self.broken = 0
        self._made = build(subject.model)
        self._kept: dict[tuple[bytes, int], tuple[Tensor, bool]] = {}

    def explain(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (B, H, W) of images (B, C, H, W) for class indices (B,)."""
        if not self._kept:
            return self._guarded(self._made, images, targets)[0]
        keys = [_key(image, target) for image, target in zip(images, targets, strict=True)]
        new = [row for row, key in enumerate(keys) if key not in self._kept]
        maps = images.new_zeros(len(images), *images.shape[2:])
        for row in set(range(len(keys))) - set(new):
            maps[row], bad = self._kept[keys[row]]
            self.broken += bad
        if new:
            maps[new] = self._guarded(self._made, images[new], targets[new])[0].to(maps)
        return maps

    def make(self, model: nn.Module) -> Explainer:
        """The same method on another model, such as one with random weights."""
        made = self.build(model)
        return lambda images, targets: self._guarded(made, images, targets)[0]

    def compute(self, around: Callable[[int], Any]) -> None:
        """Explain every picture for the predicted class, chunk by chunk, inside ``around(count)``.

        Only here maps are kept for later, so that no result depends on what was judged before it.
        The first picture is explained once more before, outside of ``around``.
        """
        s = self.subject
        _maps(self._made, s.images[:1], s.predicted[:1])  # what is done once is no cost of a map
        for images, targets in zip(
            s.images.split(s.chunk), s.predicted.split(s.chunk), strict=True
        ):
            with around(len(images)):
                raw = _maps(self._made, images, targets)
            maps, bad = _finite(raw)
            for row, image in enumerate(images):
                key = _key(image, targets[row])
                self._kept[key] = (maps[row].cpu(), bool(bad[row]))

    @property
    def maps(self) -> Tensor:
        """(N, H, W): of the subject's pictures for the predicted class."""
        return self.explain(self.subject.images, self.subject.predicted)

    def judge(
        self, metric: Metric, tick: Callable[[], Any] = lambda: None, **options: Any
    ) -> Verdict:
        """The measures of a metric for the method, see NOTE [by name] of ``metric_registry.py``.

        Maps that are not finite are judged as zero maps, and counted.
        """
        subject = self.subject
        targets = subject.labels if metric.of == "labels" else subject.predicted
        offers: dict[str, Callable[[], Any]] = {
            "f": lambda: subject.f,
            "model": lambda: subject.model,
            "images": lambda: subject.images,
            "labels": lambda: subject.labels,
            "targets": lambda: targets,
            "classes": lambda: subject.logits.shape[1],
            "maps": lambda: self.explain(subject.images, targets),
            "explain": lambda: self.explain,
            "make": lambda: self.make,
            "masks": lambda: subject.masks,
            "boxes": lambda: subject.boxes,
            "seen": lambda: subject.seen,
            "tuned": lambda: subject.tuned,
            "seed": lambda: subject.seed,
            "chunk": lambda: subject.looked_at,
            "tick": lambda: tick,
        }
        self.broken = 0
        given = {name: offers[name]() for name in sorted(metric.arguments)}
        found = _verdict(metric, metric.function(**given, **options), subject.seed)
        broken = {REPLACED: self.broken} if self.broken else {}
        return Verdict(found.measures, {**found.counted, **broken})

    def _guarded(self, made: Explainer, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        chunk = self.subject.chunk
        for some, classes in zip(images.split(chunk), targets.split(chunk), strict=True):
            found.append(_finite(_maps(made, some, classes)))
        maps, bad = (torch.cat(part) for part in zip(*found, strict=True))
        self.broken += int(bad.sum())
        return maps, bad


def _verdict(metric: Metric, found: Any, seed: int) -> Verdict:
    """Measures by name, from a score, several of them, or something that has them."""
    if isinstance(found, FunnyBirdsScore):  # its intervals are over the choice of a threshold, too
        return found.verdict(seed)
    if isinstance(found, Score):
        found = (found,)
    scores = found if isinstance(found, tuple) else getattr(found, "scores", None)
    if scores is None or len(scores) != len(metric.measures):
        names = ", ".join(measure.name for measure in metric.measures)
        raise InputError(
            f"metric '{metric.name}' returned {type(found).__name__}, and not a Score for each of "
            f"its measures: {names}.",
            argument="metrics",
            got=type(found).__name__,
            expected=names,
            remedy="Return omenn.metrics.score.Score(name, values).",
        )
    measures = {
        measure.name: Measured.of(score, seed)
        for measure, score in zip(metric.measures, scores, strict=True)
    }
    counted = {k: n for score in scores for k, n in score.counted.items()}
    return Verdict(measures, counted)


def _maps(made: Explainer, images: Tensor, targets: Tensor) -> Tensor:
    maps = made(images, targets)
    wanted = (len(images), *images.shape[2:])
    if tuple(maps.shape) != wanted:
        raise InputError(
            f"the method gives maps of the shape {tuple(maps.shape)} for images of the shape "
            f"{tuple(images.shape)}, expected {wanted}.",
            argument="method",
            got=str(tuple(maps.shape)),
            expected=str(wanted),
            remedy="Bring them to the input.",
        )
    return maps.detach()


def _finite(maps: Tensor) -> tuple[Tensor, Tensor]:
    bad = not_finite(maps)
    return torch.where(bad[:, None, None], 0.0, maps), bad


def _key(image: Tensor, target: Tensor) -> tuple[bytes, int]:
    return hashlib.blake2b(content(image), digest_size=16).digest(), int(target)
