"""One way to see the calls of a model: a tracer, or a handler that follows no tensor."""

from __future__ import annotations

from pathlib import Path

import torch

from omenn.engine.trace.handler import Handler

SOURCE = Path(__file__).parents[2] / "src" / "omenn"
MODES = {"handler.py", "tracer.py"}


def test_no_other_file_sees_calls_by_itself() -> None:
    found = {
        path.name
        for path in SOURCE.rglob("*.py")
        if "def __torch_function__" in path.read_text("utf-8")
    }
    assert found <= MODES


class Counting(Handler):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def handle(self, func, args, kwargs):
        self.calls += 1
        return super().handle(func, args, kwargs)


def test_a_handler_runs_calls_as_they_are() -> None:
    x = torch.randn(3)
    with Counting() as mode:
        y = torch.relu(x).sum()
    assert mode.calls == 2
    assert torch.equal(y, torch.relu(x).sum())
