"""One database of operators: sample inputs, spellings, and the dense map each must become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from opcases import (
    attention,
    frames,
    layout,
    linear,
    normalisation,
    pointwise,
    products,
    recurrent,
    selection,
    spellings,
    twins,
)
from opcases.case import Case
from oracle import Affine

CASES: list[Case] = [
    case
    for module in (
        layout,
        linear,
        pointwise,
        selection,
        normalisation,
        products,
        attention,
        recurrent,
        spellings,
        twins,
        frames,
    )
    for case in module.CASES
]


def each_case(cases: Sequence[Case] = CASES, *, few: bool = False) -> Callable[..., Any]:
    """Make of a check of one case a test for each operator, which names the case that fails.

    With ``few``, the first case and the last of each operator are checked; the rest is slow.
    """
    by_operator: dict[str, list[Case]] = {}
    for case in cases:
        by_operator.setdefault(case.operator, []).append(case)
    rows = []
    for operator, all_of_it in by_operator.items():
        now = [all_of_it[0], *all_of_it[1:][-1:]] if few else all_of_it
        rows.append(pytest.param(now, id=operator))
        if rest := [case for case in all_of_it if case not in now]:
            rows.append(pytest.param(rest, id=f"{operator}-rest", marks=pytest.mark.slow))

    def decorate(check: Callable[[Case], None]) -> Callable[..., None]:
        @pytest.mark.parametrize("checked", rows)
        def test(checked: list[Case]) -> None:
            for case in checked:
                torch.manual_seed(0)
                try:
                    check(case)
                except BaseException as error:
                    error.add_note(f"The case is {case.id}.")
                    raise

        test.__doc__ = check.__doc__
        return test

    return decorate


@cache
def dense(case: Case) -> Affine:
    """What its oracle gives for a case."""
    return case.oracle(case.call, case.inputs)
