"""Locks on folders: one command at a time writes into a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omenn.errors import OutputError, of_file
from omenn.files.atomic import unwritable
from omenn.files.reading import why

NAME = ".omenn-lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the block no other process can lock this folder, which is created if missing.

    The operating system releases the lock when the process ends, for whatever reason. A folder that
    is still empty at the end is removed again.

    Raises:
        OutputError: another process has locked the folder, or it cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "new"
    >>> with locked(folder):
    ...     [path.name for path in folder.iterdir()]
    ['.omenn-lock']
    >>> folder.exists()
    False
    """
    path = folder / NAME
    created = _created(folder)
    try:
        number = _acquired(path, folder)
        try:
            yield
        finally:
            # unlinked before the release: a process that waits for this file then looks again
            path.unlink(missing_ok=True)
            os.close(number)
    finally:
        for place in reversed(created):
            with contextlib.suppress(OSError):
                place.rmdir()


def _created(folder: Path) -> list[Path]:
    try:
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise unwritable(folder, f"'{nearest}' is a file, not a folder")
        missing = [place for place in (*reversed(folder.parents), folder) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise unwritable(folder, why(error)) from error
    return missing


def _acquired(path: Path, folder: Path) -> int:
    """An open file that this process alone has locked and that still has its name."""
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except (OSError, ValueError) as error:
            raise unwritable(folder, why(error)) from error
        if not _lock(number):
            os.close(number)
            text = f"another omenn is writing into '{folder}'."
            remedy = "Wait until it is done, or choose another folder."
            raise of_file(OutputError, folder, text, remedy)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
        os.close(number)


def _lock(number: int) -> bool:
    """Lock an open file unless another process has."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_of_windows(number)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing better is possible
        return True
    return True


def _lock_of_windows(number: int) -> bool:
    import importlib

    module = importlib.import_module("msvcrt")
    try:
        module.locking(number, module.LK_NBLCK, 1)
    except OSError:
        return False
    return True
