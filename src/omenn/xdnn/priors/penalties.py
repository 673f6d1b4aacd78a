"""What attributions should be like: each prior is a number that is small where they are.

A prior is a plain function ``prior(attributions, **context) -> scalar tensor``. ``attributions``
are shaped like the model's input, first dimension the batch: images (B, C, H, W), sequences
(B, T, D), tables (B, F). The context is whatever was given beside the input (``mask=``, ``sign=``);
``target=``, the explained outputs (B,), comes with it. :class:`~omenn.xdnn.priors.prior_loss.
AttributionPrior` adds weight · prior to a loss. The priors here are in :data:`PRIORS`; any other
function of this form will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omenn.check import misshapen, wrong
from omenn.engine.inputs import default_channel
from omenn.errors import InputError, did_you_mean

Prior = Callable[..., Tensor]


def sparsity(attributions: Tensor, **context: Any) -> Tensor:
    """Few features for all samples: minus the Gini coefficient of the mean |attribution|.

    g_i is the mean over the batch of |a_i|, one number for each of n entries of the input. Then
    −Gini(g) = −Σ_ij |g_i − g_j| / (2 n² ḡ), from 0 (all alike) to −1 + 1/n (one entry has it all);
    computed from the sorted g in O(n log n). It does not change when all are scaled. Where all
    are zero it is 0, and so is its derivative.

    Args:
        attributions: (B, …); the context is not used.

    Example:
        >>> import torch
        >>> one = torch.tensor([[0.0, 0.0, 3.0, 0.0], [0.0, 0.0, -1.0, 0.0]])
        >>> assert sparsity(one) == -0.75 and sparsity(torch.ones(2, 4)) == 0

    Source: the prior of Erion et al. 2021, arXiv 1906.10670, as used in arXiv 2111.07668.
    """
    g = _batch("sparsity", attributions).abs().mean(0).flatten()
    n, total = g.numel(), g.sum()
    g = g.sort().values
    # Σ_ij |g_i − g_j| = 2 Σ_k (2k − n − 1) g_k for the k-th smallest g_k.
    ranks = torch.arange(1 - n, n, 2, dtype=g.dtype, device=g.device)
    empty = total <= n * torch.finfo(g.dtype).tiny
    safe = torch.where(empty, torch.ones_like(total), total)
    return -torch.where(empty, total * 0, (ranks * g).sum() / (n * safe))


def smoothness(
    attributions: Tensor, *, dims: int | Sequence[int] | None = None, **context: Any
) -> Tensor:
    """Neighbours alike: the total variation, Σ_d mean |a[…, k + 1, …] − a[…, k, …]| along each d.

    Args:
        attributions: images (B, C, H, W), along both of the last two dimensions; sequences
            (B, T, D), along T; tables and series (B, F), along the last.
        dims: other dimensions than these, −1 for series (B, C, T) with their channels first.

    Raises:
        InputError: a dimension that there is not, or the batch.

    Example:
        >>> import torch
        >>> stairs = torch.arange(4.0).expand(1, 1, 2, 4)
        >>> assert smoothness(stairs) == 1 and smoothness(stairs, dims=-2) == 0

    Source: Rudin, Osher and Fatemi 1992, Physica D 60; as a prior in arXiv 1906.10670.
    """
    a = _batch("smoothness", attributions)
    if dims is None:
        dims = (-1,) if a.ndim == 2 else (-2,) if a.ndim == 3 else (-2, -1)
    value = a.sum() * 0
    for d in (dims,) if isinstance(dims, int) else dims:
        if isinstance(d, bool) or not isinstance(d, int) or not -a.ndim < d < a.ndim or d == 0:
            raise InputError(
                f"smoothness has no dimension {d!r} to run along: attributions are shaped "
                f"{tuple(a.shape)}, dimension 0 is the batch.",
                argument="dims",
                got=repr(d),
                remedy="Give others with dims=.",
            )
        if a.shape[d] > 1:
            value = value + a.diff(dim=d).abs().mean()
    return value


def right_reasons(
    attributions: Tensor, *, mask: Any = None, share: bool = False, **context: Any
) -> Tensor:
    """Nothing outside of the mask: the mean of a² where attribution is not allowed.

    Σ (1 − m) a² / Σ (1 − m); or with ``share`` the part of all attribution that lies outside,
    Σ (1 − m) |a| / Σ |a| for each sample (0 where all is zero), averaged over the samples.
    The share cannot be made small by making all attributions small, the mean of squares can.

    Args:
        attributions: (B, …).
        mask: where attribution is *allowed*: true or 1, and 0 where it is not (or between).
            Shaped like the attributions; or one for all channels, (B, 1, H, W) or (B, H, W) for
            images, (B, T, 1) or (B, T) for sequences; a 1 in place of B is for all samples.
        share: see above.

    Raises:
        InputError: no mask, one of another shape, or with values outside of 0 to 1.

    Example:
        >>> import torch
        >>> a, allowed = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[True, False, False]])
        >>> assert right_reasons(a, mask=allowed) == 0.5
        >>> assert right_reasons(a, mask=allowed, share=True) == 0.25

    Source: Ross, Hughes and Doshi-Velez 2017, arXiv 1703.03717, with a mask of what is allowed.
    """
    a = _batch("right_reasons", attributions)
    m = _needed("right_reasons", "mask", mask, context, "true where attribution is allowed")
    outside = 1 - _fitted(m, a)
    if not share:
        count = outside.sum()
        return (outside * a * a).sum() / torch.where(count == 0, torch.ones_like(count), count)
    size = a.abs().flatten(1)
    return _ratio((outside * a.abs()).flatten(1).sum(1), size.sum(1)).mean()


def consistency(attributions: Tensor, *, other: Any = None, **context: Any) -> Tensor:
    """The same for a transformed input: Σ (a − a′)² / (Σ a² + Σ a′²), averaged over samples.

    0 for equal attributions, 1 for orthogonal ones, 2 for opposite ones, whatever their size; 0
    where both are zero.

    Args:
        attributions: (B, …).
        other: a′, attributions of the transformed input, brought back to where the input was (a
            mirrored image's mirrored again). With
            :meth:`~omenn.xdnn.priors.prior_loss.AttributionPrior.attributions` they have their own
            derivative by the parameters; detached, they are a goal that does not move.

    Raises:
        InputError: there is no other, or it is of another shape.

    Example:
        >>> import torch
        >>> a = torch.tensor([[1.0, 2.0]])
        >>> assert consistency(a, other=a) == 0 and consistency(a, other=-a) == 2
    """
    a = _batch("consistency", attributions)
    of = "attributions of the transformed input, mapped back"
    b = _needed("consistency", "other", other, context, of)
    if b.shape != a.shape:
        remedy = "Map those of the transformed input back first."
        raise misshapen("other", b, tuple(a.shape), remedy)
    b = b.to(a)
    far = ((a - b) ** 2).flatten(1).sum(1)
    return _ratio(far, (a * a).flatten(1).sum(1) + (b * b).flatten(1).sum(1)).mean()


def expected_sign(attributions: Tensor, *, sign: Any = None, **context: Any) -> Tensor:
    """Known directions: mean max(0, −s a), what speaks against the expected sign.

    Args:
        attributions: (B, …).
        sign: s, +1 where a feature should speak for the output, −1 where against it, 0 where
            nothing is known; shaped like one sample, or like the attributions.

    Raises:
        InputError: no sign, one of another shape, or other values.

    Example:
        >>> import torch
        >>> a = torch.tensor([[2.0, -1.0, 5.0], [1.0, 3.0, -5.0]])
        >>> assert expected_sign(a, sign=torch.tensor([1, -1, 0])) == 0.5
    """
    a = _batch("expected_sign", attributions)
    s = _needed("expected_sign", "sign", sign, context, "−1, 0 or 1 for each entry of a sample")
    s = s.unsqueeze(0) if s.ndim == a.ndim - 1 and s.shape == a.shape[1:] else s
    if s.ndim != a.ndim or any(n not in (1, k) for n, k in zip(s.shape, a.shape, strict=True)):
        remedy = "Give one sign for each entry of a sample."
        raise misshapen("sign", s, tuple(a.shape[1:]), remedy)
    s = s.to(a)
    if not bool(((s == 0) | (s.abs() == 1)).all()):
        text = "sign has other values than −1, 0 and 1."
        raise InputError(text, argument="sign", expected="−1, 0 or 1")
    return torch.relu(-s * a).mean()


PRIORS: dict[str, Prior] = {
    "sparsity": sparsity,
    "smoothness": smoothness,
    "right-reasons": right_reasons,
    "consistency": consistency,
    "expected-sign": expected_sign,
}
"""Name on the command line → prior."""


def find(prior: str | Prior) -> Prior:
    """A prior by its name, or the function that was given. Raises InputError for another name.

    >>> find("sparsity") is sparsity
    True
    """
    if callable(prior):
        return prior
    if not isinstance(prior, str):
        raise wrong("prior", prior, "a name or a function of attributions")
    if prior not in PRIORS:
        hint = did_you_mean(prior.replace("_", "-"), PRIORS)
        raise InputError(f"unknown prior {prior!r}:", argument="prior", got=prior, remedy=hint)
    return PRIORS[prior]


def _batch(name: str, attributions: Any) -> Tensor:
    """The attributions, if they are a batch of real numbers; sums need float32 at least."""
    fits = isinstance(attributions, Tensor) and attributions.is_floating_point()
    if not fits or attributions.ndim < 2 or not attributions.numel():
        got = type(attributions).__name__
        if isinstance(attributions, Tensor):
            got = f"a tensor {tuple(attributions.shape)} of {str(attributions.dtype)[6:]}"
        raise InputError(
            f"{name} needs attributions (B, …) of real numbers, one row for each sample, but "
            f"{got} was given.",
            argument="attributions",
            got=got,
            expected="a tensor (B, …) of real numbers",
        )
    half = attributions.dtype in (torch.float16, torch.bfloat16)
    return attributions.float() if half else attributions


def _needed(name: str, key: str, value: Any, context: dict[str, Any], what: str) -> Tensor:
    if value is None:
        given = f"; given were {', '.join(context)}" if context else ""
        raise InputError(
            f"{name} needs {key}=, {what}{given}.",
            argument=key,
            got="None",
            expected=what,
            remedy="Pass it beside the input.",
        )
    if not isinstance(value, Tensor):
        raise wrong(key, value, "a tensor")
    return value


def _fitted(mask: Tensor, a: Tensor) -> Tensor:
    """The mask expanded to the attributions, checked to lie between 0 and 1."""
    given, channel = mask, default_channel(a.ndim)
    open_dims = {0} if channel is None else {0, channel % a.ndim}
    if channel is not None and mask.ndim == a.ndim - 1:
        mask = mask.unsqueeze(channel)
    pairs = list(enumerate(zip(mask.shape, a.shape, strict=False)))
    if mask.ndim != a.ndim or any(n != k and (n != 1 or d not in open_dims) for d, (n, k) in pairs):
        shapes = [tuple(a.shape)]
        if channel is not None:
            at = channel % a.ndim
            shapes += [(*a.shape[:at], *rest, *a.shape[at + 1 :]) for rest in ((1,), ())]
        raise misshapen("mask", given, " or ".join(map(str, shapes)))
    if mask.is_complex() or not bool(((mask >= 0) & (mask <= 1)).all()):
        raise InputError(
            "the mask has values outside of 0 to 1; it is 1 where attribution is allowed and 0 "
            "where it is not.",
            argument="mask",
            expected="values from 0 to 1",
        )
    return mask.to(a).expand_as(a)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and zero (with derivative zero) where the whole is."""
    empty = whole <= torch.finfo(whole.dtype).tiny
    safe = torch.where(empty, torch.ones_like(whole), whole)
    return torch.where(empty, part * 0, part / safe)
