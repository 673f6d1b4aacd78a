"""FunnyBirds' published figures, and ours beside them.

``results/funnybirds-published.csv`` holds the project's public leaderboard
(github.com/visinf/funnybirds, its website's table), to two digits, and table 2 of the ResLRP
preprint for the official ViT-B/16. The preprint prints the parts of completeness; they are combined
as the leaderboard combines them: ((CSDC + PC + DC) / 3 + D) / 2. An empty cell was not computed
there, or not printed (the leaderboard has 0 then). Means are kept as printed where they do not
follow from their parts: Rollout (contrastivity is printed as .76 and counted as 0), BagNet (.92,
its parts give .893) and RISE on ViT-B/16 (.79, its parts give .773).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.bench_results import Run
from experiments.report import ROOT, table

FILE = ROOT / "experiments" / "results" / "funnybirds-published.csv"
BACKBONES = ("VGG16", "ResNet-50", "ViT-B/16")
PARTS = ("completeness", "correctness", "contrastivity", "mean")
AS_PUBLISHED = "funnybirds as published"
LEAD = f"{AS_PUBLISHED}: mean"
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
    "**These are not the same models.** The published figures are those of the authors' VGG16, "
    "ResNet-50 and ViT-B/16, at 256 pixels and on all 500 test pictures. Ours are {ours}: small "
    "networks, trained by `experiments/official_birds.py` on pictures of the same parts at a "
    "fraction of that size, and judged on {pictures} test pictures. A difference between a "
    "published number and ours says nothing about a method. What can be compared is the order of "
    "the methods, and the distance of each from the trivial rows, which the leaderboard does not "
    "have. Ours follow the published protocol here (`published=true`), including its defect with "
    "the last class. Published means are as printed, also where they do not follow from their "
    "parts (RISE on ViT-B/16, BagNet, Rollout)."
)


def published() -> pd.DataFrame:
    """The published rows: model, method, accuracy, background, the parts and their mean."""
    return pd.read_csv(FILE)


def ours(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Model → its rows by the published protocol, of the runs that have it."""
    found = {name: run.of(name) for run in runs for name in run.models}
    found = {name: rows[rows.measure.str.startswith(AS_PUBLISHED)] for name, rows in found.items()}
    return {name: rows for name, rows in found.items() if len(rows)}


def beside(runs: Sequence[Run]) -> str:
    """The published means beside ours, by method. Empty if no run has the published protocol."""
    rows = ours(runs)
    if not rows:
        return ""
    about = {name: run.models[name] for run in runs for name in run.models if name in rows}
    described = "; ".join(_described(name, one) for name, one in about.items())
    pictures = " or ".join(map(str, sorted({one["pictures"] for one in about.values()})))
    return f"{DIFFERENCE.format(ours=described, pictures=pictures)}\n\n{_means(rows)}"


def _described(name: str, about: Mapping[str, object]) -> str:
    said = f"`{name}`"
    if about["size"]:
        parameters, side = about["size"]  # type: ignore[misc]
        said += f", with {parameters / 1e6:.1f} million parameters at {side} pixels"
    return f"{said}, {100 * about['accuracy']:.0f} % right"  # type: ignore[operator]


def _means(rows: Mapping[str, pd.DataFrame]) -> str:
    """Methods by networks: the mean of completeness, correctness and contrastivity."""
    from experiments.tables import cell, label

    means = {name: own[own.measure == LEAD].set_index("method") for name, own in rows.items()}
    lead = next(iter(means.values())).value.sort_values(ascending=False, kind="stable")
    names = list(dict.fromkeys([*lead.index, *(n for own in means.values() for n in own.index)]))
    theirs = published()
    theirs = theirs[theirs.model.isin(BACKBONES)].pivot(
        index="method", columns="model", values="mean"
    )
    lines = []
    for name in names:
        line = next(own.loc[name] for own in means.values() if name in own.index)
        cells = [cell(own.loc[name]) if name in own.index else "–" for own in means.values()]
        lines.append([label(name, line.trivial), *_published(theirs, OURS.get(name)), *cells])
    matched = {OURS[name] for name in names if name in OURS}
    for method in published().method.drop_duplicates():
        if method in theirs.index and method not in matched:
            lines.append([method, *_published(theirs, method), *[""] * len(means)])
    return table(["method", *BACKBONES, *(f"our `{name}`" for name in means)], lines)


def _published(theirs: pd.DataFrame, method: str | None) -> list[str]:
    if method is None:
        return [""] * len(BACKBONES)
    found = theirs.loc[method, list(BACKBONES)]
    return ["" if pd.isna(value) else f"{value:.2f}" for value in found]


def parts(runs: Sequence[Run]) -> pd.DataFrame:
    """Every published row, and ours, with all six numbers."""
    found = [published()]
    for name, rows in ours(runs).items():
        own = rows.assign(part=rows.measure.str.removeprefix(f"{AS_PUBLISHED}: "))
        wide = own.pivot(index="method", columns="part", values="value").reset_index()
        found.append(wide.assign(model=f"our {name}"))
    columns = ["model", "method", "accuracy", "background", *PARTS]
    return pd.concat(found).reindex(columns=columns)
