"""Which maps know best what speaks for a class? Keep and remove pixels, on regular and X networks.

    python -m experiments.xdnn.quality --short       one pair of networks, a few scenes
    python -m experiments.xdnn.quality               200 test scenes; goes on if stopped
    python -m experiments.xdnn.quality --weights runs/xdnn/twins --write

KPM, KNM, KAM, RPM, RNM and RAM of ``omenn.metrics.keep_remove``, with 95 % bootstrap intervals over
scenes. The explained class is that of the scene. Finished networks and maps are kept in
runs/xdnn/quality and used again as long as weights and code are the same.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from experiments.command import DOCS, Job
from experiments.figures import INK, REGULAR, X, figure, legend, save, tidy
from experiments.report import environment, interval, table
from experiments.store import version
from experiments.xdnn.networks import PAIRS, Network, Scenes, Trained, origin, scenes
from omenn.metrics.keep_remove import VARIANTS, blurred, keep_remove
from omenn.metrics.maps import descending

COMMAND = Trained("quality", __doc__, scenes=200, short=10)
BATCH = 25
STEPS, REFERENCES = 128, 25
IMAGE = DOCS / "images" / "xdnn-quality.png"
REMOVE = tuple(name for name, kind in VARIANTS.items() if not kind.keep)
COLUMNS = (*VARIANTS, *(f"{name}*" for name in REMOVE))  # with a star: X-DNN's own form
ARROWS = {name: "↑" if VARIANTS[name.rstrip("*")].higher else "↓" for name in COLUMNS}
HEADER = ["map", *(f"{name.upper()} {arrow}" for name, arrow in ARROWS.items())]
TITLES = {
    "kpm": "keep positive",
    "knm": "keep negative",
    "kam": "keep absolute",
    "rpm": "remove positive",
    "rnm": "remove negative",
    "ram": "remove absolute",
}

# (network, scenes, references) → maps (N, S, S)
Made = Callable[[nn.Module, Scenes, Tensor], Tensor]
# areas: metric → one number a scene; constant, empty: how many maps are
Found = dict[str, Any]


# --- maps -------------------------------------------------------------------------------------


def random(model: nn.Module, given: Scenes, references: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(given), *given.x.shape[2:], generator=generator)


def constant(model: nn.Module, given: Scenes, references: Tensor) -> Tensor:
    return torch.ones(len(given), *given.x.shape[2:])


def by(method: str, part: str = "matrix", **options: Any) -> Made:
    """A method of omenn; ``part`` of its explanation, summed over channels."""

    def made(model: nn.Module, given: Scenes, references: Tensor) -> Tensor:
        found = []
        for x, y in given.batches(BATCH):
            map = getattr(omenn.explain(model, x, y, method=method, **options), part)
            found.append((map.sum(1) if map.ndim == 4 else map).detach().cpu())
        return torch.cat(found)

    return made


def expected_gradients(model: nn.Module, given: Scenes, references: Tensor) -> Tensor:
    """One random point of the line to each reference, a picture of another scene; the mean."""
    found = [
        by("shap-gradient", steps=1, noise=0.0, baseline=reference[None], seed=k)(
            model, given, references
        )
        for k, reference in enumerate(references)
    ]
    return torch.stack(found).mean(0)


MAPS: dict[str, Made] = {
    "*random*": random,
    "*constant*": constant,
    "gradient": by("saliency", absolute=False),
    f"integrated gradients, {STEPS} steps": by("integrated-gradients", steps=STEPS, chunk=128),
    "input × gradient": by("input-x-gradient"),
    f"expected gradients, {REFERENCES} references": expected_gradients,
    "X-Gradient": by("xgradient"),
    "omenn": by("omenn"),
    "omenn without C_b": by("omenn", part="contribution"),
}


# --- scores -----------------------------------------------------------------------------------


def score(network: Network, given: Scenes, references: Tensor, name: str) -> Found:
    maps = MAPS[name](network.model, given, references).to(given.x)
    found = keep_remove(network.model, given.x, given.y, maps)
    areas = {metric: values.tolist() for metric, values in found.areas.items()}
    theirs = keep_remove(network.model, given.x, given.y, maps, variants=REMOVE, published=True)
    areas |= {f"{metric}*": values.tolist() for metric, values in theirs.areas.items()}
    return {"areas": areas, "constant": found.constant, "empty": dict(found.empty)}


def measured(a: argparse.Namespace, found: list[Network]) -> dict[str, dict[str, Found]]:
    """Network → map → its scores, those on disk included."""
    code = version(by, expected_gradients, random, constant, keep_remove, blurred, descending)
    given = scenes("test", a.scenes, a.device, a.work.parent / "scenes")
    references = scenes("train", REFERENCES, a.device, a.work.parent / "scenes").x
    jobs = []
    for network in found:
        for name in MAPS:
            slug = "-".join(re.findall(r"[A-Za-z0-9]+", name)).lower()
            key = f"{network.name}-{network.digest}-{code}-{a.scenes}-{slug}"
            make = partial(score, network, given, references, name)
            jobs.append(Job(f"{network.name}: {name.strip('*')}", key, make))
    results = iter(COMMAND.results(a, jobs))
    return {network.name: {name: next(results) for name in MAPS} for network in found}


# --- words and pictures -------------------------------------------------------------------------


def rows_of(scores: Mapping[str, Found]) -> list[list[str]]:
    """A row a map; in bold what is best in its column."""
    rows = [[name] for name in scores]
    for metric in COLUMNS:
        kind = VARIANTS[metric.rstrip("*")]
        found = [interval(each["areas"][metric]) for each in scores.values()]
        best = (max if kind.higher else min)(round(mean, 3) for mean, *_ in found)
        for row, (mean, low, high) in zip(rows, found, strict=True):
            mark = "**" if round(mean, 3) == best else ""
            row.append(f"{mark}{mean:.3f}{mark} [{low:.3f}, {high:.3f}]")
    return rows


def counted(name: str, scores: Mapping[str, Found]) -> str:
    """What a map has instead of an order, in words; empty if all have one."""
    words = []
    for made, each in scores.items():
        parts = [f"{each['constant']} constant"] if each["constant"] else []
        for metric, sign in (("kpm", "positive"), ("knm", "negative")):
            if n := each["empty"][metric]:
                parts.append(f"{n} without a {sign} pixel")
        if parts and made != "*constant*":
            words.append(f"{made}: {', '.join(parts)}")
    return f"{name}, maps that order nothing: {'; '.join(words)}." if words else ""


def text_of(rows: Mapping[str, Mapping[str, Found]], a: argparse.Namespace, where: str) -> str:
    parts = []
    for name, scores in rows.items():
        parts.append(f"{name}:\n\n{table(HEADER, rows_of(scores))}")
        parts += filter(None, [counted(name, scores)])
    parts.append(
        f"Means over {a.scenes} test scenes with 95 % bootstrap intervals over scenes; bold: the "
        "best of a column, to three digits. KPM, KNM, RPM and RNM are areas below the logit of the "
        "scene's class, and comparable within a network alone; KAM and RAM are areas below the "
        "accuracy. RPM*, RNM* and RAM* are the remove-metrics of X-DNN's own code. Shares and blur "
        f"as published, the blur in proportion to the side. {where}. "
        f"{COMMAND.made_by(a)}; {environment()}."
    )
    parts.append(f"![Keep and remove, a pair of networks](images/{IMAGE.name})")
    return "\n\n".join(parts)


def draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One pair of twins: the first that is complete, or the first network alone."""
    pair = next((p for p in PAIRS.items() if set(p) <= set(rows)), (next(iter(rows)),))
    drawn = figure(10.5, 6.8)
    panels = drawn.subplots(2, 3, sharey=True)
    for panel, metric in zip(panels.flat, VARIANTS, strict=True):
        _bars(panel, {name: rows[name] for name in pair}, metric)
    legend(drawn, panels[0][0])
    save(drawn, path)


