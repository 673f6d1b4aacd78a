"""Is a model homogeneous, F(αx) = α F(x) for all α ≥ 0? A proof by its operators, and a test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omenn.attribution.ordinary_gradient import Move
from omenn.check import wrong
from omenn.engine.explainable import check_model
from omenn.engine.inputs import Inputs
from omenn.engine.model_state import State
from omenn.engine.operators.degree_step import ANY, shown, vanishes
from omenn.engine.target import pick_output
from omenn.engine.trace.guards import alone
from omenn.errors import InputError, ModelError, OmennError, TargetError, reason
from omenn.explanation import TOLERANCES
from omenn.xdnn.degree_tracker import DegreeTracker, Known, Operator

FACTORS = (0, 0.1, 0.5, 2, 10)


@dataclass(frozen=True, repr=False)
class Homogeneity:
    """Whether a model is homogeneous, with the evidence.

    ``degree``: k where the operators prove F(αx) = αᵏ F(x) for α > 0 (∞: F is zero), else None.
    ``operators``: every call of one between input and output, in order. ``offenders``: those
    before the output that are not homogeneous, the first of each module. ``errors``: α → largest
    |F(αx) − α F(x)|, relative to max(α, 1) · max |F(x)|. ``tolerance``: what is allowed of that.
    """

    degree: float | None
    operators: tuple[Operator, ...]
    offenders: tuple[Operator, ...]
    errors: Mapping[float, float]
    tolerance: float

    @property
    def proven(self) -> bool:
        """The operators prove degree 1, for all α > 0."""
        return self.degree in (1, ANY)

    @property
    def measured(self) -> bool:
        """F(αx) = α F(x) holds for each α that was tried."""
        return all(error <= self.tolerance for error in self.errors.values())

    @property
    def homogeneous(self) -> bool:
        """The operators prove it, and the numbers agree."""
        return self.proven and self.measured

    @property
    def offender(self) -> Operator | None:
        """The first operator that is not homogeneous."""
        return self.offenders[0] if self.offenders else None

    def __bool__(self) -> bool:
        return self.homogeneous

    def __repr__(self) -> str:
        state = "homogeneous" if self.homogeneous else "NOT HOMOGENEOUS"
        worst = max(self.errors.values())
        first = f", offender={self.offender}" if self.offender else ""
        return f"Homogeneity({state}, degree={shown(self.degree)}, error={worst:.1e}{first})"

    def __str__(self) -> str:
        lines = ["homogeneous" if self.homogeneous else "NOT HOMOGENEOUS"]
        lines.append(f"structure  {self._structure()}")
        lines += [f"           {offender}" for offender in self.offenders]
        measured = ", ".join(f"{error:.1e} at α = {a:g}" for a, error in self.errors.items())
        lines += [
            "numbers    largest |F(αx) − α F(x)|, relative to max(α, 1) · max |F(x)|:",
            f"           {measured} (allowed {self.tolerance:.0e})",
        ]
        return "\n".join(lines + [f"warning    {self._doubt()}"] * (self.proven != self.measured))

    def _structure(self) -> str:
        n = len(self.operators)
        if self.degree is None:
            return "not homogeneous, the first call in each module:"
        if self.degree == 0:
            return f"{n} operators prove degree 0: the output does not change with the input's size"
        other = "" if self.proven else ", not 1"
        return f"{n} operators prove that the output is of degree {shown(self.degree)}{other}"

    def _doubt(self) -> str:
        if self.measured:
            return "the structure cannot prove what the numbers show at this input"
        if any(not math.isfinite(error) for error in self.errors.values()):
            return "the structure proves it for α > 0, but an output is not finite (0/0, overflow)"
        return (
            "the structure proves degree 1, but the numbers differ: rounding, 0/0 at α = 0, "
            "randomness, or code that was not seen"
        )


@alone()
def check(
    model: nn.Module | Any,
    inputs: Any,
    *,
    factors: Sequence[float] = FACTORS,
    output: Any = None,
) -> Homogeneity:
    """Proves and tests F(αx) = α F(x), which makes x ⊙ ∇F the integrated gradients from zero.

    1. *Structure*: in one forward pass of the ordinary model each tensor that depends on the input
       has a degree k, by which it becomes αᵏ times itself: 1 for the input, 0 for a constant, any
       for zero. Linear maps without a constant, ReLU, pooling and selections keep it, sums need
       one, products add and quotients subtract it. What is unknown is not homogeneous. The proof
       is of the operators that ran, for α > 0 and in exact arithmetic.
    2. *Numbers*: the ordinary model at αx for each of ``factors``, 0 among them.

    Args:
        model: a module in evaluation mode, or a function of tensors.
        inputs: as in :func:`omenn.explain`; all floating-point tensors are scaled together, and
            integer ids where they are embedded.
        factors: the numbers α ≥ 0 of the test.
        output: where the output is in a structured one: callable, key or index.

    Raises:
        InputError, TargetError, ModelError: what was given cannot be run, or has no output that
            could be compared.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8, bias=False), torch.nn.ReLU(),
        ...                           torch.nn.Linear(8, 2)).eval()
        >>> found = check(net, torch.randn(4, 3))
        >>> assert not found and found.offender.module == "2"
        >>> _ = torch.nn.init.zeros_(net[2].bias)
        >>> assert check(net, torch.randn(4, 3)).homogeneous

    Source: Hesse et al. 2021, arXiv 2111.07668.
    """
    check_model(model, None)
    alphas = _factors(factors)
    run = _Run(model, inputs, output)
    known, mode = run.tracked()
    errors = run.errors(alphas)
    numbers = sorted(known.offenders | mode.leaked)
    offenders = {mode.operators[k].module: mode.operators[k] for k in reversed(numbers)}
    return Homogeneity(
        degree=None if numbers else known.degree,
        operators=tuple(mode.operators),
        offenders=tuple(reversed(offenders.values())),
        errors=errors,
        tolerance=run.tolerance,
    )


class _Run:
    """The ordinary model on α times its inputs."""

    def __init__(self, model: Any, inputs: Any, output: Any) -> None:
        self.model, self.inputs, self.output = model, inputs, output
        self.module = model if isinstance(model, nn.Module) else None
        self.state = State(model)
        self.tolerance = math.nan

    def tracked(self) -> tuple[Known, DegreeTracker]:
        """What is known of the output, and the tracer that followed it."""
        given, mode, out = self.state.run(self._followed)
        if not (out.is_floating_point() or out.is_complex()) or not out.numel():
            raise TargetError(
                f"the output has the type {out.dtype} and {out.numel()} elements; numbers were "
                "expected.",
                argument="output",
                got=str(out.dtype),
                remedy="Say where they are with output=.",
            )
        self.tolerance = 10 * TOLERANCES.get(mode.coarsest or out.dtype, 1e-5)
        known = mode.known_of(out) or Known(ANY if vanishes(out) else 0.0, frozenset())
        self.ids = any(_whole_numbers(value) for _, value in given.items)
        mode.degrees.clear()
        return known, mode

    def _followed(self) -> tuple[Inputs, DegreeTracker, Tensor]:
        mode = self._tracer()
        given = Inputs(mode, self.inputs, "none", None, True)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                out = given.run(self.model, None)
                with mode:
                    return given, mode, pick_output(out, self.output)
        except (OmennError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            self._plain(given, 1.0)  # whose error it was
            raise ModelError(
                f"the model runs, but not where its operators are followed: {reason(error)}.",
                argument="model",
            ) from error

    def _tracer(self, move: Move | None = None) -> DegreeTracker:
        return DegreeTracker(self.module, move=move, state=self.state)

    def errors(self, alphas: Sequence[float]) -> dict[float, float]:
        """α → largest |F(αx) − α F(x)| relative to max(α, 1) · max |F(x)|."""
        one = self._at(1.0)
        if bool(one.isnan().any()):
            raise InputError(
                "the model's output is not a number (NaN), so there is nothing to compare.",
                argument="inputs",
                remedy="Check the weights and the range of the input.",
            )
        finite = one[one.isfinite()].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        return {alpha: _error(self._at(alpha), one, alpha, scale) for alpha in alphas}

    def _at(self, alpha: float) -> Tensor:
        """F(αx), in double precision."""
        if self.ids:  # scaled where they are embedded
            out = self.state.run(lambda: self._moved(alpha))
        else:
            given = Inputs(DegreeTracker(None), self.inputs, "none", None, True)
            out = self._plain(given, alpha)
        out = pick_output(out, self.output).detach()
        return (torch.view_as_real(out.resolve_conj()) if out.is_complex() else out).double()

    def _moved(self, alpha: float) -> Any:
        mode = self._tracer(_by(alpha))
        given = Inputs(mode, self.inputs, "none", None, True)
        with torch.inference_mode(False), torch.enable_grad():
            out = given.run(self.model, None)
        mode.degrees.clear()
        return out

    def _plain(self, given: Inputs, alpha: float) -> Any:
        def called() -> Any:
            args, kwargs = given.arguments()
            args = [_scaled(value, alpha) for value in args]
            return self.model(*args, **{name: _scaled(v, alpha) for name, v in kwargs.items()})

        try:
            with torch.no_grad():
                return self.state.watched(called)
        except Exception as error:
            what = given.described() if alpha == 1 else f"{alpha:g} times the input"
            text = f"the model cannot take {what}: {reason(error)}."
            raise InputError(text, argument="inputs") from error


def _error(here: Tensor, one: Tensor, alpha: float, scale: float) -> float:
    if here.shape != one.shape:
        return math.inf
    expected = torch.where(one.isinf(), one, alpha * one)
    difference = (here - expected).abs()
    difference[here == expected] = 0.0  # equal infinities (masked logits) are equal
    worst = math.inf if bool(difference.isnan().any()) else float(difference.max())
    return worst / (max(alpha, 1.0) * scale) if worst and scale else math.inf if worst else 0.0


def _by(alpha: float) -> Move:
    return lambda _, x: alpha * x


def _scaled(value: Any, alpha: float) -> Any:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value * alpha if floats and alpha != 1 else value


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool


def _factors(factors: Any) -> list[float]:
    try:
        found = [float(alpha) for alpha in factors]
    except (TypeError, ValueError):
        found = []
    if not found or not all(0 <= alpha < math.inf for alpha in found):
        expected = f"one or more finite numbers of at least 0, for example {FACTORS}"
        raise wrong("factors", factors, expected)
    return found
