"""Equal places of one run are the same object, so that U is resampled once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omenn.core.place.grid import Place


class Shared:
    """Places by where they come from and how.

    Each entry holds the place that its key names by ``id``, so that a key stays one place's own.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Place, Place]] = {}
        self._same: dict[Any, Place] = {}

    def get(self, place: Place, key: Any, make: Callable[[], Place]) -> Place:
        """``make()``, called once for each place and key.

        Results with the same cells of the same grid (there and back again) are one as well.
        """
        known = self._known.get((id(place), key))
        if known is None:
            there = make()
            cells = there.cells
            at = (id(there.grid), cells.data_ptr(), cells.shape, cells.stride())
            known = self._known[id(place), key] = (place, self._same.setdefault(at, there))
        return known[1]
