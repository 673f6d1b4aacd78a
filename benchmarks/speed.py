"""What an exact explanation costs: time and peak memory as ratios to a plain input gradient.

    python -m benchmarks.speed                     ResNet-50 and ViT-B/16, batch 4
    python -m benchmarks.speed --write             and into docs/performance.md and the README
    python -m benchmarks.speed --models swin_tiny_patch4_window7_224 --rounds 9

The two are timed in turn within each round, so that a slower moment of the machine falls on both;
the ratio is the median over rounds of the ratio within a round, with its quartiles.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import omenn
from benchmarks.report import ROOT, environment, table, write_block
from benchmarks.zoo_models import perturb

MODELS = ("resnet50", "vit_base_patch16_224")
MODES = ("forward", "gradient", "contribution", "explain")


def load(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    from omenn.models.torchvision_remedy import prepare

    prepare()
    import timm

    torch.manual_seed(0)
    model = perturb(timm.create_model(name, pretrained=False))
    side = model.pretrained_cfg["input_size"][-1]
    return model, torch.randn(batch, 3, side, side)


def run(mode: str, model: nn.Module, x: Tensor) -> None:
    """One forward pass; a plain input gradient; omenn without and with bias."""
    if mode == "forward":
        with torch.no_grad():
            model(x)
    elif mode == "gradient":
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        torch.autograd.grad(y[torch.arange(len(y)), y.argmax(1)].sum(), leaf)
    elif mode == "contribution":
        leaf = x.clone().requires_grad_()
        with omenn.frozen(leaf, model=model):
            y = model(leaf)
            f = y.gather(1, y.argmax(1, keepdim=True)).sum()
        torch.autograd.grad(f, leaf)
    else:
        omenn.explain(model, x)


def timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every mode in every round, after two rounds of warm-up."""
    model, x = load(name, batch)
    seconds: dict[str, list[float]] = {m: [] for m in MODES}
    for k in track(range(rounds + 2), name, console=Console(stderr=True), transient=True):
        # The order alternates, so that no mode always follows the same other.
        for mode in MODES if k % 2 else MODES[::-1]:
            gc.collect()
            t = timed(lambda mode=mode: run(mode, model, x))
            if k > 1:
                seconds[mode].append(t)
    return seconds


def peak(name: str, batch: int, mode: str) -> float:
    """Peak memory in MB above the loaded model, in a process of its own (Linux)."""
    command = [sys.executable, "-m", "benchmarks.speed", "--peak", name, str(batch), mode]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(out.stdout.strip().splitlines()[-1])


def measure_peak(name: str, batch: int, mode: str) -> float:
    model, x = load(name, batch)
    run("forward", model, x[:1])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    run(mode, model, x)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return float(line.split()[1])
    raise SystemExit("this system does not tell its memory use")


def rows_of(name: str, batch: int, seconds: dict[str, list[float]]) -> list[list[str]]:
    out = []
    base = seconds["gradient"]
    memory = {m: peak(name, batch, m) for m in ("gradient", "contribution", "explain")}
    for mode in MODES:
        ratios = [a / b for a, b in zip(seconds[mode], base, strict=True)]
        low, mid, high = statistics.quantiles(ratios, n=4)
        used = f"{memory[mode] / memory['gradient']:.2f}" if mode in memory else "–"
        label = {
            "forward": "forward pass",
            "gradient": "plain input gradient",
            "contribution": "omenn, C_w ⊙ X alone",
            "explain": "**omenn, with bias and checks**",
        }[mode]
        spread = "1" if mode == "gradient" else f"{mid:.2f} ({low:.2f}–{high:.2f})"
        out.append([f"{name}: {label}", f"{statistics.median(seconds[mode]):.2f}", spread, used])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="timm names")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="update docs and README")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(a.threads)
    if a.peak:
        print(measure_peak(a.peak[0], int(a.peak[1]), a.peak[2]))
        return
    rows: list[list[str]] = []
    for name in a.models:
        rows += rows_of(name, a.batch, measure(name, a.batch, a.rounds))
    header = ["", "seconds (median)", "ratio (quartiles)", "peak memory ratio"]
    text = table(header, rows)
    print(text)
    if a.write:
        note = (
            f"Written by `python -m benchmarks.speed --write`: batch {a.batch}, float32, "
            f"{a.rounds} paired rounds; {environment()}."
        )
        write_block(ROOT / "docs" / "performance.md", "speed", f"{text}\n\n{note}")
        write_block(ROOT / "README.md", "speed", f"{text}\n\n{note}")


if __name__ == "__main__":
    main()
