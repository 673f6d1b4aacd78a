"""Atomic writes: a file appears completely or not at all."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omenn.errors import OutputError, of_file
from omenn.files.reading import is_folder, why

LONGEST = 255
"""Bytes that the usual file systems allow in a name."""

_numbers = itertools.count()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``; moved to ``path`` on success, removed otherwise.

    Missing folders are created, and removed again on failure.

    Raises:
        OutputError: the path cannot be written.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    check_writable(path)
    # short, so that the longest allowed name does not grow; some writers need the ending
    temporary = path.with_name(f".omenn-{os.getpid()}-{next(_numbers)}{path.suffix[:20]}")
    missing = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
        missing.clear()
    except OSError as error:
        raise unwritable(path, why(error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        for folder in missing:
            with suppress(OSError):  # another file may be in it by now
                folder.rmdir()


def write_files(files: Mapping[Path, bytes | memoryview]) -> None:
    """Write all files. No file is moved into place before all are written.

    So an error or an interruption while writing leaves the previous files.

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
    """Write a file for ``torch.load``, completely or not at all.

    It is built in memory first, since torch's writer does not report a full disk as such.

    Raises:
        OutputError: the path cannot be written.
    """
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    write_files({path: content.getbuffer()})


def check_writable(path: Path) -> None:
    """Raises ``OutputError`` if ``path`` obviously cannot be written, before any work is done."""
    if "\0" in str(path):
        raise unwritable(path, "no name contains a null character", "Choose another name.")
    try:
        if is_folder(path):
            raise unwritable(path, "it is a folder", "Give the name of a file.")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        if len(os.fsencode(path.name)) > LONGEST:
            reason = f"its name is longer than {LONGEST} bytes"
            raise unwritable(path, reason, "Choose a shorter one.")
    except (OSError, ValueError) as error:
        raise unwritable(path, why(error)) from error
    if not nearest.is_dir():
        raise unwritable(path, f"'{nearest}' is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise unwritable(path, f"no permission to write into '{nearest}'")


def unwritable(path: Path, reason: str, remedy: str = "Choose another folder.") -> OutputError:
    """The error for a path that cannot be written."""
    return of_file(OutputError, path, f"'{path}' cannot be written: {reason}.", remedy)
