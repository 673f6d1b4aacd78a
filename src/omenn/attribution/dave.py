"""DAVE: the frozen gradient averaged over noise and local spatial transformations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.attribution.ordinary_gradient import Move, Moved
from omenn.attribution.perturbations import Moves, is_image
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import choose, flag, quoted, real, whole
from omenn.engine.backward import Gradients
from omenn.engine.inputs import Inputs
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
    moves = Moves(whole("steps", steps, 1), seed, noise, rotation, translation, scaling, flip)
    mean = RobustMean(outliers, lower=published)
    choose("postprocess", postprocess, POSTPROCESSING)
    processed = published or postprocess == "published"
    run = question.frozen_run()
    f, index = question.number(run)
    _check_images(run.inputs, moves, processed)
    each = _weights(question.with_fixed_target(run, index), moves.of(run.inputs))
    weights = [mean(w, x) for w, x in zip(each, run.inputs.values, strict=True)]
    e = run.wrap(f, index, Gradients(weights, [], {}))
    return _processed(e) if processed else e


def _weights(question: Question, moves: Sequence[Move]) -> list[tuple[Tensor, ...]]:
    """W of the moved inputs, for each input one of every move."""
    runs = (question.frozen_run(tracer=Moved, move=move) for move in moves)
    return list(zip(*(question.gradients(run) for run in runs), strict=True))


def _check_images(inputs: Inputs, moves: Moves, processed: bool) -> None:
    odd = next((leaf for k, leaf in enumerate(inputs.leaves) if not is_image(inputs, k)), None)
    if odd is None:
        return
    about = f"images (B, C, H, W), but an input of the shape {tuple(odd.shape)} is explained."
    for name in moves.asked():
        raise InputError(
            f"{name}= moves {about}",
            argument=name,
            got=quoted(getattr(moves, name)),
            remedy="Leave it at None, which moves images alone, or switch it off.",
        )
    if processed:
        raise InputError(
            f"postprocess='published' is for {about}",
            argument="postprocess",
            got="'published'",
            remedy="Choose postprocess='none'.",
        )


# --- aggregation and post-processing ------------------------------------------------------------


@dataclass(frozen=True)
class RobustMean:
    """The mean of weights, element by element, without those whose x ⊙ w is far from the median.

    ``outliers``: how far, in 1.4826 · MAD; None leaves none out. ``lower``: of an even number the
    median is the lower of the two middle values, not their mean.
    """

    outliers: float | None
    lower: bool

    def __post_init__(self) -> None:
        flag("published", self.lower)
        if self.outliers is not None and real("outliers", self.outliers, 0) == 0:
            raise InputError(
                "outliers=0 would leave every value out.",
                argument="outliers",
                got="0",
                expected="a number above 0, or None",
                remedy="Give a number above 0, or None.",
            )

    def __call__(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        flat = torch.stack(list(weights)).reshape(len(weights), -1)
        parts = zip(flat.split(1 << 18, 1), x.to(flat.dtype).flatten().split(1 << 18), strict=True)
        return torch.cat([self._mean(w, w * own) for w, own in parts]).reshape(x.shape)

    def _mean(self, weights: Tensor, values: Tensor) -> Tensor:
        if self.outliers is None or len(values) == 1:
            return weights.mean(0)
        distance = (values - self._median(values)).abs()
        kept = distance <= self.outliers * (1.4826 * self._median(distance) + 1e-8)
        return (weights * kept).sum(0) / kept.sum(0)

    def _median(self, values: Tensor) -> Tensor:
        ordered, n = values.sort(0).values, len(values)
        lower = ordered[(n - 1) // 2]
        return lower if self.lower else (lower + ordered[n // 2]) / 2


def _processed(e: Explanation) -> Explanation:
    """The published form of the map: rectified, smoothed, its largest value one."""
    maps = e.matrix if isinstance(e.matrix, Tensor) else None
    if maps is None or maps.ndim != 3:
        raise InputError(
            "the published form of DAVE is of one map of an image, (B, H, W).",
            argument="postprocess",
            got="'published'",
            remedy="Choose postprocess='none'.",
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
