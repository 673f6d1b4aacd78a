"""What all protocols share: the checks of pictures, maps, targets and logits, and the order of
pixels that a map gives.

NOTE [ties]
Pixels with the same value come in a random order, another for each image, from a seed. So a
constant map is scored like a random one, wherever the subject of a picture lies, and every
protocol counts the constant maps it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omenn.check import whole
from omenn.errors import InputError, TargetError

Model = Callable[[Tensor], Tensor]
"""Images (n, C, H, W) → logits (n, classes), of a model in evaluation mode."""

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def checked_images(images: Any) -> Tensor:
    """The images (B, C, H, W), without history.

    Raises:
        InputError: not a tensor of floating-point numbers of this form, or empty.
    """
    images = _floats("images", images)
    if images.ndim != 4 or 0 in images.shape:
        raise wrong_tensor("images", images, "(B, C, H, W) and not empty")
    return images


def checked_maps(maps: Any, images: Tensor) -> Tensor:
    """One map (B, H, W) for each image, float64; maps with channels are averaged over them.

    Raises:
        InputError: shapes that do not fit, or maps that are not finite.

    Example:
        >>> images = torch.zeros(2, 3, 4, 4)
        >>> assert checked_maps(torch.ones(2, 3, 4, 4), images).shape == (2, 4, 4)
    """
    maps = _floats("maps", maps).to(images.device, torch.float64)
    batch, _, height, width = images.shape
    fits = maps.ndim in (3, 4) and (maps.shape[0], *maps.shape[-2:]) == (batch, height, width)
    if not fits or 0 in maps.shape:
        raise InputError(
            f"maps of the shape {tuple(maps.shape)} do not fit images of the shape "
            f"{tuple(images.shape)}.",
            argument="maps",
            got=str(tuple(maps.shape)),
            expected=str((batch, height, width)),
            remedy=(
                f"Give one map for each image, {(batch, height, width)}, or one with channels, "
                "which come second."
            ),
        )
    bad = not_finite(maps)
    if bool(bad.any()):
        raise InputError(
            f"{int(bad.sum())} of {batch} maps are not finite (NaN or infinite), the first is "
            f"map {int(bad.nonzero()[0])}: they put pixels in no order.",
            argument="maps",
            remedy="Repair or leave out these images.",
        )
    return maps.mean(1) if maps.ndim == 4 else maps


def explained(
    explain: Callable[[Tensor, Tensor], Tensor], images: Any, targets: Any, channels: bool = False
) -> Tensor:
    """The maps (B, H, W) that an explainer makes of images, float64 and without history.

    ``channels``: they may be (B, C, H, W), with the channels of the images. They may be not finite:
    who asks decides what becomes of those, and counts them.

    Raises:
        InputError: not one map for each image.
    """
    maps = explain(images, targets)
    if channels and isinstance(maps, Tensor) and maps.shape == images.shape:
        return maps.detach().double()
    if not isinstance(maps, Tensor) or maps.shape != (len(images), *images.shape[2:]):
        raise InputError(
            f"the explainer returned {described(maps)} for images of the shape "
            f"{tuple(images.shape)}.",
            argument="explain",
            got=described(maps),
            remedy="Return one map (H, W) for each image.",
        )
    return maps.detach().double()


def maps_of(
    explain: Callable[[Tensor, Tensor], Tensor], images: Tensor, targets: Tensor, chunk: int = 16
) -> Tensor:
    """An explainer's maps (B, H, W), float64 and checked, ``chunk`` images at a time.

    >>> maps_of(lambda x, t: x.sum(1), torch.ones(3, 2, 4, 4), torch.zeros(3), chunk=2).shape
    torch.Size([3, 4, 4])
    """
    parts = zip(images.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checked_maps(explain(x, t), x) for x, t in parts])


def not_finite(maps: Tensor) -> Tensor:
    """(B,) bool: which maps have a NaN or an infinity."""
    return ~torch.isfinite(maps).flatten(1).all(1)


def constant_maps(maps: Tensor) -> Tensor:
    """(B,) bool: which maps have the same value everywhere."""
    flat = maps.flatten(1)
    return flat.amax(1) == flat.amin(1)


def checked_targets(targets: Any, count: int, device: torch.device | None = None) -> Tensor:
    """Class indices (B,), from one for each image or one for all.

    Raises:
        TargetError: anything else.

    Example:
        >>> checked_targets(3, 2).tolist()
        [3, 3]
    """
    whole = isinstance(targets, int) and not isinstance(targets, bool)
    given: Any = torch.tensor(targets) if whole else targets
    got = described(given)
    fits = isinstance(given, Tensor) and tuple(given.shape) in ((), (count,))
    if fits and given.dtype in _INTEGERS:
        if int(given.min()) >= 0:
            return given.to(device or given.device).long().expand(count)
        got = f"{int(given.min())}"
    expected = f"class indices from 0, one for each of the {count} images or one for all"
    raise TargetError(
        f"targets must be {expected}, got {got}.", argument="targets", got=got, expected=expected
    )


def logits_of(f: Model, images: Tensor, chunk: int = 64) -> Tensor:
    """The model's logits (B, classes), float64, without gradients, ``chunk`` images at a time.

    Raises:
        InputError: not finite, or not one row for each image.
    """
    found = []
    with torch.no_grad():
        for rows in images.split(whole("chunk", chunk, 1)):
            out = f(rows)
            if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(rows):
                raise InputError(
                    f"f must return logits of the shape ({len(rows)}, classes) for {len(rows)} "
                    f"images, but returned {described(out)}.",
                    argument="f",
                    got=described(out),
                    expected=f"({len(rows)}, classes)",
                    remedy="Give a function that picks them.",
                )
            if not bool(torch.isfinite(out).all()):
                raise InputError(
                    "f returned logits that are not finite (NaN or infinite) for a picture.",
                    argument="f",
                    remedy="Check the weights and the range of the images.",
                )
            found.append(out.double())
    return torch.cat(found)


def of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit of each image's target, (B,).

    Raises:
        TargetError: a class that the logits do not have.
    """
    if int(targets.max()) >= logits.shape[1]:
        raise TargetError(
            f"target {int(targets.max())} is not among the {logits.shape[1]} classes of the "
            "logits.",
            argument="target",
            got=str(int(targets.max())),
            expected=f"0 to {logits.shape[1] - 1}",
            remedy=f"Choose from 0 to {logits.shape[1] - 1}.",
        )
    return logits.gather(1, targets[:, None])[:, 0]


