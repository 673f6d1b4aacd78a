"""Looking over the tracer's shoulder: which rules a model uses, and what its constants are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from omenn.engine.location.constants import Location
from omenn.engine.trace.call import FROZEN
from omenn.engine.trace.tracer import Tracer

# A constant of these rows is a choice between constants (a clipped value, a masked place), which
# the input makes: the term moves with the input and is honest.
_CHOOSING = frozenset(
    "clamp where maximum max setitem index_put masked_fill index_fill copy_ scatter fill".split()
)


class Watch:
    """While it is in force, every carried constant and every rule in use is written down.

    It wraps two methods of the tracer, in this process, for the duration.
    """

    def __init__(self) -> None:
        self.rules: set[str] = set()
        self.spellings: set[str] = set()
        self.terms: list[tuple[str, str, float, bool]] = []  # module, operator, Σ|term|, reported

    def __enter__(self) -> Watch:
        self._carry, self._apply = Location.carry, Tracer._apply
        Location.carry = self._watched_carry()  # type: ignore[method-assign]
        Tracer._apply = self._watched_apply()  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Location.carry = self._carry  # type: ignore[method-assign]
        Tracer._apply = self._apply  # type: ignore[method-assign]

    def _watched_carry(self) -> Any:
        native = self._carry

        def carry(where: Location, call: Any, y: Tensor, term: Tensor, *rest: Any) -> Tensor:
            module = call.context.module_path()
            reported = module in where.frozen_constants or call.operator in _CHOOSING
            reported |= any(m.kind == FROZEN and m.inputs for _, m in call.marked)
            total = float(term.detach().abs().double().sum())
            self.terms.append((module, call.operator, total, reported))
            return native(where, call, y, term, *rest)

        return carry

    def _watched_apply(self) -> Any:
        native = self._apply

        def apply(mode: Tracer, call: Any, row: Any, *rest: Any) -> Any:
            self.rules.add(call.operator)
            name = getattr(call.func, "__name__", str(call.func))
            twin = "in place " if call.inplace else ""
            self.spellings.add(f"{call.operator}: {twin}{name}")
            return native(mode, call, row, *rest)

        return apply

    def differing(self, other: Watch) -> list[str]:
        """Constants that are others for another input, though nobody said so: module, operator."""
        if len(self.terms) != len(other.terms):
            return []  # another path through the model: nothing to compare
        return sorted(
            {
                f"{module}: {operator}"
                for (module, operator, a, reported), (_, _, b, _) in zip(
                    self.terms, other.terms, strict=True
                )
                if a != b and not reported
            }
        )
