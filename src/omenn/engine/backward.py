"""The pass back of a run: from explained numbers to inputs, ones and constants.

What a first pass back cannot use are coefficients that are not finite, or were written over.
Hardly a model has them, and to look for them costs time. So the first pass takes what it finds, and
where it fails the model runs once more, and all that is saved for the pass back is a finite copy.

NOTE [zero times infinity] ``torch.where(n > 0, s / n, 0)`` is finite where n is zero, and nothing
flows back into its quotient; but the backward pass of the quotient multiplies this nothing by 1/0,
which gives NaN. A coefficient that is not finite cannot be part of a finite output, so the gradient
that meets it is zero, and any finite number may stand in its place. Where one of them did reach the
output after all, the sum is missed, and the explanation says that it is inexact.

NOTE [written over] ``y = relu(x); y += x`` runs without gradients, and cannot be differentiated, as
PyTorch keeps the result of the ReLU and not a copy of it. A coefficient is what it was when it was
used, so a copy is right.

NOTE [common rows] A reference row beside the batch, prototypes, padding along the batch: each
sample uses them, and they are of none. The gradient of all numbers together holds the shares of all
samples in one; that of one number alone is the share of its sample. So a model with such rows takes
one pass back more for each sample, and no other does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from omenn.engine.fidelity import Compared
from omenn.engine.target import Target
from omenn.engine.trace.attempt import Pass
from omenn.engine.trace.autograd_nodes import own_precision
from omenn.engine.trace.refusals import no_way_back


@dataclass(eq=False)
class Gradients:
    """What one explained number has at inputs, at their ones and, by module, at constants."""

    inputs: list[Tensor]
    ones: list[Tensor]
    sources: dict[str, Tensor]
    means: list[Tensor] = field(default_factory=list)  # without a place, by input and sample


class Backward(Compared):
    """A run from which explained numbers are pulled back."""

    how: Pass
    asked: dict[int, tuple[Tensor, Target, Any]]  # explained numbers, by id
    renewed: dict[int, Tensor]  # the same in another forward pass

    def forward_finite(self) -> None:
        """Another forward pass that saves finite copies."""
        raise NotImplementedError

    def _number(self, target: Target, output: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def pull_back(self, f: Tensor, retain: bool = False, create_graph: bool = False) -> Gradients:
        """∂Σf/∂(inputs, ones, sources) of the frozen network."""
        common = self.mode.location.common()

        def pull(fs: Sequence[Tensor]) -> Sequence[Tensor | None]:
            return self._gradients(fs[0], torch.ones_like(f), retain or common, create_graph)

        g = self._sorted(self._pulled([f], pull))
        return self._parted(f, g, common, retain, create_graph)

    def pull_back_by_cells(self, f: Tensor) -> tuple[Gradients, dict[int, list[Tensor]]]:
        """As ``pull_back``; and what located constants have at the ones, by size of their cells.

        The ones of each input that carries some, by how many cells a sample has where they lie.
        """
        common = self.mode.location.common()
        pulled = self._pulled(
            [f], lambda fs: self._gradients(fs[0], torch.ones_like(f), retain=True)
        )
        g = self._parted(f, self._sorted(pulled), common, retain=True)
        ones = [u for u in self.inputs.ones if u.requires_grad]
        return g, self.mode.location.by_cells(pulled[len(self._leaves()) :], ones)

    def _parted(
        self, f: Tensor, g: Gradients, common: bool, retain: bool, create_graph: bool = False
    ) -> Gradients:
        """Gradients of Σf whose last column, what is common, goes to the samples before it."""
        n, f = self.inputs.samples, self.renewed.get(id(f), f)
        alone: list[Gradients] = []
        for k, one in enumerate(torch.eye(n, dtype=f.dtype, device=f.device) if common else ()):
            keep = retain or create_graph or k + 1 < n
            alone.append(self._sorted(self._gradients(f, one, keep, create_graph)))
        means = [_parted(m, [a.means[k] for a in alone]) for k, m in enumerate(g.means)]
        sources = {}
        for name, own in g.sources.items():
            each = [a.sources[name].reshape(-1, n + 1) for a in alone]
            sources[name] = _parted(own.reshape(-1, n + 1), each).flatten()
        return replace(g, means=means, sources=sources)

    def pull_back_together(self, rows: Sequence[Tensor], retain: bool) -> list[Gradients]:
        """The gradients of several explained numbers in one pass, which holds them all."""
        if len(rows) == 1:
            return [self.pull_back(rows[0], retain)]
        common = self.mode.location.common()
        grads = self._pulled(rows, lambda fs: self._stacked(fs, retain or common))
        found = [
            self._sorted([None if g is None else g[k] for g in grads]) for k in range(len(rows))
        ]
        last = len(rows) - 1
        return [self._parted(f, found[k], common, retain or k < last) for k, f in enumerate(rows)]

    def _pulled(
        self, rows: Sequence[Tensor], pull: Callable[[Sequence[Tensor]], Sequence[Tensor | None]]
    ) -> Sequence[Tensor | None]:
        """What ``pull`` gives; from another forward pass, where this one cannot be used."""
        once_more = not self.how.finite and all(id(f) in self.asked for f in rows)
        try:
            grads = pull(rows)
        except Overwritten as error:
            if not once_more:
                raise no_way_back(error) from error
        else:
            if not once_more or all_finite(grads):
                return grads
        return pull(self._again(rows))

    def _stacked(self, rows: Sequence[Tensor], retain: bool) -> Sequence[Tensor | None]:
        with torch.enable_grad():
            f = torch.stack(list(rows))
        each = torch.eye(len(f), dtype=f.dtype, device=f.device).unsqueeze(-1).expand(-1, *f.shape)
        return self._gradients(f, each, retain, batched=True)

    def _again(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """The explained numbers of another forward pass, which saves finite copies."""
        self.forward_finite()
        fresh = []
        for f in rows:
            _, target, output = self.asked[id(f)]
            fresh.append(self._number(target, output)[0])
            self.renewed[id(f)] = fresh[-1]
        return fresh

    def _leaves(self) -> list[Tensor]:
        """Explained inputs, then ones: of their samples and of their locations, if wanted."""
        ones = [u for u in self.inputs.ones if u.requires_grad]
        return [*self.inputs.leaves, *self._means(), *ones]

    def _means(self) -> list[Tensor]:
        means = [self.mode.location.means.get(k) for k in range(len(self.inputs.ones))]
        return [m for m in means if m is not None and m.requires_grad]

    def _gradients(
        self,
        f: Tensor,
        grad: Tensor,
        retain: bool,
        create_graph: bool = False,
        batched: bool = False,
    ) -> Sequence[Tensor | None]:
        wrt = [*self._leaves(), *self.mode.location.ones()]
        keep = retain or create_graph
        try:
            # A rule may differentiate within the pass back, which inference mode would not let it.
            with own_precision(f), torch.inference_mode(False):
                return torch.autograd.grad(
                    f, wrt, grad, keep, create_graph, allow_unused=True, is_grads_batched=batched
                )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if overwritten(error) and not self.how.finite:
                raise Overwritten(str(error)) from error
            raise no_way_back(error, batched) from error

    def _sorted(self, grads: Sequence[Tensor | None]) -> Gradients:
        """Gradients at the leaves, zero where none arrived; those at the constants summed."""
        leaves, n, means = self._leaves(), len(self.inputs.leaves), self._means()
        wanted = [entry for entry in self.inputs.entries if entry.ones.requires_grad]
        for kind in (grads[n : n + len(means)], grads[n + len(means) :]):
            for entry, found in zip(wanted, kind, strict=False):
                entry.reached = entry.reached or found is not None
        self.mode.location.reached(grads[len(leaves) :])
        filled = [
            torch.zeros_like(w) if g is None else g
            for g, w in zip(grads[: len(leaves)], leaves, strict=True)
        ]
        terms = list(grads[len(leaves) :])
        sources = self.mode.location.by_module(terms, self.inputs.samples)
        m = n + len(means)
        return Gradients(filled[:n], filled[m:], sources, filled[n:m])


def _parted(amounts: Tensor, alone: Sequence[Tensor]) -> Tensor:
    """Amounts (…, samples + 1) as (…, samples); ``alone``: those of each number, if any differ."""
    own = amounts[..., :-1]
    return own + torch.stack([a[..., -1] for a in alone], -1) if alone else own


class Overwritten(Exception):
    """The pass back needs what the forward pass wrote over."""


def overwritten(error: RuntimeError) -> bool:
    """Whether PyTorch refuses the pass back because a saved tensor was written into."""
    return "modified by an inplace operation" in str(error)


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no gradient is NaN or infinite; a sum tells, which only reads."""
    return all(t is None or bool(t.detach().sum().isfinite()) for t in tensors)
