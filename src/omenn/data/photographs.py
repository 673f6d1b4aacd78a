"""Four photographs that come with scikit-image (extra zoo), all in the public domain or CC0."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omenn.errors import MissingExtra

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Photograph:
    """A photograph: its title, its file in scikit-image, and who gave it to the public."""

    title: str
    file: str
    credit: str

    def picture(self) -> Image.Image:
        """The picture. Raises MissingExtra if scikit-image is not installed."""
        from PIL import Image

        found = importlib.util.find_spec("skimage")
        if found is None or found.origin is None:
            raise MissingExtra("scikit-image", "zoo", "the photographs of the demonstration")
        return Image.open(Path(found.origin).parent / "data" / self.file).convert("RGB")


PHOTOGRAPHS = (
    Photograph("Chelsea the cat", "chelsea.png", "Stéfan van der Walt, CC0"),
    Photograph("A cup of coffee", "coffee.png", "Rachel Michetti, CC0"),
    Photograph("A rocket", "rocket.jpg", "SpaceX, CC0"),
    Photograph("An astronaut", "astronaut.png", "NASA, public domain"),
)
