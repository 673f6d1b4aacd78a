"""What a run explains: the entries of its result, their ones images, and where they lie.

An entry is an input of the model (or, with ``at=``, a tensor that a module returned). A
floating-point input is the one leaf of its entry. An integer, bool or uint8 input has no
derivative; the leaves of its entry are the floats that are made of it and explained: each lookup
in a table, each conversion of an 8-bit picture. They lie at the places of the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omenn.engine.location import Grid, Place, full, input_place
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
            raise InputError("ids of several inputs are put together before they are looked up.")
        count = ones.new_zeros(len(self.sample))
        count = count.index_add(0, cells.flatten(), ones.sum_to_size(cells.shape).flatten())
        there = torch.cat([flat, flat.new_zeros(len(count) - len(flat))]) / count.clamp_min(1)
        return there[cells].expand(shape).clone()


def _home(entry: Entry) -> Grid:
    assert entry.home is not None
    return entry.home.grid
