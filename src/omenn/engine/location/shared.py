"""Equal places of one run are the same object, so that U is resampled once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import torch

from omenn.engine.location.grid import Place


class Shared:
    """Places by where they come from and how.

    Each entry holds the places that its key names by ``id``, so that a key stays their own.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, Any]] = {}
        self._same: dict[Any, Place] = {}

    def get(self, place: Place, key: Any, make: Callable[[], Place]) -> Place:
        """``make()``, called once for each place and key.

        Results with the same cells of the same grid (there and back again) are one as well.
        """
        return self.found([place], key, make)

    def found(self, given: Sequence[Place | None], key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, a place or several, called once for the places ``given`` and a key."""
        at = (tuple(map(id, given)), key)
        known = self._known.get(at)
        if known is None:
            made = make()
            if isinstance(made, list):
                there: Any = [self._one(place) for place in made]
            else:
                there = self._one(made)
            known = self._known[at] = (given, there)
        return known[1]

    def _one(self, there: Any) -> Any:
        if not isinstance(there, Place) or there.origin is not None:
            return there
        cells = there.cells
        at = (id(there.grid), cells.data_ptr(), cells.shape, cells.stride())
        return self._same.setdefault(at, there)


_PLAIN = frozenset((int, bool, float, str, type(None), EllipsisType))
_SEQUENCES = frozenset((tuple, list, torch.Size))


def fixed(value: Any) -> bool:
    """Whether ``repr`` tells all of an argument: numbers, strings, slices, sequences of them."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is slice:
        return fixed(value.start) and fixed(value.stop) and fixed(value.step)
    return kind in _SEQUENCES and all(map(fixed, value))
