"""The result of an explanation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omenn.engine.location import REASONS
from omenn.engine.trace.marks import addresses

# A tensor, or tensors in the structure of the inputs (the explained ones).
Structure = Any

# By the promise of the method: how a result with an inexact sum is described.
PROMISES = ("exact", "approximate", "none")
_INEXACT = {"exact": "NOT EXACT", "approximate": "approximate", "none": "no sum promised"}

_ROUNDING = 30  # times the tolerance: rounding of a sum of many numbers that cancel

# Relative to 1 + Σ|C| (see ``scale``): how far an exact sum may be from the output.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.complex128: 1e-9,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


def by_reason(sources: dict[str, Tensor], samples: int, f: Tensor, dtype: torch.dtype) -> Tensor:
    """What the constants of each module add: (modules, located or the reason why not, samples)."""
    width = 1 + len(REASONS)
    none = torch.zeros(0, width * samples, dtype=dtype, device=f.device)
    rows = torch.stack(list(sources.values())) if sources else none
    return rows.reshape(len(rows), width, samples)


def sums(
    f: Tensor, matrix: list[Tensor], apart: list[Tensor], samples: int
) -> tuple[Tensor, Tensor]:
    """(f − ΣC, Σ|C|) per sample, in double precision."""
    flat = [m.detach().double().reshape(samples, -1) for m in [*matrix, *apart]]
    total = torch.stack([m.sum(1) for m in flat]).sum(0)
    magnitude = torch.stack([m.abs().sum(1) for m in flat]).sum(0)
    return f.detach().double() - total, magnitude


def located_shares(names: list[str], split: Tensor) -> tuple[float, dict[str, dict[str, float]]]:
    """Shares of Σ|constants|: located; and module → reason → not located, largest first."""
    sums = dict(zip(names, split.abs().sum(2).tolist(), strict=True))
    total = sum(map(sum, sums.values()))
    if not total:
        return 1.0, {}
    order = sorted(sums, key=lambda name: -sum(sums[name][1:]))
    shares = {
        name: {why: part / total for why, part in zip(REASONS, sums[name][1:], strict=True) if part}
        for name in order
    }
    located = sum(rows[0] for rows in sums.values()) / total
    return located, {name: reasons for name, reasons in shares.items() if reasons}


def leaves(value: Structure) -> list[Tensor]:
    """The tensors of a structure, in order."""
    if isinstance(value, Tensor):
        return [value]
    if value is None:  # an input without an explanation
        return []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in leaves(v)]
    return [t for v in value for t in leaves(v)]


def rebuilt(value: Structure, tensors: Iterator[Any]) -> Structure:
    """The structure with other tensors (or values), in the order of ``leaves``."""
    if isinstance(value, Tensor):
        return next(tensors)
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: rebuilt(v, tensors) for key, v in value.items()}
    return tuple(rebuilt(v, tensors) for v in value)


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """One matrix per sample that adds up to the output: Σ matrix = f(x).

    Shapes, for B samples (``locations`` are (H, W) of an image, (T,) of a sequence, (F,) of a
    table row). ``weight``, ``contribution``, ``bias`` and ``matrix`` have the structure and the
    order of the inputs. For an input without an explanation, a tuple has None and a dict no entry.
    All matrices together sum to the output. Ids (B, T) have a matrix (B, T); their weight is that
    of the rows that were looked up, a tuple for several lookups, zero for none.

    ========================  =====================================================================
    ``output`` (B,)           f_c(x), the explained number
    ``target`` (B,)           the class c (−1 for a callable target)
    ``weight``                C_w, the row of W(x), shaped like the input
    ``contribution``          C_w ⊙ X
    ``bias`` (B, *locations)  C_b; with ``bias="separate"`` one number a sample, (B,)
    ``matrix``                C: contribution summed over channels, plus bias
    ``residual`` (B,)         f − ΣC, summed in double precision
    ``exact``                 every residual is within ``tolerance`` · (``scale`` + Σ|C|), and
                              ``fidelity`` within ``fidelity_tolerance``
    ``scale``                 1; less if all outputs are below 0.001 (docs/exactness.md)
    ``fidelity``              largest |frozen − ordinary forward pass| relative to the largest
                              |output|, or to its rounding if that is large (docs/exactness.md);
                              None if they were not compared
    ``cause``                 why it is not exact, as far as known
    ``promise``               of the method, for ΣC = f: ``exact``, ``approximate`` or ``none``
    ``sources``               module → its constants' share of the output (B,)
    ``located``               share of Σ|constants| that has a location on the input, 0 to 1
    ``unlocated``             module → reason → share of Σ|constants| without a location
    ``channel_dim``           which dimension of each input ``matrix`` is summed over, 0 for none
    ``explains``              which number f is, if it is not the output itself: ``"the logit
                              before sigmoid"`` of a model that returns probabilities
    ``processing``            the steps that changed ``matrix`` afterwards, in order; the first
                              ``own_steps`` of them are of the method itself
    ``changed``               those that came after the method
    ========================  =====================================================================

    Source: arXiv 2412.02399, section 3 (C = C_w ⊙ X + C_b).
    """

    output: Tensor
    target: Tensor
    inputs: Structure
    weight: Structure
    contribution: Structure
    bias: Structure
    matrix: Structure
    residual: Tensor
    magnitude: Tensor  # (B,) Σ|C|
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    located: float = 1.0
    unlocated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tolerance: float = 1e-5
    method: str = "omenn"
    promise: str = "exact"
    at: str | tuple[str, ...] | None = None
    mix: tuple[float, ...] = ()
    resample: str = "none"
    bias_placement: str = "spatial"
    channel_dim: Structure = None  # that the map is summed over, from the end; 0: none is
    products: str = "half"
    frozen_constants: tuple[str, ...] = ()
    processing: tuple[str, ...] = ()
    explains: str = ""
    fidelity: float | None = None
    fidelity_tolerance: float = 1e-5
    scale: float = 1.0
    own_steps: int = 0

    @property
    def changed(self) -> tuple[str, ...]:
        return self.processing[self.own_steps :]

    @property
    def exact(self) -> bool:
        summed = self.residual.abs() <= self.tolerance * (self.scale + self.magnitude)
        return self.faithful and bool(summed.all())

    @property
    def faithful(self) -> bool:
        """Whether the frozen and the ordinary forward pass have the same output."""
        return self.fidelity is None or self.fidelity <= self.fidelity_tolerance

    @property
    def cause(self) -> str:
        """Why the sum is not exact although it should be, as far as known; otherwise empty."""
        if self.exact or self.promise != "exact" or self.changed:
            return ""
        if not self.faithful:
            return f"the model's own output differs by {self.fidelity:.1e}"
        residual, magnitude = self.residual.detach().double(), self.magnitude.detach().double()
        missed = residual.abs() / (self.scale + magnitude)
        if bool((missed <= _ROUNDING * self.tolerance).all()):
            return "by little more than rounding can: explain in double precision, model.double()"
        whole = abs(float(residual.sum())) <= self.tolerance * float((self.scale + magnitude).sum())
        if len(residual) < 2 or not whole:
            return ""
        worst = int(missed.argmax())
        one = f"out[{worst}, {int(self.target[worst])}]"
        if int(self.target[worst]) < 0:
            one = f"target(out)[{worst}]"
        return (
            "the samples of the batch depend on each other, all together their sums are right: "
            f"explain one number of the batch, target=lambda out: {one}"
        )

    @property
    def total(self) -> Tensor:
        """Σ C per sample (B,), in double precision."""
        return self.output.double() - self.residual

    @property
    def bias_share(self) -> Tensor:
        """Σ C_b per sample (B,): the part of the output that comes from constants."""
        flat = [b.double().reshape(len(self.output), -1).sum(1) for b in leaves(self.bias)]
        return torch.stack(flat).sum(0)

    @property
    def reasons(self) -> dict[str, float]:
        """Why constants have no location: reason → share of Σ|constants|, the largest first.

        ``token``: a token without a location (class token, register, learned query).
        ``pooled``: computed from the whole input (global pooling, a layer over all positions).
        ``operator``: an operator whose output has no known location. ``uniform``, ``attention``:
        spread evenly, or along the frozen attention, because of ``bias=``.
        """
        total: dict[str, float] = {}
        for shares in self.unlocated.values():
            for why, share in shares.items():
                total[why] = total.get(why, 0.0) + share
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def with_matrix(self, matrix: Structure, **fields: Any) -> Explanation:
        """The same explanation with another ``matrix``; its residual and Σ|C| are recomputed.

        ``fields`` are replaced as well. Separate constants (``bias="separate"``) count.

        >>> import omenn
        >>> e = omenn.explain(torch.nn.Linear(3, 1, bias=False).eval(), torch.ones(1, 3))
        >>> half = e.with_matrix(e.matrix / 2, promise="none")
        >>> assert torch.allclose(half.total, e.output.double() / 2) and half.promise == "none"
        """
        changed = replace(self, matrix=matrix, **fields)
        apart = leaves(changed.bias) if changed.bias_placement == "separate" else []
        residual, magnitude = sums(changed.output, leaves(matrix), apart, len(changed.output))
        return replace(changed, residual=residual, magnitude=magnitude)

    def heatmap(self, index: int = 0, **options: Any) -> Any:
        """The matrix of sample ``index`` as a picture (H, W, 3), uint8; white is zero."""
        from omenn.viz import heatmap  # pictures need numpy and matplotlib

        return heatmap(self, index, **options)

    def processed(self, *steps: Any, **options: Any) -> Explanation:
        """The same with outliers removed and noise smoothed, for example by ``"clean"``.

        The sum stays the same, except for the lossy forms; see ``residual`` and ``processing``.
        ``weight``, ``contribution`` and ``bias`` stay raw. Steps and options: see
        :func:`omenn.viz.postprocess`.

        >>> import omenn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()).eval()
        >>> e = omenn.explain(net, torch.randn(1, 1, 16, 16), target=0)
        >>> assert e.processed("clean").exact and not e.processing
        >>> e.processed("mad", "gaussian-lossy:2").processing
        ('mad:2.5', 'gaussian-lossy:2')
        """
        from omenn.viz import postprocess

        return postprocess(self, *steps, **options)

    def plot(self, index: int = 0, **options: Any) -> Any:
        """A matplotlib figure: input, C, C_w ⊙ X and C_b on one colour scale, with the sum."""
        from omenn.viz import plot

        return plot(self, index, **options)

    def save(self, path: str | Path, **options: Any) -> Path:
        """Writes the explanation; the ending decides: .safetensors, .json, .png or .html.

        ``options`` of pictures: see :func:`omenn.viz.plot`.
        """
        from omenn.viz import save

        return save(self, path, **options)

    @staticmethod
    def load(path: str | Path) -> Explanation:
        """Reads an explanation written as .safetensors."""
        from omenn.viz import load

        return load(path)

    def __repr__(self) -> str:
        worst = float(self.residual.detach().abs().max())
        state = "exact" if self.exact else _INEXACT[self.promise]
        if why := self.cause:
            state += f" ({why})"
        of = [f"of {self.explains}"] if self.explains else []
        state = ", ".join([state, *of, *(f"after {step}" for step in self.processing)])
        method = "" if self.method == "omenn" else f"method={self.method}, "
        return (
            f"Explanation({method}target={_short(self.target)}, output={_short(self.output)}, "
            f"residual={worst:.1e}, {state})"
        )


def _short(numbers: Tensor) -> str:
    """One number in few digits, or all of several."""
    return str(numbers.tolist()) if numbers.numel() > 1 else f"{numbers.detach().item():.5g}"


_TENSORS = (
    "output", "target", "inputs", "weight", "contribution", "bias", "matrix", "residual",
    "magnitude",
)  # fmt: skip


def owned(e: Explanation, differentiable: bool, others: Iterable[Tensor]) -> Explanation:
    """The same with tensors that share no memory with each other and with ``others``.

    They have no history, unless ``differentiable``.
    """
    taken = addresses(others)
    values = {name: _owned(getattr(e, name), differentiable, taken) for name in _TENSORS}
    sources = {name: t if differentiable else t.detach() for name, t in e.sources.items()}
    return replace(e, **values, sources=sources)


def _owned(value: Structure, differentiable: bool, taken: set[int]) -> Structure:
    """Plain tensors with the same values, no shared memory and, unless differentiable, no history.

    ``taken``: addresses of memory that is already used.
    """
    if isinstance(value, Mapping):
        return {name: _owned(v, differentiable, taken) for name, v in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_owned(v, differentiable, taken) for v in value)
    if not isinstance(value, Tensor):
        return value
    t = value if differentiable else value.detach()
    if type(t) is not Tensor:
        t = t.as_subclass(Tensor)
    memory = t.untyped_storage()
    if memory.data_ptr() in taken or memory.nbytes() != t.numel() * t.element_size():
        t = t.clone(memory_format=torch.contiguous_format)
    taken.add(t.untyped_storage().data_ptr())
    return t
