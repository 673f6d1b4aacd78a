"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omenn.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; moved to ``path`` on success, removed otherwise.

    Raises OutputError where the place cannot be written.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> with replacing(target) as beside:
    ...     _ = beside.write_text("whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Choose another folder."
        ) from error
    finally:
        if beside.exists():
            beside.unlink()
