"""Modalities (pictures, tables, text …): from user data to tensors, and back to named units.

NOTE [modality]
Engine, methods and metrics see tensors. Only the modality of a model's inputs knows that an axis is
the height of a picture, a word of a sentence or a column of a table. It turns user data into
inputs, names the units that an explanation gives numbers to, and draws them. A new modality is one
file: a class with the members of ``Modality``. A model declares it as ``model.modality``; without
one, its inputs are pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from omenn import Explanation
    from omenn.viz.panels import Case, Panel


@dataclass(frozen=True)
class Unit:
    """A named part of an input and its share of the explained number."""

    name: str
    value: float


class Modality(Protocol):
    """How inputs of a model are made from user data, and how its explanations are shown."""

    @property
    def description(self) -> str:
        """What the model receives, for the footer of a page."""
        ...

    @property
    def assumption(self) -> str:
        """A sentence about what was assumed because the model does not declare it; or nothing."""
        ...

    @property
    def size(self) -> tuple[int, ...]:
        """The size of an input in each direction, such as rows and columns of pixels."""
        ...

    def from_user(self, given: Any) -> Any:
        """An input with one sample. Raises InputError for data that cannot be read."""
        ...

    def mask(self, given: np.ndarray) -> torch.Tensor:
        """A mask (bool) over user data, moved to the locations of the input of ``from_user``."""
        ...

    def noise(self) -> Any:
        """Random inputs in the form of ``from_user``, from torch's generator."""
        ...

    def remedy(self, file: Any) -> str:
        """What to do if the model rejects these inputs; ``file`` is the model's file, or None."""
        ...

    def shown(self, inputs: Any) -> np.ndarray | None:
        """The input as pixels (H, W, 3), uint8, or None if it is not a picture."""
        ...

    def usual_smoothing(self, shape: tuple[int, ...]) -> float:
        """σ of the Gaussian for a second, smoothed view of maps of this shape; 0 for none."""
        ...

    def units(
        self, explanation: Explanation, index: int = 0, most: int | None = None
    ) -> Sequence[Unit]:
        """The units of one sample, which sum to its matrix; or the ``most`` largest of them."""
        ...

    def views(self, case: Case, *, sigma: float = 0.0) -> Sequence[Panel]:
        """The panels that pages and figures show; with ``sigma`` > 0 also smoothed.

        A comparison shows the panel ``c``, of a case that has the scale of its colours.
        """
        ...
