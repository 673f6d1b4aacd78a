"""Where the constants of a run go: from where they are added to the ones images of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from omenn.core import place as places
from omenn.core.autograd import Constant
from omenn.core.call import CARRIED, FROZEN, Call, inputs_of
from omenn.core.constants import Constants, finite, ones_at
from omenn.core.entries import Entry
from omenn.core.place import Grid, Place, Shared
from omenn.core.provenance import by_ids, names_in, only_term, own_place
from omenn.core.rules import Row


class Placing(TorchFunctionMode):
    """What the interceptor of one run knows of its constants."""

    book: dict[str, Row]

    def __init__(self) -> None:
        super().__init__()
        self.grid: Grid | None = None
        self.homes: list[tuple[tuple[int, ...], Place]] = []
        self.means: dict[Any, Tensor] = {}  # input -> mean of its ones image, (samples,)
        self.constants = Constants()
        self.shared = Shared()
        self.frozen_constants: set[str] = set()
        self.entries: Sequence[Entry] = ()
        self.grids: dict[Any, Grid] = {}  # input -> where its constants go
        self.by_ids: list[tuple[int, str]] = []  # terms that integer inputs decide, and modules

    def _places(self, call: Call, row: Row | None, out: Any) -> list[Place | None]:
        """The places of the outputs of a call."""
        raise NotImplementedError

    def module_path(self) -> str:
        """Dotted name of the module that is running."""
        raise NotImplementedError

    def attach(self, call: Call, y: Tensor, term: Tensor, frozen: bool = False) -> Tensor:
        """Carries ``term``, a constant that was added to y, to the ones image of the input.

        ``frozen``: the constant itself depends on the input (it is told in the result).
        """
        found = None if self.grid is None else finite(term)
        made = None if self.grid is None else only_term(call)
        own = None if made is None else own_place(call, made)
        if made is not None and own is not None and found is None and by_ids([made]):
            found = term  # the input has an entry, whatever its values add up to
        if found is None:
            return y
        if frozen:
            self.frozen_constants.add(self.module_path())
        if own is not None:
            ones = self.constants.add(self.module_path(), own, own.ones())
            self._tell(call)
            return Constant.apply(y, ones, found)  # type: ignore[return-value]
        place = self._places(call, self.book.get(call.operator), y)[0] or self.nowhere(y, call)
        return self.carry(call, y, found, place)

    def ones_for(self, call: Call, y: Tensor) -> Tensor:
        """The ones of a new constant term of the output y of this call."""
        place = self._places(call, self.book.get(call.operator), y)[0] or self.nowhere(y, call)
        return self.share(call, place)

    def carry(self, call: Call, y: Tensor, term: Tensor, place: Place | None) -> Tensor:
        return Constant.apply(y, self.share(call, place), term)  # type: ignore[return-value]

    def share(self, call: Call, place: Place | None, name: str | None = None) -> Tensor:
        """Ones at a place for a new constant term of the module that runs, or of ``name``."""
        # There is a grid here, so there is at least the whole input as a place.
        assert place is not None
        told = name is None
        inputs = inputs_of([(t, m) for t, m in call.marked if m.kind == CARRIED])
        ones = ones_at(place, [self.means[k] for k in inputs])
        ones = self.constants.add(name or self.module_path(), place, ones)
        if told:  # the constant of another layer is told, if at all, where that layer was called
            self._tell(call)
        return ones

    def _tell(self, call: Call) -> None:
        """Notes the constant that was added last, if it is another for another input."""
        marks = [m for t, m in call.marked if m.kind == FROZEN and t.dtype != torch.bool]
        if any(n >= 0 for n in names_in(marks)):
            self.frozen_constants.add(self.constants.terms[-1].name)
        elif call.operator in _TERMS and by_ids(marks):
            self.by_ids.append((len(self.constants.terms) - 1, self.constants.terms[-1].name))

    def tell(self, found: Sequence[Tensor | None]) -> None:
        """Takes in which constant terms, in their order, reach the output."""
        for k, name in self.by_ids:
            if found[k] is not None:
                self.frozen_constants.add(name)

    def nowhere(self, t: Tensor, call: Call | None = None) -> Place | None:
        """Without location, on the first input that a call depends on."""
        if self.grid is None:
            return None
        grid = None
        if call is not None:
            grid = self.grid_of(names_in(m for _, m in call.marked if m.kind == CARRIED))
        return places.unplaced(grid or self.grid, t.shape)

    def grid_of(self, inputs: frozenset[Any]) -> Grid | None:
        """Where constants of the first of these inputs go."""
        return next((self.grids[k] for k in sorted(inputs) if k in self.grids), None)

    def home(self, t: Tensor) -> Place | None:
        """The place of an explained input with the leading dimensions of t (nodes, tokens)."""
        for shape, place in self.homes:
            lead = len(shape) - 1
            if lead and t.ndim > lead and tuple(t.shape[:lead]) == shape[:lead]:
                kept = places.reduced(place, shape, [lead], False)
                return kept.with_cells(
                    kept.cells.reshape(*kept.cells.shape, *[1] * (t.ndim - lead))
                )
        return None


# Operators of which an argument may be a constant term.
_TERMS = frozenset(
    "add sub cat stack stacked where setitem index_put index_copy index_add scatter scatter_add "
    "copy_".split()
)
