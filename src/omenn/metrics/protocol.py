"""What a protocol is to the benchmark: a function, what it is called with, what it measures.

NOTE [by name]
The function is one as it stands in its module. It is called with those of the arguments in
``GIVEN`` that it names: ``f``, ``model``, ``images``, ``labels``, ``targets`` (the predicted
classes), ``classes`` (how many), ``maps`` (of the images for the targets), ``explain``, ``make``
(the same method on another model), ``masks`` (of the labels' classes), ``boxes`` (around what they
mark), ``seen``, ``tuned`` (trains the model on), ``seed``, ``chunk``, ``tick``. Whatever else it
can be told is an option of the protocol.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any

from omenn.metrics.data_sources import MASKS, PARTS, TRAINING
from omenn.metrics.score import Score
from omenn.metrics.trial import REPLACED, Measured, Trial, Verdict

GIVEN = frozenset(
    "f model images labels targets classes maps explain make masks boxes seen tuned seed chunk "
    "tick".split()
)
NEEDS = {"seen": PARTS, "masks": MASKS, "boxes": MASKS, "tuned": TRAINING}
"""Argument → what the data must give for it."""


@dataclass(frozen=True)
class Measure:
    """A number that a protocol gives.

    ``higher``: whether more is better. ``headline``: shown first. ``axis``: of spider plots; such
    a measure lies between 0 and 1, and more of it is better.
    """

    name: str
    higher: bool = True
    headline: bool = False
    axis: bool = False


@dataclass(frozen=True)
class Protocol:
    """A row of the table, see NOTE [by name].

    ``function`` returns a score for each of the ``measures``, in their order: one, several, or
    something that holds some; or a verdict.
    """

    name: str
    function: Callable[..., Any]
    summary: str
    source: str
    measures: tuple[Measure, ...]

    @property
    def arguments(self) -> frozenset[str]:
        """What the function is called with."""
        return GIVEN & set(self._parameters)

    @property
    def needs(self) -> frozenset[str]:
        """What the data must give beside pictures and labels."""
        return frozenset(need for name, need in NEEDS.items() if name in self.arguments)

    @property
    def options(self) -> Mapping[str, Any]:
        """Option → default; what cannot be written in a plan is left out."""
        hints = typing.get_type_hints(self.function)
        return MappingProxyType(
            {
                name: parameter.default
                for name, parameter in self._parameters.items()
                if name not in GIVEN and _written(hints.get(name))
            }
        )

    @property
    def typed(self) -> Callable[..., Any] | None:
        """Whose annotations say what the options may be; None where nobody's do."""
        return self.function

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    def __call__(
        self, trial: Trial, tick: Callable[[], Any] = lambda: None, **options: Any
    ) -> Verdict:
        """Judge one method on one model.

        Maps that are not finite are judged as zero maps, and counted.
        """
        subject = trial.subject
        offers: dict[str, Callable[[], Any]] = {
            "f": lambda: subject.f,
            "model": lambda: subject.model,
            "images": lambda: subject.images,
            "labels": lambda: subject.labels,
            "targets": lambda: subject.predicted,
            "classes": lambda: subject.logits.shape[1],
            "maps": lambda: trial.maps,
            "explain": lambda: trial.explain,
            "make": lambda: trial.make,
            "masks": lambda: subject.masks,
            "boxes": lambda: subject.boxes,
            "seen": lambda: subject.seen,
            "tuned": lambda: subject.tuned,
            "seed": lambda: subject.seed,
            "chunk": lambda: subject.looked_at,
            "tick": lambda: tick,
        }
        trial.broken = 0
        given = {name: offers[name]() for name in sorted(self.arguments)}
        found = self._verdict(self.function(**given, **options), subject.seed)
        counted = dict(found.counted)
        if trial.broken:
            counted[REPLACED] = trial.broken
        return Verdict(found.measures, counted)

    def _verdict(self, found: Any, seed: int) -> Verdict:
        """From a score, several of them, or something that holds some, to measures by name."""
        if isinstance(found, Verdict):
            return found
        parts = [found]
        if isinstance(found, tuple):
            parts = list(found)
        elif is_dataclass(found) and not isinstance(found, Score):
            parts = [getattr(found, entry.name) for entry in fields(found)]
        scores = [part for part in parts if isinstance(part, Score)]
        measures = {
            measure.name: Measured.of(score, seed)
            for measure, score in zip(self.measures, scores, strict=True)
        }
        counted: dict[str, int] = {}
        for score in scores:
            counted |= {what: count for what, count in score.counted.items() if count}
        return Verdict(measures, counted)


def _written(hint: Any) -> bool:
    """Whether values of this type can be written in a plan: numbers, words, lists of them."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = typing.get_args(hint) if union else (hint,)
    return any(
        part in (bool, int, float, str) or typing.get_origin(part) in (Sequence, typing.Literal)
        for part in parts
    )
