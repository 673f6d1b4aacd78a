"""Commands of ``omenn`` in tests: a file with networks, and what a refusal looks like."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NET = """
import torch
from torch import nn

class Net(nn.Module):
    preprocess = {"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    classes = ["tench, Tinca tinca", "cat", "dog", "crane", "crane, lifting"]

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))

def build():
    return Net()

class Table(nn.Module):
    example_inputs = {"a": torch.ones(2, 3), "b": torch.ones(2, 4)}

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, a, b):
        return torch.relu(self.left(a)) + self.right(b)

class Sorted(Net):
    def forward(self, x):
        return torch.linalg.inv(super().forward(x)[:, :4].reshape(-1, 2, 2)).flatten(1)

class Broken(Net):
    def forward(self, x):
        return super().forward(x) / 0.0

class Wide(Net):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=1)

class Rows(Net):
    def forward(self, x):
        return self.head(x.reshape(len(x), -1))

class Raising(Net):
    def forward(self, x):
        raise KeyError(0)

class Named(Net):
    def forward(self, x):
        return {"logits": super().forward(x)}

class Listed(Net):
    def forward(self, x):
        return [super().forward(x), x]

class Scores(Net):
    def forward(self, x):
        return {"names": ["cat"], "scores": super().forward(x)}

class Dense(Net):
    def forward(self, x):
        return {"out": self.second(self.first(x))}

class One(Net):
    def forward(self, x):
        return super().forward(x).sum()
"""

Run = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str], words: str) -> None:
    """One line on standard error, nothing on standard output, exit code 2."""
    code, out, err = result
    assert re.search(words, err), err
    assert (code, out) == (2, "")
    assert err.startswith("omenn: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def written() -> set[str]:
    """Every file below the working directory that a command may have left."""
    given = {"net.py", "picture.png"}
    found = {str(path) for path in Path().rglob("*") if path.is_file()}
    return {path for path in found if path not in given and "__pycache__" not in path}


def subprocess_of(*words: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "omenn", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
