"""What kind of thing is explained: from what a user has to tensors, and back to named units.

NOTE [modality]
Engine, methods and metrics see tensors. That an axis is the height of a picture, a word of a
sentence or a column of a table is known in one place, the modality of the model's inputs: it turns
what a user has into inputs, names the units that an explanation gives a number to, and draws them.
A new modality is a class with these members; the model's source (``omenn.models.sources``) says
which one it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from omenn import Explanation
    from omenn.viz.panels import Panel


@dataclass(frozen=True)
class Unit:
    """A named part of an input and its share of the explained number."""

    name: str
    value: float


class Modality(Protocol):
    """How a model's inputs are made from what a user has, and how its explanations are shown."""

    @property
    def description(self) -> str:
        """What the model receives, for the foot of a page."""
        ...

    @property
    def assumption(self) -> str:
        """What was assumed about the inputs because nobody said it, a sentence; or nothing."""
        ...

    @property
    def size(self) -> tuple[int, ...]:
        """How far an input extends in each direction, such as rows and columns of pixels."""
        ...

    def from_user(self, given: Any) -> Any:
        """A batch of one, as the model takes it. Raises InputError for what cannot be read."""
        ...

    def mask(self, given: np.ndarray) -> torch.Tensor:
        """A mask (bool) over what the user has, brought to the places of ``from_user``'s input."""
        ...

    def noise(self) -> Any:
        """Inputs of random numbers in the form of ``from_user``, from torch's generator."""
        ...

    def remedy(self, file: Any) -> str:
        """What to do where the model does not take these inputs; ``file`` is its own, or None."""
        ...

    def shown(self, inputs: Any) -> np.ndarray | None:
        """What the network received as pixels (H, W, 3), or None where it is no picture."""
        ...

    def usual_smoothing(self, shape: tuple[int, ...]) -> float:
        """σ of the Gaussian under which maps of this shape are shown besides; 0 for none."""
        ...

    def units(self, explanation: Explanation, index: int = 0) -> Sequence[Unit]:
        """The units of one sample, in their order; their values sum to the matrix."""
        ...

    def views(self, explanation: Explanation, index: int = 0, **words: Any) -> Sequence[Panel]:
        """What is shown of one sample; ``words`` are fields of ``omenn.viz.panels.Case``."""
        ...
