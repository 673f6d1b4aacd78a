"""Memory does not grow with use: a short form of ``python -m experiments.memory``."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import omenn
from experiments import memory

RUNS = 64


def after(runs: Iterator[int], count: int) -> None:
    for _ in itertools.islice(runs, count):
        pass


@pytest.fixture
def uncollected() -> Iterator[None]:
    """The collector is off: what is left in a cycle counts as kept."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from torch's own lazy attributes
@pytest.mark.parametrize("name", ["small CNN", "small ViT"])
def test_no_tensor_is_kept(name: str) -> None:
    model, shape = memory.MODELS[name]()
    runs = memory.explanations(model.eval(), shape, RUNS)
    after(runs, RUNS // 4)
    gc.collect()
    before = memory.tensors_alive()
    after(runs, RUNS)
    gc.collect()
    assert memory.tensors_alive() <= before


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.usefixtures("uncollected")
def test_a_dropped_explanation_leaves_no_cycle() -> None:
    """Without the collector too: the last reference frees what an explanation holds."""
    model, shape = memory.small_cnn()
    model.eval()
    x = torch.randn(1, *shape)
    omenn.explain(model, x, 1)
    before = memory.tensors_alive()
    for _ in range(8):
        omenn.explain(model, x, 1)
        omenn.explain(model, x, 1, at="2")
        omenn.rows(model, x, [0, 1])
    assert memory.tensors_alive() <= before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_resident_memory_does_not_grow() -> None:
    """The second half of a run needs no more than the first, but for the allocator's slack."""
    model, shape = memory.small_cnn()
    runs = memory.explanations(model.eval(), shape, 2 * RUNS)
    after(runs, RUNS)
    gc.collect()
    before = memory.resident()
    after(runs, RUNS)
    gc.collect()
    assert memory.resident() - before < 8  # MB; kept runs would be about 0.3 MB each, 20 in all


def test_the_slope_is_that_of_a_straight_line() -> None:
    assert memory.slope([(k, 3 + k / 100) for k in range(0, 2001, 50)]) == pytest.approx(10)


def test_what_is_kept_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    explain = omenn.explain

    def leaking(*args, **kwargs):
        e = explain(*args, **kwargs)
        kept.append(e.matrix)
        return e

    monkeypatch.setattr(omenn, "explain", leaking)
    model, shape = memory.small_cnn()
    runs = memory.explanations(model.eval(), shape, RUNS)
    after(runs, RUNS // 4)
    before = memory.tensors_alive()
    after(runs, RUNS)
    assert memory.tensors_alive() > before + RUNS // 4
