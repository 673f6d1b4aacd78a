"""Errors by what they are about, not by their wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from omenn.errors import InputError, OmennError


@contextmanager
def refused(argument: str, got: str = "", kind: type[OmennError] = InputError) -> Iterator[None]:
    """The block raises an error about ``argument`` that quotes ``got`` in its text as well."""
    with pytest.raises(kind) as caught:
        yield
    error = caught.value
    assert type(error) is kind
    assert error.argument == argument
    assert got in error.got
    assert error.expected or error.remedy
    assert "\n" not in str(error)
