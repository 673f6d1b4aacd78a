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
    """Run ``function()`` of ``path/to/file.py`` and return its result, a torch module.

    The file may import other files of its folder. Its code runs with the rights of the caller: name
    only files that you trust.

    Raises:
        ModelError: no such file or function, an error in it, or a result that is not a module.
    """
    import torch

    path, name = _split(spec)
    with _importable(path.parent):
        function = _function(path, name)
        model = _run(function, spec, path)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"'{spec}' returned {type(model).__name__}, expected a torch.nn.Module.",
            argument="model",
            got=type(model).__name__,
            expected="a torch.nn.Module",
            remedy="Let the function build and return the model.",
        )
    return model


def declared_classes(model: Any, spec: str) -> tuple[str, ...] | None:
    """The names in ``model.classes``, if any; ``ModelError`` if they are not names."""
    declared = getattr(model, "classes", None)
    if declared is None:
        return None
    names = isinstance(declared, Sequence) and not isinstance(declared, str)
    if not names or not all(isinstance(name, str) for name in declared):
        raise ModelError(
            f"'classes' of the model of {spec} is {declared!r:.60}, expected a list of names.",
            argument="classes",
            got=f"{declared!r:.60}",
            expected="a list of names",
        )
    return tuple(declared)


def _split(spec: str) -> tuple[Path, str]:
    file, _, name = spec.rpartition(":")
    if spec.endswith(".py") or not name.isidentifier():
        raise ModelError(
            f"'{spec}' names no function.",
            argument="model",
            got=spec,
            expected="path/to/file.py:function",
            remedy="Write it as path/to/file.py:function.",
        )
    path = Path(file)
    with opened(path, "file", kind=ModelError, remedy=f"Check the path in front of ':{name}'."):
        pass  # a regular file that is not too large
    return path, name


def _function(path: Path, name: str) -> Callable[[], Any]:
    import torch

    module_name = f"omenn_source_{next(_counter)}"
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise ModelError(
            f"'{path}' is not a Python file.",
            argument="model",
            got=str(path),
            remedy="Name a file that ends in .py.",
        )
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module  # dataclasses and pickles look their module up there
    loader = found.loader
    _run(lambda: loader.exec_module(module), str(path), path)
    function = getattr(module, name, None)
    if isinstance(function, torch.nn.Module):
        kind = type(function).__name__
        raise ModelError(
            f"'{name}' of '{path}' is a module ({kind}), expected a function that returns one.",
            argument="model",
            got=kind,
            expected="a function",
            remedy=f"Write 'def build(): return {name}' there, and name {path}:build.",
        )
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ModelError(
            f"'{path}' has no function '{name}':",
            argument="model",
            got=name,
            expected=", ".join(known),
            remedy=did_you_mean(name, known),
        )
    return function


def place_in(path: Path, error: BaseException) -> str:
    """Where in the user's folder an exception began: `` (net.py, line 12)``, or nothing."""
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
            f"'{what}' raised {type(error).__name__}: {reason(error)}{place_in(path, error)}.",
            argument="model",
            got=what,
            remedy="Correct the file.",
        ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the user's file import other files of its folder."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
