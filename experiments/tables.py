"""The tables of docs/benchmarks.md and docs/support.md, from what is kept in experiments/results.

    omenn bench experiments/plans/birds.toml -o runs/bench/birds
    python -m experiments.tables --results runs/bench/birds --write    keeps it; writes the page
    python -m experiments.tables --out runs/tables                     every row of every table

Without options the blocks of the page are printed. ``--out`` writes one HTML file for each run of
the benchmark and one for the support matrix; beside the page they are the long form.
"""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import leaderboard
from experiments.bench_results import COST, KEPT, OWN, Run, keep, read
from experiments.report import ROOT, table, write_block
from experiments.tables_figure import draw
from omenn.files.atomic import write_files

PAGE = ROOT / "docs" / "benchmarks.md"
SUPPORT = ROOT / "experiments" / "results" / "support.csv"
KINDS = {
    "birds": ("birds", "birds-gae", "birds-slow", "birds-random"),
    "official": ("official", "official-more"),
    "cifar": ("cifar",),
    "photographs": ("photographs",),
}
"""Block of the page → its runs. Plans that cost more have fewer pictures: rows are not mixed."""
FEW, MANY = 2, 6  # names in a cell of the page; names of which the others may be shorter
LEGEND = (
    "<b>bold</b>: first of the methods · ≈: not below the 95 % interval of the first · †: not "
    "better than the best trivial row, which knows no model · ↓: less is better · in brackets: "
    "95 % interval by bootstrap over pictures."
)
STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2rem}table{border-collapse:collapse;font-size:13px}"
    "td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
)


# --- cells -------------------------------------------------------------------------------------


def short(value: float) -> str:
    """A value as the tables have it.

    >>> short(0.8531), short(-12.3456), short(3936.0), short(float("nan"))
    ('0.853', '−12.35', '3936', '–')
    """
    if pd.isna(value):
        return "–"
    return (f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}").replace("-", "−")


def interval(row: Any) -> str:
    """``[0.81, 0.89]``; empty where there is none."""
    if pd.isna(row.low):
        return ""
    digits = [2 if abs(end) < 10 else 1 if abs(end) < 100 else 0 for end in (row.low, row.high)]
    ends = (f"{end:.{n}f}" for end, n in zip((row.low, row.high), digits, strict=True))
    return f"[{', '.join(ends)}]".replace("-", "−")


def mark(row: Any) -> str:
    """≈ and †, for methods."""
    if row.trivial or pd.isna(row.value):
        return ""
    return "≈" * bool(row.near) + "†" * (not row.good)


def cell(row: Any) -> str:
    """``0.853† [0.81, 0.89]``."""
    return f"{short(row.value)}{mark(row)} {interval(row)}".strip()


def label(method: str, trivial: bool) -> str:
    return f"*{method}*" if trivial else f"`{method}`"


def some(names: Sequence[str], everyone: Sequence[str], most: int | None = None) -> str:
    """All names, or the first ``most``; where that is shorter, those that are left out."""
    rest = [name for name in everyone if name not in names]
    if not names:
        return "none"
    if not rest:
        return "all"
    if len(names) >= MANY and len(rest) < (MANY if most is None else most + 1):
        return f"all but {', '.join(rest)}"
    if most is not None and len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return ", ".join(names)


# --- who is first ------------------------------------------------------------------------------


def winner(rows: pd.DataFrame, most: int | None = None) -> dict[str, str]:
    """One measure on one model: first, within its interval, best trivial, not better, places."""
    rows = rows[rows.value.notna()]
    methods, trivial = rows[~rows.trivial], rows[rows.trivial]
    everyone = list(methods.method)
    first, below = methods[methods["first"]], methods[~methods.good]
    best = trivial[trivial["first"]]
    own = methods[methods.method.str.split("[").str[0].isin(OWN)]
    return {
        "first": f"{some(list(first.method), everyone, most)} {short(first.value.iloc[0])}"
        f"{mark(first.iloc[0])}",
        "within its interval": some(list(methods[methods.near].method), everyone, most),
        "best trivial": f"*{', '.join(best.method)}* {short(best.value.iloc[0])}"
        if len(best)
        else "–",
        "not better than that": some(list(below.method), everyone, most),
        "count": f"{len(below)} of {len(methods)}",
        "places": ", ".join(f"{place:.0f}" for place in own.place),
        **{
            f"place of {row.method}": f"{row.place:.0f} of {len(methods)}"
            for row in own.itertuples()
        },
    }


