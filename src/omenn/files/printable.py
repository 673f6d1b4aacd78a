"""Text from outside (file names, exceptions of a model), made safe for terminals and pages."""

from __future__ import annotations

import re

# Control characters (including the start of escape sequences), bytes of a file name that are not
# text (surrogates), line separators, and marks that change the direction of writing.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


def printable(text: str) -> str:
    r"""The text with invisible characters escaped; tabs and line ends stay.

    >>> print(printable("a\x1b[2J b\udce9"))
    a\x1b[2J b\xe9
    """
    return _INVISIBLE.sub(_escaped, text)


def file_name(text: str) -> str:
    r"""A file name derived from another one: invisible characters become dashes.

    >>> file_name("a\x1b[2J")
    'a-[2J'
    """
    return _INVISIBLE.sub("-", text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte of a name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