def descending(values: Tensor, seed: int = 0) -> Tensor:
    """The order of the values of each row, the largest first; see NOTE [ties].

    (B, N) → (B, N) indices. The k-th row has the same ties for a seed, in any batch.

    Example:
        >>> descending(torch.tensor([[1.0, 3.0, 2.0]])).tolist()
        [[1, 2, 0]]
    """
    order = tie_order(*values.shape, seed=whole("seed", seed, 0)).to(values.device)
    best = torch.sort(values.gather(1, order), dim=1, descending=True, stable=True).indices
    return order.gather(1, best)


def tie_order(rows: int, count: int, *, seed: int = 0) -> Tensor:
    """(rows, count): a permutation for each row; a row is the same in a larger batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(count, generator=generator) for _ in range(rows)])


def ranks(order: Tensor) -> Tensor:
    """The place of each element in an order (B, N), from 0.

    Example:
        >>> ranks(torch.tensor([[2, 0, 1]])).tolist()
        [[1, 2, 0]]
    """
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _floats(name: str, t: Any) -> Tensor:
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise wrong_tensor(name, t, "a tensor of floating-point numbers")
    return t.detach()


def wrong_tensor(name: str, given: Any, expected: str) -> InputError:
    """The error for an argument that is no tensor of the right shape or kind."""
    got = described(given)
    return InputError(
        f"{name} must be {expected}, got {got}.", argument=name, got=got, expected=expected
    )


def described(given: Any) -> str:
    """The kind of an argument, for a message.

    >>> described(torch.zeros(2, 3)), described("a")
    ('torch.float32 of the shape (2, 3)', 'str')
    """
    if not isinstance(given, Tensor):
        return type(given).__name__
    return f"{given.dtype} of the shape {tuple(given.shape)}"
