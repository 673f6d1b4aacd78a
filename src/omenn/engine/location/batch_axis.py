"""Which dimension of each explained input the samples lie along.

The first one, as long as its size is the number of explained numbers. Where another dimension has
that size as well, or only another one has, it is not guessed: the gradient of the first explained
number tells, as it is zero at all other samples, and that of the others, zero at the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omenn.engine.inputs import Inputs
from omenn.engine.location.entries import Entry
from omenn.engine.target import Target, pick_output
from omenn.engine.trace.autograd_nodes import own_precision
from omenn.errors import TargetError

if TYPE_CHECKING:
    from omenn.engine.run import FrozenRun


def plausible(inputs: Inputs, count: int) -> bool:
    """Whether the inputs may be so many samples: one has as many rows, or all somewhere."""
    given = [v for _, v in inputs.items if isinstance(v, Tensor)]
    if not inputs.batched or count == inputs.samples:
        return False
    explained = [e.value for e in inputs.entries if e.leaves]
    rows = any(v.shape[0] == count for v in given)
    return rows or all(count in v.shape for v in explained)


def misplaced(inputs: Inputs, f: Tensor) -> list[int]:
    """The entries whose samples do not lie along the dimension that was taken."""
    unsure = [k for k, index in enumerate(inputs.owners) if inputs.entries[index].unsure]
    if not inputs.batched or inputs.samples < 2 or not unsure:
        return []
    wrong: set[int] = set()
    try:
        for number, first in ((f[0], False), (f[1:].sum(), True)):
            with torch.enable_grad(), own_precision(f):
                leaves = [inputs.leaves[k] for k in unsure]
                found = torch.autograd.grad(number, leaves, retain_graph=True, allow_unused=True)
            pairs = zip(unsure, found, strict=True)
            wrong |= {
                inputs.owners[k] for k, g in pairs if g is not None and _at(first, g, inputs, k)
            }
    except RuntimeError:  # said by the pass back itself
        return []
    return sorted(wrong)


def _at(first: bool, g: Tensor, inputs: Inputs, k: int) -> bool:
    """Whether a gradient is anything at the first sample, or at the others."""
    rows = g.movedim(inputs.batch[k], 0)
    count = max(1, len(rows) // inputs.samples)
    there = rows[:count] if first else rows[count:]
    return bool(there.nan_to_num(0.0).any())  # NaN is zero times infinity: see backward.py


def of_samples(
    run: FrozenRun, count: int, target: Target, output: Any
) -> tuple[Tensor, Tensor] | None:
    """The explained numbers where the inputs are so many samples; None if they cannot be."""
    if not plausible(run.inputs, count):
        return None
    run.take_samples(count)
    run._forward(batched=True)
    return run._select(target, output)


def recounted(
    run: FrozenRun, target: Target, output: Any, refused: TargetError
) -> tuple[Tensor, Tensor]:
    """The explained numbers where the output is refused for as many samples as were taken."""
    out = pick_output(run.out, output)
    found = of_samples(run, out.shape[0] if out.ndim else 0, target, output)
    if found is not None:
        return found
    single = out.ndim < 3 and (out.ndim == 0 or out.shape[0] == 1)
    if not (run.inputs.batched and single):
        raise refused
    run._forward(batched=False)  # one row of logits for all: the samples are one object
    return run._select(target, output)


def along_samples(
    run: FrozenRun, f: Tensor, index: Tensor, again: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The numbers of a pass in which the samples are followed along the right dimensions."""
    tried: dict[int, list[int]] = {}
    while f.ndim and (wrong := misplaced(run.inputs, f)):
        entries = [run.inputs.entries[k] for k in wrong]
        for k, entry in zip(wrong, entries, strict=True):
            tried.setdefault(k, []).append(entry.batch)
        left = [_left(e, run.inputs.samples, tried[k]) for k, e in zip(wrong, entries, strict=True)]
        found = {k: d for k, d in zip(wrong, left, strict=True) if d is not None}
        mixed = len(found) < len(wrong)
        run.take_axes({} if mixed else run.axes | found)
        if mixed and not all(e.value.shape[0] == run.inputs.samples for e in entries):
            raise TargetError(
                f"the target gives {f.shape[0]} numbers, but the inputs, "
                f"{run.inputs.described()}, have no dimension along which each of these has a "
                "sample of its own.",
                argument="target",
                got=str(f.shape[0]),
                remedy="Explain the samples one by one, or give a target that returns one number "
                "for the whole batch.",
            )
        if mixed and all(len(t) == 1 for t in tried.values()):
            return f, index  # along the first dimension, in which samples mix
        run._forward(batched=True)
        f, index = again()
        if mixed:
            return f, index
    return f, index


def _left(entry: Entry, samples: int, tried: Sequence[int]) -> int | None:
    """Another dimension that may be that of the samples."""
    own = None if entry.channel is None else entry.channel % entry.value.ndim
    shape = entry.value.shape
    found = [d for d, n in enumerate(shape) if n == samples and d != own]
    found += [0] if shape[0] % samples == 0 else []  # windows of a sample follow one another
    return next((d for d in found if d not in tried), None)
