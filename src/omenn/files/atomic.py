"""Files that appear complete or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omenn.errors import OutputError
from omenn.files.reading import why


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
    # a part of the name alone, as one of the greatest length must not become longer
    beside = path.with_name(f".{os.getpid()}-{path.name[-100:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and "null" not in str(error):
            raise
        raise OutputError(f"cannot write {path}: {why(error)}. Choose another folder.") from error
    finally:
        with suppress(OSError, ValueError):
            beside.unlink()


def write_checkpoint(state: Any, path: Path) -> None:
    """What ``torch.load`` reads again, whole or not at all.

    It is made in memory: torch's own writer answers a full disk with an error that does not say so.

    Raises OutputError where the place cannot be written.
    """
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as beside:
        beside.write_bytes(content.getbuffer())
