"""Is X-Gradient integrated gradients, and how much faster is it?

    python -m experiments.xdnn.identity --short      one pair of networks, a few scenes
    python -m experiments.xdnn.identity              10 test scenes; goes on if stopped
    python -m experiments.xdnn.identity --weights runs/xdnn/twins --write

The distance is mean|IG_n − X-Gradient| / mean|IG_n| over all pixels, channels and scenes, for n
points of captum's integrated gradients from a zero baseline. Seconds are measured in rounds, each
with a plain gradient, an X-Gradient and integrated gradients with 128 points; a ratio is the median
over rounds of the ratio within a round, with the quartiles. Finished networks are kept in
runs/xdnn/identity and used again as long as weights and code are the same.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import omenn
from experiments import timing
from experiments.command import Job
from experiments.report import environment, quartiles, spread, table
from experiments.store import version
from experiments.xdnn.networks import Network, Scenes, Trained, origin, scenes

COMMAND = Trained("identity", __doc__, scenes=10, short=2)
COMMAND.add("--rounds", type=int, help="of the clock (default 5, short form 3)")
BATCH = 10
POINTS = (8, 16, 32, 64, 128)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
BATCHES, ROUNDS, FEW = (1, 8), 5, 3
RATIOS = {
    "X-Gradient / gradient": ("xgradient", "gradient"),
    "IG-128 / gradient": ("ig-128", "gradient"),
    "IG-128 / X-Gradient": ("ig-128", "xgradient"),
}

Found = dict[str, Any]


# --- distance ---------------------------------------------------------------------------------


def distance(integrated: Sequence[Tensor], own: Sequence[Tensor]) -> float:
    """mean|IG − X-Gradient| / mean|IG|, in double precision, over all batches."""
    pairs = [(a.double(), b.double()) for a, b in zip(integrated, own, strict=True)]
    return float(sum((a - b).abs().sum() for a, b in pairs) / sum(a.abs().sum() for a, _ in pairs))


def distances(network: Network, given: Scenes) -> dict[str, list[float]]:
    """dtype → one number for each n of ``POINTS``."""
    found = {}
    for name, dtype in DTYPES.items():
        model = copy.deepcopy(network.model).to(dtype)
        own = contributions(model, given, dtype, method="xgradient")
        found[name] = [distance(integrated(model, given, dtype, n), own) for n in POINTS]
    return found


def integrated(model: nn.Module, given: Scenes, dtype: torch.dtype, points: int) -> list[Tensor]:
    options = {"method": "integrated-gradients", "steps": points, "chunk": 128}
    return contributions(model, given, dtype, **options)


def contributions(
    model: nn.Module, given: Scenes, dtype: torch.dtype, **options: Any
) -> list[Tensor]:
    return [
        omenn.explain(model, x.to(dtype), y, **options).contribution.detach()
        for x, y in given.batches(BATCH)
    ]


def rounding() -> float:
    """How far the quadrature's weights, rounded as captum rounds them, are from adding up to 1."""
    weights = [torch.tensor(np.polynomial.legendre.leggauss(n)[1] / 2) for n in POINTS]
    return max(abs(float(w.float().double().sum()) - 1) for w in weights)


# --- seconds ----------------------------------------------------------------------------------


def calls(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], Any]]:
    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(model(leaf).gather(1, y[:, None]).sum(), leaf)[0]

    ig = {"method": "integrated-gradients", "steps": 128, "chunk": 128}
    return {
        "gradient": gradient,
        "xgradient": lambda: omenn.explain(model, x, y, method="xgradient"),
        "ig-128": lambda: omenn.explain(model, x, y, **ig),
    }


def seconds(network: Network, given: Scenes, rounds: int, device: str) -> dict[str, Any]:
    """Batch size → call → seconds of each round."""
    found = {}
    for batch in BATCHES:
        if batch <= len(given):
            made = calls(network.model, given.x[:batch], given.y[:batch])
            found[str(batch)] = timing.paired(made, rounds, warm_up=1, device=device)
    return found


# --- words ------------------------------------------------------------------------------------


def measured(a: argparse.Namespace, found: list[Network], rounds: int) -> dict[str, Found]:
    """Network → distances and seconds, those on disk included."""
    far = version(distance, distances, integrated, contributions)
    long = version(calls, seconds)
    given = scenes("test", a.scenes, a.device, a.work.parent / "scenes")
    place = f"{min(a.scenes, max(BATCHES))}-{a.device}-t{a.threads}-{rounds}"
    jobs = []
    for net in found:
        own = f"{net.name}-{net.digest}"
        apart = partial(distances, net, given)
        taken = partial(seconds, net, given, rounds, a.device)
        jobs.append(Job(f"{net.name}: distance", f"{own}-{far}-{a.scenes}-{a.device}", apart))
        jobs.append(Job(f"{net.name}: seconds", f"{own}-{long}-{place}", taken))
    results = iter(COMMAND.results(a, jobs))
    return {net.name: {"distance": next(results), "seconds": next(results)} for net in found}


def distance_table(rows: Mapping[str, Found]) -> str:
    header = ["distance of X-Gradient from IG-n", "", *(f"n = {n}" for n in POINTS)]
    cells = [
        [name, dtype, *(f"{v:.1e}" for v in found["distance"][dtype])]
        for name, found in rows.items()
        for dtype in DTYPES
    ]
    return table(header, cells)


def seconds_table(rows: Mapping[str, Found]) -> str:
    header = ["time", "images", *RATIOS, "X-Gradient, ms"]
    cells = []
    for name, found in rows.items():
        for batch, taken in found["seconds"].items():
            ratios = [quartiles(timing.ratios(taken, *pair), ".3g") for pair in RATIOS.values()]
            own = 1000 * spread(taken["xgradient"])[1]
            cells.append([name, batch, *ratios, f"{own:.1f}"])
    return table(header, cells)


def text_of(rows: Mapping[str, Found], a: argparse.Namespace, rounds: int, where: str) -> str:
    note = (
        f"Distance: mean|IG_n − X-Gradient| / mean|IG_n| over {a.scenes} test scenes, zero "
        "baseline, captum's integrated gradients (Gauss–Legendre; captum rounds the weights of the "
        f"points to float32, so that their sum misses 1 by up to {rounding():.1e}, which is all "
        f"that is left in float64 where f(αx) = α f(x)). Time: medians over {rounds} paired rounds "
        "of the ratio within a round, quartiles in brackets (of fewer than five: least and most), "
        f"float32, {a.device}. {where}. {COMMAND.made_by(a)}; {environment()}."
    )
    return f"{distance_table(rows)}\n\n{seconds_table(rows)}\n\n{note}"


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    rounds = a.rounds or (FEW if a.short else ROUNDS)
    found = COMMAND.networks(a)
    rows = measured(a, found, rounds)
    COMMAND.publish(a, "xdnn-experiments.md", identity=text_of(rows, a, rounds, origin(found, a)))


if __name__ == "__main__":
    main()
