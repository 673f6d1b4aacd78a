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

import math
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
    scale: float = 0.03,
    steps: int = 10,
    noise: float = 0.3,
    power: float = 1.0,
    wide: float = 0.12,
    path: int = 10,
    start: float | None = None,
    tolerance: float = 0.05,
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

    C is the map of ``omenn`` with its weights averaged on the way from s x to x, s in [0, 1]::

        C = X ⊙ (s W(s x) + ∫_s^1 W(α x) dα) + C_b(s x) + r,    r even over the image

    Where W is the Jacobian, the integral adds f(x) − f(s x) and the rest of it f(s x), so r is the
    error of the quadrature. (s = 1 is ``omenn``, s = 0 integrated gradients from zero with the
    constants there.) Where it is not (attention, norms, smooth activations), r is what W leaves
    out on the way, and s is taken so near to 1, image by image, that r is small. With
    l = Σ_channels X ⊙ mean_i W(x_i) for noisy x_i as in ``dave``, o = Σ_channels |X ⊙ W(x)|, G a
    Gaussian, g = sign(G C), and every mean over the image::

        a = (max(0, g ⊙ l) / mean + ε) ⊙ (o / mean + ε)^power,    Z = a ⊙ G(C ⊘ G a)

    ΣZ = ΣC = f(x) for any a, see NOTE [moving mass]. A second, wider Gaussian G' then gathers what
    a region speaks for as a whole where Z speaks for it most, which sets off what speaks against:
    Z' = a' ⊙ G'(Z ⊘ G'a'), a' = max(0, sign(G'Z) ⊙ Z) / mean + ε, and ΣZ' = ΣZ. ``weight``,
    ``contribution`` and ``bias`` are those of C; ``sources`` has the sums of both parts of the
    bias, C_b(s x) and r.

    Args:
        scale: σ of G, as a share of the shorter side; 0 moves nothing, and no x_i is run.
        steps, noise: number of x_i and their largest t, see ``dave``. 0 steps: l is that of the
            image itself, and nothing is run twice.
        power: how much the undisturbed magnitude counts; 0 not at all.
        wide: σ of G', as ``scale``; 0 gathers nothing.
        path: the number of steps of α, by the trapezoidal rule. 0: x alone.
        start, tolerance: s. For None it goes down from 1 in steps of 1/path as far as |Σ r| is at
            most this share of Σ|C|.
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
    part = {} if start is None else {"start": (start, 1)}
    _check(
        bias, scale=(scale, 1), wide=(wide, 1), power=(power, 8), tolerance=(tolerance, 1), **part
    )
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
    told = []
    if path:
        least = 0.0 if start is None else start
        alphas = [least + (1 - least) * k / path for k in range(path)]
        way = _Way(x, own, alphas, [away(_dimmed(alpha), bias) for alpha in alphas])
        first = way.first(tolerance if start is None else math.inf)
        own = way.averaged(first)
        told.append(f"averaged from {way.said(first)} of the way to the image")
    c = own.contribution.double().sum(1) + own.bias.double()  # type: ignore[union-attr]
    size = min(c.shape[1:])
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
    """α x, whose derivative is one, so that what arrives at x is W(α x) for any α."""
    return lambda k, x: x + (alpha - 1) * x.detach()


class _Way:
    """Weights and constants at α x, α from the least to 1, and the averages from each α on.

    ``found``: W(α x) and C_b(α x) at the ``alphas``, which are evenly apart; at 1 those of ``e``.
    """

    def __init__(
        self, x: Tensor, e: Explanation, alphas: list[float], found: list[tuple[Tensor, Tensor]]
    ) -> None:
        step = (1 - alphas[0]) / len(alphas)
        self.e, self.alphas = e, [*alphas, 1.0]
        own = (e.weight.double(), e.bias.double())  # type: ignore[union-attr]
        weights, self.constants = zip(*found, own, strict=True)
        integral, self.weights = torch.zeros_like(x), [weights[-1]]
        for k in reversed(range(len(found))):
            integral = integral + step / 2 * (weights[k] + weights[k + 1])
            self.weights.insert(0, self.alphas[k] * weights[k] + integral)
        maps = [(x * w).sum(1) + b for w, b in zip(self.weights, self.constants, strict=True)]
        flat = torch.stack(maps).flatten(2)
        self.x, self.magnitude = x, flat.abs().sum(2)  # (α, B)
        self.missing = e.output.double() - flat.sum(2)

    def first(self, tolerance: float) -> Tensor:
        """(B,): the number of the least α, from it and from all above it little is missing."""
        far = self.missing[:-1].abs() > tolerance * self.magnitude[:-1]  # at 1 nothing is
        return (far.flip(0).cumsum(0) > 0).sum(0)

    def averaged(self, first: Tensor) -> Explanation:
        """The explanation with the averages from these α on, and evenly what is missing."""
        which = (first, torch.arange(len(first), device=first.device))
        weight, constants = (
            torch.stack(self.weights)[which],
            torch.stack(list(self.constants))[which],
        )
        missing, kind = self.missing[which], self.e.output.dtype
        bias = constants + missing[:, None, None] / constants[0].numel()
        return replace(
            self.e,
            weight=weight.to(kind),
            contribution=(weight * self.x).to(kind),
            bias=bias.to(kind),
            sources={
                "constants": constants.flatten(1).sum(1).to(kind),
                "evenly": missing.to(kind),
            },
        )

    def said(self, first: Tensor) -> str:
        """From where the averages are taken: one α, or the least and the largest of a batch."""
        ends = [self.alphas[int(k)] for k in (first.min(), first.max())]
        return " to ".join(f"{alpha:.3g}" for alpha in dict.fromkeys(ends))


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
