"""How one forward pass is taken: the first way, or another where that would not do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pass:
    """What is done in other ways than in the first pass.

    ``strong``: what was marked is kept alive, as ``torch.utils.swap_tensors`` wants it.
    ``history``: constants have a history, as the model takes a derivative (``transforms.py``).
    ``finite``: what is saved for the backward pass is a finite copy (``backward.py``).
    ``shaken``: numbers that leave PyTorch are moved, ``only`` at one place (``departures.py``).
    ``keep_history``: derivatives of the frozen network are taken when the run is over.
    ``along_attention``: what sits in a class token goes along the attention.
    ``smooth``: the cells of a coarse map overlap on the input.
    """

    strong: bool = False
    history: bool = False
    finite: bool = False
    shaken: bool = False
    only: Any = None
    keep_history: bool = False
    along_attention: bool = False
    smooth: bool = False
