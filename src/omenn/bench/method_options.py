"""A method and its options as they are typed: ``gamma[gamma=0.5;epsilon=1e-3]``.

The grammar is that of a plan of ``omenn bench``, see ``omenn.bench.plan_entries``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omenn.bench.plan_entries import Entry, check_options, with_words
from omenn.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from omenn.attribution import Method


def method_named(name: str) -> Method:
    """The method of a name. Raises InputError with the nearest names where there is none."""
    import omenn

    known = omenn.methods()
    if name not in known:
        raise InputError(
            f"unknown method '{name}':",
            argument="method",
            got=name,
            expected=", ".join(known),
            remedy=f"{did_you_mean(name, known)} See omenn methods.",
        )
    return known[name]


def method_and_options(
    text: str, flags: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The name of a method and its options, from a word and from ``flags`` that are not None.

    A word that ends in ``.toml`` names a file, see NOTE [method file] of ``method_file.py``.

    Raises:
        InputError: an unknown method or option, a value of another type, an option given twice; a
            file that is no method file.

    >>> method_and_options("gamma[gamma=0.5]")
    ('gamma', {'gamma': 0.5})
    >>> method_and_options("omenn[at=3;resample=none]")
    ('omenn', {'at': '3', 'resample': 'none'})
    >>> method_and_options("omenn[mix=0.5,0.5]", {"at": ["input", "3"], "bias": None})
    ('omenn', {'mix': [0.5, 0.5], 'at': ['input', '3']})
    """
    from omenn.attribution.method_file import is_file, read_method

    entry = Entry(text, *read_method(text)) if is_file(text) else Entry.read(text, "method")
    method = method_named(entry.base)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    if twice := given.keys() & entry.options.keys():
        name = min(twice)
        raise InputError(
            f"the option '{name}' is given twice: in '{text}' and as --{name}.",
            argument=name,
            got=text,
            remedy="Give it once.",
        )
    entry = with_words(replace(entry, options={**entry.options, **given}), method.function)
    check_options(entry, "method", method.options, method.function)
    return entry.base, dict(entry.options)


def shown(options: Mapping[str, Any]) -> str:
    """Options in words, as they are typed.

    >>> shown({"steps": 20, "at": None})
    'steps=20 at=none'
    """
    return " ".join(f"{name}={_typed(value)}" for name, value in options.items())


def _typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_typed, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
