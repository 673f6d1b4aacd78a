"""One input is changed region by region: the map's sum over each, and what the logit loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omenn.check import choose, positive, quoted, real, wrong
from omenn.errors import InputError
from omenn.filters import gaussian_filter
from omenn.metrics.maps import Model
from omenn.metrics.perturbation import answers, states
from omenn.metrics.removal import FILLS, filled

USUAL_REPLACEMENT = "blur:0.1"
"""Strong: little that a network knows is left."""

Replacement = str | float | Tensor | Callable[[Tensor], Tensor]
"""What takes the place of a region: a name of ``omenn.metrics.removal.FILLS`` (the input's own
mean, smallest or largest value, zero, a blur), ``"blur:S"`` with the Gaussian's σ as a share of the
shorter side, a number, a tensor that is expanded to the inputs, or a function (inputs) → inputs of
the same shape."""


def replaced_by(replacement: Replacement, x: Tensor) -> Tensor:
    """The whole inputs as they are where they are replaced, in the shape of x.

    Raises:
        InputError: a name that is not known, another shape, a blur of what is no picture.

    >>> replaced_by(0.5, torch.zeros(1, 3)).tolist()
    [[0.5, 0.5, 0.5]]
    """
    if isinstance(replacement, str):
        return _named(replacement, x)
    if isinstance(replacement, Tensor):
        try:
            return replacement.detach().to(x).expand_as(x)
        except RuntimeError:
            raise _unfit(replacement, x, "Give a tensor that expands to an input.") from None
    if callable(replacement):
        found = replacement(x)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            raise _unfit(found, x, "Return a tensor of the inputs' shape.")
        return found.detach().to(x)
    return torch.full_like(x, real("replacement", replacement))


def _named(replacement: str, x: Tensor) -> Tensor:
    name, colon, width = replacement.partition(":")
    choose("replacement", name, FILLS)
    if name == "blur" and (x.ndim != 4 or not x.is_floating_point()):
        raise _unfit(replacement, x, 'Give a number, a tensor or a function, or "mean".')
    if colon:
        try:
            sigma = positive("replacement", float(width)) if name == "blur" else 0.0
        except ValueError:
            sigma = 0.0
        if not sigma:
            expected = f"one of {', '.join(FILLS)}, or blur:0.1"
            raise wrong("replacement", replacement, expected)
        return gaussian_filter(x, sigma * min(x.shape[-2:]))
    fill: Any = name
    if name == "blur":
        return filled(x, fill)
    flat = x if x.is_floating_point() else x.double()
    return filled(flat.reshape(len(x), 1, 1, -1), fill).reshape(x.shape).to(x)


def described(replacement: Replacement) -> str:
    """A replacement in the file of a calibration; two of the caller's own look the same."""
    if isinstance(replacement, (Tensor, Callable)):
        return "given by the caller"
    return replacement if isinstance(replacement, str) else f"{float(replacement):g}"


def _unfit(replacement: Any, x: Tensor, remedy: str) -> InputError:
    got = str(tuple(replacement.shape)) if isinstance(replacement, Tensor) else quoted(replacement)
    return InputError(
        f"replacement {got} does not fit inputs of the shape {tuple(x.shape)}.",
        argument="replacement",
        got=got,
        expected=str(tuple(x.shape)),
        remedy=remedy,
    )


@dataclass(frozen=True, eq=False)
class Measured:
    """Of the regions of one input: their shares of all locations, sums and drops, (R,) float64."""

    shares: Tensor
    sums: Tensor
    drops: Tensor

    def __len__(self) -> int:
        return len(self.drops)

    def of(self, chosen: Tensor) -> Measured:
        """Some of the regions."""
        return Measured(self.shares[chosen], self.sums[chosen], self.drops[chosen])


def sums_over(masks: Tensor, values: Tensor) -> Tensor:
    """Σ of a map (*shape) over each region (R, *shape), float64.

    >>> sums_over(torch.tensor([[True, False]]), torch.tensor([2.0, 3.0])).tolist()
    [2.0]
    """
    flat = values.detach().cpu().double().flatten()
    return masks.flatten(1).double() @ flat


def drops_of(
    f: Model,
    x: Tensor,
    target: int,
    masks: Tensor,
    replacement: Replacement,
    *,
    channel_dim: int = 0,
    chunk: int = 32,
) -> tuple[float, Tensor]:
    """The logit of an input (1, …), and what it loses without each region (R, *shape).

    ``channel_dim``: the dimension that a location has several numbers in, from the end; 0: none.
    """
    class_of = torch.tensor([target], device=x.device)
    before = answers(f, x, class_of, "logit", chunk)
    there = masks.unsqueeze(channel_dim) if channel_dim else masks
    there = there.to(x.device)
    new = replaced_by(replacement, x)

    def change(_: Tensor, state: Tensor) -> Tensor:
        return torch.where(there[state], new, x)

    after = states(f, class_of, len(masks), change, chunk=chunk)[0]
    return float(before), (before - after).cpu()
