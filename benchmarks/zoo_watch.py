"""Looking over the interceptor's shoulder: which rules a model uses, and what its constants are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from omenn.core.call import FROZEN
from omenn.core.explain import FrozenRun
from omenn.core.intercept import Interceptor

# A constant of these rows is a choice between constants (a clipped value, a masked place), which
# the input makes: the term moves with the input and is honest.
_CHOOSING = frozenset(
    "clamp where maximum max setitem index_put masked_fill index_fill copy_ scatter fill".split()
)


class Watch:
    """While it is in force, every carried constant and every looked-up rule is written down.

    It wraps two methods of the interceptor, in this process, for the duration.
    """

    def __init__(self) -> None:
        self.rules: set[str] = set()
        self.spellings: set[str] = set()
        self.terms: list[tuple[str, str, float, bool]] = []  # module, operator, Σ term, honest
        self.shapes: dict[str, tuple[str, tuple[int, ...], bool, bool]] = {}
        self.sources: dict[str, Tensor] = {}

    def __enter__(self) -> Watch:
        self._carry, self._apply = Interceptor.carry, Interceptor._apply
        self._pull_back = FrozenRun.pull_back
        FrozenRun.pull_back = self._watched_pull_back()  # type: ignore[method-assign]
        Interceptor.carry = self._watched_carry()  # type: ignore[method-assign]
        Interceptor._apply = self._watched_apply()  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Interceptor.carry, Interceptor._apply = self._carry, self._apply  # type: ignore[method-assign]
        FrozenRun.pull_back = self._pull_back  # type: ignore[method-assign]

    def _watched_carry(self) -> Any:
        native = self._carry

        def carry(mode: Interceptor, call: Any, y: Tensor, term: Tensor, place: Any, *rest: Any):
            module = mode.module_path()
            told = module in mode.frozen_constants or call.operator in _CHOOSING
            told |= any(m.kind == FROZEN and m.inputs for _, m in call.marked)
            total = float(term.detach().double().abs().sum()) if not term.is_complex() else 0.0
            self.terms.append((module, call.operator, total, told))
            if place is not None:
                located = place.grid.located[place.cells]
                seen = (call.operator, tuple(y.shape), bool(located.any()), bool(located.all()))
                self.shapes[module] = seen
            return native(mode, call, y, term, place, *rest)

        return carry

    def _watched_apply(self) -> Any:
        native = self._apply

        def apply(mode: Interceptor, call: Any, row: Any, *rest: Any) -> Any:
            self.rules.add(call.operator)
            name = getattr(call.func, "__name__", str(call.func))
            twin = "in place " if call.inplace else ""
            self.spellings.add(f"{call.operator}: {twin}{name}")
            return native(mode, call, row, *rest)

        return apply

    def _watched_pull_back(self) -> Any:
        native = self._pull_back

        def pull_back(run: FrozenRun, *args: Any, **kwargs: Any) -> Any:
            gradients = native(run, *args, **kwargs)
            self.sources = dict(gradients.sources)
            return gradients

        return pull_back

    def differing(self, other: Watch) -> list[str]:
        """Constants that are others for another input, though nobody said so."""
        if len(self.terms) != len(other.terms):
            return []  # another path through the model: nothing to compare
        return sorted(
            {
                f"{module}: {operator}"
                for (module, operator, a, told), (_, _, b, _) in zip(
                    self.terms, other.terms, strict=True
                )
                if a != b and not told
            }
        )

    def unlocated(self) -> list[dict[str, Any]]:
        """The constants without a place by kind: share of Σ|constants|, and the largest module."""
        split = {
            k: v.detach().double().abs().reshape(2, -1).sum(1) for k, v in self.sources.items()
        }
        total = sum(float(v.sum()) for v in split.values())
        found: dict[str, list[tuple[float, str]]] = {}
        for module, value in split.items():
            if float(value[1]) > 0:
                share = float(value[1]) / total
                found.setdefault(_kind(self.shapes.get(module)), []).append((share, module))
        rows = [
            {"kind": kind, "share": sum(s for s, _ in each), "module": max(each)[1]}
            for kind, each in found.items()
        ]
        return sorted(rows, key=lambda r: -r["share"])


def _kind(seen: tuple[str, tuple[int, ...], bool, bool] | None) -> str:
    """Why a constant has no place, from the last tensor that it was added to."""
    if seen is None:
        return "other"
    operator, shape, some, every = seen
    if some and not every:
        return "class token"
    if sum(n > 1 for n in shape[1:]) < 2:
        return "after global pooling"
    return f"place lost before {operator}"
