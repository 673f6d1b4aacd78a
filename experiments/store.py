"""Results in a folder, one JSON file each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import omenn
from experiments.report import environment
from omenn.files.atomic import write_files

Result = dict[str, Any]


def sources(*folders: str) -> bytes:
    """The source of some folders of omenn."""
    paths = [p for f in folders for p in sorted((Path(omenn.__file__).parent / f).rglob("*.py"))]
    assert paths, f"omenn has no folder {' or '.join(folders)}"
    return b"".join(path.read_bytes() for path in paths)


@cache
def engine() -> str:
    """A short digest of the engine, with torch's version."""
    made = hashlib.sha256(torch.__version__.encode() + sources("engine"))
    return made.hexdigest()[:12]


def version(*parts: Callable[..., Any] | ModuleType) -> str:
    """A digest of the source of omenn's methods and of the given functions and modules."""
    digest = hashlib.sha256(sources("attribution"))
    for part in parts:
        digest.update(inspect.getsource(part).encode())
    return digest.hexdigest()[:12]


class Results:
    """Finished results. One of another engine, or of other ``made`` values, is made anew.

    ``fresh``: everything is; ``older``: nothing is that is there.
    """

    def __init__(self, folder: Path, fresh: bool = False, older: bool = False, **made: Any) -> None:
        self.folder, self.fresh, self.older, self.made = folder, fresh, older, made

    def get(self, key: str) -> Result | None:
        """The result, if there is one that may be used."""
        try:
            found = json.loads(self.path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or one that was cut off
            return None
        wanted = {"engine": engine(), **self.made}
        same = all(found.get(name) == value for name, value in wanted.items())
        return found["result"] if (same or self.older) and not self.fresh else None

    def put(self, key: str, result: Result) -> Result:
        kept = {"engine": engine(), **self.made, "environment": environment(), "result": result}
        write_files({self.path(key): json.dumps(kept, indent=1).encode()})
        return result

    def take(self, key: str, make: Callable[[], Result]) -> Result:
        """The result, made and kept if there is none."""
        found = self.get(key)
        return self.put(key, make()) if found is None else found

    def all(self) -> Iterator[Result]:
        """Every result in the folder, also of another engine, with what made it."""
        for path in sorted(self.folder.rglob("*.json")):
            kept = json.loads(path.read_text(encoding="utf-8"))
            yield kept["result"] | {k: v for k, v in kept.items() if k != "result"}

    def path(self, key: str) -> Path:
        name = "".join(c if c.isalnum() or c in "._-/" else "_" for c in key)
        return self.folder / f"{name}.json"
