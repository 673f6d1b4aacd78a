"""FunnyBirds' published figures, and ours beside them.

Sources: the project's public leaderboard (github.com/visinf/funnybirds, its website's table), to
two digits; the ResLRP preprint, table 2, to three, for the official ViT-B/16. ``None``: not
computed there, or not printed (the leaderboard has 0 then). Means that do not follow from their
parts are kept as printed: of Rollout (contrastivity is printed as .76 and counted as 0), of BagNet
(.92, its parts give .893), of RISE on ViT-B/16 (.79, its parts give .773).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.report import table as written
from experiments.tables_read import Run
from experiments.tables_text import folded
from omenn.viz.bench_table import Column, Line, Table, interval, short

BACKBONES = ("VGG16", "ResNet-50", "ViT-B/16")
PARTS = ("completeness", "correctness", "contrastivity")
AS_PUBLISHED = "funnybirds as published"


@dataclass(frozen=True)
class Entry:
    """One row of the leaderboard: accuracy, background independence, Com, Cor, Con, their mean."""

    model: str
    method: str
    accuracy: float | None
    background: float | None
    parts: tuple[float | None, float | None, float | None]
    mean: float


def _entries(model: str, text: str) -> list[Entry]:
    """From ``method accuracy background com cor con mean``, one a line, names with ``_``."""
    found = []
    for line in text.strip().splitlines():
        name, *words = line.split()
        accuracy, background, *parts, mean = [None if w == "-" else float(w) for w in words]
        assert mean is not None
        com, cor, con = parts
        found.append(
            Entry(model, name.replace("_", " "), accuracy, background, (com, cor, con), mean)
        )
    return found


def reslrp_mean(csdc: float, pc: float, dc: float, d: float, sd: float, ts: float) -> float:
    """The mean that the leaderboard would have of what the preprint prints.

    >>> round(reslrp_mean(.942, .954, .916, .937, .774, .950), 3)
    0.887
    """
    return (((csdc + pc + dc) / 3 + d) / 2 + sd + ts) / 3


def _preprint(
    method: str, csdc: float, pc: float, dc: float, d: float, sd: float, ts: float
) -> Entry:
    com = ((csdc + pc + dc) / 3 + d) / 2
    mean = reslrp_mean(csdc, pc, dc, d, sd, ts)
    return Entry("ViT-B/16", f"{method} (preprint)", None, None, (com, sd, ts), mean)


PUBLISHED: tuple[Entry, ...] = (
    *_entries(
        "VGG16",
        """
        IG .99 .99 .95 .67 .92 .85
        absolute_IG .99 .99 .97 .69 .84 .83
        RISE .99 .99 .79 .73 .83 .78
        LIME .99 .99 .91 - - .30
        input_×_gradient .99 .99 .84 .55 .69 .69
        Grad-CAM .99 .99 .91 .75 .93 .86
        guided_Grad-CAM .99 .98 .96 .75 .87 .86
        guided_backpropagation .99 .98 .95 .73 .72 .80
        DeepLIFT .99 .98 .97 .78 .99 .91
        """,
    ),
    *_entries(
        "ResNet-50",
        """
        IG 1 1 .86 .59 .98 .81
        absolute_IG 1 1 .87 .53 .86 .75
        RISE 1 1 .70 .56 .61 .62
        LIME 1 1 .86 - - .29
        input_×_gradient 1 1 .58 .54 .80 .64
        Grad-CAM 1 1 .74 .55 .78 .69
        guided_Grad-CAM 1 1 .46 .37 .12 .31
        guided_backpropagation 1 1 .47 .37 .06 .30
        DeepLIFT 1 1 .89 .65 .99 .85
        """,
    ),
    *_entries(
        "ViT-B/16",
        """
        IG .98 1 .88 .65 .91 .82
        absolute_IG .98 1 .92 .63 .74 .77
        RISE 1 1 .78 .79 .75 .79
        LIME 1 1 .90 - - .30
        input_×_gradient 1 1 .54 .51 .67 .57
        Grad-CAM .98 1 .81 .70 .48 .66
        Rollout .98 1 .76 .81 .76 .52
        LRP_of_Chefer .98 1 .90 .74 .95 .86
        DeepLIFT .97 1 .50 .49 .61 .53
        guided_backpropagation .97 1 .53 .52 .56 .53
        guided_Grad-CAM .97 1 .52 .50 .43 .48
        """,
    ),
    _preprint("ResLRP", 0.942, 0.954, 0.916, 0.937, 0.774, 0.950),
    _preprint("AttnLRP", 0.926, 0.926, 0.892, 0.864, 0.682, 0.955),
    _preprint("CP-LRP", 0.803, 0.620, 0.610, 0.440, 0.437, 0.831),
    *_entries(
        "a network of its own",
        """
        ProtoPNet_(ResNet-50) .94 1 .75 .76 .55 .69
        ProtoPNet_(ResNet-50,_similarity_maps) .94 1 .74 .83 .64 .74
        BagNet 1 1 .93 .76 .99 .92
        B-cos_(ResNet-50) .96 .87 .89 .69 .89 .82
        X-DNN_(ResNet-50) .99 1 .90 .60 .87 .79
        """,
    ),
)
OURS: Mapping[str, str] = {
    "integrated-gradients": "IG",
    "input-x-gradient": "input × gradient",
    "grad-cam": "Grad-CAM",
    "deeplift": "DeepLIFT",
    "rollout": "Rollout",
    "reslrp": "ResLRP (preprint)",
    "attnlrp": "AttnLRP (preprint)",
    "cp-lrp": "CP-LRP (preprint)",
}
"""Our name → theirs, where both mean the same method."""
DIFFERENCE = (
    "**These are not the same models.** Published are the authors' VGG16, ResNet-50 and ViT-B/16, "
    "at 256 pixels and on all 500 test pictures. Ours are {ours}: small networks, trained by "
    "`experiments/official_birds.py` on pictures of the same parts at a fraction of that size, and "
    "judged on {pictures} test pictures. A difference between a published number and ours says "
    "nothing about a method. What can be compared is the order of the methods, and each one's "
    "distance from the trivial rows, which the leaderboard does not have. Ours here follow the "
    "published protocol (`published=true`), its defect with the last class as well."
)

PRINTED = (
    "Published means are as they are printed, also where they do not follow from the parts: those "
    "of RISE on ViT-B/16, of BagNet, and of Rollout, whose contrastivity counts as 0 there, as "
    "does what was not computed (–)."
)


def beside(runs: Sequence[Run], sizes: Mapping[str, tuple[int, int]]) -> str:
    """The published means beside ours, by method, and below them every published part.

    ``sizes``: model → parameters and side in pixels. Empty if no run has the published protocol.
    """
    ours = {name: table for run in runs for name, table in run.models.items() if _mean(run)}
    columns = {name: _mean(run) for run in runs for name in run.models if _mean(run)}
    if not ours:
        return ""
    described = "; ".join(_described(name, table, sizes) for name, table in ours.items())
    pictures = " or ".join(str(n) for n in sorted({t.pictures for t in ours.values()}))
    said = DIFFERENCE.format(ours=described, pictures=pictures)
    return "\n\n".join([said, _means(ours, columns), _parts(ours, columns)])


def _mean(run: Run) -> Column | None:
    wanted = (AS_PUBLISHED, "mean")
    return next((c for c in run.bench.columns if (c.metric, c.measure) == wanted), None)


def _described(name: str, table: Table, sizes: Mapping[str, tuple[int, int]]) -> str:
    parts = [f"`{name}`"]
    if name in sizes:
        parameters, side = sizes[name]
        parts.append(f"with {parameters / 1e6:.1f} million parameters at {side} pixels")
    if "accuracy" in table.facts:
        parts.append(f"{100 * table.facts['accuracy'].value:.0f} % right")
    return ", ".join(parts)


def _means(ours: Mapping[str, Table], columns: Mapping[str, Column | None]) -> str:
    """Methods by networks: the mean of completeness, correctness and contrastivity."""
    (model, table), *_ = ours.items()
    lead = columns[model]
    found = {ln.name: ln.value(lead) for ln in table.lines if lead}
    order = {name: value for name, value in found.items() if not math.isnan(value)}
    both = {ln.name: ln.trivial for t in ours.values() for ln in t.lines}
    names = sorted(both, key=lambda name: -order.get(name, -1.0))
    theirs = list(dict.fromkeys(e.method for e in PUBLISHED if e.model in BACKBONES))
    rows = []
    for name in names:
        label = f"*{name}*" if both[name] else f"`{name}`"
        rows.append([label, *_published(OURS.get(name, "")), *_own(name, ours, columns)])
    matched = {OURS[name] for name in names if name in OURS}
    rows += [[name, *_published(name), *[""] * len(ours)] for name in theirs if name not in matched]
    return written(["method", *BACKBONES, *(f"our `{name}`" for name in ours)], rows)


def _published(method: str) -> list[str]:
    found = {e.model: e.mean for e in PUBLISHED if e.method == method}
    return [f"{found[model]:.2f}" if model in found else "" for model in BACKBONES]


def _own(name: str, ours: Mapping[str, Table], columns: Mapping[str, Column | None]) -> list[str]:
    found = []
    for model, table in ours.items():
        column = columns[model]
        line: Line | None = next((ln for ln in table.lines if ln.name == name), None)
        value = line.values.get(column) if line and column else None
        if value is None or line is None or column is None:
            found.append("–")
            continue
        low = "†" * (not line.trivial and not table.good(line, column))
        found.append(f"{short(value.value)}{low} {interval(value)}")
    return found


def _parts(ours: Mapping[str, Table], columns: Mapping[str, Column | None]) -> str:
    """Every published row, and ours, with all six numbers, folded up."""
    header = ["model", "method", "accuracy", "background independence", *PARTS, "mean"]
    rows = [
        [
            e.model,
            e.method,
            *(_digits(n) for n in (e.accuracy, e.background, *e.parts, e.mean)),
        ]
        for e in PUBLISHED
    ]
    for name, table in ours.items():
        facts = [
            short(table.facts[f].value) if f in table.facts else "–"
            for f in ("accuracy", "background independence")
        ]
        for line in table.lines:
            by_measure = {c.measure: v for c, v in line.values.items() if c.metric == AS_PUBLISHED}
            if by_measure:
                shown = [short(by_measure[m].value) for m in (*PARTS, "mean")]
                label = f"*{line.name}*" if line.trivial else f"`{line.name}`"
                rows.append([f"our `{name}`", label, *facts, *shown])
    inside = f"{written(header, rows)}\n\n{PRINTED}"
    return folded("All published rows and ours, by part", inside)


def _digits(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"
