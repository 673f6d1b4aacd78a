"""What tests of the benchmark share: a file with quick networks, and a run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omenn.bench import running
from omenn.bench.cell_store import file_name

NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    preprocess = {"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8 * 64, 50)

    def forward(self, x):
        h = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(h.flatten(1))

def build():
    return Net()

class Sorted(Net):
    def forward(self, x):
        return torch.linalg.inv(super().forward(x)[:, :49].reshape(-1, 7, 7)).flatten(1)

class Half(Net):
    def __init__(self):
        super().__init__()
        self.bfloat16()

    def forward(self, x):
        return super().forward(x.bfloat16()).float()

class Few(Net):
    def forward(self, x):
        return super().forward(x)[:, :5]

class Raising(Net):
    def forward(self, x):
        raise KeyError(0)
"""
QUICK = ["srg[patch=8]", "sparseness"]
"""Metrics that take a moment."""


def networks(folder: Path) -> str:
    """Writes the file; the name of a network in it."""
    (folder / "nets.py").write_text(NETWORKS, encoding="utf-8")
    return f"{folder / 'nets.py'}:build"


def run(out: Path, **plan: Any) -> running.Done:
    """The benchmark on four birds and without trivial maps, unless the plan says otherwise."""
    usual = {"methods": ["omenn", "abslrp"], "metrics": QUICK, "limit": 4, "trivial": False}
    plan = {**usual, **plan}
    return running.run(running.prepare(None, plan, out))


def cells(out: Path) -> dict[str, Any]:
    """What is stored of a run, by the name of the file."""
    root = out / "cells"
    return {str(p.relative_to(root)): json.loads(p.read_text()) for p in root.rglob("*.json")}


def cell(out: Path, net: str, method: str, metric: str) -> dict[str, Any]:
    """One cell of a run."""
    path = out / "cells" / file_name(net) / file_name(method) / f"{file_name(metric)}.json"
    return json.loads(path.read_text())


def without_costs(content: Any) -> Any:
    """The same without times and memory, which differ from run to run."""
    costs = ("seconds", "memory", "seconds_per_picture", "peak_memory_bytes")
    if isinstance(content, dict):
        return {key: without_costs(value) for key, value in content.items() if key not in costs}
    return [without_costs(value) for value in content] if isinstance(content, list) else content
