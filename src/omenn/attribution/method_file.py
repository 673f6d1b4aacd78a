"""A method with its options as a small TOML file, which ``method=`` and ``--method`` take.

NOTE [method file]
``format`` and ``version`` come first, so that no other TOML is taken for one, nor a file of a later
form. ``method`` is a name of ``omenn.methods()``, and the table ``options`` has its options by
name. TOML has no None: the word "none" stands for it. A table ``tuned`` says how the method was
chosen; it is for the reader and changes nothing.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omenn.attribution import registry
from omenn.check import quoted
from omenn.errors import InputError, did_you_mean, of_file, reason
from omenn.files.reading import read_text

ENDING = ".toml"
FORMAT, VERSION = "omenn-method", 1
_USE = 'For omenn explain PICTURE --method THIS_FILE, or omenn.explain(..., method="THIS_FILE").'
_KEYS = ("format", "version", "method", "options", "tuned")


def is_file(method: Any) -> bool:
    """Whether a ``method`` names a file instead of a method.

    >>> is_file("tuned/method.toml"), is_file("gamma"), is_file(None)
    (True, False, False)
    """
    return isinstance(method, (str, os.PathLike)) and os.fspath(method).endswith(ENDING)


def read_method(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """The name of the method in a file, and its options.

    Raises:
        InputError: no such file, no TOML, another format or version, an unknown key, method or
            option.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "method.toml"
        >>> _ = file.write_bytes(method_text("gamma", {"gamma": 0.1, "complete": True}).encode())
        >>> read_method(file)
        ('gamma', {'gamma': 0.1, 'complete': True})
    """
    content = _content(Path(path))
    _check_form(path, content)
    name, given = content.get("method"), content.get("options", {})
    if not isinstance(name, str) or not isinstance(given, Mapping):
        text = f"the method file '{path}' has no name of a method, or no table of options."
        remedy = 'Write method = "NAME", and its options below [options].'
        raise of_file(InputError, path, text, remedy)
    method = registry.find(name)
    for option in given:
        if option not in method.options:
            raise InputError(
                f"the method file '{path}' has the option '{option}', which method '{name}' has "
                "not:",
                argument=option,
                got=option,
                expected=", ".join(method.options),
                remedy=did_you_mean(option, method.options),
            )
    return name, {k: None if value == "none" else value for k, value in given.items()}


def method_text(
    name: str, options: Mapping[str, Any], tuned: Mapping[str, Any] | None = None
) -> str:
    """The file that :func:`read_method` reads.

    >>> print(method_text("omenn-clear", {"reach": 0.1, "smooth": None}), end="")
    # For omenn explain PICTURE --method THIS_FILE, or omenn.explain(..., method="THIS_FILE").
    format = "omenn-method"
    version = 1
    method = "omenn-clear"
    <BLANKLINE>
    [options]
    reach = 0.1
    smooth = "none"
    """
    said = (
        'For omenn explain PICTURE --method THIS_FILE, or omenn.explain(..., method="THIS_FILE").'
    )
    lines = [f"# {said}", f'format = "{FORMAT}"', f"version = {VERSION}", f"method = {_toml(name)}"]
    for heading, table in (("options", options), ("tuned", tuned or {})):
        if table:
            lines += [
                "",
                f"[{heading}]",
                *(f"{_toml_key(k)} = {_toml(v)}" for k, v in table.items()),
            ]
    return "\n".join(lines) + "\n"


def with_options(
    path: str | os.PathLike[str], given: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The method of a file, with options that were given beside it.

    Raises:
        InputError: as :func:`read_method`, and an option that the file has, too.
    """
    name, options = read_method(path)
    if twice := options.keys() & given.keys():
        option = min(twice)
        raise InputError(
            f"the option '{option}' is given twice: in the method file '{path}' and beside it.",
            argument=option,
            got=quoted(given[option]),
            remedy="Omit it, or change the file.",
        )
    return name, {**options, **given}


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path, "method file"))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        text = f"the method file '{path}' is no TOML: {reason(error)}."
        raise of_file(InputError, path, text, "Correct that line.") from error


def _check_form(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    remedy = f'It begins with format = "{FORMAT}" and version = {VERSION}.'
    if content.get("format") != FORMAT:
        raise of_file(InputError, path, f"'{path}' is no method file of omenn.", remedy)
    if type(content.get("version")) is not int or content["version"] != VERSION:
        got = quoted(content.get("version"))
        raise InputError(
            f"the method file '{path}' has the version {got}, and this omenn reads {VERSION}.",
            argument="version",
            got=got,
            expected=str(VERSION),
            remedy="Use the omenn that wrote it, or tune again.",
        )
    for key in content:
        if key not in _KEYS:
            raise InputError(
                f"the method file '{path}' has an unknown key '{key}':",
                argument=key,
                got=key,
                expected=", ".join(_KEYS),
                remedy=did_you_mean(key, _KEYS),
            )


def _toml(value: Any) -> str:
    """A value; a string of JSON is one of TOML."""
    if value is None:
        return '"none"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _toml(key)
