"""The frozen network once more, slow and obvious: every value with its dense affine map.

Nothing here knows the engine. A :class:`Dense` holds a value and one column for each explained
number of the whole batch, plus a last one for the constants: ``value = Σ_k x_k columns[k] +
columns[-1]``. An operator of the random networks says by itself what it does to the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Dense:
    """``value`` (*shape) and its ``columns`` (explained numbers + 1, *shape)."""

    value: Tensor
    columns: Tensor

    def linear(self, f: Callable[[Tensor], Tensor]) -> Dense:
        """f is linear and has no constant term: it acts on every column alike."""
        return Dense(f(self.value), torch.stack([f(c) for c in self.columns]))

    def times(self, coefficient: Tensor | float) -> Dense:
        """A held coefficient, which broadcasts to the value."""
        return Dense(self.value * coefficient, self.columns * coefficient)

    def plus(self, term: Tensor | float) -> Dense:
        """A constant term, which broadcasts to the value."""
        columns = self.columns.clone()
        columns[-1] = columns[-1] + term
        return Dense(self.value + term, columns)

    def pointwise(self, f: Callable[[Tensor], Tensor]) -> Dense:
        """φ(x) = φ(0) + ⟦(φ(x) − φ(0)) / x⟧ x; the inputs here are never zero."""
        origin = f(torch.zeros_like(self.value))
        safe = torch.where(self.value == 0, torch.ones_like(self.value), self.value)
        slope = torch.where(self.value == 0, 0.0, (f(self.value) - origin) / safe)
        return self.times(slope).plus(origin)

    def __add__(self, other: Dense) -> Dense:
        return Dense(self.value + other.value, self.columns + other.columns)


def leaf(value: Tensor, first: int, count: int) -> Dense:
    """An explained input whose numbers are ``first``, ``first + 1``, … of ``count`` in all."""
    columns = torch.zeros(count + 1, *value.shape, dtype=value.dtype)
    flat = columns[first : first + value.numel()].view(value.numel(), -1)
    flat[torch.arange(value.numel()), torch.arange(value.numel())] = 1
    return Dense(value, columns)


def constant(value: Tensor, count: int) -> Dense:
    """What does not depend on the input."""
    columns = torch.zeros(count + 1, *value.shape, dtype=value.dtype)
    columns[-1] = value
    return Dense(value, columns)


def half(a: Dense, b: Dense) -> Dense:
    """a ⊙ b of two factors that count alike: half of each carries."""
    return a.times(b.value / 2) + b.times(a.value / 2)


def joined(parts: Sequence[Dense], dim: int) -> Dense:
    """``torch.cat`` along a dimension counted from the end."""
    values = torch.cat([p.value for p in parts], dim)
    return Dense(values, torch.cat([p.columns for p in parts], dim))


def chosen(mask: Tensor, a: Dense, b: Dense) -> Dense:
    """``torch.where`` with a decision as condition."""
    return Dense(torch.where(mask, a.value, b.value), torch.where(mask, a.columns, b.columns))
