"""Products of parameters: an even part of each is fast, the rest is slow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def spread(*axes: Iterable[Any], one_in: int) -> list[Any]:
    """Rows for ``parametrize``: every combination, those slow whose indices sum to no multiple.

    Where the last axis has ``one_in`` values or more, every combination of the others is met with
    one of them at least: for two axes as a Latin square, for three as all pairs.
    """
    rows = []
    for row in itertools.product(*map(list, map(enumerate, axes))):
        fast = sum(index for index, _ in row) % one_in == 0
        values = (value for _, value in row)
        rows.append(pytest.param(*values, marks=() if fast else pytest.mark.slow))
    return rows
