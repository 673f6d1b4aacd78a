"""Results as flat records: a name → a tensor, or a fact that JSON can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import omenn

Record = dict[str, Any]

FACTS = (
    "method", "promise", "exact", "faithful", "at", "mix", "resample", "bias_placement", "products",
    "channel_dim", "frozen_constants", "processing", "explains", "located", "reasons",
    "tolerance", "fidelity_tolerance",
)  # fmt: skip
TENSORS = ("output", "target", "matrix")
PARTS = ("weight", "bias")
REST = ("inputs", "contribution", "magnitude", "sources")


def flat(name: str, value: Any) -> Record:
    """A value of nested dictionaries and tuples, each part by a name of its own."""
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        parts = enumerate(value)
    else:
        return {name: value.detach().clone() if isinstance(value, Tensor) else value}
    return {key: v for part, inner in parts for key, v in flat(f"{name}.{part}", inner).items()}


def whole(e: omenn.Explanation) -> Record:
    """Everything of an explanation but its rounding errors."""
    return brief(e, TENSORS + PARTS, REST) | {
        "compared": e.fidelity is not None,
        "unlocated": dict(e.unlocated),
    }


def brief(
    e: omenn.Explanation, kept: tuple[str, ...] = TENSORS, rest: tuple[str, ...] = PARTS + REST
) -> Record:
    """The map and the facts; of the rest two numbers each, which hardly stay if it changes."""
    found = {key: v for name in (*kept, *FACTS) for key, v in flat(name, getattr(e, name)).items()}
    more = {key: v for name in rest for key, v in flat(name, getattr(e, name)).items()}
    return found | {f"{key}~": _digest(v) for key, v in more.items() if isinstance(v, Tensor)}


def _digest(t: Tensor) -> Tensor:
    """Σ|t|, and t along a direction without symmetry."""
    numbers = t.double().reshape(-1)
    along = torch.arange(len(numbers), dtype=torch.float64).add(0.5).sqrt().cos()
    return torch.stack([numbers.abs().sum(), numbers @ along])


def tried(make: Callable[[], Record]) -> Record:
    """What is made, or the kind and the fields of the error in its place."""
    try:
        return make()
    except Exception as error:  # also what should not be raised: it is recorded as it is
        fields = {name: v for name, v in vars(error).items() if not name.startswith("_")}
        return {"error": type(error).__name__, **fields}


def under(name: str, record: Record) -> Record:
    return {f"{name}/{key}": value for key, value in record.items()}
