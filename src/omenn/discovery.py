"""Finds what registers itself when it is imported: methods, metrics and data sets, a file each."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module


@cache
def import_all(package: str) -> None:
    """Import every module of a package, so that its decorators have run."""
    for found in pkgutil.iter_modules(import_module(package).__path__):
        import_module(f"{package}.{found.name}")
