"""The table of protocols: name → the function that judges, and the measures that it gives.

A new protocol is a row, see NOTE [by name] of ``protocol.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from omenn.errors import InputError, did_you_mean
from omenn.metrics import (
    by_quantus,
    complexity,
    faithfulness,
    grid_pointing,
    idsds,
    joined,
    masking,
    randomisation,
    robustness,
)
from omenn.metrics.gae import gae
from omenn.metrics.keep_remove import METRICS
from omenn.metrics.protocol import Measure, Protocol


def find(name: str) -> Protocol:
    """The protocol of a name; of a metric of Quantus with ``quantus:`` before it.

    Raises:
        InputError: there is none.

    >>> find("gae").measures[0].name
    'local consistency'
    """
    if name.startswith(by_quantus.PREFIX):
        return by_quantus.row(name)
    if name not in PROTOCOLS:
        raise InputError(f"unknown metric '{name}': {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


_SUBJECT = "of birds the parts"
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol(
                "funnybirds",
                joined.funnybirds,
                "are parts rated as the model's answers without them say? completeness, "
                "correctness (single deletion), contrastivity (target sensitivity), their mean",
                "arXiv 2308.06248",
                (
                    Measure("mean", headline=True),
                    Measure("completeness", headline=True),
                    Measure("correctness", headline=True, axis=True),
                    Measure("contrastivity", headline=True, axis=True),
                    Measure("single deletion given area", headline=True),
                    Measure("csdc", axis=True),
                    Measure("pc", axis=True),
                    Measure("dc", axis=True),
                    Measure("distractibility", axis=True),
                ),
            ),
            Protocol(
                "gae",
                gae,
                "local consistency × contrastiveness, on mosaics of four pictures",
                "arXiv 2412.09311",
                (
                    Measure("local consistency", axis=True),
                    Measure("contrastiveness", axis=True),
                    Measure("gae", headline=True),
                ),
            ),
            Protocol(
                "insertion-deletion",
                joined.insertion_deletion,
                "the probability as pixels come back, minus as they go, the most relevant first",
                "arXiv 1806.07421",
                (
                    Measure("insertion − deletion", headline=True),
                    Measure("insertion", axis=True),
                    Measure("deletion", higher=False),
                ),
            ),
            Protocol(
                "pixel-flipping",
                masking.pixel_flipping,
                "the logit as pixels go, the most relevant first",
                "PLOS ONE 10(7), 2015",
                (Measure("pixel flipping", higher=False, headline=True),),
            ),
            Protocol(
                "pixel-deletion",
                masking.pixel_deletion,
                "the probability as pixels are blurred, the least relevant first",
                "arXiv 2602.06613",
                (Measure("pixel deletion", headline=True),),
            ),
            Protocol(
                "srg",
                masking.symmetric_relevance_gain,
                "the logit as the least relevant patches go, minus as the most relevant ones do",
                "arXiv 2401.06654",
                (Measure("srg", headline=True),),
            ),
            Protocol(
                "keep-remove",
                joined.keep_and_remove,
                "keep or remove the first pixels by positive, negative or absolute values",
                "arXiv 1905.04610",
                tuple(
                    Measure(name, higher=metric.higher, headline=name in ("kam", "ram"))
                    for name, metric in METRICS.items()
                ),
            ),
            Protocol(
                "faithfulness-correlation",
                faithfulness.faithfulness_correlation,
                "do the sums over random sets of pixels go with what the logit loses?",
                "arXiv 2005.00631",
                (Measure("faithfulness correlation", headline=True),),
            ),
            Protocol(
                "faithfulness-estimate",
                faithfulness.faithfulness_estimate,
                "faithfulness-correlation with sets of pixels in the order of the map",
                "arXiv 1806.07538",
                (Measure("faithfulness estimate", headline=True),),
            ),
            Protocol(
                "sensitivity-n",
                faithfulness.sensitivity_n,
                "faithfulness-correlation with random sets of many sizes",
                "arXiv 1711.06104",
                (Measure("sensitivity-n", headline=True),),
            ),
            Protocol(
                "monotonicity-correlation",
                faithfulness.monotonicity_correlation,
                "does the uncertainty of the answer rise with the relevance of what is replaced?",
                "arXiv 2007.07584",
                (Measure("monotonicity correlation", headline=True),),
            ),
            Protocol(
                "sparseness",
                complexity.sparseness,
                "Gini index of the absolute values",
                "arXiv 1810.06583",
                (Measure("sparseness", headline=True, axis=True),),
            ),
            Protocol(
                "complexity",
                complexity.complexity,
                "entropy of the absolute values",
                "arXiv 2005.00631",
                (Measure("complexity", higher=False, headline=True),),
            ),
            Protocol(
                "effective-complexity",
                complexity.effective_complexity,
                "how many pixels are not negligible",
                "arXiv 2007.07584",
                (Measure("effective complexity", higher=False, headline=True),),
            ),
            Protocol(
                "sensitivity",
                robustness.sensitivities,
                "how far a map moves when the picture hardly does",
                "arXiv 1901.09392",
                (
                    Measure("max-sensitivity", higher=False, headline=True),
                    Measure("avg-sensitivity", higher=False),
                ),
            ),
            Protocol(
                "energy-pointing-game",
                joined.energy_pointing_game,
                "the share of the map's positive part in the box around the subject",
                "arXiv 1910.01279",
                (Measure("energy pointing game", headline=True, axis=True),),
            ),
            Protocol(
                "pointing-game",
                joined.pointing_game,
                "does the largest value lie on the subject, or near it?",
                "arXiv 1608.00507",
                (Measure("pointing game", headline=True, axis=True),),
            ),
            Protocol(
                "relevance-mass",
                joined.relevance_mass,
                f"the share of the map's mass on the subject, {_SUBJECT}",
                "arXiv 2003.07258",
                (Measure("relevance mass accuracy", headline=True, axis=True),),
            ),
            Protocol(
                "relevance-rank",
                joined.relevance_rank,
                f"how many of the largest values lie on the subject, {_SUBJECT}",
                "arXiv 2003.07258",
                (Measure("relevance rank accuracy", headline=True, axis=True),),
            ),
            Protocol(
                "grid-pointing-game",
                grid_pointing.grid_pointing_game,
                "the share of the map's positive part in the right cell of a mosaic",
                "arXiv 2104.00032",
                (Measure("grid pointing game", headline=True, axis=True),),
            ),
            Protocol(
                "cell-deletion",
                idsds.single_deletion,
                "do the sums over the cells of a grid rank as what the logit loses without them?",
                "arXiv 2407.11910",
                (Measure("single deletion of cells", headline=True),),
            ),
            Protocol(
                "idsds",
                joined.idsds,
                "cell-deletion of the model after some training on pictures without a cell",
                "arXiv 2407.11910",
                (Measure("idsds", headline=True),),
            ),
            Protocol(
                "road",
                joined.road_both_ways,
                "how often the answer stays as pixels are painted over, the most relevant first",
                "arXiv 2202.00449",
                (
                    Measure("road", higher=False, headline=True),
                    Measure("road, least first", axis=True),
                ),
            ),
            Protocol(
                "local-lipschitz",
                robustness.local_lipschitz,
                "how far a map moves when the picture hardly does, for the picture's own move",
                "arXiv 1806.08049",
                (Measure("local lipschitz estimate", higher=False, headline=True),),
            ),
            Protocol(
                "mprt",
                joined.parameter_randomisation,
                "how similar a map stays as the model's layers become random, one after the other",
                "arXiv 1810.03292",
                (
                    Measure("mprt", higher=False, headline=True),
                    Measure("mprt, last", higher=False),
                ),
            ),
            Protocol(
                "smooth-mprt",
                joined.smooth_randomisation,
                "mprt of maps that are averaged over noisy pictures",
                "arXiv 2401.06465",
                (
                    Measure("smooth mprt", higher=False, headline=True),
                    Measure("smooth mprt, last", higher=False),
                ),
            ),
            Protocol(
                "efficient-mprt",
                randomisation.efficient_randomisation,
                "how much the entropy of the map rises when all parameters become random",
                "arXiv 2401.06465",
                (Measure("efficient mprt", headline=True),),
            ),
            Protocol(
                "random-logit",
                randomisation.random_logit,
                "how similar the maps for the answer and for another class are",
                "arXiv 1912.09818",
                (Measure("random logit", higher=False, headline=True),),
            ),
            Protocol(
                "completeness",
                joined.completeness,
                "does the map add up to the logit?",
                "arXiv 1703.01365",
                (Measure("adds up", headline=True, axis=True),),
            ),
        )
    }
)
"""Every protocol by name."""
