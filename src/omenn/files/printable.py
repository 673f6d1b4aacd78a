"""Text from outside (names of files, exceptions of a model) as a terminal or a page may show it."""

from __future__ import annotations

import re

# Control characters (among them those that begin an escape sequence), bytes of a name that are no
# text (surrogates), separators of lines, and what turns the direction of writing.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


def printable(text: str) -> str:
    r"""The same with what cannot be seen spelled out; tabs and ends of lines stay.

    >>> print(printable("a\x1b[2J b\udce9"))
    a\x1b[2J b\xe9
    """
    return _UNSEEN.sub(_spelled, text)


def file_name(text: str) -> str:
    r"""The name of a new file that is made after another: what cannot be seen becomes a dash.

    >>> file_name("a\x1b[2J")
    'a-[2J'
    """
    return _UNSEEN.sub("-", text)


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
