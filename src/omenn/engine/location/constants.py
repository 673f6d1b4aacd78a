"""Where the constants of one run go: from where they are added to the ones images of the inputs.

NOTE [a location, one place] All that a run knows of locations is one :class:`Location`: the places
of the inputs, the places that are shared, and the constant terms. Rules reach it by their call.

NOTE [what acts] A location acts where its weight is not zero in any channel, or where a constant
lies that reaches the output. What does not act is not there for the model (padding, the nodes of
another graph, what a stride leaves out), and gets nothing: so a sample has the same map alone and
in a batch, beside a longer one and padded. Where nothing of a sample acts, the constants are spread
over all of it; of several inputs those that have an acting location share them evenly. Constants
that are made of an integer input, which has no weight, stay with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.location import REASONS, Grid, Place
from omenn.engine.location.entries import Entry, direct
from omenn.engine.location.provenance import by_ids, only_term, own_place
from omenn.engine.trace.autograd_nodes import Constant
from omenn.engine.trace.call import FROZEN, Call

if TYPE_CHECKING:
    from omenn.engine.operators.table import Operator


class Term(NamedTuple):
    """A constant that module ``name`` added at ``place``; its ``ones`` are the term's own."""

    name: str
    place: Place
    ones: Tensor


class Location:
    """What one run knows of places and of constants.

    ``rules``: the table with the placers. ``module_path()``: the name of the module that runs.
    """

    def __init__(
        self,
        rules: Mapping[str, Operator],
        module_path: Callable[[], str],
        along_attention: bool = False,
        smooth: bool = False,
    ) -> None:
        self._rules, self._module_path = rules, module_path
        self.along_attention = along_attention  # what sits in a class token goes along it
        self.smooth = smooth  # the cells of a coarse map overlap
        self.grid: Grid | None = None  # None: constants are not collected
        self.homes: list[tuple[Any, tuple[int, ...], Place]] = []  # input, shape, place
        self.means: dict[Any, Tensor] = {}  # input -> mean of its ones image, (samples + 1,)
        self.terms: list[Term] = []  # constants in the order in which the model added them
        self.frozen_constants: set[str] = set()
        self.entries: Sequence[Entry] = ()
        self._grids: dict[Any, Grid] = {}  # input -> where its constants go
        self._joint: dict[frozenset[int], Grid] = {}
        self._by_ids: list[tuple[int, str]] = []  # terms that integer inputs decide, and modules
        self._known: dict[Any, tuple[Any, Any]] = {}
        self._same: dict[Any, Place] = {}
        self._rows: dict[int, Tensor] = {}

    # --- inputs ----------------------------------------------------------------------------

    def add_entries(self, entries: Sequence[Entry]) -> None:
        """Takes in the last of the explained inputs."""
        self.entries, index = entries, len(entries) - 1
        grid = entries[index].place.grid
        for name in (index, direct(index)):
            self._grids[name], self.means[name] = grid, grid.mean

    def add_home(self, name: Any, shape: Sequence[int], place: Place, collect: bool) -> None:
        """A tensor of an input lies here; ``collect``: constants are carried to the input."""
        self.homes.append((name, tuple(shape), place))
        if collect and self.grid is None:
            self.grid = self.entries[name].place.grid

    # --- places ----------------------------------------------------------------------------

    def places(self, call: Call, row: Operator | None, out: Any) -> list[Place | None]:
        """The places of the outputs of a call."""
        if call.places is None:
            assert row is not None
            with torch.enable_grad():
                found = row.placer(call, out)
            call.places = list(found) if isinstance(found, (list, tuple)) else [found]
        return call.places

    def once(self, given: Sequence[Place | None], key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, a place or several, called once for the places ``given`` and a key.

        NOTE [equal places] are one object, so that U is resampled once for all of them: results
        with the same cells of the same grid (there and back again) as well. Each entry holds the
        places that its key names by ``id``, so that a key stays their own.
        """
        at = (tuple(map(id, given)), key)
        known = self._known.get(at)
        if known is None:
            made = make()
            found = [self._one(p) for p in made] if isinstance(made, list) else self._one(made)
            known = self._known[at] = (given, found)
        return known[1]

    def _one(self, found: Any) -> Any:
        if not isinstance(found, Place) or found.origin is not None:
            return found
        cells = found.cells
        at = (id(found.grid), cells.data_ptr(), cells.shape, cells.stride())
        return self._same.setdefault(at, found)

    def nowhere(self, t: Tensor, inputs: frozenset[Any]) -> Place | None:
        """Without location, on these inputs."""
        if self.grid is None:
            return None
        return places.unplaced(self.grid_of(inputs) or self.grid, t.shape)

    def grid_of(self, inputs: frozenset[Any]) -> Grid | None:
        """Where constants of these inputs go that have no location."""
        grids = {id(self._grids[k]): self._grids[k] for k in inputs if k in self._grids}
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

    # --- constant terms --------------------------------------------------------------------

    def attach(self, call: Call, y: Tensor, term: Tensor, frozen: bool = False) -> Tensor:
        """Carries ``term``, a constant that was added to y, to the ones image of the input.

        ``frozen``: the constant itself depends on the input, which the result says.
        """
        found = None if self.grid is None else finite(term)
        made = None if self.grid is None else only_term(call)
        own = None if made is None else own_place(call, made)
        if made is not None and own is not None and found is None and by_ids([made]):
            found = term  # the input has an entry, whatever its values add up to
        if found is None:
            return y
        if frozen:
            self.frozen_constants.add(self._module_path())
        if own is not None:
            ones = self._add(self._module_path(), own, own.ones())
            self._note(call)
            return Constant.apply(y, ones, found)  # type: ignore[return-value]
        return self.carry(call, y, found, self._place_of(call, y))

    def ones_for(self, call: Call, y: Tensor) -> Tensor:
        """The ones of a new constant term of the output y of this call."""
        return self.share(call, self._place_of(call, y))

    def _place_of(self, call: Call, y: Tensor) -> Place | None:
        return self.places(call, self._rules.get(call.operator), y)[0] or self.nowhere(
            y, call.inputs
        )

    def carry(self, call: Call, y: Tensor, term: Tensor, place: Place | None) -> Tensor:
        """y with a constant term at a place."""
        return Constant.apply(y, self.share(call, place), term)  # type: ignore[return-value]

    def share(self, call: Call, place: Place | None, name: str | None = None) -> Tensor:
        """Ones at a place for a new constant term of the module that runs, or of ``name``."""
        # There is a grid here, so there is at least the whole input as a place.
        assert place is not None
        ones = _ones_at(place, [self.means[k] for k in call.inputs])
        ones = self._add(name or self._module_path(), place, ones)
        if name is None:  # of the constant of another layer it was noted where that was called
            self._note(call)
        return ones

    def _add(self, name: str, place: Place, ones: Tensor) -> Tensor:
        """A differentiable view of ``ones`` (U at ``place``) that belongs to one new term.

        The gradient that arrives there is what the term adds to the output, cell by cell; it flows
        on to the ones image of the input.
        """
        own = ones.view_as(ones) if ones.requires_grad else ones.detach().requires_grad_()
        self.terms.append(Term(name, place, own))
        return own

    def _note(self, call: Call) -> None:
        """Notes the constant that was added last, if it is another for another input."""
        marks = [m for t, m in call.marked if m.kind == FROZEN and t.dtype != torch.bool]
        if not marks:
            return
        if any(n >= 0 for m in marks for n in m.inputs):
            self.frozen_constants.add(self.terms[-1].name)
        elif call.known.terms and by_ids(marks):
            self._by_ids.append((len(self.terms) - 1, self.terms[-1].name))

    # --- results ---------------------------------------------------------------------------

    def ones(self) -> list[Tensor]:
        """The ones of each term; the gradient there is what the term adds."""
        return [term.ones for term in self.terms]

    def reached(self, found: Sequence[Tensor | None]) -> None:
        """Takes in which constant terms, in their order, reach the output."""
        for k, name in self._by_ids:
            if found[k] is not None:
                self.frozen_constants.add(name)

    def common(self) -> bool:
        """Whether a term lies at what is common to several samples."""
        alone = self.grid is None or self.grid.samples == 1
        return not alone and any(term.place.common() for term in self.terms)

    def by_module(self, maps: list[Tensor | None], samples: int) -> dict[str, Tensor]:
        """Module → what its constants add: (located, then one row for each reason, samples + 1).

        The last column is what is common to all. ``maps``: for each term the gradient at its
        ones, None where none arrived.
        """
        width = (1 + len(REASONS)) * (samples + 1)
        groups: dict[int, list[int]] = {}
        for k, (term, cells) in enumerate(zip(self.terms, maps, strict=True)):
            if cells is not None and cells.numel():  # a term of no tokens adds nothing
                groups.setdefault(id(term.place), []).append(k)
        sums: dict[int, Tensor] = {}
        for members in groups.values():
            place = self.terms[members[0]].place
            found = [m for k in members if (m := maps[k]) is not None]
            sums |= zip(members, self._summed(place, found, width), strict=True)
        first = self.terms[0].ones if self.terms else None
        out: dict[str, Tensor] = {}
        for k, term in enumerate(self.terms):
            if k in sums:
                out[term.name] = out[term.name] + sums[k] if term.name in out else sums[k]
            elif term.name not in out:
                assert first is not None
                out[term.name] = first.new_zeros(width)
        return out

    def by_cells(
        self, maps: Sequence[Tensor | None], ones: Sequence[Tensor]
    ) -> dict[int, list[Tensor]]:
        """Cells of a sample → what located constants add at so many, brought to ``ones``.

        ``maps``: for each term the gradient at its ones, None where none arrived.
        """
        added: dict[int, tuple[Place, Tensor]] = {}
        for term, cells in zip(self.terms, maps, strict=True):
            if cells is not None and cells.numel():
                before = added.get(id(term.place))
                added[id(term.place)] = (term.place, cells + before[1] if before else cells)
        levels: dict[int, list[tuple[Place, Tensor]]] = {}
        for place, cells in added.values():
            there = torch.where(place.located() | place.routed(), cells, 0)
            levels.setdefault(_cells_of(place), []).append((place, there))
        levels.pop(0, None)
        return {n: _brought(level, ones) for n, level in sorted(levels.items(), reverse=True)}

    def _summed(self, place: Place, maps: list[Tensor], width: int) -> Tensor:
        """The maps of terms at one place, summed to (terms, width)."""
        rows = self._rows.get(id(place))
        if rows is None:
            rows = self._rows[id(place)] = _compact(place.source_index())
        n = len(maps)
        stacked = torch.stack([m.reshape(rows.numel(), -1).sum(1) for m in maps])
        index = torch.arange(n, device=rows.device)[:, None] * width + rows
        total = stacked.new_zeros(n * width).index_add(0, index.reshape(-1), stacked.reshape(-1))
        return total.reshape(n, width)


def _cells_of(place: Place) -> int:
    """How many cells with a location a sample has on average, each counted once."""
    located = place.cells[place.located() | place.routed()]
    return round(located.unique().numel() / place.grid.samples)


def _brought(level: Sequence[tuple[Place, Tensor]], ones: Sequence[Tensor]) -> list[Tensor]:
    """The amounts at some places, brought to the ones images of the inputs."""
    found = torch.autograd.grad(
        [place.ones() for place, _ in level],
        ones,
        [cells.detach() for _, cells in level],
        retain_graph=True,
        allow_unused=True,
    )
    return [torch.zeros_like(u) if g is None else g for g, u in zip(found, ones, strict=True)]


def _compact(index: Tensor) -> Tensor:
    """The index of each row where all cells of a row share it, else of each cell; flat."""
    if index.ndim < 2 or not index.numel():
        return index.reshape(-1)
    lines = index.reshape(index.shape[0], -1)
    first = lines[:, :1]
    return first.reshape(-1) if bool((lines == first).all()) else index.reshape(-1)


def _ones_at(place: Place, means: Sequence[Tensor]) -> Tensor:
    """U at a place; without one, evenly on all inputs where the place knows of some alone."""
    known = {id(m) for m in place.grid.tail.means}
    if all(id(m) in known for m in means):
        return place.ones()
    lost = ~(place.located() | place.routed())
    even = torch.stack([m for m in means if m.shape == place.grid.mean.shape]).mean(0)
    return torch.where(lost, even[place.grid.sample[place.cells]], place.ones())


def finite(term: Tensor) -> Tensor | None:
    """The term with zeros where it is not finite; None where it is zero everywhere.

    A masked place (−∞) cannot reach a finite output: its gradient is zero, and 0 · ∞ must not
    become NaN. A zero that has a derivative stays: a map that is trained on depends on it.
    """
    values = term.detach()
    if not values.numel():
        return None
    if term.requires_grad and torch.is_grad_enabled() and not bool(values.any()):
        return term
    if values.numel() > 65536 or not values.is_floating_point():
        if values.numel() <= 65536 and not bool(values.any()):
            return None
        known = bool(values.sum().isfinite())
    else:  # one number tells both
        largest = float(torch.linalg.vector_norm(values, math.inf))
        if largest == 0:
            return None
        known = math.isfinite(largest)
    return term if known else torch.where(term.isfinite(), term, torch.zeros_like(term))


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


# --- constants without a place -------------------------------------------------------------------


def spread(
    amounts: Sequence[Tensor], acts: Sequence[Tensor], own: Sequence[bool] = ()
) -> list[Tensor]:
    """What each input has without a place, (B,), over its locations ``acts``, (B, *locations).

    ``own``: inputs that keep what they have though nothing of them acts.

    >>> acts = torch.tensor([[True, True, False]]), torch.tensor([[False, False]])
    >>> [m.tolist() for m in spread([torch.tensor([2.0]), torch.tensor([4.0])], acts)]
    [[[3.0, 3.0, 0.0]], [[0.0, 0.0]]]
    """
    some = torch.stack([_by_sample(n, a).any(1) for n, a in zip(amounts, acts, strict=True)])
    whole = torch.stack(list(amounts))  # (inputs, B)
    stays = torch.tensor(own or [False] * len(acts), device=some.device).unsqueeze(1) | some
    moves = ~stays & some.any(0)
    homeless = torch.where(moves, whole, 0).sum(0) / some.sum(0).clamp_min(1)
    whole = torch.where(moves, 0, whole) + torch.where(some, homeless, 0)
    return [_evenly(amount, a) for amount, a in zip(whole, acts, strict=True)]


def _evenly(amount: Tensor, acts: Tensor) -> Tensor:
    flat = _by_sample(amount, acts)
    flat = flat | ~flat.any(1, keepdim=True)
    shares = flat.to(amount.dtype) / flat.sum(1, keepdim=True)
    return (amount.unsqueeze(1) * shares).reshape(acts.shape)


def _by_sample(amount: Tensor, acts: Tensor) -> Tensor:
    """(B, locations); several rows of a sample (windows) follow one another."""
    return acts.reshape(len(amount), -1)
