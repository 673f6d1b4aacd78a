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
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from experiments import timing
from experiments.report import ROOT, environment, table, write_block
from experiments.xdnn import quality_figure
from experiments.xdnn.networks import (
    DOCUMENT,
    Network,
    Scenes,
    arguments,
    networks,
    origin,
    parsed,
    scenes,
    version,
    written_by,
)
from omenn.metrics import METRICS, blurred, keep_remove
from omenn.metrics.maps import descending
from omenn.metrics.score import bootstrap_interval
from omenn.progress import progress_bar

COMMAND = "experiments.xdnn.quality"
SCENES, SHORT, BATCH = 200, 10, 25
STEPS, REFERENCES = 128, 25
IMAGE = ROOT / "docs" / "images" / "xdnn-quality.png"
ARROWS = {name: "↑" if metric.higher else "↓" for name, metric in METRICS.items()}
HEADER = ["map", *(f"{name.upper()} {arrow}" for name, arrow in ARROWS.items())]

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
    return {"areas": areas, "constant": found.constant, "empty": dict(found.empty)}


def measured(a: argparse.Namespace, found: list[Network]) -> dict[str, dict[str, Found]]:
    """Network → map → its scores, those on disk included."""
    results = timing.Results(a.work, a.fresh)
    code = version(by, expected_gradients, random, constant, keep_remove, blurred, descending)
    given = scenes("test", a.scenes, a.device, a.work.parent / "scenes")
    references = scenes("train", REFERENCES, a.device, a.work.parent / "scenes").x
    rows: dict[str, dict[str, Found]] = {}
    with progress_bar() as bar:
        task = bar.add_task("scoring", total=len(found) * len(MAPS))
        for network in found:
            for name in MAPS:
                bar.update(task, description=f"{network.name}: {name.strip('*')}")
                slug = "-".join(re.findall(r"[A-Za-z0-9]+", name)).lower()
                key = f"{network.name}-{network.digest}-{code}-{a.scenes}-{slug}"
                one = results.take(
                    key, lambda net=network, name=name: score(net, given, references, name)
                )
                rows.setdefault(network.name, {})[name] = one
                bar.advance(task)
    return rows


# --- words ------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and its 95 % bootstrap interval over scenes."""
    t = torch.tensor(values, dtype=torch.float64)
    return (float(t.mean()), *bootstrap_interval(t))


def rows_of(scores: Mapping[str, Found]) -> list[list[str]]:
    """A row a map; in bold what is best in its column."""
    rows = [[name] for name in scores]
    for metric, kind in METRICS.items():
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
        f"accuracy. Shares and blur as published, the blur in proportion to the side. {where}. "
        f"{written_by(COMMAND, a)}; {environment()}."
    )
    parts.append(f"![Keep and remove, a pair of networks](images/{IMAGE.name})")
    return "\n\n".join(parts)


def main(words: Sequence[str] | None = None) -> None:
    a = parsed(arguments(COMMAND, __doc__.split("\n")[0], SCENES), words, SCENES, SHORT)
    warnings.filterwarnings("ignore")
    found = networks(COMMAND, a)
    with timing.resumable(COMMAND):
        rows = measured(a, found)
    text = text_of(rows, a, origin(found, a))
    print(text)
    if a.write:
        quality_figure.draw(rows, IMAGE)
        write_block(DOCUMENT, "quality", text)


if __name__ == "__main__":
    main()
