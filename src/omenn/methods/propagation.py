"""From a rule book to an explanation: one pass forward under its rules, one pass back.

NOTE one currency. What travels back is g, the relevance of a tensor per unit of it: R = x ⊙ g.
In it every operator that only moves, adds or selects is its own transpose (a residual addition
z = a + b gives a/z and b/z of R), a non-linearity f with the identity rule is ⟦f(x)/x⟧, and a
tensor that is used twice has the sum of what comes back. So the frozen book is LRP without a
stabiliser, and another book says only what it does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omenn.check import choose
from omenn.engine.depth import RESAMPLINGS
from omenn.engine.operators import OPERATORS, Row
from omenn.engine.run import FrozenRun
from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.explanation import Explanation


@dataclass(frozen=True)
class Book:
    """A table of rules, operator → :class:`~omenn.engine.operators.Row`, over the frozen table.

    ``ranked``: whether the bounded factor of a product is frozen, as in the frozen book; if not,
    each of two factors that depend on the input has half of the relevance.
    """

    rows: Mapping[str, Row] = field(default_factory=dict)
    ranked: bool = True

    def over(self, **rules: Callable[[Any], Any]) -> Book:
        """This book with other rules for the named operators, whose places stay as they are."""
        changed = {name: OPERATORS[name]._replace(rule=rule) for name, rule in rules.items()}
        return Book({**self.rows, **changed}, self.ranked)

    def table(self) -> dict[str, Row]:
        """The whole table, with the rules that users have added to the frozen one."""
        return {**OPERATORS, **self.rows}


def ruled(operators: str, rule: Callable[[Any], Any], composite: bool = False) -> dict[str, Row]:
    """Rows that replace the rule of some operators of the frozen table (names, blank between)."""
    return {
        name: OPERATORS[name]._replace(rule=rule, composite=composite) for name in operators.split()
    }


def book_run(
    model: Any,
    inputs: Any,
    book: Book,
    *,
    at: str | None = None,
    resample: str = "bilinear",
    channel_dim: int | None = None,
    places: bool = False,
) -> FrozenRun:
    """One pass of the model under a rule book, from which outputs are pulled back.

    ``places``: follow where each tensor lies, for rules that must know which sample is which.
    """
    options = {"book": book.table(), "ranked": book.ranked}
    choose("resample", resample, RESAMPLINGS)
    bias = "places" if places else "none"
    return FrozenRun(model, inputs, at, bias, channel_dim, options, resample=resample)


@alone()
def propagate(
    model: Any,
    inputs: Any,
    target: Target,
    book: Book,
    *,
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """The relevance of the input for one output, R = x ⊙ g, by the rules of a book.

    It starts with R = f_c(x) at the target. Constants get nothing: ``bias`` is zero, and the
    residual is what they, and the rules, keep. Arguments and errors as of :func:`omenn.explain`.

    Example:
        >>> import torch
        >>> from omenn.methods import Book, propagate
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU()).eval()
        >>> e = propagate(net, torch.randn(2, 3), 0, Book())
        >>> assert torch.allclose(e.matrix.sum(1), e.output, atol=1e-5)
    """
    run = book_run(model, inputs, book, at=at, resample=resample, channel_dim=channel_dim)
    f, index = run.target(target, output)
    return run.wrap(f, index, run.pull_back(f))


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """z + ε sign z, zero counting as positive."""
    return z + float(epsilon) * torch.where(z < 0, -1.0, 1.0).to(z.dtype)
