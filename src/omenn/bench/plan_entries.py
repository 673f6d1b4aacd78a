"""Models, methods, metrics and data as they are written in a plan: ``omenn[at=auto]``.

An entry is a name, with options in brackets if it has some: ``NAME[option=value;option=value]``. A
value with commas is a list. In a TOML file it may also be a table, which may be given a name of
its own: ``{method = "omenn", at = "auto", name = "mixture"}``.
"""

from __future__ import annotations

import math
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omenn.check import quoted
from omenn.errors import InputError, did_you_mean
from omenn.files.printable import printable

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


@dataclass(frozen=True)
class Entry:
    """One entry: the name of its row, what it is, and its options.

    >>> Entry.read("omenn[at=input,stages.1;mix=0.5,0.5]", "method").options
    {'at': ['input', 'stages.1'], 'mix': [0.5, 0.5]}
    >>> Entry.read({"method": "omenn", "at": "auto"}, "method").name
    'omenn[at=auto]'
    """

    name: str
    base: str
    options: Mapping[str, Any]

    @classmethod
    def read(cls, given: Any, kind: str) -> Entry:
        """From a word or a table; ``kind`` is its key in a table, such as ``method``.

        Raises:
            InputError: neither of them, brackets that do not close, an option given twice.
        """
        if isinstance(given, str):
            base, options = _split(_text_of(given, kind).strip(), kind)
            return cls(_written(base, options), base, options)
        if not isinstance(given, Mapping) or not isinstance(given.get(kind), str):
            example = f'"NAME" or {{ {kind} = "NAME", option = 1 }}'
            raise InputError(
                f"a {kind} of the plan is {given!r}, expected {example}.",
                argument=kind,
                got=quoted(given),
                expected=example,
            )
        options = {key: value for key, value in given.items() if key not in (kind, "name")}
        own = given.get("name", _written(given[kind], options))
        if not isinstance(own, str) or not own.strip():
            raise InputError(
                f"the name of a {kind} is {own!r}, expected a word.",
                argument="name",
                got=quoted(own),
                expected="a word",
            )
        for text in (own, given[kind], *filter(lambda one: isinstance(one, str), options.values())):
            _text_of(text, kind)
        return cls(own, given[kind], options)

    def record(self, kind: str) -> str | dict[str, Any]:
        """The form that ``read`` accepts: a word, or a table if the entry has its own name."""
        if self.name == _written(self.base, self.options):
            return self.name
        return {"name": self.name, kind: self.base, **self.options}


def words(text: str) -> list[str]:
    """A list with commas; those inside of brackets belong to a word.

    >>> words("abslrp, omenn[at=input,stages.1]")
    ['abslrp', 'omenn[at=input,stages.1]']
    """
    found, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [word.strip() for word in found if word.strip()]


def check_options(
    entry: Entry, kind: str, known: Mapping[str, Any], function: Callable[..., Any] | None = None
) -> None:
    """Refuse an unknown option, or a value of another type than ``function`` declares.

    Raises:
        InputError: with the nearest options.
    """
    hints = _hints(function)
    for name, value in entry.options.items():
        if name not in known:
            near = did_you_mean(name, known) if known else "it has none."
            raise InputError(
                f"{kind} '{entry.base}' has no option '{name}':",
                argument=name,
                got=name,
                expected=", ".join(known),
                remedy=near,
            )
        parts = _parts(hints.get(name, type(known[name])))
        if parts and not any(_is(value, part) for part in parts):
            wanted = " or ".join(dict.fromkeys(filter(None, map(_word, parts))))
            raise InputError(
                f"option '{name}' of the {kind} '{entry.base}' is {value!r}, expected {wanted}.",
                argument=name,
                got=quoted(value),
                expected=wanted,
            )


def with_words(entry: Entry, function: Callable[..., Any] | None) -> Entry:
    """The entry with words for options that ``function`` takes as words alone: ``none``, ``3``."""
    hints = _hints(function)

    def value_of(name: str, value: Any) -> Any:
        parts = _parts(hints.get(name, Any))
        plain = value is None or (isinstance(value, int) and not isinstance(value, bool))
        wanted = str in parts or any(typing.get_origin(part) is typing.Literal for part in parts)
        taken = any(_is(value, part) for part in parts) or (value is None and type(None) in parts)
        return _text(value) if plain and wanted and not taken else value

    options = {name: value_of(name, value) for name, value in entry.options.items()}
    return replace(entry, options=options)


def _text_of(text: str, kind: str) -> str:
    """The same text; InputError for characters that the files of a benchmark cannot store."""
    if printable(text) != text:
        raise InputError(
            f"the {kind} '{text}' of the plan has characters that are no text.",
            argument=kind,
            got=text,
            remedy="Rename the file that it names.",
        )
    return text


def _split(text: str, kind: str) -> tuple[str, dict[str, Any]]:
    base, bracket, rest = text.partition("[")
    if not base or (bracket and not rest.endswith("]")) or (not bracket and "]" in text):
        raise InputError(
            f"the {kind} '{text}' is no NAME or NAME[option=value;option=value].",
            argument=kind,
            got=text,
            expected="NAME or NAME[option=value;option=value]",
        )
    options: dict[str, Any] = {}
    for word in filter(None, (word.strip() for word in rest.removesuffix("]").split(";"))):
        name, equals, value = word.partition("=")
        name = name.strip()
        if not equals or not name or name in options:
            what = "twice" if name in options else f"as '{word}', which is no option=value"
            raise InputError(
                f"the {kind} '{text}' has the option '{name}' {what}.", argument=name, got=text
            )
        options[name] = _value(value.strip())
    return base.strip(), options


def _value(text: str) -> Any:
    """As TOML has it, a list for commas, None for ``none``; and whatever else is a word."""
    if "," in text:
        return [_value(part.strip()) for part in text.split(",")]
    if text == "none":
        return None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    endless = isinstance(value, float) and not math.isfinite(value)
    return value if isinstance(value, bool | int | float | str) and not endless else text


def _written(base: str, options: Mapping[str, Any]) -> str:
    inside = ";".join(f"{name}={_text(value)}" for name, value in options.items())
    return f"{base}[{inside}]" if inside else base


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _hints(function: Callable[..., Any] | None) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function) if function is not None else {}
    except (NameError, TypeError):  # names that are imported for the type checker alone
        return {}


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of a union; none where nothing is known of them."""
    if hint is Any or hint is type(None):
        return ()
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _is(value: Any, part: Any) -> bool:
    origin = typing.get_origin(part)
    if origin is typing.Literal:
        return value in typing.get_args(part)
    if origin in (Sequence, list, tuple):
        (item, *_) = typing.get_args(part) or (Any,)
        return isinstance(value, list) and all(item is Any or _is(v, item) for v in value)
    if part is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if part is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return part is Any or (isinstance(part, type) and isinstance(value, part))


def _word(part: Any) -> str:
    origin = typing.get_origin(part)
    if origin is typing.Literal:
        return " or ".join(repr(value) for value in typing.get_args(part))
    if origin in (Sequence, list, tuple):
        return "a list"
    return "none" if part is type(None) else _WORDS.get(part, "")
