"""The modality of models that take pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from omenn.modalities import Unit
from omenn.modalities.image.picture_files import read_image
from omenn.modalities.image.preprocessing import Preprocessing
from omenn.viz.flat_map import chosen
from omenn.viz.panels import Case, Panel, panels

if TYPE_CHECKING:
    import torch

    from omenn import Explanation


@dataclass(frozen=True)
class Pictures:
    """Picture files or PIL images, resized, cropped and normalised by ``preprocessing``.

    >>> import omenn, torch
    >>> from omenn.viz.panels import case_of
    >>> pictures = Pictures(Preprocessing(size=(8, 6)))
    >>> x = pictures.from_user(Image.new("RGB", (20, 15), (200, 100, 0)))
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2)).eval()
    >>> e = omenn.explain(net, x)
    >>> units = pictures.units(e)
    >>> len(units), units[7].name
    (48, 'row 1, column 1')
    >>> assert abs(sum(unit.value for unit in units) - e.total.item()) < 1e-6
    >>> assert abs(pictures.units(e, most=1)[0].value) == e.matrix.abs().max()
    >>> [panel.key for panel in pictures.views(case_of(e))]
    ['input', 'c', 'weight', 'bias', 'overlay']
    """

    preprocessing: Preprocessing

    @property
    def description(self) -> str:
        return f"pictures as {self._size} pixels ({self.preprocessing.source})"

    @property
    def assumption(self) -> str:
        if not self.preprocessing.assumed:
            return ""
        return (
            f"Without a model.preprocess, ImageNet's is assumed: {self._size} pixels, normalised."
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.preprocessing.size

    @property
    def _size(self) -> str:
        height, width = self.size
        return f"{width} × {height}"

    def from_user(self, given: str | Path | Image.Image) -> torch.Tensor:
        """The input (1, channels, H, W), float32.

        Raises:
            InputError: the file is not a picture, or the model takes none.
        """
        picture = given if isinstance(given, Image.Image) else read_image(given)
        return self.preprocessing(picture)

    def mask(self, given: np.ndarray) -> torch.Tensor:
        """A mask (height, width) of a picture on disk, resized and cropped like it, (H, W).

        >>> half = np.repeat([[True, False]], 4, axis=0).repeat(4, axis=1)
        >>> Pictures(Preprocessing(size=(4, 4), crop="squash")).mask(half)[0].tolist()
        [True, True, False, False]
        """
        count = self.preprocessing.channels
        plain = replace(
            self.preprocessing, mean=(0.0,) * count, std=(1.0,) * count, interpolation="nearest"
        )
        return plain(Image.fromarray(np.asarray(given, dtype=np.uint8) * 255))[0, 0] > 0.5

    def noise(self) -> torch.Tensor:
        import torch

        return torch.randn(1, self.preprocessing.channels, *self.preprocessing.size)

    def remedy(self, file: Path | None) -> str:
        ours = f"Its preprocessing: {self.preprocessing.source}."
        if file is None:
            return f"{ours} Write a function in a file that returns a model that takes pictures."
        return (
            f"{ours} Declare another in '{file}': "
            'model.preprocess = {"size": 28, "mean": [0.5], "std": [0.5]}, one number per channel '
            "(one: grey, three: red, green, blue)."
        )

    def shown(self, inputs: torch.Tensor) -> np.ndarray:
        """The first picture of a batch without its normalisation, (H, W, 3), uint8."""
        return self.preprocessing.display(inputs[0])

    def usual_smoothing(self, shape: tuple[int, ...]) -> float:
        """A fortieth of the shorter side, or none if that is less than half an entry.

        A single axis of tokens or columns has none: which of them are neighbours is unknown.
        """
        width = round(min(shape[-2:]) / 40, 1) if len(shape) > 1 else 0.0
        return width if width >= 0.5 else 0.0

    def units(
        self, explanation: Explanation, index: int = 0, most: int | None = None
    ) -> Sequence[Unit]:
        """The entries of the map, row by row; or the ``most`` largest, by absolute value."""
        values = chosen(explanation.matrix)[index].detach().double()
        flat = values.flatten()
        order = range(len(flat))
        if most is not None:
            order = flat.abs().argsort(descending=True, stable=True)[:most].tolist()
        return [Unit(_name(k, values.shape), float(flat[k])) for k in order]

    def views(self, case: Case, *, sigma: float = 0.0) -> Sequence[Panel]:
        """The picture, its maps on one scale, and the map over the picture."""
        return panels(case, sigma=sigma)


def _name(place: int, shape: Sequence[int]) -> str:
    """An entry of a map by its row and column, or by its position along other axes."""
    position = [int(number) for number in np.unravel_index(place, shape)]
    if len(position) == 2:
        return f"row {position[0]}, column {position[1]}"
    return f"entry {', '.join(map(str, position))}"
