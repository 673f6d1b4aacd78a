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
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.contributions import mixed_shares
from omenn.attribution.ordinary_gradient import Move, Moved
from omenn.attribution.perturbations import MOST_SEED, Moves, is_image
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import choose, quoted, real, whole
from omenn.engine.run import FrozenRun
from omenn.engine.target import Contrast
from omenn.errors import InputError
from omenn.explanation import Explanation, leaves, rebuilt
from omenn.filters import gaussian_filter

PLACED = ("spatial", "bilinear", "attention", "uniform")
FIRST = 1e-3  # the least α
_MAPS = ("inputs", "weight", "contribution", "bias", "matrix")
FLOOR = 0.02  # of a leader: what every pixel has, as a share of the mean


@attribution(
    "omenn-focused",
    promise="exact",
    summary="the exact map, led within neighbourhoods by weights averaged over noise",
    source="arXiv 2412.02399 and 2602.06613; docs/benchmarks.md",
    at=False,
)
def focused(
    question: Question,
    *,
    scale: float = 0.03,
    steps: int = 10,
    noise: float = 0.3,
    power: float = 1.0,
    wide: float = 0.12,
    path: int = 20,
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
) -> Explanation:
    """The exact map of an image with its mass where it stays when the image is disturbed.

    C is the map of ``omenn`` with its weights averaged on the way from s x to x, s in [0, 1]::

        C = X ⊙ (s W(s x) + ∫_s^1 W(α x) dα) + C_b(s x) + r,    r even over the image

    Where W is the Jacobian and the network is continuous, the integral adds f(x) − f(s x) and the
    rest of it f(s x), so r is the error of the quadrature. (s = 1 is ``omenn``, s = 0 integrated
    gradients from zero with the constants there.) Where it is not (attention, norms, most smooth
    activations), r is what W leaves out on the way. No place has earned r, so s is, image by image,
    no further from 1 than keeps Σ|r| small against Σ|C − r|. With
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
            image itself.
        power: how much the undisturbed magnitude counts; 0 not at all.
        wide: σ of G', as ``scale``; 0 gathers nothing.
        path: the number of steps of α, by the trapezoidal rule. 0: x alone.
        start, tolerance: s. For None it goes down from 1 in steps of 1/path as long as Σ|r| is at
            most this share of Σ|C − r|, and the network finite. For 0 it is 0.001: W(0) of a ReLU
            that is given zero is not its limit.
        against: ``"rest"`` or ``"runner-up"``: f_c minus these is explained, and is the sum.
        rotation, translation, scaling, flip: the x_i are moved as well, see ``dave``.
        seed: of noise and moves. The global random state is not touched.
        bias: ``"spatial"``, ``"bilinear"``, ``"attention"`` or ``"uniform"``, see ``omenn``.
        products, output, channel_dim: see ``omenn``.

    The model is run 2 + ``steps`` + ``path`` times at most.

    Raises:
        InputError: the input is not one batch of images (B, C, H, W) with a number for each; an
            option out of its range.

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
    moves = Moves(steps, seed, noise, rotation, translation, scaling, flip)
    focus = Focus(scale, power, wide, path, start, tolerance)
    network = _Network(_contrasted(question, against), bias, products)
    return focus.of(network, moves)


@dataclass(frozen=True)
class Focus:
    """What is asked: how far mass moves, and the path along which weights are averaged."""

    scale: float
    power: float
    wide: float
    path: int
    start: float | None
    tolerance: float

    def __post_init__(self) -> None:
        whole("path", self.path, 0, MOST_SEED)
        for name, most in {"scale": 1, "wide": 1, "tolerance": 1, "power": 8, "start": 1}.items():
            if name != "start" or self.start is not None:
                real(name, getattr(self, name), 0, most)
        if not (self.scale or self.wide or self.path):
            text = "scale=0, wide=0 and path=0 leave nothing to do."
            raise InputError(text, argument="scale", got="0", remedy="Use method 'omenn'.")

    def of(self, network: _Network, moves: Moves) -> Explanation:
        """The explanation of a network, with its mass moved."""
        leader = network.weight
        if self.scale and moves.steps:
            leader = network.averaged(moves)
        e, said = self._averaged(network)
        c = e.contribution.double().sum(1) + e.bias.double()  # type: ignore[union-attr]
        size = min(c.shape[1:])
        if self.scale:
            sigma = self.scale * size
            c = _led(c, sigma, network, leader, self.power)
            said.append(f"mass moved within {sigma:.3g} pixels")
        if self.wide:
            sigma = self.wide * size
            c = moved_within(c, sigma, lambda sign: even(sign * c))
            said.append(f"mass gathered within {sigma:.3g} pixels")
        matrix = c.to(e.matrix.dtype)  # type: ignore[union-attr]
        return network.pack(e.with_matrix(matrix, processing=(", ".join(said),)))

    def _averaged(self, network: _Network) -> tuple[Explanation, list[str]]:
        """The explanation averaged along the path to x; from where, in words."""
        if not self.path or self.start == 1:
            return network.e, []
        average = _PathAverage(network.x, network.e)
        least, tolerance = (0.0, self.tolerance) if self.start is None else (self.start, math.inf)
        for k in reversed(range(self.path)):
            alpha = max(least + (1 - least) * k / self.path, FIRST)
            try:
                found = network.moved(_dimmed(alpha))
            except InputError:
                if self.start is not None:
                    raise
                break  # no finite output there, though there is one at x
            if not average.extended(alpha, *found, tolerance):
                break
        return average.explanation(), [f"averaged from {average.said()} of the way to the image"]


class _Network:
    """The frozen network at an image, and at images that are moved from it.

    ``e`` is the exact explanation, ``x`` the image and ``weight`` W(x), in double precision.
    """

    def __init__(self, question: Question, bias: str, products: str) -> None:
        choose("bias", bias, PLACED)  # "separate" leaves constants off the map, whose mass moves
        self.bias, self.products = bias, products
        e = question.exact(bias=bias, products=products)
        run = question.frozen_run(products=products)
        _, index = question.number(run)
        _check_image(run)
        self.fixed, self.inputs = question.with_fixed_target(run, index), run.inputs
        self.e, self.pack = _unpacked(e)
        self.x, self.weight = run.inputs.values[0].double(), self.e.weight.double()  # type: ignore[union-attr]

    def moved(self, move: Move, bias: str | None = None) -> tuple[Tensor, Explanation]:
        """Weights at x of the moved network, and the explanation there for its constants."""
        options: dict[str, Any] = {"products": self.products, "move": move}
        run = self.fixed.frozen_run(bias=bias or self.bias, tracer=Moved, **options)
        f, index = self.fixed.number(run)
        gradients = run.pull_back(f)
        e, _ = _unpacked(run.wrap(f, index, gradients))
        return gradients.inputs[0].double(), e

    def averaged(self, moves: Moves) -> Tensor:
        """The mean of W over noisy images."""
        mean = torch.zeros_like(self.weight)
        for move in moves.of(self.inputs):
            mean += self.moved(move, "none")[0] / moves.steps
        return mean


def _led(c: Tensor, sigma: float, network: _Network, leader: Tensor, power: float) -> Tensor:
    """Maps c moved to where x ⊙ leader agrees with them and x ⊙ W(x) is large."""
    agreeing = (network.x * leader).sum(1)
    worth = even((network.x * network.weight).abs().sum(1)) ** power
    return moved_within(c, sigma, lambda sign: even(sign * agreeing) * worth)


def _unpacked(e: Explanation) -> tuple[Explanation, Callable[[Explanation], Explanation]]:
    """With a tensor where the one explained input is in a dict or a tuple; and the way back."""
    whole = {name: getattr(e, name) for name in _MAPS}
    first = {name: leaves(value)[0] for name, value in whole.items()}

    def pack(found: Explanation) -> Explanation:
        packed = {n: rebuilt(v, iter([getattr(found, n)])) for n, v in whole.items()}
        return replace(found, **packed)

    return replace(e, **first), pack


def _dimmed(alpha: float) -> Move:
    """α x, whose derivative is one, so that what arrives at x is W(α x) for any α."""
    return lambda k, x: x + (alpha - 1) * x.detach()


class _PathAverage:
    """Goes from α = 1 down, and has of each image the averages from the least α so far."""

    def __init__(self, x: Tensor, e: Explanation) -> None:
        self.x, self.e, self.alpha = x, e, 1.0
        self.slope = e.weight.double()  # type: ignore[union-attr]
        self.integral = torch.zeros_like(self.slope)
        self.weight, self.constants = self.slope, e.bias.double()  # type: ignore[union-attr]
        self.missing = torch.zeros_like(e.output, dtype=torch.float64)
        self.start = torch.ones_like(self.missing)
        self.open = torch.ones_like(self.missing, dtype=torch.bool)
        self.places = {1.0: (e.located, e.unlocated)}  # α → where its constants belong

    def extended(self, alpha: float, slope: Tensor, there: Explanation, tolerance: float) -> bool:
        """Take in W(α x) and C_b(α x); whether any image goes on.

        It does if no more than the tolerance is missing of f(x), as a share of Σ|C|.
        """
        self.integral = self.integral + (self.alpha - alpha) / 2 * (self.slope + slope)
        self.alpha, self.slope = alpha, slope
        weight, constants = alpha * slope + self.integral, there.bias.double()  # type: ignore[union-attr]
        c = ((self.x * weight).sum(1) + constants).flatten(1)
        missing = self.e.output.double() - c.sum(1)
        self.open = self.open & ~(missing.abs() > tolerance * c.abs().sum(1))
        here = self.open[:, None, None]
        self.weight = torch.where(here[:, None], weight, self.weight)
        self.constants = torch.where(here, constants, self.constants)
        self.missing = torch.where(self.open, missing, self.missing)
        self.start = torch.where(self.open, alpha, self.start)
        self.places[alpha] = (there.located, there.unlocated)
        return bool(self.open.any())

    def explanation(self) -> Explanation:
        """The explanation with the averages, and evenly what is missing."""
        e, kind = self.e, self.e.matrix.dtype  # type: ignore[union-attr]
        bias = self.constants + self.missing[:, None, None] / self.constants[0].numel()
        located, unlocated = self._placed()
        return replace(
            e,
            weight=self.weight.to(e.weight),  # type: ignore[arg-type]
            contribution=(self.weight * self.x).to(e.contribution),  # type: ignore[arg-type]
            bias=bias.to(e.bias),  # type: ignore[arg-type]
            sources={
                "constants": self.constants.flatten(1).sum(1).to(kind),
                "evenly": self.missing.to(kind),
            },
            located=located,
            unlocated=unlocated,
        )

    def _placed(self) -> tuple[float, dict[str, dict[str, float]]]:
        """Which constants have a place: the mean over images of what was found at their s.

        What is missing has none, and counts with them where it is more than rounding.
        """
        rounding = self.e.tolerance * (1 + self.e.magnitude.double())
        size = float(self.constants.abs().sum())
        even = float(self.missing.abs()[self.missing.abs() > rounding].sum())
        known = 1 - even / (size + even) if size + even else 1.0
        even_share = {"omenn-focused": {"uniform": 1 - known}} if known < 1 else {}
        weights = [known * float((self.start == alpha).double().mean()) for alpha in self.places]
        located = sum(w * part for w, (part, _) in zip(weights, self.places.values(), strict=True))
        rest = zip(weights, (shares for _, shares in self.places.values()), strict=True)
        return located, mixed_shares([(1.0, even_share), *rest])

    def said(self) -> str:
        """From where the averages are taken: one α, or the least and the largest of a batch."""
        ends = (float(self.start.min()), float(self.start.max()))
        return " to ".join(f"{alpha:.3g}" for alpha in dict.fromkeys(ends))


def _check_image(run: FrozenRun) -> None:
    inputs = run.inputs
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in inputs.leaves)
    if not inputs.batched or (is_image(inputs, 0) and len(inputs.leaves[0]) != inputs.samples):
        raise InputError(
            "method 'omenn-focused' is for a number of each image, but the target has "
            f"{inputs.samples} for {shapes}.",
            argument="target",
            got=f"{inputs.samples} numbers",
            remedy="Use method 'omenn'.",
        )
    if len(inputs.leaves) != 1 or not is_image(inputs, 0):
        raise InputError(
            f"method 'omenn-focused' is for one batch of images (B, C, H, W), but {shapes} is "
            "explained.",
            argument="inputs",
            got=shapes,
            expected="(B, C, H, W)",
            remedy="Use method 'omenn', whose map can be smoothed with processed().",
        )


def moved_within(c: Tensor, sigma: float, leader: Callable[[Tensor], Tensor]) -> Tensor:
    """Maps c (B, H, W) with their mass moved within σ pixels, the sum kept: NOTE [moving mass].

    ``leader``: the sign of what a neighbourhood has (B, H, W) → a, above zero.

    >>> c = torch.zeros(1, 9, 9, dtype=torch.float64); c[0, 4, 4] = 2
    >>> there = torch.full_like(c, 1e-6); there[0, 4, 6] = 1
    >>> z = moved_within(c, 1.5, lambda sign: there)
    >>> assert abs(z.sum() - 2) < 1e-12 and z[0, 4, 6] > 1.9
    """
    a = leader(gaussian_filter(c, sigma).sign())
    return a * gaussian_filter(c / gaussian_filter(a, sigma), sigma)


def even(values: Tensor) -> Tensor:
    """The positive part over its mean, and the floor."""
    positive = values.clamp(min=0)
    mean = positive.mean((1, 2), keepdim=True)
    return positive / torch.where(mean > 0, mean, 1.0) + FLOOR


def _contrasted(question: Question, against: str | None) -> Question:
    """The question about the class given, or the one with the largest logit, against others."""
    if against is None:
        return question
    target = question.target
    if isinstance(target, Contrast) or callable(target):
        raise InputError(
            "against= is for a class, but the target is a contrast itself.",
            argument="against",
            got=quoted(against),
            remedy="Omit it.",
        )
    if target is None:
        target = question.number(question.frozen_run())[1]
    return replace(question, target=Contrast(target, against))  # type: ignore[arg-type]
