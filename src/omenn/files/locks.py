"""One command at a time in a folder whose files belong together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omenn.errors import OutputError
from omenn.files.reading import why

NAME = ".omenn-lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process that asks for this folder gets it; it is created if need be.

    The lock is the system's and ends with its process however that ends, so that none is ever left
    behind by a process that has died. A folder that is still empty at the end is removed again.

    Raises:
        OutputError: another process is at work in it; it cannot be written.

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
            # unlinked before it is released: who waits for this file then looks for it again
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
            raise OutputError(
                f"'{folder}' cannot be written: '{nearest}' is a file, not a folder. "
                "Choose another folder."
            )
        missing = [place for place in (*reversed(folder.parents), folder) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{folder}' cannot be written: {why(error)}. Choose another folder."
        ) from error
    return missing


def _acquired(path: Path, folder: Path) -> int:
    """An open file that this process alone has locked and that still bears its name."""
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except (OSError, ValueError) as error:
            raise OutputError(
                f"'{folder}' cannot be written: {why(error)}. Choose another folder."
            ) from error
        if not _lock(number):
            os.close(number)
            raise OutputError(
                f"another omenn is writing into '{folder}'. Wait until it is done, or choose "
                "another folder."
            )
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
        os.close(number)


def _lock(number: int) -> bool:
    """Lock an open file if nobody else has."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_of_windows(number)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: as good as can be
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
