"""Where the constants of a run go: from where they are added to the ones images of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from omenn.engine import location as places
from omenn.engine.location import Grid, Place, Shared
from omenn.engine.location.constants import Constants, finite, ones_at
from omenn.engine.location.entries import Entry
from omenn.engine.location.provenance import by_ids, names_in, only_term, own_place
from omenn.engine.operators import Operator
from omenn.engine.trace.autograd_nodes import Constant
from omenn.engine.trace.call import FROZEN, Call


class Placing(TorchFunctionMode):
    """What the tracer of one run knows of its constants."""

    book: dict[str, Operator]

    def __init__(self) -> None:
        super().__init__()
        self.grid: Grid | None = None
        self.homes: list[tuple[Any, tuple[int, ...], Place]] = []  # input, shape, place
        self.means: dict[Any, Tensor] = {}  # input -> mean of its ones image, (samples + 1,)
        self.constants = Constants()
        self.shared = Shared()
        self.frozen_constants: set[str] = set()
        self.entries: Sequence[Entry] = ()
        self.grids: dict[Any, Grid] = {}  # input -> where its constants go
        self._joint: dict[frozenset[int], Grid] = {}
        self.by_ids: list[tuple[int, str]] = []  # terms that integer inputs decide, and modules

    def _places(self, call: Call, row: Operator | None, out: Any) -> list[Place | None]:
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
        place = self._places(call, self.book.get(call.operator), y)[0] or self.nowhere(
            y, call.inputs
        )
        return self.carry(call, y, found, place)

    def ones_for(self, call: Call, y: Tensor) -> Tensor:
        """The ones of a new constant term of the output y of this call."""
        place = self._places(call, self.book.get(call.operator), y)[0] or self.nowhere(
            y, call.inputs
        )
        return self.share(call, place)

    def carry(self, call: Call, y: Tensor, term: Tensor, place: Place | None) -> Tensor:
        return Constant.apply(y, self.share(call, place), term)  # type: ignore[return-value]

    def share(self, call: Call, place: Place | None, name: str | None = None) -> Tensor:
        """Ones at a place for a new constant term of the module that runs, or of ``name``."""
        # There is a grid here, so there is at least the whole input as a place.
        assert place is not None
        told = name is None
        ones = ones_at(place, [self.means[k] for k in call.inputs])
        ones = self.constants.add(name or self.module_path(), place, ones)
        if told:  # the constant of another layer is told, if at all, where that layer was called
            self._tell(call)
        return ones

    def _tell(self, call: Call) -> None:
        """Notes the constant that was added last, if it is another for another input."""
        marks = [m for t, m in call.marked if m.kind == FROZEN and t.dtype != torch.bool]
        if any(n >= 0 for n in names_in(marks)):
            self.frozen_constants.add(self.constants.terms[-1].name)
        elif call.known.terms and by_ids(marks):
            self.by_ids.append((len(self.constants.terms) - 1, self.constants.terms[-1].name))

    def tell(self, found: Sequence[Tensor | None]) -> None:
        """Takes in which constant terms, in their order, reach the output."""
        for k, name in self.by_ids:
            if found[k] is not None:
                self.frozen_constants.add(name)

    def nowhere(self, t: Tensor, inputs: frozenset[Any]) -> Place | None:
        """Without location, on these inputs."""
        if self.grid is None:
            return None
        return places.unplaced(self.grid_of(inputs) or self.grid, t.shape)

    def grid_of(self, inputs: frozenset[Any]) -> Grid | None:
        """Where constants of these inputs go that have no location."""
        grids = {id(self.grids[k]): self.grids[k] for k in inputs if k in self.grids}
        if len(grids) < 2:
            return next(iter(grids.values()), None)
        key = frozenset(grids)
        if key not in self._joint:
            self._joint[key] = places.joint(grids.values())
        return self._joint[key]

    def home(self, t: Tensor, inputs: frozenset[Any]) -> Place | None:
        """Where t lies on these inputs, if it has the leading dimensions of some (nodes, tokens).

        Those of which it has the most count; several count alike.
        """
        found: dict[int, dict[int, Place]] = {}
        for name, shape, place in self.homes:
            lead = len(shape) - 1
            fits = lead and t.ndim > lead and tuple(t.shape[:lead]) == shape[:lead]
            if fits and name in inputs:
                kept = places.reduced(place, shape, [lead], False)
                cells = kept.cells.reshape(*kept.cells.shape, *[1] * (t.ndim - lead))
                found.setdefault(lead, {})[name] = kept.with_cells(cells)
        if not found:
            return None
        there = list(found[max(found)].values())
        return there[0] if len(there) == 1 else places.mixed(there, [t.shape] * len(there))
