"""Rows of the table of protocols for the metrics of Quantus: ``quantus:FaithfulnessCorrelation``.

They are no entries of the table, as each of them is called by name alone: many repeat what is there
already, and they are slow.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from omenn.errors import InputError, MissingExtra, did_you_mean
from omenn.metrics import quantus
from omenn.metrics.explainers import Explainer
from omenn.metrics.protocol import Measure, Protocol
from omenn.metrics.randomisation import Make
from omenn.metrics.score import Score

PREFIX = "quantus:"
LOWER = frozenset(
    {
        "PixelFlipping", "RegionPerturbation", "Selectivity", "ROAD", "Infidelity",
        "LocalLipschitzEstimate", "MaxSensitivity", "AvgSensitivity", "Continuity", "Consistency",
        "RelativeInputStability", "RelativeOutputStability", "RelativeRepresentationStability",
        "Complexity", "EffectiveComplexity", "MPRT", "SmoothMPRT", "RandomLogit", "NonSensitivity",
    }
)  # fmt: skip
"""Of which less is better; of the others more."""

_OWN = re.compile(r"_func$|_kwargs$|^(return_aggregate|disable_warnings|display_progressbar)$")


def row(name: str) -> Protocol:
    """The protocol of ``quantus:NAME``; case and dashes do not matter.

    Raises:
        InputError: there is none, or it is not offered.

    >>> row("quantus:pixel-flipping").name, row("quantus:MPRT").measures[0].higher
    ('quantus:PixelFlipping', False)
    """
    given = name.removeprefix(PREFIX)
    known = {_plain(each): each for each in (*quantus.METRICS, *quantus.NOT_OFFERED)}
    found = known.get(_plain(given))
    if found is None:
        raise InputError(f"unknown metric '{name}': {did_you_mean(given, quantus.METRICS)}")
    if found in quantus.NOT_OFFERED:
        raise InputError(f"metric '{name}' is not offered: {quantus.NOT_OFFERED[found]}.")
    measure = Measure(found, higher=found not in LOWER, headline=True)
    return _Row(
        f"{PREFIX}{found}",
        _localised(found) if found in quantus.MASKED else _plainly(found),
        f"{found} as Quantus computes it",
        "JMLR 24(34), 2023",
        (measure,),
    )


class _Row(Protocol):
    """Its options are those of the class in Quantus."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Option → default, of those that can be written in a plan.

        Raises:
            MissingExtra: quantus is not installed.
        """
        metric = self.name.removeprefix(PREFIX)
        if metric == "Completeness":  # it is our own
            return MappingProxyType({"fill": None, "tolerance": 1e-3})
        declared = inspect.signature(getattr(_package(metric), metric).__init__).parameters
        names = [name for name in declared if name not in ("self", "kwargs")]
        found = {name: declared[name].default for name in names if not _OWN.search(name)}
        plain = (bool, int, float)
        typed = {name: value if type(value) in plain else None for name, value in found.items()}
        return MappingProxyType({**typed, "softmax": None})

    @property
    def typed(self) -> Callable[..., Any] | None:
        """Quantus' annotations name types that numpy no longer has."""
        return None


def _plainly(metric: str) -> Callable[..., Score]:
    def judged(
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        explain: Explainer,
        make: Make,
        seed: int,
        chunk: int,
        **options: Any,
    ) -> Score:
        given: Any = {"make": make, "seed": seed, "batch_size": chunk, **options}
        return quantus.quantus_metric(metric, model, images, targets, explain, **given)

    return judged


def _localised(metric: str) -> Callable[..., Score]:
    def judged(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        masks: Tensor,
        explain: Explainer,
        seed: int,
        chunk: int,
        **options: Any,
    ) -> Score:
        given: Any = {"masks": masks, "seed": seed, "batch_size": chunk, **options}
        return quantus.quantus_metric(metric, model, images, labels, explain, **given)

    return judged


def _package(metric: str) -> Any:
    from omenn.models.torchvision_remedy import prepare

    prepare()  # Quantus imports torchvision where that is installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("quantus")
    except ImportError:
        raise MissingExtra("quantus", "bench", f"the metric '{PREFIX}{metric}'") from None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
