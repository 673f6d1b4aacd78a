"""The folder of a benchmark: one JSON file for each cell, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import omenn
from omenn.bench.plan import Plan
from omenn.errors import InputError
from omenn.files.atomic import check_writable, write_files
from omenn.files.json_text import as_json
from omenn.files.reading import GB, read_json

RUN = "run.json"
RESULTS = ("index.html", "results.json", "results.md", "results.parquet", "plan.toml")
MEASURED = frozenset(("value", "low", "high", "images"))
"""What a cell stores for each measure."""
PACKAGES = ("numpy", "Pillow", "captum", "quantus", "timm", "torchvision", "transformers")
_LONG = 80  # letters of a name that become a file's


class Store:
    """The folder of a run: which cells exist, and where the others are written.

    ``run.json`` says which plan, which versions and which code made the cells: those of another are
    never mixed with it.

    Raises:
        InputError: the folder holds something else, or the results of another plan.
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.identity = {"plan": plan.record(), "versions": versions()}
        check_writable(folder / RUN)
        there = _read(folder / RUN)
        if there is not None:
            changed = differences(there, self.identity)
            if changed:
                raise InputError(
                    f"'{folder}' holds the results of another plan or of other code: "
                    f"{'; '.join(changed)}.",
                    argument="out",
                    got=str(folder),
                    remedy="Choose another folder with -o, or delete this one.",
                )
        else:
            taken = next((name for name in (RUN, *RESULTS) if (folder / name).exists()), None)
            if taken is not None:
                raise InputError(
                    f"'{folder}' holds '{taken}', which was not written by omenn bench.",
                    argument="out",
                    got=str(folder),
                    remedy="Choose another folder with -o.",
                )

    def begin(self, plan: Plan) -> None:
        """Record the plan and the versions that the cells belong to."""
        if not (self.folder / RUN).exists():
            files = {"plan.toml": plan.toml().encode(), RUN: _json(self.identity)}
            write_files({self.folder / name: content for name, content in files.items()})

    def read(self, *names: str) -> dict[str, Any] | None:
        """What is stored under these names (model, method, metric); None if nothing is stored."""
        return _read(self._path(*names))

    def write(self, content: Mapping[str, Any], *names: str) -> None:
        """Store one thing, whole or not at all."""
        write_files({self._path(*names): _json(content)})

    def done(self, *names: str) -> bool:
        """Whether a cell exists, is complete and did not fail; failed cells are computed again."""
        found = self.read(*names)
        if found is None or found.get("error") is not None:
            return False
        measures = found.get("measures", {})
        return isinstance(measures, dict) and all(
            isinstance(one, dict) and one.keys() >= MEASURED for one in measures.values()
        )

    def beside(self, name: str) -> Path:
        """The folder of the cells of a model, for other files about it."""
        return self.folder / "cells" / file_name(name)

    def finish(self, files: Mapping[str, bytes]) -> list[Path]:
        """Write the results, all or none of them."""
        paths = {self.folder / name: content for name, content in files.items()}
        write_files(paths)
        return list(paths)

    def _path(self, *names: str) -> Path:
        return self.folder.joinpath("cells", *map(file_name, names)).with_suffix(".json")


def file_name(name: str) -> str:
    """A name that every file system accepts; different names stay different.

    >>> file_name("omenn"), file_name("timm:vit[a=1]")
    ('omenn', 'timm-vit-a-1-8f10e7ea')
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:_LONG]
    if plain == name and name == name.lower():
        return name
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@cache
def versions() -> dict[str, str]:
    """The versions that the numbers depend on: installed packages, and omenn's own code."""
    import torch

    found = {"omenn": omenn.__version__, "code": _code(), "torch": torch.__version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _code() -> str:
    """A digest of the package without the modules that only show results."""
    digest, root = hashlib.sha256(), Path(omenn.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if name.parts[0] not in ("cli", "viz"):
            digest.update(str(name).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path, "cell", most=GB)
    except InputError:
        return None  # what cannot be read is computed again
    return found if isinstance(found, dict) else None


def _json(content: Mapping[str, Any]) -> bytes:
    """JSON in which a NaN is null."""
    return (as_json(content) + "\n").encode()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is not the same in the tables of two identities, in words.

    >>> differences({"plan": {"seed": 0, "limit": 8}}, {"plan": {"seed": 1, "limit": 8}})
    ['seed is 0 there and 1 here']
    """
    said = []
    for part in here:
        old, new = there.get(part) or {}, here[part]
        said += [
            f"{key} is {_words(old.get(key))} there and {_words(new.get(key))} here"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
    return said


def _words(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value is not None else "not said"
