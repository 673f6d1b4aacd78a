"""The methods by name: what each is, what it promises of its sum, and its options.

A method is a function, registered by one of four decorators:

``@method``       of ``(model, inputs, target, **options)``, returns an explanation
``@attribution``  of ``(question, **options)``: the standing options are in the question
``@lrp``          of ``(**options)``, returns a rule table
                  (:mod:`omenn.attribution.rule_methods`)
``@captum``       of ``(task, **options)``, returns what captum attributes to the inputs
                  (:mod:`omenn.attribution.captum_adapter`)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from types import MappingProxyType
from typing import Any

from omenn.attribution.question import Question
from omenn.check import choose, quoted
from omenn.engine.target import Target
from omenn.engine.trace.guards import alone
from omenn.errors import InputError, did_you_mean
from omenn.explanation import PROMISES, Explanation

# Arguments that every method has, and so none of its options.
_SHARED = ("model", "inputs", "target")


@dataclass(frozen=True)
class Method:
    """A method of attribution.

    ``promise``: of the sum of its map, ``"exact"`` (Σ C = f, checked on every call),
    ``"approximate"`` (up to sampling, a stabiliser, or for some models only) or ``"none"``.
    ``extra``: the extra of omenn that it needs, if any. ``same_as``: the method whose map this is
    while none of its options is given: another name in the literature, counted once.
    """

    name: str
    function: Callable[..., Explanation]
    promise: str
    summary: str
    source: str
    extra: str | None = None
    same_as: str | None = None

    @property
    def options(self) -> Mapping[str, Any]:
        """Option → default, as the function declares them."""
        declared = inspect.signature(self.function).parameters.values()
        return MappingProxyType(
            {
                p.name: p.default
                for p in declared
                if p.name not in _SHARED and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
            }
        )

    def promised(self, options: Mapping[str, Any]) -> str:
        """The promise with these options: completed rules are exact, and no others."""
        own = self.options.get("complete")
        if options.get("complete", own):
            return "exact"
        return self.promise if own is not True else "approximate"

    def __str__(self) -> str:
        words = {"exact": "exact sum", "approximate": "approximate sum", "none": "no sum promised"}
        return f"{self.summary} ({words[self.promise]}; {self.source})"

    def __call__(self, model: Any, inputs: Any, target: Any = None, **options: Any) -> Explanation:
        odd = next((name for name in options if name not in self.options), None)
        if odd is not None:
            known = ", ".join(self.options) or "none"
            raise InputError(
                f"method {self.name!r} has no option {odd!r}.",
                argument=odd,
                expected=known,
                remedy=f"Its options are: {known}.",
            )
        return self.function(model, inputs, target, **options)


_METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    promise: str,
    summary: str,
    source: str,
    extra: str | None = None,
    same_as: str | None = None,
) -> Callable[[Callable[..., Explanation]], Callable[..., Explanation]]:
    """A decorator that registers ``function(model, inputs, target, **options)`` as a method.

    Its keyword arguments become the options of the method. A name that is taken is replaced.

    Raises:
        InputError: the promise is none of ``"exact"``, ``"approximate"``, ``"none"``.

    Example:
        >>> import torch, omenn
        >>> from omenn.attribution import method
        >>> @method("mine", promise="exact", summary="as omenn", source="this line")
        ... def mine(model, inputs, target=None):
        ...     return omenn.explain(model, inputs, target)
        >>> net = torch.nn.Linear(3, 2).eval()
        >>> assert omenn.explain(net, torch.ones(1, 3), method="mine").exact
    """
    choose("promise", promise, PROMISES)

    def register(function: Callable[..., Explanation]) -> Callable[..., Explanation]:
        _METHODS[name] = Method(name, function, promise, summary, source, extra, same_as)
        return function

    return register


def attribution(
    name: str, *, at: bool = True, **about: Any
) -> Callable[[Callable[..., Explanation]], Callable[..., Explanation]]:
    """A decorator that registers ``function(question, *, **options)`` as a method.

    The method has the options of the function and the standing ones: ``output``, ``channel_dim``
    and, unless ``at`` is False, ``at`` and ``resample``. A standing option that the function
    declares itself is its own. ``about``: further arguments of :func:`method`.

    Example:
        >>> import torch, omenn
        >>> @attribution("halved", promise="none", summary="half of omenn", source="this line")
        ... def halved(question, *, share: float = 0.5):
        ...     e = question.answered_by(question.frozen_run(bias="spatial"))
        ...     return e.with_matrix(share * e.matrix, promise="none")
        >>> net = torch.nn.Linear(3, 2).eval()
        >>> e = omenn.explain(net, torch.ones(1, 3), 0, method="halved", share=0.25, at=None)
        >>> assert torch.allclose(4 * e.matrix.sum(1), e.output)
    """

    def register(function: Callable[..., Explanation]) -> Callable[..., Explanation]:
        method(name, **about)(_asked(function, at))
        return function

    return register


def alias(name: str, of: str, *, summary: str, source: str) -> None:
    """Register the method ``of`` by another name, which counts as the same method."""
    _METHODS[name] = replace(_METHODS[of], name=name, summary=summary, source=source, same_as=of)


def _standing(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """What every method takes and returns; its own options come before the standing ones."""
    raise NotImplementedError


def _asked(function: Callable[..., Explanation], at: bool) -> Callable[..., Explanation]:
    """``function(question, **options)`` as a function of model, inputs, target and all options."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    taken = {p.name for p in own} | (set() if at else {"at", "resample"})
    whole = inspect.signature(_standing)
    shared = [p for p in whole.parameters.values() if p.name not in taken]
    standing = [p for p in shared if p.kind is p.KEYWORD_ONLY]

    @wraps(function)
    @alone()
    def asked(model: Any, inputs: Any, target: Target = None, **options: Any) -> Explanation:
        given = {p.name: options.pop(p.name) for p in standing if p.name in options}
        return function(Question(model, inputs, target, **given), **options)

    parameters = [*shared[: -len(standing)], *own, *standing]
    setattr(asked, "__signature__", whole.replace(parameters=parameters))  # noqa: B010
    return asked


def methods() -> Mapping[str, Method]:
    """All methods by name, with what each promises of its sum, its options and its source.

    Example:
        >>> import omenn
        >>> assert omenn.methods()["omenn"].promise == "exact"
        >>> assert "bias" in omenn.methods()["omenn"].options
    """
    names = sorted(_METHODS, key=lambda name: (name != "omenn", name))  # it comes first
    return MappingProxyType({name: _METHODS[name] for name in names})


def distinct(names: Iterable[str]) -> list[str]:
    """The names without those that are another name of a method among them.

    >>> distinct(["alpha1beta0", "zplus", "gamma"])
    ['alpha1beta0', 'gamma']
    """
    there = list(names)
    known = {name: _METHODS[name].same_as for name in there if name in _METHODS}
    return [name for name in there if known.get(name) not in there]


def find(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: there is none.
    """
    found = _METHODS.get(name) if isinstance(name, str) else None
    if found is None:
        raise InputError(
            f"method={quoted(name)} is not known:",
            argument="method",
            got=quoted(name),
            remedy=did_you_mean(quoted(name), methods()),
        )
    return found
