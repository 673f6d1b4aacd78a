"""One method for all exact configurations, and one that smooths the maps of the others.

``exact`` takes what ``omenn`` takes, then averages, then postprocesses; its sum is checked after
every step. They are methods only inside of ``registered()``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import omenn
from omenn.attribution import registry
from omenn.attribution.perturbations import ROTATION, SCALING, TRANSLATION, Affine
from omenn.attribution.registry import method
from omenn.engine.depth import levels_of
from omenn.engine.target import Contrast
from omenn.errors import InputError, OmennError
from omenn.explanation import Explanation

LEVEL = "level:"


def exact(
    model: Any,
    inputs: Any,
    target: Any = None,
    *,
    bias: str = "spatial",
    depth: str | Sequence[str] | None = None,
    mix: Sequence[float] | None = None,
    resample: str = "bilinear",
    products: str = "half",
    contrast: str | None = None,
    samples: int = 0,
    noise: float = 0.0,
    moved: bool = False,
    post: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Explanation:
    """An exact map by all that the library offers for it, one option an axis.

    Args:
        bias, mix, resample, products: of ``omenn``. depth: its ``at``, which may also be
            ``level:k``, the k-th level of the network, the finest being the first.
        contrast: ``"rest"`` or ``"runner-up"``: explains f_c minus these.
        samples: C_w ⊙ X and C_b averaged over so many noisy (and, if ``moved``, transformed)
            pictures, see :func:`averaged`; 0 for none.
        post: steps that keep the sum, see :func:`omenn.viz.postprocess`.

    Raises:
        InputError: averaging at a depth or with the constants apart; an unknown option.
        OmennError: the sum does not hold.
    """
    goal = Contrast(target, contrast) if contrast is not None else target  # type: ignore[arg-type]
    options = {"bias": bias, "resample": resample, "products": products}
    if samples:
        if depth is not None or bias == "separate" or contrast == "runner-up":
            raise InputError(
                f"samples={samples} averages maps at the input with all constants, against no "
                "class or the rest. Omit depth=, bias='separate', contrast='runner-up'."
            )
        how: Any = {"samples": samples, "noise": noise, "moved": moved, "seed": seed}
        e = averaged(model, inputs, goal, **how, **options)
    else:
        e = omenn.explain(model, inputs, goal, at=_depths(model, inputs, depth), mix=mix, **options)
    steps = [post] if isinstance(post, str) else list(post or ())
    e = e.processed(*steps) if steps else e
    if not e.exact:
        worst = float(e.residual.abs().max())
        raise OmennError(f"the sum of an exact configuration is off by {worst:.1e}.")
    return e


def smoothed(
    model: Any,
    inputs: Any,
    target: Any = None,
    *,
    of: str = "xgradient",
    post: str | Sequence[str] = "gaussian:2.0",
) -> Explanation:
    """The map of another method after the steps that exact maps are given."""
    e = omenn.explain(model, inputs, target, method=of)
    return e.processed(*([post] if isinstance(post, str) else post))


def averaged(
    model: Any,
    x: Tensor,
    target: Any,
    *,
    samples: int,
    noise: float,
    moved: bool,
    seed: int,
    **options: Any,
) -> Explanation:
    """DAVE's operator average, with the constants and with the sum.

    C = x ⊙ mean_i τ_iᵀ W(x_i) (1 − t_i) + mean_i τ_iᵀ C_b(x_i), x_i = (1 − t_i) τ_i x + noise as in
    DAVE. That sums to something near mean_i f(x_i); what is missing of f(x) is put evenly over the
    picture, so that ΣC = f(x). The same noise and τ for every picture of a batch.
    """
    own = omenn.explain(model, x, target, **options)
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.zeros_like(x), torch.zeros_like(own.matrix)
    for t in torch.linspace(0, noise, samples, dtype=torch.float64).tolist():
        affine = _drawn(generator) if moved else Affine()
        drawn = torch.randn(x.shape[1:], generator=generator).to(x)
        away = (1 - t) * affine(x) + math.sqrt(1 - (1 - t) ** 2) * drawn
        e = omenn.explain(model, away, target, **options)
        weight += (1 - t) * back(affine, e.weight) / samples
        bias += back(affine, e.bias[:, None])[:, 0] / samples
    c = ((weight * x).sum(1) + bias).double()
    missing = own.output.double() - c.flatten(1).sum(1)
    c = c + missing[:, None, None] / c[0].numel()
    return _with(replace(own, weight=weight, contribution=weight * x, bias=bias), c)


def _with(e: Explanation, c: Tensor) -> Explanation:
    """The explanation with another matrix, its sum taken again."""
    matrix = c.to(e.matrix)
    residual = e.output.double() - matrix.double().sum((1, 2))
    return replace(e, matrix=matrix, residual=residual, magnitude=matrix.double().abs().sum((1, 2)))


def back(affine: Affine, values: Tensor) -> Tensor:
    """The transpose of an affine map of pictures, (B, C, H, W) to the same."""
    with torch.enable_grad():
        leaf = torch.zeros_like(values).requires_grad_()
        (found,) = torch.autograd.grad(affine(leaf), leaf, values.detach())
    return found


def _drawn(generator: torch.Generator) -> Affine:
    angle, right, down, size, mirror = torch.rand(5, generator=generator).tolist()
    return Affine(
        angle=math.radians(ROTATION) * (2 * angle - 1),
        right=2 * TRANSLATION * (2 * right - 1),
        down=2 * TRANSLATION * (2 * down - 1),
        size=1 + SCALING * (2 * size - 1),
        mirror=mirror < 0.5,
    )


def _depths(model: Any, x: Any, at: str | Sequence[str] | None) -> Any:
    """The depths with the names of modules in place of ``level:k``."""
    names = [at] if isinstance(at, str) else list(at or ())
    if not any(name.startswith(LEVEL) for name in names):
        return at
    levels = list(levels_of(model, x))
    found = []
    for name in names:
        if not name.startswith(LEVEL):
            found.append(name)
            continue
        number = int(name.removeprefix(LEVEL))
        if not 1 <= number <= len(levels):
            raise InputError(f"depth={name!r}: the model has {len(levels)} levels.")
        found.append(levels[number - 1])
    return found[0] if isinstance(at, str) else found


@contextmanager
def registered() -> Iterator[None]:
    """Inside, ``exact`` and ``smoothed`` are methods by name."""
    before = dict(registry._METHODS)
    about = {"source": "experiments/ablation", "summary": "an exact map, configured"}
    method("exact", promise="exact", **about)(exact)
    method("smoothed", promise="none", **about | {"summary": "a map, smoothed"})(smoothed)
    try:
        yield
    finally:
        registry._METHODS.clear()
        registry._METHODS.update(before)
