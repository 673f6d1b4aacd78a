"""Integrated gradients of integer ids: along the line between rows of their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.captum_adapter import captum_for
from omenn.attribution.contributions import explanation_of
from omenn.attribution.question import Question
from omenn.errors import InputError
from omenn.explanation import Explanation

NAME = "integrated-gradients"


def ids_alone(inputs: Any) -> bool:
    """Whether tensors are given, and none of them has floating-point numbers."""
    values = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    given = [values] if isinstance(values, Tensor) else values
    if not isinstance(given, (list, tuple)):
        return False
    tensors = [t for t in given if isinstance(t, Tensor)]
    return bool(tensors) and not any(t.is_floating_point() or t.is_complex() for t in tensors)


def layer_integrated_gradients(question: Question, steps: int, baseline: Any) -> Explanation:
    """(r − r₀) ⊙ ∫₀¹ ∂f/∂r(r₀ + t (r − r₀)) dt for the rows r that stand for the ids.

    Raises:
        InputError: a baseline that is neither zero nor ids that fit, ids that are looked up twice.
        MissingExtra: captum is not installed, to whose method this belongs.
    """
    captum_for(NAME)
    run = question.ordinary_run()
    f, index = question.number(run)
    rows = run.inputs.values
    if len(rows) != len({*run.inputs.owners}):
        raise InputError(
            f"method {NAME!r} follows one lookup of each input, but some ids are looked up in "
            "several tables.",
            argument="inputs",
            remedy="Use another method, or explain at a module after them with at=.",
        )
    starts = _starts(question, baseline, rows)
    fixed, total = question.with_fixed_target(run, index), [torch.zeros_like(r) for r in rows]
    for t, weight in zip(*_points(steps), strict=True):
        here = [r0 + t * (r - r0) for r, r0 in zip(rows, starts, strict=True)]
        by_entry = dict(zip(run.inputs.owners, here, strict=True))
        moved = fixed.ordinary_run(move=partial(_moved_to, by_entry))
        for own, gradient in zip(total, fixed.gradients(moved), strict=True):
            own += weight * gradient
    parts = [(r - r0) * g for r, r0, g in zip(rows, starts, total, strict=True)]
    return explanation_of(run.inputs, f.detach(), index, parts)


def _moved_to(by_entry: Mapping[int, Tensor], k: int, x: Tensor) -> Tensor:
    """The rows given instead of x, whose derivative by x is one."""
    return x + (by_entry[k] - x).detach()


def _points(steps: int) -> tuple[Sequence[float], Sequence[float]]:
    """Gauss-Legendre on [0, 1]: the points and their weights."""
    import numpy as np

    points, weights = np.polynomial.legendre.leggauss(steps)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()


def _starts(question: Question, baseline: Any, rows: Sequence[Tensor]) -> list[Tensor]:
    if baseline is None or (isinstance(baseline, (int, float)) and baseline == 0):
        return [torch.zeros_like(r) for r in rows]
    given = _like(question.inputs, baseline)
    found = None if given is None else replace(question, inputs=given).ordinary_run().inputs.values
    if found is None or [r.shape for r in found] != [r.shape for r in rows]:
        what = tuple(baseline.shape) if isinstance(baseline, Tensor) else repr(baseline)
        raise InputError(
            f"baseline={what} does not fit integer ids.",
            argument="baseline",
            got=str(what),
            remedy="Give 0 for rows of zeros, or ids of the shape of the input, whose rows are the "
            "start.",
        )
    return [r.detach() for r in found]


def _like(inputs: Any, baseline: Any) -> Any:
    """The inputs with other ids, None where these are not of the same form."""
    if isinstance(inputs, Tensor):
        right = isinstance(baseline, Tensor) and baseline.shape == inputs.shape
        return baseline if right and not baseline.is_floating_point() else None
    if isinstance(inputs, Mapping):
        changed = baseline if isinstance(baseline, Mapping) else None
        if changed is None or not set(changed) <= set(inputs):
            return None
        new = {k: _like(v, changed[k]) if k in changed else v for k, v in inputs.items()}
        return None if any(new[k] is None for k in changed) else new
    many = isinstance(baseline, (tuple, list)) and len(baseline) == len(inputs)
    new = [_like(v, b) for v, b in zip(inputs, baseline, strict=True)] if many else [None]
    return None if any(v is None for v in new) else type(inputs)(new)
