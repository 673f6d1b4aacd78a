"""Whether memory grows with use: thousands of explanations of small networks in one process.

    python -m experiments.memory                    2,000 explanations, the table
    python -m experiments.memory --write            and into docs/performance.md
    python -m experiments.memory --count 200 --models birds-vit

For each model one fresh process explains one input after the other, the target, the depth and the
batch changing, every eighth run failing on purpose. It records the resident memory, the memory that
Python has allocated (tracemalloc, in a second and shorter run, since tracing costs time and memory
itself) and the tensors alive. What is left after the first tenth (caches of PyTorch and of its
allocator) must not grow: *growth* is the slope of a straight line through the rest, per 1,000
explanations.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import omenn
from experiments.command import Command
from experiments.report import ROOT, environment, table

POINTS = 40  # measurements over a run
TRACED = 400  # explanations under tracemalloc at most


def small_cnn() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2)]
    head = [nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *head), (3, 32, 32)


class SmallViT(nn.Module):
    """Patches, a class token, position embeddings, two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 17, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.head(self.encoder(tokens)[:, 0])


def bundled(name: str) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    def load() -> tuple[nn.Module, tuple[int, ...]]:
        from omenn.models import sources

        return sources.load(name).model, (3, 64, 64)

    return load


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "small CNN": small_cnn,
    "small ViT": lambda: (SmallViT(), (3, 32, 32)),
    "birds-resnet": bundled("birds-resnet"),
    "birds-vit": bundled("birds-vit"),
}


COMMAND = Command("memory", __doc__, "threads", "write")
COMMAND.choose("model", MODELS, MODELS)
COMMAND.add("--count", type=int, default=2000, help="explanations a model")
COMMAND.add("--watch", help=argparse.SUPPRESS)
COMMAND.add("--traced", action="store_true", help=argparse.SUPPRESS)


def explanations(model: nn.Module, shape: tuple[int, ...], count: int) -> Iterator[int]:
    """Explains ``count`` times in all the ways that may keep something; yields the number done."""
    places = [name for name, _ in model.named_children()]
    for k in range(count):
        x = torch.randn(1 + k % 2, *shape)
        try:
            if k % 8 == 7:
                omenn.explain(model, x, 10**6)  # no such class: the run fails in the middle
            elif k % 8 == 5:
                omenn.rows(model, x, [0, 1])
            elif k % 8 == 3:
                omenn.explain(model, x, create_graph=True)
            else:
                omenn.explain(model, x, k % 3, at=places[k % len(places)] if k % 8 == 1 else None)
        except omenn.OmennError:
            pass
        yield k + 1


def resident() -> float:
    """Resident memory of this process in MB, from the kernel."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def watch(name: str, count: int, traced: bool) -> list[tuple[int, float, int]]:
    """(explanations, MB, tensors alive) at ``POINTS`` moments of a run in this process."""
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    model.eval()
    if traced:
        tracemalloc.start()
    found, step = [], max(1, count // POINTS)
    for done in explanations(model, shape, count):
        if done % step:
            continue
        gc.collect()
        memory = tracemalloc.get_traced_memory()[0] / 1e6 if traced else resident()
        found.append((done, memory, tensors_alive()))
    return found


def tensors_alive() -> int:
    return sum(issubclass(type(found), Tensor) for found in gc.get_objects())


def slope(points: list[tuple[int, float]]) -> float:
    """Units per 1,000 explanations, by least squares, without the first tenth."""
    kept = [p for p in points if p[0] > points[-1][0] / 10]
    x = torch.tensor([p[0] for p in kept], dtype=torch.float64)
    y = torch.tensor([p[1] for p in kept], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x)) * 1000


def in_process(name: str, count: int, traced: bool) -> list[tuple[int, float, int]]:
    call = [sys.executable, "-m", COMMAND.name, "--watch", name, "--count", str(count)]
    done = subprocess.run(
        [*call, "--traced"] if traced else call, capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return [tuple(point) for point in json.loads(done.stdout.splitlines()[-1])]


def row_of(name: str, count: int) -> list[str]:
    resident_mb = in_process(name, count, False)
    traced = in_process(name, min(count, TRACED), True)

    def at(points: list[tuple[int, float, int]], share: float) -> str:
        return f"{min(points, key=lambda p: abs(p[0] - share * count))[1]:.1f}"

    early = min(resident_mb, key=lambda p: abs(p[0] - count / 10))
    return [
        name,
        *(at(resident_mb, share) for share in (0.1, 0.5, 1.0)),
        f"{slope([(p[0], p[1]) for p in resident_mb]):+.2f}",
        f"{slope([(p[0], p[1]) for p in traced]):+.3f}",
        f"{early[2]} → {resident_mb[-1][2]}",
    ]


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    if a.watch:
        print(json.dumps(watch(a.watch, a.count, a.traced)))
        return
    rows = [row_of(n, a.count) for n in track(a.models, "memory", console=Console(stderr=True))]
    header = ["", f"MB after {a.count // 10:,}", f"after {a.count // 2:,}", f"after {a.count:,}"]
    header += ["growth, MB per 1,000", "of Python's own, MB per 1,000", "tensors alive"]
    note = (
        f"{COMMAND.written()}: {a.count:,} explanations a model in one process "
        f"({min(a.count, TRACED):,} under tracemalloc), of which one in eight fails on purpose; "
        f"{environment()}."
    )
    COMMAND.publish(a, "performance.md", memory=f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