def measured(rows: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """(measure with its arrow, its rows), of those that a method has a value of."""
    for name, own in rows.groupby("measure", sort=False):
        if own[~own.trivial].value.notna().any():
            yield f"{name}{' ↓' * (not own.higher.iloc[0])}", own


def winners(run: Run) -> str:
    """The measures by the models: first, best trivial row, how many are not better, our places."""
    found: dict[str, list[str]] = {}
    for model in run.models:
        for name, rows in measured(run.of(model)):
            one = winner(rows, FEW)
            cells = [one["first"], f"{one['best trivial']}; {one['count']}", one["places"]]
            found.setdefault(name, [name]).extend(cells)
    short_names = [model.removeprefix(f"{run.stem.partition('-')[0]}-") for model in run.models]
    header = ["measure"]
    for model in short_names:
        header += [f"{model}: first", "best trivial; not better", "places"]
    return table(header, list(found.values()))


# --- the page ----------------------------------------------------------------------------------


def block(kind: str, runs: Sequence[Run], folder: Path | None) -> str:
    """The block of a kind of data; pictures are drawn into ``folder``, if there is one."""
    parts = [leaderboard.beside(runs)] if kind == "official" else []
    return "\n\n".join(filter(None, [*parts, *(section(run, folder) for run in runs)]))


def section(run: Run, folder: Path | None) -> str:
    """A run on the page: command, provenance, models, who is first."""
    said = []
    for name, about in run.models.items():
        words = [about["subject"], about["summary"], about["few"], *about["failures"]]
        said.append(f"- `{name}`: {' '.join(filter(None, words))}")
    pictures = [f"[{name}](images/{picture(run.stem, name)})" for name in run.models]
    if folder:
        for name in run.models:
            draw(run.of(name), f"{name}, {run.stem}", folder / picture(run.stem, name))
    return "\n\n".join(
        [
            f"### {run.stem}",
            f"```sh\n{run.about['command']}\n```",
            run.about["provenance"],
            "\n".join(said),
            f"Pictures of the rows: {', '.join(pictures)}.",
            winners(run),
        ]
    )


def picture(stem: str, model: str) -> str:
    """The file of a picture.

    >>> picture("birds-slow", "timm:vit[a=1]")
    'bench-birds-slow-timm-vit-a-1.png'
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", model).strip("-")
    return f"bench-{stem}-{plain.removeprefix(stem.partition('-')[0] + '-')}.png"


# --- the long form -----------------------------------------------------------------------------


def long_form(run: Run) -> str:
    """Everything that is kept of a run, as an HTML page."""
    parts = [f"<h1>{run.stem}</h1>", f"<pre>{html.escape(run.about['command'])}</pre>"]
    parts.append(f"<p>{html.escape(run.about['provenance'])}</p><p>{LEGEND}</p>")
    for name, about in run.models.items():
        said = [about["subject"], about["summary"], about["few"], *about["failures"]]
        parts.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(' '.join(said))}</p>")
        full = {title: winner(rows) for title, rows in measured(run.of(name))}
        frame = pd.DataFrame.from_dict(full, orient="index").drop(columns=["count", "places"])
        parts.append(_html(frame.reset_index(names="measure")))
        for group, rows in run.of(name).groupby("group", sort=False):
            parts.append(f"<h3>{html.escape(group)}</h3>{_html(every_row(rows), escape=False)}")
        costs = run.rows[(run.rows.model == name) & (run.rows.group == COST)]
        wide = costs.pivot(index="method", columns="measure", values="value")
        parts.append(f"<h3>{COST}</h3>{_html(wide.reset_index())}")
        counted = "".join(f"<li>{html.escape(line)}</li>" for line in about["counted"])
        parts.append(f"<h3>What was counted</h3><ul>{counted}</ul>")
    if leaderboard.ours([run]):
        parts.append(f"<h2>Published rows and ours, by part</h2>{_html(leaderboard.parts([run]))}")
    return document(f"omenn: {run.stem}", "\n".join(parts))


def every_row(rows: pd.DataFrame) -> pd.DataFrame:
    """Methods by measures, the best of the first measure first."""
    texts = [
        f"<b>{cell(r)}</b>" if r.first and not r.trivial else cell(r)
        for r in rows.itertuples(name="Row")
    ]
    arrows = rows.measure.where(rows.higher, rows.measure + " ↓")
    wide = rows.assign(text=texts, measure=arrows).pivot(
        index="method", columns="measure", values="text"
    )
    lead = rows[rows.measure == rows.measure.iloc[0]].set_index("method")
    order = lead.value.sort_values(ascending=not lead.higher.iloc[0], kind="stable").index
    wide = wide.reindex(index=[*order, *wide.index.difference(order)])
    wide = wide[list(dict.fromkeys(arrows))].fillna("–")
    italic = set(rows[rows.trivial].method)
    wide.index = [f"<i>{name}</i>" if name in italic else html.escape(name) for name in wide.index]
    return wide.reset_index(names="method")


def _html(frame: pd.DataFrame, escape: bool = True) -> str:
    return frame.to_html(index=False, escape=escape, na_rep="–", border=0, float_format="%.4g")


def document(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def write_long(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """The files of ``--out``."""
    made = {f"{run.stem}.html": long_form(run) for run in runs}
    support = pd.read_csv(SUPPORT, keep_default_na=False)
    made["support.html"] = document("omenn: supported models", _html(support))
    write_files({folder / name: text.encode() for name, text in made.items()})
    return [folder / name for name in made]


# --- the command -------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--results", type=Path, nargs="+", default=[], help="folders of omenn bench -o to keep")
    add("--write", action="store_true", help="write the blocks and their pictures")
    add("--out", type=Path, help="folder for the long form")
    add("--kept", type=Path, default=KEPT, help="what is kept (experiments/results/bench)")
    add("--page", type=Path, default=PAGE, help="(docs/benchmarks.md)")
    a = parser.parse_args(words)
    new = [keep(folder, a.kept) for folder in a.results]
    twice = [run.stem for run in new if [r.stem for r in new].count(run.stem) > 1]
    if twice:
        raise SystemExit(f"tables: two folders hold results of '{twice[0]}'. Give one of them.")
    stems = {path.stem for path in a.kept.glob("*.csv")}
    kinds = {kind: [s for s in wanted if s in stems] for kind, wanted in KINDS.items()}
    kinds["other"] = sorted(stems - {s for wanted in KINDS.values() for s in wanted})
    runs = {kind: [read(stem, a.kept) for stem in found] for kind, found in kinds.items()}
    if a.out:
        for path in write_long(a.out, [run for found in runs.values() for run in found]):
            print(f"wrote {path}")
    if a.write:
        for kind in KINDS:
            if runs[kind] and (not new or {r.stem for r in new} & set(kinds[kind])):
                write_block(a.page, f"bench-{kind}", block(kind, runs[kind], _images(a)))
    if not a.write and not a.out:
        print("\n\n".join(block(kind, found, None) for kind, found in runs.items() if found))


def _images(a: argparse.Namespace) -> Path | None:
    """Pictures are drawn anew only from results that were just measured."""
    return a.page.parent / "images" if a.results else None


if __name__ == "__main__":
    main()
