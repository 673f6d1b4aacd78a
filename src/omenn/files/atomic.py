"""Files that are there whole or not at all."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omenn.errors import OutputError
from omenn.files.reading import is_folder, why

LONGEST = 255
"""Bytes of a name, of the usual file systems."""

_numbers = itertools.count()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; moved to ``path`` on success, else removed.

    Missing folders are created, and removed again on failure.

    Raises:
        OutputError: the place cannot be written.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> with replacing(target) as beside:
    ...     _ = beside.write_text("whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    check_writable(path)
    # short, as a name of the greatest length must not become longer; some writers need the ending
    beside = path.with_name(f".omenn-{os.getpid()}-{next(_numbers)}{path.suffix[:20]}")
    missing = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
        missing.clear()
    except OSError as error:
        raise OutputError(
            f"'{path}' cannot be written: {why(error)}. Choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink()
        for folder in missing:
            with suppress(OSError):  # another file may have come into it
                folder.rmdir()


def write_files(files: Mapping[Path, bytes | memoryview]) -> None:
    """Write all files. Nothing is moved to its place before everything is written.

    So an error or an interruption while writing leaves what was there before.

    Raises:
        OutputError: a folder cannot be created, a file cannot be written.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> write_files({place: b"hello"})
    >>> assert place.read_bytes() == b"hello" and [*place.parent.iterdir()] == [place]
    """
    with ExitStack() as stack:
        for path, content in reversed(list(files.items())):  # the last one in is moved first
            stack.enter_context(replacing(path)).write_bytes(content)


def write_checkpoint(state: Any, path: Path) -> None:
    """Write what ``torch.load`` reads again, whole or not at all.

    It is made in memory: torch's own writer answers a full disk with an error that does not say so.

    Raises:
        OutputError: the place cannot be written.
    """
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    write_files({path: content.getbuffer()})


def check_writable(path: Path) -> None:
    """Raises ``OutputError`` if it is clear before any work that ``path`` cannot be written."""
    if "\0" in str(path):
        raise OutputError(f"'{path!s}' cannot be written: no name contains a null character.")
    try:
        if is_folder(path):
            raise OutputError(f"'{path}' is a folder, expected the name of a file to write.")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        if len(os.fsencode(path.name)) > LONGEST:
            raise OutputError(
                f"'{path}' cannot be written: its name is longer than {LONGEST} bytes. "
                "Choose a shorter one."
            )
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{path}' cannot be written: {why(error)}. Choose another place."
        ) from error
    if not nearest.is_dir():
        raise OutputError(
            f"'{path}' cannot be written: '{nearest}' is a file, not a folder. "
            "Choose another folder."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"'{path}' cannot be written: no permission to write into '{nearest}'. "
            "Choose another folder."
        )
