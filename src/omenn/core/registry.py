"""Rules added by users, and the list of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omenn.core.call import Call
from omenn.core.rules import OPERATORS, Row
from omenn.core.rules.pointwise import pointwise
from omenn.core.rules.row import rows, same, unlocated
from omenn.core.spelling import teach
from omenn.errors import InputError

_KINDS = ("linear", "pointwise")


def rule(
    func: Callable[..., Any], kind: str | Callable[[Call], Any], *, name: str | None = None
) -> None:
    """Registers a rule for a torch function that has none.

    Args:
        func: the function object as models call it (``torch.foo``, ``torch.Tensor.foo``, or any
            function that dispatches through ``__torch_function__``).
        kind: ``"linear"`` (linear as it stands), ``"pointwise"`` (a smooth function of each
            element alone: φ(0) + ⟦(φ(x) − φ(0))/x⟧ x), or a function of a ``Call`` that returns
            the frozen output.
        name: the operator's name in messages; the function's own by default.

    A wrong rule does not stay hidden: the certificate of any model that uses it fails.

    Example:
        >>> import torch, omenn
        >>> omenn.rule(torch.special.i0e, "pointwise")
        >>> e = omenn.explain(lambda x: torch.special.i0e(x).sum(1, keepdim=True), torch.ones(1, 2))
        >>> assert e.exact
    """
    if not callable(func):
        raise InputError(f"omenn.rule needs a function, but {type(func).__name__} was given.")
    operator: str = name or getattr(func, "__name__", str(func))
    if callable(kind):
        row = Row(kind, unlocated)
    elif kind == "linear":
        row = rows(operator, lambda call: call.run(), unlocated)[operator]
    elif kind == "pointwise":
        row = Row(pointwise, same)
    else:
        raise InputError(
            f"kind={kind!r} is not known. Give {' or '.join(map(repr, _KINDS))}, or a function."
        )
    OPERATORS[operator] = row
    teach(func, operator)


def methods() -> dict[str, str]:
    """Names of the methods, and what each promises of its sum.

    Example:
        >>> import omenn
        >>> assert "exact" in omenn.methods()["omenn"]
    """
    return {"omenn": "exact: Σ C = f(x), bias included (arXiv 2412.02399)"}