def _bars(panel: Any, rows: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    names = list(next(iter(rows.values())))
    height = 0.8 / len(rows)
    for number, (network, scores) in enumerate(rows.items()):
        found = [interval(scores[name]["areas"][metric]) for name in names]
        means, lows, highs = (torch.tensor(column) for column in zip(*found, strict=True))
        places = [k + (number - (len(rows) - 1) / 2) * height for k in range(len(names))]
        panel.barh(
            places,
            means,
            height,
            xerr=torch.stack([means - lows, highs - means]),
            color=X if network in PAIRS.values() else REGULAR,
            label=network,
            error_kw={"lw": 1, "ecolor": INK},
        )
    arrow = "higher is better →" if VARIANTS[metric].higher else "← lower is better"
    title = f"{metric.upper()}: {TITLES[metric]}"
    panel.set_title(title, fontsize=10, color=INK, weight="bold", pad=19)
    panel.text(0.5, 1.025, arrow, transform=panel.transAxes, ha="center", fontsize=9, color=INK)
    below = "accuracy" if VARIANTS[metric].sign == 0 else "logit of the class"
    panel.set_xlabel(f"area below the {below}", fontsize=8.5, color=INK)
    panel.set_yticks(range(len(names)), [n.strip("*") for n in names])
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.axvline(0, color=INK, lw=0.7)
    tidy(panel, grid="x")


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    found = COMMAND.networks(a)
    rows = measured(a, found)
    if a.write:
        draw(rows, IMAGE)
    COMMAND.publish(a, "xdnn-experiments.md", quality=text_of(rows, a, origin(found, a)))


if __name__ == "__main__":
    main()
