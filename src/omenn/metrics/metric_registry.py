"""The metrics by name: a decorator registers a function of maps, inputs and a model.

NOTE [by name]
A metric is called with those of ``ARGUMENTS`` that its function names; every other argument that
a plan can write down is an option of the metric. It returns a :class:`~omenn.metrics.score.Score`
for each of its measures, in their order: one, a tuple, or an object that has them as ``scores``.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from omenn.data.dataset_registry import MASKS, PARTS, TRAINING
from omenn.discovery import import_all
from omenn.errors import InputError, did_you_mean, unknown

_PLAIN = (
    "f", "model", "images", "labels", "targets", "classes", "maps", "explain", "make", "seed",
    "chunk", "tick",
)  # fmt: skip
ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {**dict.fromkeys(_PLAIN, ""), "seen": PARTS, "masks": MASKS, "boxes": MASKS, "tuned": TRAINING}
)
"""Arguments of metrics → what the data must give for them.

``f``: images → logits. ``targets``: the predicted classes, or the labels (``Metric.of``).
``classes``: how many. ``maps``: of the images for the targets. ``make``: the same method on another
model. ``masks`` of the labels' classes, ``boxes`` around them. ``tuned`` trains the model on.
"""

Family = Literal[
    "composite", "faithfulness", "localisation", "complexity", "robustness", "randomisation"
]
FAMILIES: Sequence[str] = typing.get_args(Family)
QUANTUS = "quantus:"


@dataclass(frozen=True)
class Measure:
    """A number that a metric gives.

    ``higher``: whether more is better. ``headline``: shown first. ``axis``: of spider plots; such
    a measure lies between 0 and 1, and more of it is better.
    """

    name: str
    higher: bool = True
    headline: bool = False
    axis: bool = False


@dataclass(frozen=True)
class Metric:
    """A registered metric, see NOTE [by name].

    ``of``: whether its targets and maps are those of the predicted classes or of the labels.
    ``hidden``: arguments that are no options, as the measures depend on them.
    """

    name: str
    function: Callable[..., Any]
    family: Family
    summary: str
    source: str
    measures: tuple[Measure, ...]
    of: Literal["predicted", "labels"] = "predicted"
    hidden: tuple[str, ...] = ()

    @property
    def arguments(self) -> frozenset[str]:
        """What the function is called with."""
        return frozenset(ARGUMENTS.keys() & self._parameters.keys())

    @property
    def needs(self) -> frozenset[str]:
        """What the data must give beside pictures and labels."""
        return frozenset(ARGUMENTS[name] for name in self.arguments) - {""}

    @property
    def options(self) -> Mapping[str, Any]:
        """Option → default; what cannot be written in a plan is left out."""
        hints = typing.get_type_hints(self.function)
        return MappingProxyType(
            {
                name: parameter.default
                for name, parameter in self._parameters.items()
                if name not in (*ARGUMENTS, *self.hidden) and _written(hints.get(name))
            }
        )

    @property
    def typed(self) -> Callable[..., Any] | None:
        """The function whose annotations declare the options; None where they are unknown."""
        return self.function

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters


_METRICS: dict[str, Metric] = {}
_Function = typing.TypeVar("_Function", bound=Callable[..., Any])


def metric(
    name: str,
    *measures: Measure,
    family: Family,
    summary: str,
    source: str,
    of: Literal["predicted", "labels"] = "predicted",
    hidden: tuple[str, ...] = (),
) -> Callable[[_Function], _Function]:
    """A decorator that registers a function as a metric; the rest is as in :class:`Metric`.

    >>> from omenn.metrics.score import Score
    >>> @metric("mine", Measure("mine"), family="complexity", summary="largest", source="here")
    ... def mine(maps, *, power: float = 1.0):
    ...     return Score("mine", maps.amax((1, 2)).double() ** power)
    >>> dict(find("mine").options), find("mine").needs
    ({'power': 1.0}, frozenset())
    >>> del _METRICS["mine"]

    Raises:
        InputError: an argument that is none of ``ARGUMENTS``, and that no option can be.

    >>> metric("m", family="complexity", summary="", source="")(len)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    omenn.errors.InputError: metric 'm' has an argument 'obj' that it is not called with: ...
    """

    def register(function: _Function) -> _Function:
        _check_arguments(name, function, hidden)
        _METRICS[name] = Metric(name, function, family, summary, source, measures, of, hidden)
        return function

    return register


def _check_arguments(metric: str, function: Callable[..., Any], hidden: Sequence[str]) -> None:
    for name, parameter in inspect.signature(function).parameters.items():
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name in ARGUMENTS or name in hidden or variadic:
            continue
        if parameter.default is parameter.empty or parameter.annotation is parameter.empty:
            similar = did_you_mean(name, ARGUMENTS)
            raise InputError(
                f"metric '{metric}' has an argument '{name}' that it is not called with:",
                argument=name,
                expected=", ".join(ARGUMENTS),
                remedy=f"{similar} An option has a default and a type.".strip(),
            )


def metrics() -> Mapping[str, Metric]:
    """All metrics by name, family by family; those of Quantus are found by name alone."""
    import_all(__package__ or "")
    found = sorted(_METRICS.values(), key=lambda one: FAMILIES.index(one.family))
    return MappingProxyType({one.name: one for one in found})


def find(name: str) -> Metric:
    """The metric of a name; of a metric of Quantus with ``quantus:`` before it.

    Raises:
        InputError: there is none.

    >>> find("gae").measures[0].name
    'local consistency'
    """
    known = metrics()
    if name.startswith(QUANTUS):
        from omenn.metrics.quantus_metrics import metric_of

        return metric_of(name)
    if name not in known:
        raise unknown("metric", name, known)
    return known[name]


def _written(hint: Any) -> bool:
    """Whether values of this type can be written in a plan: numbers, words, lists of them."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = typing.get_args(hint) if union else (hint,)
    return any(
        part in (bool, int, float, str) or typing.get_origin(part) in (Sequence, typing.Literal)
        for part in parts
    )
