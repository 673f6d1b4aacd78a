"""Files from outside: a regular file of bounded size, or an error before anything is read.

NOTE [files from outside]
A path may lead to a pipe that never answers, to a device that never ends, or to a file that is
larger than memory. Every file that omenn does not ship is opened here and read from the handle that
was checked, so that the file cannot be exchanged in between.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from omenn.errors import InputError, OmennError, of_file, reason

MB = 1 << 20
GB = 1 << 30
TEXT = 16 * MB
"""The largest plan, card, list or file with code that is read."""

_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # not on every system

_REASONS = {
    errno.ENOENT: "it does not exist",
    errno.ELOOP: "it is a link that leads to itself",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
}


@contextmanager
def opened(
    path: str | Path,
    what: str = "file",
    *,
    most: int = TEXT,
    kind: type[OmennError] = InputError,
    empty: bool = False,
    remedy: str = "Check its name and its permissions.",
) -> Iterator[BinaryIO]:
    """A regular file, open to be read from its beginning.

    Args:
        what: the words before its name in an error.
        most: the largest size in bytes.
        kind: the class of the error.
        empty: whether the file may be empty.
        remedy: what to do if there is no such file.

    Raises:
        kind: no such file, a folder, a pipe, a device, too large, empty, unreadable.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a"
    >>> _ = path.write_bytes(b"abc")
    >>> with opened(path) as file:
    ...     file.read()
    b'abc'
    """
    refused = partial(_unreadable, kind, what, path)
    try:
        # without NONBLOCK, opening a pipe without a writer would block for ever
        number = os.open(path, os.O_RDONLY | _FLAGS)
    except (OSError, ValueError) as error:
        raise refused(why(error), remedy) from error
    found = os.fstat(number)
    if stat.S_ISDIR(found.st_mode):  # os.fdopen refuses folders
        os.close(number)
        raise refused("it is a folder", "Name a file.")
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(found.st_mode):
            raise refused("it is not a regular file but a pipe or a device", "Name a file.")
        if not found.st_size and not empty:
            raise refused("it is empty", "Use an intact copy of it.")
        if found.st_size > most:
            reason = f"it has {size(found.st_size)}, and at most {size(most)} are read"
            raise refused(reason, "Check that it is the right file.")
        yield file


def read_bytes(path: str | Path, what: str = "file", **options: Any) -> bytes:
    """The content of a file; options and errors: see :func:`opened`."""
    with opened(path, what, **options) as file:
        try:
            return file.read(options.get("most", TEXT))
        except OSError as error:
            kind = options.get("kind", InputError)
            raise _unreadable(kind, what, path, why(error), "Use an intact copy of it.") from error


def _unreadable(
    kind: type[OmennError], what: str, path: str | Path, reason: str, remedy: str
) -> OmennError:
    return of_file(kind, path, f"the {what} '{path}' cannot be read: {reason}.", remedy)


def read_text(path: str | Path, what: str = "file", **options: Any) -> str:
    """The content of a UTF-8 file without its byte order mark; options: see :func:`opened`.

    Raises:
        kind: as there, and for bytes that are not UTF-8.
    """
    content = read_bytes(path, what, **options)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is 0x{content[error.start]:02x}"
        text = f"the {what} '{path}' is not UTF-8 ({place})."
        kind = options.get("kind", InputError)
        raise of_file(kind, path, text, "Save it as UTF-8.") from error


def read_json(path: str | Path, what: str = "file", **options: Any) -> Any:
    """The content of a JSON file; options: see :func:`opened`.

    Raises:
        kind: as there, and for a file that is not JSON.
    """
    text = read_text(path, what, **options)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        text = f"the {what} '{path}' is not JSON: {reason(error)}."
        kind = options.get("kind", InputError)
        raise of_file(kind, path, text, "Use an intact copy.") from error


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False for a name that no file system allows."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def why(error: OSError | ValueError) -> str:
    """The reason of a system error in words, without the name of the file."""
    if isinstance(error, OSError):
        return _REASONS.get(error.errno or 0) or error.strerror or "the system refuses it"
    return "no name contains a null character" if "null" in str(error) else str(error)


def size(count: int) -> str:
    """A number of bytes in words.

    >>> size(3 << 30), size(12), size(5 << 20)
    ('3.0 GB', '12 bytes', '5.0 MB')
    """
    if count >= GB:
        return f"{count / GB:.1f} GB"
    return f"{count / MB:.1f} MB" if count >= MB else f"{count} bytes"
