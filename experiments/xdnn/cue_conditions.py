"""What is trained in the experiment with the spurious cue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.xdnn.cue_data import Place
from experiments.xdnn.cue_training import Condition


@dataclass(frozen=True)
class Row:
    """A line of the table.

    ``weights``: from which the weight of the prior is chosen; ``like``: the row whose weight it
    has. ``limit``: the row that has what the cue took away, on the same architecture; ``without``:
    that which has the cue and no prior.
    """

    condition: Condition
    weights: tuple[float, ...] = ()
    like: str | None = None
    limit: str = "random"
    without: str = "cue"


def _prior(label: str, method: str, **more: Any) -> Condition:
    return Condition(label, method=method, **more)


ANY: Place = "anywhere"
WEIGHTS = (0.3, 1.0, 3.0)
ROWS: dict[str, Row] = {
    "random": Row(Condition("marks of random classes, no cue", cue="random")),
    "none": Row(Condition("no marks, no cue", cue="none")),
    "cue": Row(Condition("cue, no prior")),
    "gradient": Row(
        _prior("input-gradient prior", "gradient", penalty="blocks by channel"),
        (0.03, 0.1, *WEIGHTS),
    ),
    "omenn": Row(_prior("omenn prior", "omenn"), WEIGHTS),
    "eg-1": Row(
        _prior("expected gradients, 1 reference", "expected-gradients", options=(("steps", 1),)),
        WEIGHTS,
    ),
    "eg-4": Row(
        _prior("expected gradients, 4 references", "expected-gradients", options=(("steps", 4),)),
        like="eg-1",
    ),
    "x-random": Row(Condition("X network, marks of random classes", "x", "random")),
    "x-cue": Row(Condition("X network, cue, no prior", "x")),
    "xgradient": Row(
        _prior("X network, X-Gradient prior", "xgradient", network="x"),
        WEIGHTS,
        limit="x-random",
        without="x-cue",
    ),
    "anywhere-random": Row(
        Condition("marks anywhere, of random classes", "regular", "random", ANY)
    ),
    "anywhere-cue": Row(Condition("marks anywhere, cue, no prior", place=ANY)),
    "anywhere-omenn": Row(
        _prior("marks anywhere, omenn prior", "omenn", place=ANY),
        like="omenn",
        limit="anywhere-random",
        without="anywhere-cue",
    ),
    "other-masks": Row(
        _prior("*omenn prior, masks of other birds*", "omenn", treatment="other masks"),
        like="omenn",
    ),
}
"""In the order of the table."""

ORDER = (
    "cue", "random", "omenn", "gradient", "x-cue", "x-random", "xgradient", "eg-1", "other-masks",
    "anywhere-cue", "anywhere-random", "anywhere-omenn", "none", "eg-4",
)  # fmt: skip
"""In which they are trained: what the question is about comes first."""
