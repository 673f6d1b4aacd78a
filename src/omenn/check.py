"""Checks of the arguments of public functions; a wrong value is an InputError that says why."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omenn.errors import InputError, OmennError

SEEDS = (-(2**63), 2**64 - 1)  # what torch takes as a seed


def choose(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises InputError for a value that is not among the allowed ones."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(
            f"{name}={quoted(value)} is not known.",
            argument=name,
            got=quoted(value),
            expected=", ".join(allowed),
            remedy=f"Choose one of: {', '.join(allowed)}.",
        )


def choose_each(**given: tuple[Any, Sequence[str]]) -> None:
    """The same of several: argument → (value, allowed ones)."""
    for name, (value, allowed) in given.items():
        choose(name, value, allowed)


def flag(name: str, value: Any) -> None:
    """Raises InputError for a value that is neither True nor False."""
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An integer (also NumPy's) from ``least`` to ``most``; raises InputError for anything else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except Exception:  # an object may raise what it likes here
        found = None
    if found is None or not _within(found, least, most):
        raise wrong(name, value, f"an integer{_limits(least, most)}")
    return found


def real(name: str, value: Any, least: float | None = None, most: float | None = None) -> float:
    """A finite number from ``least`` to ``most``; raises InputError for anything else."""
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        found = float(value)
    except Exception:
        found = math.nan
    if not (math.isfinite(found) and _within(found, least, most)):
        raise wrong(name, value, f"a finite number{_limits(least, most)}")
    return found


def positive(name: str, value: Any) -> float:
    """A finite number above 0; raises InputError for anything else."""
    found = real(name, value)
    if found <= 0:
        raise wrong(name, value, "above 0")
    return found


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _limits(least: float | None, most: float | None) -> str:
    if least is None:
        return ""
    return f" of at least {least}" if most is None else f" from {least} to {most}"


def path(name: str, value: Any) -> Path:
    """The path of a file; raises InputError for anything else."""
    try:
        return Path(os.fsdecode(value))
    except TypeError:
        raise wrong(name, value, "the path of a file") from None


def wrong(
    name: str, value: Any, expected: str, remedy: str = "", kind: type[OmennError] = InputError
) -> OmennError:
    """The error for an argument that is not what was expected."""
    got = quoted(value)
    return kind(
        f"{name} must be {expected}, but {got} was given.",
        argument=name,
        got=got,
        expected=expected,
        remedy=remedy,
    )


def misshapen(
    name: str, value: Any, expected: Any, remedy: str = "", kind: type[OmennError] = InputError
) -> OmennError:
    """The error for a tensor of another shape than was expected."""
    got = str(tuple(value.shape))
    return kind(
        f"{name} has the shape {got}, but {expected} was expected.",
        argument=name,
        got=got,
        expected=str(expected),
        remedy=remedy,
    )


def quoted(value: Any) -> str:
    """A value as messages quote it: short, and safe even if its ``repr`` raises."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:59]}…"
