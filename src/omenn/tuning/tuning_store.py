"""What is judged already, in a folder: a file for each picture, so that a search goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omenn.bench.cell_store import differences, versions
from omenn.errors import InputError
from omenn.files.atomic import check_writable, write_files
from omenn.files.json_text import as_json
from omenn.files.reading import GB, read_json
from omenn.tuning.judging import Judged

RUN = "tuning.json"
PICTURES = "pictures"


class TuningStore:
    """The folder of a search, or none: then nothing is kept.

    ``tuning.json`` says which question the pictures answer. Those of another one are never mixed
    with it.

    Raises:
        InputError: the folder holds what another search found. OutputError: it cannot be written.
    """

    def __init__(self, folder: Path | None, question: Mapping[str, Any]) -> None:
        self.folder = folder
        if folder is None:
            return
        self.identity = {"question": dict(question), "versions": versions()}
        check_writable(folder / RUN)
        there = _read(folder / RUN)
        said = [] if there is None else differences(there, self.identity)
        if said:
            raise InputError(
                f"'{folder}' holds another search, or one of other code: {'; '.join(said)}.",
                argument="folder",
                got=str(folder),
                remedy="Choose another folder, or delete this one.",
            )
        self.extent: dict[str, Any] | None = None if there is None else there.get("extent")

    def known(self) -> dict[str, Any] | None:
        """What :meth:`begin` was given, if the search has begun before."""
        return None if self.folder is None else self.extent

    def begin(self, extent: Mapping[str, Any]) -> None:
        """Note how far the search goes, which a budget of seconds decides only once."""
        if self.folder is not None and self.extent is None:
            content = as_json({**self.identity, "extent": extent})
            write_files({self.folder / RUN: content.encode()})

    def read(self, half: str, key: str) -> Judged | None:
        """What a picture said, if it is there."""
        if self.folder is None:
            return None
        found = _read(self._path(half, key))
        try:
            return None if found is None else Judged(**found)
        except TypeError:  # of another form: judged again
            return None

    def write(self, judged: Judged, half: str, key: str) -> None:
        """Keep what a picture said, whole or not at all."""
        if self.folder is not None:
            write_files({self._path(half, key): as_json(asdict(judged)).encode()})

    def _path(self, half: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / PICTURES / f"{half}-{key}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path, "search", most=GB)
    except InputError:
        return None  # what cannot be read is judged again
    return found if isinstance(found, dict) else None
