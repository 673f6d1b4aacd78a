"""What tests of the benchmark share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench_plans import networks
from omenn.attribution import registry


@pytest.fixture
def net(tmp_path: Path) -> str:
    return networks(tmp_path)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Adds a method for the length of a test."""

    def add(name: str, function: Any) -> str:
        method = registry.Method(name, function, "none", "of a test", "this test")
        monkeypatch.setitem(registry._METHODS, name, method)
        return name

    return add
