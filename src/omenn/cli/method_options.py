"""Methods and their options as they are typed: ``--method``, ``--set``, ``--at``, ``--bias``."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omenn.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from omenn.methods import Method

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    type(None): "none",
}
# In this order a word is tried, so that "3" is a number and "left" a word.
_ORDER = (type(None), int, float, bool, str)


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: there is none; the nearest names are said.
    """
    import omenn

    known = omenn.list_methods()
    if name not in known:
        raise InputError(f"unknown method '{name}': {did_you_mean(name, known)} See omenn methods.")
    return known[name]


def options_of(
    name: str, words: Sequence[str] = (), *, flags: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """The options of a method from ``option=value`` words, and from ``flags`` that are not None.

    A value is read by the type of the option's default, or by its annotation where that is None;
    a list has commas.

    Raises:
        InputError: an unknown method or option, a value of another type, an option given twice.

    >>> options_of("gamma", ["gamma=0.5"])
    {'gamma': 0.5}
    >>> options_of("omenn", ["mix=0.5,0.5"], flags={"at": "input,3"})
    {'at': ['input', '3'], 'mix': [0.5, 0.5]}
    """
    method = method_named(name)
    found: dict[str, Any] = {}
    for flag, value in (flags or {}).items():
        if value is not None:
            option = _known(flag, method, f"--{flag}")
            found[option] = _value(value, option, method)
    for word in words:
        option, equals, text = word.partition("=")
        option = option.strip()
        if not equals or not option:
            raise InputError(f"--set '{word}' is no option=value, for example --set steps=20.")
        if _known(option, method, f"--set {word}") in found:
            raise InputError(f"--set {word}: the option '{option}' is given twice.")
        found[option] = _value(text.strip(), option, method)
    return found


def by_method(words: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of every method from words like ``gamma.epsilon=0.1``.

    Raises:
        InputError: a word without a method, of a method that is not compared, or as ``options_of``.

    >>> by_method(["gamma.gamma=0.5"], ["omenn", "gamma"])
    {'omenn': {}, 'gamma': {'gamma': 0.5}}
    """
    sorted_: dict[str, list[str]] = {name: [] for name in names}
    for word in words:
        name, dot, rest = word.partition(".")
        if not dot or "=" in name:
            raise InputError(
                f"--set '{word}' is no METHOD.option=value, for example --set dave.steps=20."
            )
        if name not in sorted_:
            method_named(name)
            raise InputError(
                f"--set {word}: the method '{name}' is not among those compared: "
                f"{', '.join(names)}."
            )
        sorted_[name].append(rest)
    return {name: options_of(name, given) for name, given in sorted_.items()}


def output_of(word: str | None) -> str | int | None:
    """Where the logits are in an output: a position if it is a number, else a key.

    >>> output_of("scores"), output_of("1"), output_of(None)
    ('scores', 1, None)
    """
    return int(word) if word is not None and word.removeprefix("-").isdecimal() else word


def check_steps(steps: Sequence[str]) -> None:
    """Refuse a step of post-processing that is not known, before any work.

    Raises:
        InputError: an unknown step, malformed numbers.
    """
    from omenn.viz.postprocess import parsed

    for step in steps:
        parsed(step)


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


def _known(option: str, method: Method, where: str) -> str:
    if option in method.options:
        return option
    near = did_you_mean(option, method.options)
    near = f" {near[0].upper()}{near[1:]}" if near.startswith("did") else ""
    options = ", ".join(method.options) or "none"
    raise InputError(
        f"{where}: method '{method.name}' has no option '{option}'.{near} "
        f"Its options are: {options}."
    )


def _value(text: str, option: str, method: Method) -> Any:
    kinds, items = _kinds(option, method)
    if items and ("," in text or not kinds - {type(None)}):
        return [_read(part.strip(), items, text, option) for part in text.split(",")]
    return _read(text, kinds, text, option)


def _kinds(option: str, method: Method) -> tuple[set[Any], set[Any]]:
    """The plain types that an option may have, and those of its items where it may be a list."""
    default = method.options[option]
    if default is not None:
        if isinstance(default, list | tuple):
            return set(), {type(item) for item in default} & set(_KINDS)
        return {type(default)} & set(_KINDS), set()
    try:
        hint = typing.get_type_hints(method.function).get(option, Any)
    except (NameError, TypeError):  # names that are imported for the type checker alone
        hint = Any
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = typing.get_args(hint) if union else [hint]
    lists = [part for part in parts if typing.get_origin(part) in (Sequence, list, tuple)]
    items = {item for part in lists for item in typing.get_args(part)} & set(_KINDS)
    named = set(parts) & set(_KINDS) | {type(None)}
    return (named, items) if named - {type(None)} or items else (set(_KINDS), items)


def _read(text: str, kinds: set[Any], whole: str, option: str) -> Any:
    if not kinds:
        raise InputError(f"--set {option}={whole}: this option can be set from Python only.")
    for kind in _ORDER:
        if kind in kinds:
            try:
                return _READ[kind](text)
            except (ValueError, KeyError):
                continue
    wanted = " or ".join(_KINDS[kind] for kind in reversed(_ORDER) if kind in kinds)
    raise InputError(f"--set {option}={whole}: '{text}' is not {wanted}.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


_READ: dict[type, Any] = {
    type(None): lambda text: {"none": None}[text.casefold()],
    bool: lambda text: _WORDS[text.casefold()],
    int: int,
    float: _finite,
    str: str,
}
