"""The methods with options that ``omenn.tune`` chooses from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import omenn
from omenn.bench.method_options import method_and_options
from omenn.bench.plan_entries import Entry, words
from omenn.check import wrong
from omenn.errors import InputError

CANDIDATES = (
    "omenn",
    *(f"gamma[gamma={gamma};complete=true]" for gamma in (0.02, 0.1, 0.25)),
    "zplus[complete=true]",
    "omenn-clear",
    *(
        f"omenn-clear[gamma={gamma};reach={reach}]"
        for gamma in (0.02, 0.1, 0.25)
        for reach in (0.25, 0.5, 1.0)
    ),
    "omenn-focused",
)
"""The usual ones, all exact: strong and weak sign emphasis (γ), how far kept shares move
(``reach``), and a method that runs the model dozens of times."""


@dataclass(frozen=True)
class Candidate:
    """A method with options; ``name``: as it is typed."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Candidate:
        """From ``gamma[gamma=0.5;complete=true]``, or from a method file.

        Raises:
            InputError: an unknown method or option, a value of another type.

        >>> Candidate.read("gamma[gamma=0.5]").options
        {'gamma': 0.5}
        """
        if not isinstance(text, str):
            raise wrong("candidates", text, "methods such as 'gamma[gamma=0.5;complete=true]'")
        method, options = method_and_options(text)
        return cls(Entry.read({"method": method, **options}, "method").name, method, options)

    @property
    def promise(self) -> str:
        """What it promises of its sum."""
        return omenn.methods()[self.method].promised(self.options)

    @property
    def full(self) -> str:
        """The method with all its options, given or not: the same for the same map."""
        options = {**omenn.methods()[self.method].options, **self.options}
        return f"{self.method} {sorted(options.items())}"


def default_method() -> str:
    """The method of ``omenn.explain`` where none is named.

    >>> default_method()
    'omenn'
    """
    return inspect.signature(omenn.explain).parameters["method"].default


def chosen_from(
    given: str | Sequence[str] | None, against: str | None = None
) -> tuple[Candidate, ...]:
    """The candidates, ``against`` first: what the others have to beat.

    Two that make the same map are one. ``given`` may be a text with commas; None: the usual ones.

    Raises:
        InputError: an unknown method or option; a candidate whose sum is not exact; none besides
            ``against``.

    >>> [c.name for c in chosen_from("zplus[complete=true], omenn, gamma[complete=true]")]
    ['omenn', 'zplus[complete=true]', 'gamma[complete=true]']
    """
    texts = CANDIDATES if given is None else words(given) if isinstance(given, str) else given
    if not isinstance(texts, Sequence):
        raise wrong("candidates", given, "a list of methods, or their names with commas")
    first = Candidate.read(default_method() if against is None else against)
    there = {first.full: first}
    for text in texts:
        one = Candidate.read(text)
        if one.promise != "exact" and one.full != first.full:
            raise InputError(
                f"the candidate '{one.name}' does not promise an exact sum.",
                argument="candidates",
                got=one.name,
                expected="methods whose sum is exact",
                remedy="Add complete=true if it is a table of rules, or leave it out.",
            )
        there.setdefault(one.full, one)
    if len(there) < 2:
        raise InputError(
            f"there is no candidate besides '{first.name}'.",
            argument="candidates",
            got=first.name,
            remedy="Name another method, or the same one with other options.",
        )
    return tuple(there.values())
