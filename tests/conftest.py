"""What every test gets: its share of the cores, no network, repeatable random numbers.

Nothing here needs to be asked for, except ``inside_tmp`` and ``nothing_registered``.
"""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model built from a configuration needs no hub

import gc
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from omenn.models import torchvision_remedy

torchvision_remedy.prepare()  # before any test module imports torchvision, timm or transformers

# Workers of pytest-xdist share the cores: more threads than cores make all of them slow.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, torch.get_num_threads() // _WORKERS))

# A slow machine is no failure. On a CI machine the examples are the same every time; elsewhere
# every run looks for new ones.
hypothesis.settings.register_profile(
    "omenn",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("omenn")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is collected stays until the end: the garbage collector need not visit it each time."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test draws the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Connections leave this machine with an error that says so; local ones work."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        yield


def _guarded(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(str(address[0])):
            raise RuntimeError(f"a test tried to reach {address!r}; tests use no network")
        return connect(self, address)

    return guarded


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture
def inside_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory while the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_registered() -> Iterator[None]:
    """What an example registers, such as a rule or a metric, is gone before the next test."""
    from omenn.attribution import registry
    from omenn.data import dataset_registry as of_data
    from omenn.engine.operators.table import OPERATORS
    from omenn.engine.trace import spelling
    from omenn.metrics import metric_registry as of_metrics

    of_metrics.metrics()  # a module registers its metrics when it is imported, and never again
    of_data.datasets()
    registered = (registry._METHODS, of_metrics._METRICS, of_data._KINDS)
    tables = (OPERATORS, spelling.by_function(), *registered)
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
