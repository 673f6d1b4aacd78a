"""What a run explains: the entries of its result, their ones images, and where they lie.

An entry is an input of the model (or, with ``at=``, a tensor that a module returned). A
floating-point input is the one leaf of its entry. An integer, bool or uint8 input has no
derivative; the leaves of its entry are the floats that are made of it and explained: each lookup
in a table, each conversion of an 8-bit picture. They lie at the places of the input.

NOTE [a guess by the rank] Which dimension holds channels is a guess, until a convolution tells: it
slides along its last dimensions and mixes the one in front of them. Where it slides along the
dimension that was taken for the channels (a signal (B, C, T), images with their channels last), the
pass begins again with the right one; the convolution is the first operator or nearly so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omenn.engine.location import Grid, Place, full, input_place
from omenn.engine.trace.marks import Mark
from omenn.errors import InputError

Key = int | str | None


@dataclass(eq=False)
class Entry:
    """An explained input of one run.

    ``place``: where constants at its elements go, as ``bias=`` says. ``home``: where its elements
    lie, whatever ``bias=`` says; None where it is its own leaf. ``batch``: the dimension of the
    samples; ``known``: whether one of its dimensions can be that. ``channel``: the dimension that
    the map is summed over, from the end. ``reached``: a constant was pulled back to it.
    """

    key: Key
    value: Tensor
    ones: Tensor
    place: Place
    batch: int
    channel: int | None
    home: Place | None = None
    home_ones: Tensor | None = None
    known: bool = True
    unsure: bool = False  # another dimension may be that of the samples
    leaves: list[int] = field(default_factory=list)
    reached: bool = False

    @property
    def shown(self) -> bool:
        return bool(self.leaves) or self.reached

    @property
    def axis(self) -> int:
        """The dimension of the samples in a map, which has no channels."""
        if self.channel is None or self.ones.ndim > self.value.ndim:
            return self.batch
        return self.batch - (self.channel % self.value.ndim < self.batch)

    def for_constants(self, place: Place | None) -> Place | None:
        """A place of the home, for constants that lie there: evenly, if ``bias=`` says so."""
        if place is None or self.home is None or self.home is self.place:
            return place
        grid = self.place.grid
        each = torch.arange(grid.slots, device=grid.sample.device)
        first = torch.full((grid.samples + 1,), grid.slots, device=grid.sample.device)
        first = first.scatter_reduce(0, grid.sample[: grid.slots], each, "amin")
        first[grid.samples] = grid.slot(first.new_tensor(grid.common))
        return Place(grid, first[place.grid.sample[place.cells]])


def direct(index: int) -> int:
    """The name of an integer input in the provenance of what is made of its values.

    What is made of a leaf of the entry goes under the number of the entry itself.
    """
    return ~index


def entry_of(name: int) -> int:
    """The number of the entry that a name in a provenance belongs to."""
    return ~name if name < 0 else name


def placed(
    value: Tensor,
    samples: int,
    batch: int,
    channel: int | None,
    spread: bool,
    batched: bool,
    dtype: torch.dtype,
    grad: bool,
) -> tuple[Tensor, Place]:
    """The ones image of an input, and where its elements lie on it."""
    shape = list(value.shape) if batched else [1, *value.shape]
    if channel is not None:
        del shape[channel]
        if batched:
            batch -= channel % value.ndim < batch
    ones = torch.ones(shape, dtype=dtype, device=value.device, requires_grad=grad)
    return ones, input_place(ones, samples, batch, channel, spread, batched)


class Spread:
    """How what lies at a place is brought to the entries that it is of: the transposed map.

    It is taken down when the place is made, as the graph of the ones is freed on the way back.
    """

    def __init__(self, place: Place, entries: Sequence[Entry]) -> None:
        self.cells, grid = place.cells, place.grid
        self.plain = next(
            (k for k, e in enumerate(entries) if e.home is not None and e.home.grid is grid), None
        )
        self.rows: dict[int, Tensor] = {}
        if self.plain is not None:
            self.sample, self.slots = grid.sample, grid.slots
            return
        homes = {k: (e, t) for k, e in enumerate(entries) if (t := e.home_ones) is not None}
        found, self.cells = place.cells.unique(return_inverse=True)
        with torch.enable_grad():
            u = grid.u[found]
        each = torch.eye(len(u), dtype=u.dtype, device=u.device)
        ones = [t for _, t in homes.values()] + [_home(e).mean for e, _ in homes.values()]
        rows = torch.autograd.grad(
            u, ones, each, True, materialize_grads=True, is_grads_batched=True
        )
        for (k, (e, _)), r, lost in zip(homes.items(), rows, rows[len(homes) :], strict=False):
            own = _home(e).sample[: _home(e).slots]
            sizes = own.bincount(minlength=lost.shape[1]).clamp_min(1)
            there = r.flatten(1) + (lost / sizes)[:, own] + lost[:, -1:] / len(own)
            if bool(there.any()):
                self.rows[k] = there

    def back(self, c: Tensor, entries: Sequence[Entry]) -> dict[int, Tensor]:
        """The sums of c at the locations of each entry (the shape of its ones)."""
        cells = full(self.cells, c.shape)
        amount = c.sum_to_size(cells.shape).flatten()
        if self.plain is None:
            each = {k: entries[k].ones.shape for k in self.rows}
            total = amount.new_zeros(next(iter(self.rows.values())).shape[0])
            total = total.index_add(0, cells.flatten(), amount)
            return {k: (total @ self.rows[k].to(c.dtype)).reshape(n) for k, n in each.items()}
        total = amount.new_zeros(len(self.sample)).index_add(0, cells.flatten(), amount)
        found, rest = total[: self.slots], total[self.slots :]
        own, samples = self.sample[: self.slots], self.sample[self.slots :]
        sizes = own.bincount(minlength=int(self.sample.max()) + 1).clamp_min(1)
        lost = rest.new_zeros(len(sizes)).index_add(0, samples, rest)
        found = found + (lost / sizes)[own] + lost[-1] / len(own)  # the last is common to all
        return {self.plain: found.reshape(entries[self.plain].ones.shape)}

    def forth(self, maps: Tensor, shape: Sequence[int]) -> Tensor:
        """A map of the entry as contributions of ``shape``: each location over what lies there."""
        ones = torch.ones(shape, dtype=maps.dtype, device=maps.device)
        flat, cells = maps.flatten(), full(self.cells, shape)
        if self.plain is None:
            raise InputError(
                "ids of several inputs are put together before they are looked up.",
                argument="inputs",
            )
        count = ones.new_zeros(len(self.sample))
        count = count.index_add(0, cells.flatten(), ones.sum_to_size(cells.shape).flatten())
        there = torch.cat([flat, flat.new_zeros(len(count) - len(flat))]) / count.clamp_min(1)
        return there[cells].expand(shape).clone()


def _home(entry: Entry) -> Grid:
    assert entry.home is not None
    return entry.home.grid


# --- results -------------------------------------------------------------------------------------


def nothing(entry: Entry) -> Tensor:
    """The weights of an input that only constants lie at: zero."""
    return torch.zeros(entry.value.shape, dtype=entry.ones.dtype, device=entry.value.device)


class Entries:
    """The entries of one run, and their results in the structure of the inputs.

    ``kind``, ``items``: the inputs as they were given, see :func:`omenn.engine.inputs.items_of`.
    ``at``: whether the leaves are what a module returned. ``batched``: whether the inputs are
    ``samples`` of their own, not one object.
    """

    samples: int

    def __init__(self, kind: str, items: list[tuple[Key, Any]], batched: bool) -> None:
        self.kind, self.items, self.batched = kind, items, batched
        self.at = False
        self.entries: list[Entry] = []
        self.ones: list[Tensor] = []  # the ones images of the entries
        # By leaf: its entry, itself, its value, and its dimensions of channels and samples.
        self.owners: list[int] = []
        self.leaves: list[Tensor] = []
        self.values: list[Tensor] = []
        self.channels: list[int | None] = []
        self.batch: list[int] = []
        self.spreads: list[Spread | None] = []  # of leaves of integer inputs

    @property
    def keys(self) -> list[Key]:
        """The keys of the leaves."""
        return [self.entries[k].key for k in self.owners]

    def located(self, contributions: Sequence[Tensor]) -> list[Tensor]:
        """What the leaves have, summed at the locations of each entry, (B, *locations)."""
        found: dict[int, Tensor] = {}
        for c, spread in zip(contributions, self.spreads, strict=True):
            if spread is not None:
                for k, there in spread.back(c, self.entries).items():
                    found[k] = found[k] + there if k in found else there
        maps = []
        for k, entry in enumerate(self.entries):
            if entry.home is not None:
                c = found[k] if k in found else torch.zeros_like(entry.ones)
            else:
                (leaf,) = entry.leaves
                c = contributions[leaf] if self.batched else contributions[leaf].unsqueeze(0)
                c = c if entry.channel is None else c.sum(entry.channel)
            maps.append(self.batch_first(c, k))
        return maps

    def batch_first(self, locations: Tensor, k: int) -> Tensor:
        """(B, *locations), wherever the samples of entry k are."""
        return locations.movedim(self.entries[k].axis, 0)

    def shaped(self, maps: Sequence[Any]) -> Any:
        """One value per entry in the structure of the inputs; of what a module returned, in order.

        Entries that nothing is explained of are left out.
        """
        found = {e.key: m for e, m in zip(self.entries, maps, strict=True) if e.shown}
        if self.at:
            return next(iter(found.values())) if len(found) == 1 else tuple(found.values())
        return structured(self.kind, [key for key, _ in self.items], found)

    def by_leaf(self, values: Sequence[Tensor], none: Callable[[Entry], Tensor] = nothing) -> Any:
        """One value per leaf in the structure of the inputs: a tuple for several lookups of one.

        ``none(entry)`` for an entry without leaves.
        """
        found = []
        for entry in self.entries:
            own = [values[k] for k in entry.leaves]
            found.append(own[0] if len(own) == 1 else tuple(own) if own else none(entry))
        return self.shaped(found)


def structured(kind: str, keys: Sequence[Key], found: Mapping[Key, Any]) -> Any:
    """Values by key in the structure and the order of the inputs.

    A tensor for a tensor; a tuple with None where nothing of an input is explained; a dict of
    what is explained.
    """
    if kind == "tensor":
        return found[None]
    if kind == "dict":
        return {key: found[key] for key in keys if key in found}
    return tuple(found.get(key) for key in keys)


# --- channels ------------------------------------------------------------------------------------


class Reoriented(BaseException):
    """The channels of an entry are in another dimension. No error: models must not catch it."""

    def __init__(self, index: int, channel: int) -> None:
        super().__init__(f"input {index} has its channels in dimension {channel}")
        self.index, self.channel = index, channel


def look(
    entries: Sequence[Entry], guessed: Sequence[int], x: Tensor, mark: Mark, spatial: int
) -> None:
    """Raises Reoriented where a convolution over the last ``spatial`` dimensions of x says so."""
    for k in guessed:
        entry = entries[k]
        if mark.inputs != {k} or entry.channel is None or x.ndim < spatial + 2:
            continue
        if mark.place is None:  # no places are followed
            wrong = x.shape == entry.value.shape and -entry.channel <= spatial
        elif mark.place.grid is entry.place.grid:
            cells = full(mark.place.cells, x.shape)
            last = range(x.ndim - spatial, x.ndim)
            wrong = any(cells.shape[d] == 1 < x.shape[d] for d in last)
        else:
            continue
        if wrong:
            raise Reoriented(k, _channel_of(entry, x, spatial))


def _channel_of(entry: Entry, x: Tensor, spatial: int) -> int:
    """The channels of a convolution as a dimension of the input; 0 where it has none of its own."""
    shape, mixed = entry.value.shape, x.shape[-spatial - 1]
    if x.shape == shape:
        return -spatial - 1
    found = [d for d, n in enumerate(shape) if n == mixed and d != entry.batch]
    return found[0] - len(shape) if len(found) == 1 and x.ndim == len(shape) else 0
