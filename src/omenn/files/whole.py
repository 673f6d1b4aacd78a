"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omenn.errors import OutputError
from omenn.files.printable import printable
from omenn.files.reading import is_folder, why

LONGEST = 255
"""Bytes of a name, of the usual file systems."""


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files, each first under a temporary name beside its place, then move them there.

    Nothing is moved before everything is written, so an error or an interruption while writing
    leaves what was there before. Missing folders are created.

    Raises:
        OutputError: a folder cannot be created, a file cannot be written.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> write_files({place: b"hello"})
    >>> assert place.read_bytes() == b"hello" and [*place.parent.iterdir()] == [place]
    """
    waiting: list[tuple[Path, Path]] = []
    created: list[Path] = []
    path: Path | None = None
    try:
        for path, content in files.items():
            check_writable(path)
            created += _make_folder(path.parent)
            # short, as a name of the greatest length must not become longer
            beside = path.with_name(f".omenn-{os.getpid()}-{len(waiting)}.part")
            waiting.append((beside, path))
            beside.write_bytes(content)
        while waiting:
            os.replace(*waiting[0])
            waiting.pop(0)
        created.clear()
    except OSError as error:
        place = error.filename2 or error.filename or path  # a full disk names no file
        raise OutputError(
            f"'{place}' cannot be written: {why(error)}. Choose another place."
        ) from error
    finally:
        for beside, _ in waiting:
            beside.unlink(missing_ok=True)
        for folder in reversed(created):
            with contextlib.suppress(OSError):  # no longer empty: some files were moved already
                folder.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder with its parents; which of them were new, outermost first."""
    missing = [place for place in (*reversed(folder.parents), folder) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


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
        raise OutputError(f"'{path}' cannot be written: '{nearest}' is a file, not a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"'{path}' cannot be written: no permission to write into '{nearest}'. "
            "Choose another folder."
        )


def as_json(content: Any, indent: int = 1) -> str:
    """One JSON document; NaN and the infinities, which JSON does not have, become null.

    >>> as_json({"a": [1.5, float("nan")]}, indent=0).split()
    ['{', '"a":', '[', '1.5,', 'null', ']', '}']
    """
    return json.dumps(finite(content), ensure_ascii=False, indent=indent, allow_nan=False)


def finite(content: Any) -> Any:
    """The same with None in place of what is no finite number, and all text printable."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, Mapping):
        return {finite(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
