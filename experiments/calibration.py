"""How wide the intervals of calibrated maps are, and whether they hold: docs/calibration.md.

    python -m experiments.calibration --photos FOLDER --cifar FOLDER --weights resnet20.th --write

Each picture has regions of seven sizes replaced by a blur, one at a time. One set of pictures
calibrates every map, the trivial ones as well; the other says how often the drop of the logit lies
inside. --photos is for EfficientNet-Lite0, --cifar and --weights for the ResNet-20 of
experiments/cifar10.py: of their pictures in sorted order the 1st, 3rd, … calibrate, the 2nd, 4th, …
report. The birds are of the validation and the test scenes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import cifar10
from experiments.command import Command, Job
from experiments.report import environment, table
from experiments.store import Result
from omenn.calibration import Cells
from omenn.calibration.conformal import hierarchical_quantile
from omenn.calibration.halves import halved, sizes_from
from omenn.calibration.intervals import Size
from omenn.calibration.interventions import USUAL_REPLACEMENT, Measured, drops_of, sums_over
from omenn.calibration.regions import SIZES, Recipe, size_of
from omenn.data import birds
from omenn.data.folders import pictures_among
from omenn.metrics.explainers import TRIVIAL, explainer
from omenn.metrics.maps import logits_of
from omenn.metrics.score import bootstrap_interval
from omenn.modalities.image.picture_files import read_image
from omenn.models import sources

CLEAR, PLAIN, GAMMA, NONE = "omenn-clear", "omenn", "gamma[gamma=0.1;complete=true]", "no map"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    CLEAR: (CLEAR, {}),
    PLAIN: (PLAIN, {}),
    GAMMA: ("gamma", {"gamma": 0.1, "complete": True}),
}
EVEN = f"{CLEAR}, widths alike"
MAPS = (*METHODS, *TRIVIAL, NONE)
BIRDS = ("birds-resnet", "birds-vit", "birds-convnet", "birds-xconvnet")
LITE, CIFAR = "efficientnet-lite0", "cifar-resnet20"
NETWORKS = (*BIRDS, LITE, CIFAR)
LEVEL, GRID, SHOWN, PART = 0.9, 4, 4, 10
SETS = ("calibrate", "report")

COMMAND = Command("calibration", __doc__, "work", "fresh", "write", "threads")
COMMAND.choose("network", NETWORKS, NETWORKS)
COMMAND.add("--pictures", type=int, default=150, help="of each set (default %(default)s)")
COMMAND.add("--photographs", type=int, help="of each set, of --photos (default: as --pictures)")
COMMAND.add("--each", type=int, default=6, help="regions of each size (default %(default)s)")
COMMAND.add("--photos", type=Path, help="a folder of photographs")
COMMAND.add("--cifar", type=Path, help="a folder of pictures of CIFAR-10")
COMMAND.add("--weights", type=Path, help="of the ResNet-20")


@dataclass(frozen=True)
class Network:
    """A model, how a picture becomes its input, and pictures by set and number."""

    model: torch.nn.Module
    picture: Callable[[str, int], Tensor]


def bird(prepare: Any, which: str, number: int) -> Tensor:
    split: Any = "validation" if which == "calibrate" else "test"
    return prepare(birds.render(birds.sample_scene(number, split), size=64))


def photograph(prepare: Any, files: dict[str, list[Path]], which: str, number: int) -> Tensor:
    return prepare(read_image(files[which][number]))


@cache
def network(name: str, folder: Path | None, weights: Path | None, count: int) -> Network:
    """A network with at least ``count`` pictures in each set."""
    if name in BIRDS:
        source = sources.load(name)
        return Network(source.model, partial(bird, source.preprocessing))
    assert folder is not None
    found = pictures_among([folder])
    files = {which: spread(found[k::2], count) for k, which in enumerate(SETS)}
    if name == CIFAR:
        model, prepare = cifar10.load(weights or Path())
        return Network(model, partial(photograph, prepare, files))
    source = sources.load(name)
    return Network(source.model, partial(photograph, source.preprocessing, files))


def spread(files: list[Path], count: int) -> list[Path]:
    """So many of them, evenly."""
    if len(files) < count:
        COMMAND.fail(f"{len(files)} pictures for {count} of a set: give --pictures {len(files)}.")
    return [files[k * len(files) // count] for k in range(count)]


def measured(load: Callable[[], Network], which: str, numbers: range, each: int) -> Result:
    """Shares, drops and sums of the regions of some pictures; last come the cells of a grid."""
    found: list[Any] = []
    net = load()
    made = {name: explainer(net.model, m, **options) for name, (m, options) in METHODS.items()}
    made |= TRIVIAL
    for number in numbers:
        x = net.picture(which, number)
        target = logits_of(net.model, x).argmax(1)
        seed = hashlib.sha256(f"{which} {number}".encode()).digest()[:4]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
        shape = tuple(x.shape[-2:])
        masks = Recipe(shape, each=each).draw(x[0], generator)
        drawn = len(masks)
        if which == "report":
            every = [(r, c) for r in range(GRID) for c in range(GRID)]
            cells = torch.stack([Cells(GRID, GRID, [at]).mask(shape) for at in every])
            masks = torch.cat([masks, cells])
        before, drops = drops_of(
            net.model, x, int(target), masks, USUAL_REPLACEMENT, channel_dim=-3
        )
        sums = {name: sums_over(masks, explain(x, target)[0]) for name, explain in made.items()}
        found.append(
            {
                "drawn": drawn,
                "logit": before,
                "shares": masks.flatten(1).double().mean(1).tolist(),
                "drops": drops.tolist(),
                "sums": {name: values.tolist() for name, values in sums.items()},
            }
        )
    return {"pictures": found}


@dataclass(frozen=True)
class Picture:
    """The regions of one picture by one map: those that were drawn, and the cells of the grid."""

    drawn: Measured
    cells: Measured


def picture(kept: Any, name: str) -> Picture:
    drops = torch.tensor(kept["drops"], dtype=torch.float64)
    sums = drops * 0 if name == NONE else torch.tensor(kept["sums"][name], dtype=torch.float64)
    both = Measured(torch.tensor(kept["shares"], dtype=torch.float64), sums, drops)
    places = torch.arange(len(drops))
    first = kept["drawn"]
    return Picture(both.of(places[:first]), both.of(places[first:]))


@dataclass(frozen=True)
class Row:
    """One map on one network: coverage of each picture, and half-widths by size."""

    sizes: tuple[Size | None, ...]
    covered: list[float]  # of the drawn regions of each picture
    by_size: list[tuple[float, float]]  # coverage and mean half-width
    shown: list[float]  # of the cells with the largest sums of each picture

    @property
    def half_width(self) -> float:
        """Mean over the sizes."""
        return sum(width for _, width in self.by_size) / len(self.by_size)


def evenly(sizes: Sequence[Size | None], rest: Sequence[Measured]) -> tuple[Size | None, ...]:
    """The same lines with one quantile of |d − a p − b m| for all regions of a size."""
    found: list[Size | None] = []
    for k, size in enumerate(sizes):
        if size is None:
            found.append(None)
            continue
        line = replace(size.fit, c=0.0)
        parts = [m.of(torch.tensor([size_of(s) == k for s in m.shares.tolist()])) for m in rest]
        scores = [line.scores(m.sums, m.shares, m.drops) for m in parts]
        quantiles = ({LEVEL: hierarchical_quantile(scores, LEVEL)},)
        found.append(replace(size, fit=line, cuts=(), quantiles=quantiles))
    return tuple(found)


def row(kept: dict[str, list[Any]], name: str, even: bool = False) -> Row:
    """Calibrated on one set, and compared with the other."""
    fit, rest = halved([picture(one, name).drawn for one in kept["calibrate"]], 0)
    sizes = sizes_from(fit, rest, LEVEL)
    sizes = evenly(sizes, rest) if even else sizes
    covered: list[float] = []
    shown: list[float] = []
    found: list[list[tuple[float, float]]] = [[] for _ in sizes]
    for one in kept["report"]:
        regions = picture(one, name)
        inside = [within(sizes, regions.drawn, k) for k in range(len(regions.drawn))]
        for share, hit in zip(regions.drawn.shares.tolist(), inside, strict=True):
            found[size_of(share)].append(hit)
        covered.append(sum(hit for hit, _ in inside) / len(inside))
        largest = regions.cells.sums.abs().argsort(descending=True)[:SHOWN].tolist()
        shown.append(sum(within(sizes, regions.cells, k)[0] for k in largest) / SHOWN)
    by_size = [tuple(torch.tensor(hits).mean(0).tolist()) for hits in found if hits]
    return Row(sizes, covered, by_size, shown)  # pyright: ignore[reportArgumentType]


def within(sizes: Sequence[Size | None], regions: Measured, k: int) -> tuple[float, float]:
    """Whether the drop of a region lies in its interval, and half the width of that."""
    m, share, drop = (part[k : k + 1] for part in (regions.sums, regions.shares, regions.drops))
    size = sizes[size_of(float(share))]
    if size is None:
        return 1.0, math.inf
    half = size.half_widths(m, LEVEL)
    hit = (drop - size.fit.expected(m, share)).abs() <= half + 1e-9
    return float(hit), float(half)


def percent(values: Sequence[float], interval: bool = True) -> str:
    """A mean in per cent, with its 95 % interval by bootstrap over pictures."""
    t = 100 * torch.tensor(values, dtype=torch.float64)
    if not interval:
        return f"{float(t.mean()):.1f}"
    low, high = bootstrap_interval(t)
    return f"{float(t.mean()):.1f} ({low:.1f}–{high:.1f})"


def best_trivial(rows: dict[str, Row]) -> str:
    return min(TRIVIAL, key=lambda name: rows[name].half_width)


HEADER = ["network", "map", "coverage, %", "of the 4 largest cells, %", "half-width"]
HEADER += ["of the best trivial map's", "of no map's"]


def lines(name: str, rows: dict[str, Row]) -> list[list[str]]:
    """The maps of one network: ours, the best trivial one, and none."""
    trivial = best_trivial(rows)
    found = []
    for place, which in enumerate((*METHODS, EVEN, trivial, NONE)):
        r = rows[which]
        words = (
            f"{which} (best trivial)" if which == trivial else which.replace(CLEAR, f"`{CLEAR}`")
        )
        ratios = [r.half_width / rows[other].half_width for other in (trivial, NONE)]
        found.append(
            [
                "" if place else name,
                words if CLEAR in which or which not in METHODS else f"`{words}`",
                percent(r.covered),
                percent(r.shown) if which != NONE else "–",
                f"{r.half_width:.2f}",
                *(f"{ratio:.2f}" for ratio in ratios),
            ]
        )
    return found


def size_lines(name: str, rows: dict[str, Row]) -> list[list[str]]:
    """`omenn-clear` by size: a, b, coverage, half-widths."""
    r, trivial, none = rows[CLEAR], rows[best_trivial(rows)], rows[NONE]
    found = []
    there = [size for size in r.sizes if size is not None]
    for k, size in enumerate(there):
        hit, half = r.by_size[k]
        widths = [f"{w:.2f}" for w in (half, trivial.by_size[k][1], none.by_size[k][1])]
        bounds = f"{100 * size.low:.1f}–{100 * size.high:.0f}"
        slope = [f"{x:.2f}".replace("-", "−") for x in (size.fit.a, size.fit.b, size.fit.c)]
        found.append(["" if k else name, bounds, *slope, f"{100 * hit:.1f}", *widths])
    return found


SIZE_HEADER = ["network", "share of the picture, %", "a", "b", "c", "coverage, %"]
SIZE_HEADER += ["half-width", "best trivial map", "no map"]


def pictures_of(a: argparse.Namespace, name: str) -> int:
    return (a.photographs if name == LITE else None) or a.pictures


def jobs(a: argparse.Namespace, name: str) -> list[Job]:
    folder = a.cifar if name == CIFAR else a.photos if name == LITE else None
    if name in (LITE, CIFAR) and folder is None:
        COMMAND.fail(f"{name} needs {'--photos' if name == LITE else '--cifar'}.")
    if name == CIFAR and a.weights is None:
        COMMAND.fail(f"{name} needs --weights.")
    count = pictures_of(a, name)
    load = partial(network, name, folder, a.weights, count)
    found = []
    for which in SETS:
        for start in range(0, count, PART):
            numbers = range(start, min(start + PART, count))
            key = f"{name}/{which}-{count}-{a.each}-{start}"
            make = partial(measured, load, which, numbers, a.each)
            found.append(Job(f"{name}, {which}, {start}", key, make))
    return found


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    asked = {name: jobs(a, name) for name in a.models}
    overall: list[list[str]] = []
    sizes: list[list[str]] = []
    for name, some in asked.items():
        results = COMMAND.results(a, some)
        half = len(some) // 2
        kept = {
            which: [one for result in part for one in result["pictures"]]
            for which, part in zip(SETS, (results[:half], results[half:]), strict=True)
        }
        rows = {which: row(kept, which) for which in MAPS} | {EVEN: row(kept, CLEAR, even=True)}
        overall += lines(name, rows)
        sizes += size_lines(name, rows)
    regions = a.each * (len(SIZES) - 1)
    fewer = f" ({a.photographs} of {LITE})" if a.photographs else ""
    said = (
        f"{COMMAND.written(*_said(a))}; {a.pictures} pictures{fewer} calibrate and as many others "
    )
    said += f"report, {regions} regions each; {environment()}."
    COMMAND.publish(
        a,
        "calibration.md",
        coverage=f"{table(HEADER, overall)}\n\n{said}",
        sizes=f"{table(SIZE_HEADER, sizes)}\n\n{said}",
    )


def _said(a: argparse.Namespace) -> list[str]:
    words = ["--photos", "FOLDER", "--cifar", "FOLDER", "--weights", "resnet20.th"]
    words += ["--pictures", str(a.pictures)] if a.pictures != 150 else []
    words += ["--photographs", str(a.photographs)] if a.photographs else []
    words += ["--models", *a.models] if tuple(a.models) != NETWORKS else []
    return words + (["--each", str(a.each)] if a.each != 6 else [])


if __name__ == "__main__":
    main()
