"""The metrics of Quantus as metrics by name, ``quantus:FaithfulnessCorrelation`` and others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from omenn.metrics.metric_registry import QUANTUS, Measure, Metric
from omenn.metrics.quantus import MASKED, METRICS, declared_options, known_name, quantus_metric

_NOT_WRITTEN = re.compile(
    r"_func$|_kwargs$|^(return_aggregate|disable_warnings|display_progressbar)$"
)


class QuantusMetric(Metric):
    """A metric of Quantus by name alone: many repeat what the registry has, and they are slow."""

    @property
    def arguments(self) -> frozenset[str]:
        masked = self.of == "labels"
        return super().arguments - (frozenset(("make",)) if masked else frozenset(("masks",)))

    @property
    def options(self) -> Mapping[str, Any]:
        """Option → default of its class in Quantus, of those that can be written in a plan.

        Raises:
            MissingExtra: quantus is not installed.
        """
        (measure,) = self.measures
        if measure.name == "Completeness":  # it is our own
            return MappingProxyType({"fill": None, "tolerance": 1e-3})
        written = {
            k: v for k, v in declared_options(measure.name).items() if not _NOT_WRITTEN.search(k)
        }
        plain = {k: v if type(v) in (bool, int, float) else None for k, v in written.items()}
        return MappingProxyType({**plain, "softmax": None})

    @property
    def typed(self) -> None:
        """Quantus' annotations name types that numpy no longer has."""


def metric_of(name: str) -> Metric:
    """The metric of ``quantus:NAME``; case and dashes do not matter.

    Raises:
        InputError: there is none, or it is not offered.

    >>> metric_of("quantus:pixel-flipping").name, metric_of("quantus:MPRT").measures[0].higher
    ('quantus:PixelFlipping', False)
    """
    found = known_name(name.removeprefix(QUANTUS))
    return QuantusMetric(
        f"{QUANTUS}{found}",
        partial(quantus_metric, found),
        "faithfulness",
        f"{found} as Quantus computes it",
        "JMLR 24(34), 2023",
        (Measure(found, METRICS[found], headline=True),),
        "labels" if found in MASKED else "predicted",
    )
