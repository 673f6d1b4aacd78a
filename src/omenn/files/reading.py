"""Files from outside: a regular file of bounded size, or an error before anything of it is read.

NOTE [files from outside]
A name may lead to a pipe that never answers, to a device that never ends, to a file that is larger
than memory. Whoever reads a file that omenn does not bring along opens it here, and reads from what
was opened, so that what was checked is what is read.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from omenn.errors import InputError, OmennError

MB = 1 << 20
GB = 1 << 30
TEXT = 16 * MB
"""At most as much is read of a plan, a card, a list, a file with code."""

_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # not on every system

_REASONS = {
    errno.ENOENT: "it does not exist",
    errno.ELOOP: "it is a link that leads to itself",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ENOTDIR: "a part of its path is a file and no folder",
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
        what: the words in front of its name in an error.
        most: how many bytes it may have.
        kind: of the error.
        empty: whether it may be empty.
        remedy: what to do if it is not there.

    Raises:
        kind: no such file, a folder, a pipe, a device, too large, empty, unreadable.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a"
    >>> _ = path.write_bytes(b"abc")
    >>> with opened(path) as file:
    ...     file.read()
    b'abc'
    """
    refused = f"the {what} '{path}' cannot be read"
    try:
        # without NONBLOCK the opening of a pipe that nobody writes to would wait for ever
        number = os.open(path, os.O_RDONLY | _FLAGS)
    except (OSError, ValueError) as error:
        raise kind(f"{refused}: {why(error)}. {remedy}") from error
    found = os.fstat(number)
    if stat.S_ISDIR(found.st_mode):  # Python opens none
        os.close(number)
        raise kind(f"{refused}: it is a folder. Name a file.")
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(found.st_mode):
            raise kind(f"{refused}: it is not a regular file but a pipe or a device. Name a file.")
        if not found.st_size and not empty:
            raise kind(f"{refused}: it is empty. Use an intact copy of it.")
        if found.st_size > most:
            raise kind(
                f"{refused}: it has {size(found.st_size)}, and at most {size(most)} are read. "
                "Check that it is the right file."
            )
        yield file


def read_bytes(path: str | Path, what: str = "file", **options: Any) -> bytes:
    """The whole of a file; options and errors: see :func:`opened`."""
    kind = options.get("kind", InputError)
    with opened(path, what, **options) as file:
        try:
            return file.read(options.get("most", TEXT))
        except OSError as error:
            raise kind(f"the {what} '{path}' cannot be read: {why(error)}.") from error


def read_text(path: str | Path, what: str = "file", **options: Any) -> str:
    """The whole of a UTF-8 file without a byte order mark; options: see :func:`opened`.

    Raises:
        kind: as there, and for bytes that are no UTF-8.
    """
    content = read_bytes(path, what, **options)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise options.get("kind", InputError)(
            f"the {what} '{path}' is not UTF-8 (byte {error.start} is "
            f"0x{content[error.start]:02x}). Save it as UTF-8."
        ) from error


def read_json(path: str | Path, what: str = "file", **options: Any) -> Any:
    """What a JSON file holds; options: see :func:`opened`.

    Raises:
        kind: as there, and for what is no JSON.
    """
    text = read_text(path, what, **options)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise options.get("kind", InputError)(
            f"the {what} '{path}' is no JSON: {str(error).splitlines()[0]}. Use an intact copy."
        ) from error


def is_folder(path: Path) -> bool:
    """Whether there is a folder; names that no file system takes lead to none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def why(error: OSError | ValueError) -> str:
    """The reason of an error of the system, in words without the name of the file."""
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
