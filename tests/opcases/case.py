"""What a case is, and reproducible numbers for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oracle import Inputs, Oracle, itself


@dataclass(frozen=True, eq=False)
class Case:
    """One spelling of one operator on float64 inputs that all depend on the explained input.

    ``call`` is what a model would write; it may change its arguments. ``oracle`` gives the dense
    affine map that it must become. ``samples``: dimension 0 of inputs and output is a batch of
    independent samples.
    """

    operator: str
    name: str
    call: Callable[..., Tensor]
    inputs: Inputs
    oracle: Oracle = itself
    samples: bool = True
    tolerance: float = 1e-11

    @property
    def id(self) -> str:
        return f"{self.operator}-{self.name}".replace(" ", "_")

    def fresh(self) -> Inputs:
        """Copies of the inputs, to be changed at will."""
        return tuple(t.clone() for t in self.inputs)


def draw(*shape: int, low: float = -2.0, high: float = 2.0, seed: int = 0) -> Tensor:
    """Distinct float64 numbers between ``low`` and ``high``, the same on every run."""
    source = torch.Generator().manual_seed(1009 * len(shape) + sum(shape) + 7919 * seed)
    return low + (high - low) * torch.rand(shape, generator=source, dtype=torch.float64)


def table(
    operator: str,
    spellings: dict[str, Callable[..., Tensor]],
    *inputs: Tensor,
    oracle: Oracle = itself,
    samples: bool = True,
    tolerance: float = 1e-11,
) -> list[Case]:
    """Cases that differ in spelling alone; modules are put in evaluation mode."""
    for call in spellings.values():
        if isinstance(call, nn.Module):
            call.eval()
    return [
        Case(operator, name, call, inputs, oracle, samples, tolerance)
        for name, call in spellings.items()
    ]
