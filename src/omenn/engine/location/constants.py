"""The constant terms of one run: which module added them, where they lie, and what they sum to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from omenn.engine.location import REASONS, Place


class Term(NamedTuple):
    """A constant that module ``name`` added at ``place``; its ``ones`` are the term's own."""

    name: str
    place: Place
    ones: Tensor


class Constants:
    """The constant terms in the order in which the model added them.

    Each has a tensor of ones at its place. The gradient that arrives there is what the term adds
    to the output, cell by cell; it flows on to the ones image of the input.
    """

    def __init__(self) -> None:
        self.terms: list[Term] = []
        self._rows: dict[int, Tensor] = {}

    def add(self, name: str, place: Place, ones: Tensor) -> Tensor:
        """A differentiable view of ``ones`` (U at ``place``) that belongs to one new term."""
        own = ones.view_as(ones) if ones.requires_grad else ones.detach().requires_grad_()
        self.terms.append(Term(name, place, own))
        return own

    def ones(self) -> list[Tensor]:
        """The ones of each term; the gradient there is what the term adds."""
        return [term.ones for term in self.terms]

    def common(self) -> bool:
        """Whether a term lies at what is common to several samples."""
        return any(term.place.common() for term in self.terms)

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


def _compact(index: Tensor) -> Tensor:
    """The index of each row where all cells of a row share it, else of each cell; flat."""
    if index.ndim < 2 or not index.numel():
        return index.reshape(-1)
    lines = index.reshape(index.shape[0], -1)
    first = lines[:, :1]
    return first.reshape(-1) if bool((lines == first).all()) else index.reshape(-1)


def ones_at(place: Place, means: Sequence[Tensor]) -> Tensor:
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
