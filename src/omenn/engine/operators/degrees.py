"""How the degree of homogeneity goes through an operator: a rule for each kind.

A tensor is of degree k if it becomes αᵏ times itself when the input becomes α times itself, for
every α > 0. The input is of degree 1, a constant of degree 0; zero and ±∞ are of every degree, and
so are the numbers beyond 10⁹ that stand for −∞ in masks. A rule makes the degree of a result from
those of the arguments, or raises ``NotHomogeneous``. What has none is a function of which nothing
is known: of degree 0 where all that it is made from is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omenn.engine.operators.degree_step import ANY, NotHomogeneous, Of, Step, shown
from omenn.engine.torch_private import unwrapped

Rule = Callable[[Step], Any]  # → the degree of the result, or of each if there are several


def same(s: Step) -> float:
    """What is put together, or compared, has one degree: that of the result."""
    return s.joined(*s.moved())


def distance(s: Step) -> float:
    """With p = 0 it counts where they differ."""
    return (told(same) if s.at(2, "p") == 0 else same)(s)


def chosen(s: Step) -> float:
    """The same of what is chosen by its size; the indices that come with it are of degree 0."""
    return same(s)


def vanishing(s: Step) -> float:
    return ANY


def joining(*names: str) -> Rule:
    """These arguments are put together, or compared: one degree, that of the result."""
    return lambda s: s.joined(*(s.get(name) for name in names))


def stepped(s: Step) -> float:
    """``heaviside``: a step, and what is given for zero."""
    return s.degree(s.at(1, "values"))


def valued(position: int, *names: str) -> Rule:
    """A value is written into the first argument, or compared with it."""
    return lambda s: s.joined(s.first, s.at(position, *names))


def told(rule: Rule) -> Rule:
    """What is told by a comparison does not change where all that is compared has one degree."""

    def zero(s: Step) -> float:
        try:
            rule(s)
        except NotHomogeneous as error:
            raise NotHomogeneous(error.why, 0.0) from None
        return 0.0

    return zero


def overwritten(position: int, *names: str) -> Rule:
    return lambda s: s.joined(s.at(position, *names))


def _scaled(power: float, degree: float) -> float:
    return 0.0 if power == 0 else ANY if degree == ANY else power * degree


def product(s: Step) -> float:
    return ANY if ANY in s.degrees else sum(s.degrees)


_BIAS = "its bias is a constant"
_SHIFT = "its shift is a constant"


def affine(*factors: str) -> Rule:
    """A product of arguments, plus a bias."""

    def rule(s: Step) -> float:
        made = s.product(*(s.get(name) for name in factors))
        return s.joined(made, s.get("bias"), constant=_BIAS)

    return rule


def grouped(s: Step) -> float:
    return s.joined(s.product(*s.args[:2]), s.kwargs.get("bias"), constant=_BIAS)


def added_product(*factors: str, sign: int = 1) -> Rule:
    """β c + α a b (``addmm`` and kin), and c + a/b."""

    def rule(s: Step) -> float:
        a, b = (s.product(s.get(name)).degree for name in factors)
        made = ANY if ANY in (a, b) else a + sign * b
        return s.joined(Of(made), None if s.get("beta") == 0 else s.get("input"))

    return rule


def selected(s: Step) -> float:
    """``where``: of the branches; of a condition alone it is the indices."""
    return s.joined(s.get("input"), s.get("other")) if "other" in s.bound else 0.0


def ratio(s: Step) -> float:
    a, b = s.degree(s.get("input")), s.degree(s.get("other"))
    a, b = (b, a) if s.reverse else (a, b)
    degree = ANY if ANY in (a, b) else a - b
    if (s.get("rounding_mode") or s.operator == "floor_divide") and degree not in (0, ANY):
        raise NotHomogeneous(f"it rounds what is of degree {shown(degree)}", degree)
    return degree


def solved(s: Step) -> float:
    """A⁻¹ b, or (L Lᵀ)⁻¹ b."""
    a, b = s.product(s.get("A"), s.get("L"), s.get("L")).degree, s.degree(s.get("B"))
    return ANY if ANY in (a, b) else b - a


def power(s: Step) -> float:
    exponent, degree = s.get("exponent"), s.degree(s.get("input"))
    active = any(exponent is t for t, _ in s.found)
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and not active:
        exponent = unwrapped(exponent.detach()).item()
    if not isinstance(exponent, (int, float)):
        raise NotHomogeneous("its exponent is not one constant number", degree)
    return _scaled(exponent, degree)


def norm(s: Step) -> float:
    return 0.0 if s.get("p") == 0 else s.degree(s.first)


def multiplied(s: Step) -> float:
    """``prod``: as many factors as there are elements along the dimension."""
    dim = s.at(1, "dim")
    n = s.first.numel() if dim is None else s.first.shape[dim] if s.first.ndim else 1
    return _scaled(n, s.degree(s.first))


def at_fixed(name: str, said: str, rule: Rule) -> Rule:
    """``rule``, where an argument is of degree 0; ``said``: what it is, in messages."""

    def checked(s: Step) -> Any:
        if (degree := s.degree(s.get(name))) not in (0, ANY):
            raise NotHomogeneous(f"its {said} is of degree {shown(degree)}", s.degree(s.first))
        return rule(s)

    return checked


sloped = at_fixed("weight", "slope", joining("input"))

# Where the slope of a clipping changes, if the call does not say: not at zero.
_EDGES = {"relu6": 6.0, "hardtanh": 1.0, "hardshrink": 0.5, "softshrink": 0.5}


def clipped(s: Step) -> float:
    """Bounds are joined: those at zero and at infinity are of every degree."""
    edges = [*s.args[1:], *(v for k, v in s.kwargs.items() if k not in ("input", "inplace"))]
    edges = [e for e in edges if e is not None and not isinstance(e, bool)]
    return s.joined(s.first, *(edges or [_EDGES.get(s.name)]))


def scattered(s: Step) -> float:
    reduce = next((a for a in (*s.args, *s.kwargs.values()) if isinstance(a, str)), "sum")
    degree = s.joined(s.first, s.at(3, "src", "value"))
    if reduce in ("prod", "multiply"):
        raise NotHomogeneous("it multiplies as many values as meet", degree)
    return degree


def reinterpreted(s: Step) -> float:
    """``view`` as a shape; as a type it reads the bits anew."""
    if any(isinstance(a, torch.dtype) for a in (*s.args, *s.kwargs.values())):
        raise NotHomogeneous("it reads the bits of a number as another type", s.degree(s.first))
    return s.degree(s.first)


_EPS = {"normalize": 1e-12, "cosine_similarity": 1e-8}


def normalised(s: Step) -> float:
    """Degree 0, but for ε; scale and shift are those of the caller."""
    if s.operator == "instance_norm" and s.get("use_input_stats") is False:
        return batch_norm(s)
    eps, x = s.get("eps"), s.first
    if eps is None:
        eps = torch.finfo(x.dtype).eps if s.operator == "rms_norm" else _EPS.get(s.operator, 1e-5)
    degree = s.joined(s.product(s.get("weight")), s.get("bias"))
    if eps > torch.finfo(x.dtype).tiny:  # up to that it only keeps 0/0 away
        raise NotHomogeneous(f"degree {shown(degree)} but for its ε = {eps:g}: not exactly", degree)
    return degree


def batch_norm(s: Step) -> float:
    """γ (x − m)/√(v + ε) + β with running statistics: its shift β − γ m/√(v + ε) counts."""
    x, mean, var = s.get("input"), s.get("running_mean"), s.get("running_var")
    weight, bias = s.get("weight"), s.get("bias")
    if s.get("training") or mean is None or var is None:
        raise NotHomogeneous("it uses the statistics of the batch, with an ε: not exactly", 0.0)
    if any(t is not x for t, _ in s.found):  # conditional: scale or shift depends on the input
        centred = s.joined(x, mean, constant=_SHIFT) + s.product(weight).degree
        return s.joined(Of(centred), bias, constant=_SHIFT)
    eps = 1e-5 if s.get("eps") is None else s.get("eps")
    mean, var = mean.detach(), var.detach()
    scale = torch.rsqrt(var + eps) * (1 if weight is None else weight.detach())
    shift = (0 if bias is None else bias.detach()) - mean * scale
    return s.joined(x, shift, constant=_SHIFT)


def attention(s: Step) -> float:
    """Weights that are of degree 0 times v."""
    _still(s, bool(s.get("dropout_p")))
    value = s.degree(s.get("value"))
    mask = s.get("attn_mask")
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = None  # no summand
    logits = s.joined(s.product(s.get("query"), s.get("key")), mask)
    if logits not in (0, ANY):
        raise NotHomogeneous(f"softmax of degree {shown(logits)}", value)
    return value


def dropped(s: Step) -> float:
    _still(s, bool(s.get("training")) and bool(s.get("p", 0.5)))
    return s.degree(s.first)


def random(s: Step) -> float:
    _still(s, s.operator != "rrelu" or bool(s.at(3, "training")))
    return s.degree(s.first)


class Random(NotHomogeneous):
    """Not even a function."""


def _still(s: Step, moving: bool) -> None:
    if moving:
        raise Random("it is random", s.degree(s.first))


def smooth(s: Step) -> float:
    raise NotHomogeneous(_curved(s), s.degree(s.first))


def bounded(s: Step) -> float:
    """Gates and weights: a homogeneous form of them is of degree 0."""
    raise NotHomogeneous(_curved(s), 0.0)


def _curved(s: Step) -> str:
    degrees = " and ".join(dict.fromkeys(map(shown, s.degrees)))
    return f"it does not scale with its argument, which is of degree {degrees}"


def strange(s: Step) -> float:
    raise NotHomogeneous("nothing is known of it", max(s.degrees, default=0.0))


def degree_of(s: Step, rule: float | Rule | None) -> Any:
    """The degree of what an operator with this rule returns, or of each of the tensors in it.

    Raises NotHomogeneous: there is none.
    """
    if isinstance(rule, (int, float)):
        return _scaled(rule, s.degree(s.first))
    try:
        return (rule or strange)(s)
    except Random:
        raise
    except NotHomogeneous:
        if all(degree in (0, ANY) for degree in s.degrees):
            return 0.0  # any function of what does not change
        raise
