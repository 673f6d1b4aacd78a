"""DAVE: the frozen gradient averaged over noise and local spatial transformations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.attribution.ordinary_gradient import Moved
from omenn.attribution.perturbations import MOST_SEED, Moves, is_image
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import choose, flag, real, whole
from omenn.engine.inputs import Inputs
from omenn.engine.run import Gradients
from omenn.errors import InputError
from omenn.explanation import Explanation
from omenn.filters import gaussian_filter

POSTPROCESSING = ("none", "published")


@attribution(
    "dave",
    promise="none",
    summary="frozen gradient ⊙ x, averaged over noise and transformations, without outliers",
    source="arXiv 2602.06613",
)
def dave(
    question: Question,
    *,
    steps: int = 50,
    noise: float = 0.3,
    rotation: float | None = None,
    translation: float | None = None,
    scaling: float | None = None,
    flip: bool | None = None,
    outliers: float | None = 2.5,
    postprocess: str = "none",
    published: bool = False,
    seed: int = 0,
) -> Explanation:
    """The effective transformation W(x) of the frozen network, low-passed and made equivariant.

    C = x ⊙ mean_i W(x_i) with x_i = (1 − t_i) τ_i x + √(1 − (1 − t_i)²) n_i, where t_i rises
    evenly from 0 to ``noise``, n_i is standard normal and τ_i a random affine map of the image.
    W(x_i) is a row at x: the gradient goes back through τ_i as well (its transpose). Constants are
    not collected and the x_i are not x, so the sum of C is not promised to be f(x). Every sample of
    a batch sees the same n_i and τ_i, whatever its neighbours are.

    Args:
        steps: number of x_i.
        noise: the largest t, 0 to 1, for inputs of unit variance. Its effect is large and it is
            tuned for each model; of the paper: DeiT-III-B 0.9, DeiT-B 0.7, ViT-B 0.3, ViT-S 0.1.
        rotation, translation, scaling, flip: of τ, at most: degrees either way (20), share of
            height and width (0.1), share by which it grows or shrinks (0.1), mirrored in half of
            the steps (True). None: these values for images (B, C, H, W), and none for other inputs.
        outliers: of the values of all steps at one element those further from their median than
            this multiple of 1.4826 · MAD are left out of the mean; None leaves none out.
        postprocess: ``"none"``, or ``"published"``, which keeps no sign and no sum: channels
            summed, negative values cut, half of the map and half of its Gaussian (11 wide, σ 7), a
            bilateral filter (5 wide, σ 0.5 in space, 0.05 in value), divided by the largest; both
            filters have zeros beyond the border.
        published: the median of an even number of steps is the lower of the two middle values, as
            in the published code, and not their mean; and ``postprocess`` is ``"published"``.
        seed: of noise and transformations. The global random state is not touched.
        resample: with ``at=``, see :func:`omenn.engine.explain.explain`.

    Raises:
        InputError: an option out of its range; a transformation of what is no image.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GELU(),
        ...                           torch.nn.Flatten(), torch.nn.Linear(144, 2)).eval()
        >>> x = torch.randn(1, 3, 8, 8)
        >>> e = omenn.explain(net, x, 1, method="dave", steps=8)
        >>> assert torch.equal(e.matrix, omenn.explain(net, x, 1, method="dave", steps=8).matrix)

    Source: Wróbel et al. 2026, arXiv 2602.06613, equations 3 and 6 to 9.
    """
    moves = Moves(noise, rotation, translation, scaling, flip)
    steps, seed = whole("steps", steps, 1), whole("seed", seed, 0, MOST_SEED)
    _check_outliers(outliers)
    flag("published", published)
    postprocess = "published" if published else postprocess
    choose("postprocess", postprocess, POSTPROCESSING)
    run = question.frozen_run()
    f, index = question.number(run)
    _check_images(run.inputs, moves, postprocess)
    fixed = question.with_fixed_target(run, index)
    gradients = [
        fixed.gradients(fixed.frozen_run(tracer=Moved, move=step))
        for step in moves.steps(run.inputs, steps, seed)
    ]
    weights = [
        _mean(each, x, outliers, published)
        for each, x in zip(zip(*gradients, strict=True), run.inputs.values, strict=True)
    ]
    e = run.wrap(f, index, Gradients(weights, [], {}))
    return e if postprocess == "none" else _processed(e)


def _check_outliers(outliers: Any) -> None:
    if outliers is not None and real("outliers", outliers, 0) == 0:
        raise InputError("outliers=0 would leave every value out. Give a number above 0, or None.")


def _check_images(inputs: Inputs, moves: Moves, postprocess: str) -> None:
    odd = [k for k in range(len(inputs.leaves)) if not is_image(inputs, k)]
    if not odd:
        return
    shape = tuple(inputs.leaves[odd[0]].shape)
    if moves.asked():
        raise InputError(
            f"{moves.asked()[0]}= moves images (B, C, H, W), but an input of the shape {shape} is "
            "explained. Leave it at None, which moves images alone, or switch it off."
        )
    if postprocess != "none":
        raise InputError(
            f"postprocess={postprocess!r} is for images (B, C, H, W), but an input of the shape "
            f"{shape} is explained. Choose postprocess='none'."
        )


# --- aggregation and post-processing ------------------------------------------------------------


def _mean(gradients: Sequence[Tensor], x: Tensor, outliers: float | None, lower: bool) -> Tensor:
    """The mean of the gradients, without those whose product with x is far from the median."""
    flat = torch.stack(list(gradients)).reshape(len(gradients), -1)
    parts = zip(flat.split(1 << 18, 1), x.to(flat.dtype).flatten().split(1 << 18), strict=True)
    return torch.cat([_robust(g, g * own, outliers, lower) for g, own in parts]).reshape(x.shape)


def _robust(gradients: Tensor, values: Tensor, outliers: float | None, lower: bool) -> Tensor:
    if outliers is None or len(values) == 1:
        return gradients.mean(0)
    distance = (values - _median(values, lower)).abs()
    kept = distance <= outliers * (1.4826 * _median(distance, lower) + 1e-8)
    return (gradients * kept).sum(0) / kept.sum(0)


def _median(values: Tensor, lower: bool) -> Tensor:
    """The middle value over the first dimension; of two their mean, or the lower one."""
    ordered, n = values.sort(0).values, len(values)
    if lower:
        return ordered[(n - 1) // 2]
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _processed(e: Explanation) -> Explanation:
    """The published form of the map: rectified, smoothed, its largest value one."""
    maps = e.matrix if isinstance(e.matrix, Tensor) else None
    if maps is None or maps.ndim != 3:
        raise InputError(
            "the published form of DAVE is of one map of an image, (B, H, W). Choose "
            "postprocess='none'."
        )
    m = maps.clamp_min(0)
    m = bilateral(0.5 * m + 0.5 * gaussian_filter(m, 7.0, 5, "zeros"), 5, 0.5, 0.05)
    top = m.amax((1, 2), keepdim=True)
    m = m / torch.where(top > 0, top, torch.ones_like(top))
    words = "published form of DAVE: positive part, Gaussian, bilateral, largest 1; lossy"
    return e.with_matrix(m, processing=(words,), promise="none")


def _windows(maps: Tensor, width: int) -> Tensor:
    """(B, width², H, W): what lies around each location, zeros beyond the border."""
    around = F.unfold(maps.unsqueeze(1), width, padding=width // 2)
    return around.unflatten(2, maps.shape[1:])


def _bell(width: int, sigma: float, like: Tensor) -> Tensor:
    """A Gaussian window, (width², 1, 1)."""
    at = torch.arange(width, dtype=like.dtype, device=like.device) - width // 2
    line = torch.exp(-0.5 * (at / sigma) ** 2)
    return torch.outer(line, line).reshape(-1, 1, 1)


def bilateral(maps: Tensor, width: int, space: float, value: float) -> Tensor:
    """Maps (B, H, W) smoothed among neighbours that are near, and near in value."""
    around = _windows(maps, width)
    weights = _bell(width, space, maps) * torch.exp(
        -0.5 * ((around - maps.unsqueeze(1)) / value) ** 2
    )
    return (around * weights).sum(1) / (weights.sum(1) + 1e-8)
