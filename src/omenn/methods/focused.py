"""The exact map, its mass moved within neighbourhoods to where averaged weights agree with it.

NOTE [moving mass]
Let a ≥ ε > 0 be a map of what each pixel is worth, the *leader*, and G a Gaussian whose matrix is
symmetric with rows that sum to one. Pixel j gives C_j away to the pixels i around it in the shares
G_ij a_i / (G a)_j, which add up to one over i. What arrives is

    Z = a ⊙ G (C ⊘ G a),        1ᵀ Z = aᵀ G (C ⊘ G a) = (G a)ᵀ (C ⊘ G a) = 1ᵀ C.

So the sum is kept whatever the leader is, a region that is wide against G keeps what it has, and
within a neighbourhood the mass lies as the leader does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omenn.core.explanation import Explanation
from omenn.core.gaussian import spread
from omenn.core.run import FrozenRun
from omenn.core.surroundings import alone
from omenn.core.target import Contrast, Target
from omenn.errors import InputError
from omenn.methods.depths import omenn
from omenn.methods.moves import Moves, check_seed, check_steps, is_image, is_number
from omenn.methods.plain import Move, Moved, remapped, settled
from omenn.methods.registry import method

PLACED = ("spatial", "attention", "uniform")
FLOOR = 0.02  # of a leader: what every pixel has, as a share of the mean


@method(
    "omenn-focused",
    promise="exact",
    summary="the exact map, led within neighbourhoods by weights averaged over noise",
    source="arXiv 2412.02399 and 2602.06613; docs/benchmarks.md",
)
@alone()
def focused(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    scale: float = 0.05,
    steps: int = 10,
    noise: float = 0.3,
    power: float = 1.0,
    wide: float = 0.2,
    path: int = 5,
    start: float = 0.5,
    against: str | None = None,
    rotation: float = 0.0,
    translation: float = 0.0,
    scaling: float = 0.0,
    flip: bool = False,
    seed: int = 0,
    bias: str = "spatial",
    products: str = "half",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """The exact map of an image with its mass where it stays when the image is disturbed.

    C is the map of ``omenn``, weights and constants averaged over images α x that are less bright,
    C = X ⊙ mean_α W(α x) + mean_α C_b(α x) + r, r even over the image, what is missing of f(x).
    (From α = 0 that is integrated gradients of the frozen network, with its constants.) With
    l = Σ_channels X ⊙ mean_i W(x_i) for noisy x_i as in ``dave``, o = Σ_channels |X ⊙ W(x)|, G a
    Gaussian, s = sign(G C), and every mean over the image::

        a = (max(0, s ⊙ l) / mean + ε) ⊙ (o / mean + ε)^power,    Z = a ⊙ G(C ⊘ G a)

    ΣZ = ΣC = f(x) for any a, see NOTE [moving mass]. A second, wider Gaussian G' then gathers what
    a region speaks for as a whole where Z speaks for it most, which sets off what speaks against:
    Z' = a' ⊙ G'(Z ⊘ G'a'), a' = max(0, sign(G'Z) ⊙ Z) / mean + ε, and ΣZ' = ΣZ. ``weight``,
    ``contribution`` and ``bias`` are those of C; ``sources`` has the sums of both parts of the
    bias, the averaged constants and r.

    Args:
        scale: σ of G, as a share of the shorter side; 0 moves nothing, and no x_i is run.
        steps, noise: number of x_i and their largest t, see ``dave``. 0 steps: l is that of the
            image itself, and nothing is run twice.
        power: how much the undisturbed magnitude counts; 0 not at all.
        wide: σ of G', as ``scale``; 0 gathers nothing.
        path, start: number of α, in the middles of so many parts of (``start``, 1). 0: x alone.
        against: ``"rest"`` or ``"runner-up"``: f_c minus these is explained, and is the sum.
        rotation, translation, scaling, flip: the x_i are moved as well, see ``dave``.
        seed: of noise and moves. The global random state is not touched.
        bias: ``"spatial"``, ``"attention"`` or ``"uniform"``, see ``omenn``.
        products, output, channel_dim: see ``omenn``.

    Raises:
        InputError: the input is not one batch of images (B, C, H, W); an option out of its range.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GELU(),
        ...                           torch.nn.Flatten(), torch.nn.Linear(784, 2)).eval()
        >>> x = torch.randn(2, 3, 16, 16)
        >>> e = omenn.explain(net, x, 1, method="omenn-focused")
        >>> assert e.exact and torch.allclose(e.matrix.sum((1, 2)), e.output, atol=1e-4)

    Source: ours, on arXiv 2412.02399 (C) and arXiv 2602.06613 (the average); what it gains is
    measured in docs/benchmarks.md.
    """
    moves = Moves(noise, rotation, translation, scaling, flip)
    check_steps("steps", steps, 0)
    check_seed(seed)
    check_steps("path", path, 0)
    _check(bias, scale=(scale, 1), wide=(wide, 1), power=(power, 8), start=(start, 1))
    if not (scale or wide or path):
        raise InputError("scale=0, wide=0 and path=0 leave nothing to do. Use method 'omenn'.")
    options: dict[str, Any] = {"output": output, "channel_dim": channel_dim}
    if against is not None:
        target = Contrast(_class(target, model, inputs, **options), against)  # type: ignore[arg-type]
    own = omenn(model, inputs, target, bias=bias, products=products, **options)
    run = FrozenRun(model, inputs, None, "none", channel_dim, {"products": products})
    _check_image(run)
    _, index = run.target(target, output)
    fixed = settled(run, target, index, output)

    def away(move: Move, collected: str) -> tuple[Tensor, Tensor]:
        """Weights at x of the moved network, and its constants."""
        changes = {"products": products, "move": move}
        there = FrozenRun(model, inputs, None, collected, channel_dim, changes, Moved)
        f, index = there.target(fixed, output)
        gradients = there.pull_back(f)
        found, _ = _unpacked(there.wrap(f, index, gradients))
        return gradients.inputs[0].double(), found.bias.double()  # type: ignore[union-attr]

    own, pack = _unpacked(own)
    x, weight = run.feed.values[0].double(), own.weight.double()  # type: ignore[union-attr]
    drawn = moves.steps(run.feed, steps, seed) if scale else ()
    noisy = [away(step, "none")[0] for step in drawn]
    leading = (x * (torch.stack(noisy).mean(0) if noisy else weight)).sum(1)
    worth = (x * weight).abs().sum(1)
    if path:
        alphas = [start + (1 - start) * (k + 0.5) / path for k in range(path)]
        dimmed = [away(_dimmed(alpha), bias) for alpha in alphas]
        weights = [w / alpha for (w, _), alpha in zip(dimmed, alphas, strict=True)]
        own = _averaged(own, x, weights, [constants for _, constants in dimmed])
    c = own.contribution.double().sum(1) + own.bias.double()  # type: ignore[union-attr]
    size = min(c.shape[1:])
    told = [f"averaged over {path} less bright images"] * (path > 0)
    if scale:
        a = _even(worth) ** power
        c = moved_within(c, scale * size, lambda sign: _even(sign * leading) * a)
        told.append(f"mass moved within {scale * size:.3g} pixels")
    if wide:
        near = c
        c = moved_within(near, wide * size, lambda sign: _even(sign * near))
        told.append(f"mass gathered within {wide * size:.3g} pixels")
    matrix = c.to(own.output.dtype)
    done = remapped(own, matrix, own.bias, [matrix], ", ".join(told))
    return pack(replace(done, promise=own.promise))


def _unpacked(e: Explanation) -> tuple[Explanation, Callable[[Explanation], Explanation]]:
    """With a tensor where an input that was given by name has a dict; and the way back."""
    names = ("weight", "contribution", "matrix", "bias", "inputs")
    whole = {name: getattr(e, name) for name in names}
    keys = {name: next(iter(v)) for name, v in whole.items() if isinstance(v, Mapping)}
    first = {name: whole[name][key] for name, key in keys.items()}

    def pack(found: Explanation) -> Explanation:
        return replace(found, **{name: {key: getattr(found, name)} for name, key in keys.items()})

    return replace(e, **first), pack


def _dimmed(alpha: float) -> Move:
    return lambda k, x: alpha * x


def _averaged(
    e: Explanation, x: Tensor, weights: list[Tensor], constants: list[Tensor]
) -> Explanation:
    """The explanation with the means of weights and of constants, and evenly what is missing."""
    weight, mean = torch.stack(weights).mean(0), torch.stack(constants).mean(0)
    missing = e.output.double() - (weight * x).flatten(1).sum(1) - mean.flatten(1).sum(1)
    bias = mean + missing[:, None, None] / mean[0].numel()
    kind = e.output.dtype
    return replace(
        e,
        weight=weight.to(kind),
        contribution=(weight * x).to(kind),
        bias=bias.to(kind),
        sources={
            "averaged constants": mean.flatten(1).sum(1).to(kind),
            "evenly": missing.to(kind),
        },
    )


def _check(bias: Any, **numbers: tuple[Any, int]) -> None:
    for name, (number, most) in numbers.items():
        if not is_number(number) or not 0 <= number <= most:
            raise InputError(f"{name}={number!r} is out of range: give 0 to {most}.")
    if bias not in PLACED:
        raise InputError(
            f"bias={bias!r} is not known, or leaves constants off the map, on which mass is moved. "
            f"Choose one of: {', '.join(PLACED)}."
        )


def _check_image(run: FrozenRun) -> None:
    feed = run.feed
    if len(feed.leaves) != 1 or not is_image(feed, 0):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in feed.leaves)
        raise InputError(
            f"method 'omenn-focused' is for one batch of images (B, C, H, W), but {shapes} is "
            "explained. Use method 'omenn', whose map can be smoothed with processed()."
        )


def moved_within(c: Tensor, sigma: float, leader: Callable[[Tensor], Tensor]) -> Tensor:
    """Maps c (B, H, W) with their mass moved within σ pixels, the sum kept: NOTE [moving mass].

    ``leader``: the sign of what a neighbourhood has (B, H, W) → a, above zero.

    >>> c = torch.zeros(1, 9, 9, dtype=torch.float64); c[0, 4, 4] = 2
    >>> there = torch.full_like(c, 1e-6); there[0, 4, 6] = 1
    >>> z = moved_within(c, 1.5, lambda sign: there)
    >>> assert abs(z.sum() - 2) < 1e-12 and z[0, 4, 6] > 1.9
    """
    a = leader(spread(c, sigma).sign())
    return a * spread(c / spread(a, sigma), sigma)


def _even(values: Tensor) -> Tensor:
    """The positive part over its mean, and the floor."""
    positive = values.clamp(min=0)
    mean = positive.mean((1, 2), keepdim=True)
    return positive / torch.where(mean > 0, mean, 1.0) + FLOOR


def _class(target: Any, model: Any, inputs: Any, output: Any, channel_dim: int | None) -> Any:
    """The class that is contrasted: the one given, or the one with the largest logit."""
    if isinstance(target, Contrast) or callable(target):
        raise InputError("against= is for a class. Leave it away, the target is a contrast itself.")
    if target is not None:
        return target
    run = FrozenRun(model, inputs, None, "none", channel_dim, {})
    return run.target(None, output)[1]
