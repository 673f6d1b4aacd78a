"""A few models that together call every rule, in every spelling, that any model of the zoo calls.

``experiments/zoo_cover.json`` names them; ``python -m experiments.zoo_cover --write`` chooses them
anew from the rows of ``python -m experiments.zoo``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import omenn
from experiments.zoo_cover import RECORD
from experiments.zoo_entries import entry
from experiments.zoo_measure import made, runs
from experiments.zoo_models import cast
from experiments.zoo_watch import Watch

pytestmark = pytest.mark.slow

COVER: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
CHOSEN: list[dict[str, Any]] = COVER["chosen"]


def test_the_models_cover_the_zoo() -> None:
    covered = {spelling for model in CHOSEN for spelling in model["adds"]}
    assert covered == set(COVER["covered"])
    assert COVER["models_of_the_zoo"] > len(CHOSEN)


@pytest.mark.filterwarnings("ignore::UserWarning:timm", "ignore::FutureWarning")
@pytest.mark.parametrize("chosen", CHOSEN, ids=[m["name"] for m in CHOSEN])
def test_exact_and_by_the_rules_recorded(chosen: dict[str, Any]) -> None:
    """Exact in float64 and float32; and the model still calls what it was chosen for."""
    e = entry(chosen["group"], chosen["family"], chosen["name"], largest=64)
    built = made(e)
    assert not isinstance(built, str), built
    model, inputs = built
    used: set[str] = set()
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model, inputs = model.to(dtype), cast(inputs, dtype)
        if runs(model, inputs):
            assert dtype == torch.float64  # a kernel without float64: held to float32 alone
            continue
        with Watch() as watch:
            certificate = omenn.certify(model, inputs, **e.options)
        assert certificate.exact, str(certificate)
        assert float(certificate.relative.max()) <= max(bound, certificate.tolerance)
        used |= watch.spellings
    assert set(chosen["adds"]) <= used
