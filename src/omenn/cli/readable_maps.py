"""The readable exact map that pictures are shown with, beside C at the pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omenn.errors import OmennError

if TYPE_CHECKING:
    import torch

    from omenn import Contrast, Explanation
    from omenn.models.sources import Source

METHOD = "omenn-clear"
"""The method of these maps. ``--method`` shows one method alone instead."""


@dataclass(frozen=True, eq=False)
class Readable:
    """The map of the explained number and of its difference to a rival, with its seconds.

    ``why``: why there is none, in one line; empty if none was asked for.
    """

    map: Explanation | None = None
    contrast: Explanation | None = None
    seconds: float | None = None
    why: str = ""


def fits(options: Mapping[str, Any], steps: tuple[str, ...]) -> bool:
    """Whether a readable map belongs to what was asked: C of the whole input, as it is.

    >>> fits({}, ()), fits({"bias": "uniform"}, ()), fits({"at": "stages.1"}, ())
    (True, True, False)
    """
    return not steps and options.keys() <= {"bias"} and options.get("bias") != "separate"


def readable_maps(
    source: Source,
    tensor: torch.Tensor,
    asked: int | Contrast,
    against: Contrast | None,
    options: Mapping[str, Any],
) -> Readable:
    """The maps by METHOD of what was asked and, if there is one, of the contrast.

    Where the input is no picture there is none, and nothing is said: nobody expects it there.
    """
    import torch

    import omenn

    if source.modality.shown(tensor) is None:
        return Readable()
    given: dict[str, Any] = source.named_output | dict(options) | {"method": METHOD}
    started = time.perf_counter()
    try:
        found = omenn.explain(source.model, tensor, asked, **given)
        seconds = time.perf_counter() - started
        if against is None:
            return Readable(found, seconds=seconds)
        rival = omenn.explain(source.model, tensor, against, **given)
        return Readable(found, rival, seconds)
    except OmennError as error:
        return Readable(why=f"{METHOD}: {error}")
    except (MemoryError, torch.OutOfMemoryError):
        return Readable(why=f"{METHOD}: not enough memory.")
