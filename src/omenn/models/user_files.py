"""A model from a function in the user's own Python file: ``path/to/file.py:function``."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omenn.errors import ModelError, OmennError, did_you_mean, reason
from omenn.files.reading import opened

_counter = itertools.count()


def build(spec: str) -> Any:
    """Run ``function()`` of ``path/to/file.py`` and return what it returns, a torch module.

    The file may import its neighbours. Its code runs with the rights of the caller: name only
    files that you trust.

    Raises:
        ModelError: no such file or function, an error inside of it, or no module came back.
    """
    import torch

    path, name = _split(spec)
    with _importable(path.parent):
        function = _function(path, name)
        model = _run(function, spec, path)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"'{spec}' returned {type(model).__name__}, expected a torch.nn.Module. "
            "Let the function build and return the model."
        )
    return model


def declared_classes(model: Any, spec: str) -> tuple[str, ...] | None:
    """The names in ``model.classes``, if it has any; ``ModelError`` if they are no names."""
    declared = getattr(model, "classes", None)
    if declared is None:
        return None
    names = isinstance(declared, Sequence) and not isinstance(declared, str)
    if not names or not all(isinstance(name, str) for name in declared):
        raise ModelError(
            f"'classes' of the model of {spec} is {declared!r:.60}, expected a list of names."
        )
    return tuple(declared)


def _split(spec: str) -> tuple[Path, str]:
    file, _, name = spec.rpartition(":")
    if spec.endswith(".py") or not name.isidentifier():
        raise ModelError(f"'{spec}' names no function. Write it as path/to/file.py:function.")
    path = Path(file)
    with opened(path, "file", kind=ModelError, remedy=f"Check the path in front of ':{name}'."):
        pass  # a regular file that is not too large
    return path, name


def _function(path: Path, name: str) -> Callable[[], Any]:
    import torch

    module_name = f"omenn_source_{next(_counter)}"
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise ModelError(f"'{path}' is not a Python file. Name a file that ends in .py.")
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module  # dataclasses and pickles look their module up there
    loader = found.loader
    _run(lambda: loader.exec_module(module), str(path), path)
    function = getattr(module, name, None)
    if isinstance(function, torch.nn.Module):
        raise ModelError(
            f"'{name}' of '{path}' is a module ({type(function).__name__}), expected a function "
            f"that returns one. Write 'def build(): return {name}' there, and name {path}:build."
        )
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ModelError(f"'{path}' has no function '{name}': {did_you_mean(name, own)}")
    return function


def place_in(path: Path, error: BaseException) -> str:
    """Where in a file an exception began, as `` (net.py, line 12)``; empty if not there."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    folder = path.resolve().parent
    lines = [
        (Path(frame.filename).resolve(), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    inside = [(file, line) for file, line in lines if file.parent == folder]
    return f" ({inside[-1][0].name}, line {inside[-1][1]})" if inside else ""


def _run(call: Callable[[], Any], what: str, path: Path) -> Any:
    try:
        return call()
    except OmennError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"'{what}' raised {type(error).__name__}: {reason(error)}{place_in(path, error)}. "
            "Correct the file."
        ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the user's file import its neighbours."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
