"""Methods that are a table of rules, as they are or completed: then they are exact."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any

from omenn.attribution.depths import at_depths
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.attribution.rule_table import RuleTable
from omenn.check import flag, quoted
from omenn.errors import InputError
from omenn.explanation import Explanation


def lrp(
    name: str, *, promise: str = "approximate", complete: bool = False, **about: Any
) -> Callable[[Callable[..., RuleTable]], Callable[..., RuleTable]]:
    """A decorator that registers ``function(*, **options)``, which returns a table of rules.

    The method has the options of the function, and with ``complete=True`` those of the exact
    method: ``bias``, ``mix`` with several depths in ``at``, and ``create_graph``. The ``complete``
    of the decorator is its default.

    Example:
        >>> import torch, omenn
        >>> @lrp("frozen", summary="the rules of omenn, constants left out", source="this line")
        ... def frozen() -> RuleTable:
        ...     return RuleTable()
        >>> net = torch.nn.Linear(3, 2).eval()
        >>> assert not omenn.explain(net, torch.ones(1, 3), method="frozen").exact
        >>> assert omenn.explain(net, torch.ones(1, 3), method="frozen", complete=True).exact
    """

    def register(rules: Callable[..., RuleTable]) -> Callable[..., RuleTable]:
        @wraps(rules)
        def propagated(question: Question, **options: Any) -> Explanation:
            own = {k: v for k, v in options.items() if k not in COMPLETING}
            given = {k: v for k, v in options.items() if k in COMPLETING and k != "complete"}
            completed = options.get("complete", complete)
            flag("complete", completed)
            if not completed:
                only_completed(question, given)
                return question.propagate(rules(**own))
            return at_depths(question, given.pop("mix", None), rules=rules(**own), **given)

        own = [p for p in inspect.signature(rules).parameters.values() if p.kind is p.KEYWORD_ONLY]
        signature = inspect.Signature([*own, *_completing(complete)])
        setattr(propagated, "__signature__", signature)  # noqa: B010
        attribution(name, promise=promise, **about)(propagated)
        return rules

    return register


COMPLETING: Mapping[str, Any] = MappingProxyType(
    {"complete": False, "mix": None, "bias": "spatial", "create_graph": False}
)
"""The options of completed rules, and their defaults."""


def _completing(complete: bool) -> list[inspect.Parameter]:
    kind, defaults = inspect.Parameter.KEYWORD_ONLY, {**COMPLETING, "complete": complete}
    return [inspect.Parameter(name, kind, default=v) for name, v in defaults.items()]


def only_completed(question: Question, given: Mapping[str, Any]) -> None:
    """Refuse options that mean something for completed rules alone."""
    several = isinstance(question.at, (list, tuple))
    odd = {k: v for k, v in given.items() if v != COMPLETING[k]} | (
        {"at": question.at} if several else {}
    )
    for name, value in odd.items():
        raise InputError(
            f"{name}={quoted(value)} is for rules that are exact, and these keep a part of the "
            "output.",
            argument=name,
            got=quoted(value),
            remedy="Add complete=True: what the rules keep then goes to its place.",
        )
