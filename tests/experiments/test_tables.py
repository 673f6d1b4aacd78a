"""docs/benchmarks.md from results of the benchmark: who is first, and that no row is dropped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bench_plans
import omenn
from experiments import tables, tables_figure, tables_published, tables_read, tables_text
from experiments.tables_published import AS_PUBLISHED, PUBLISHED
from experiments.tables_read import PLANS, Run, model_name, opened, read
from omenn.bench.plan import Plan
from omenn.bench.plan_entries import Entry
from omenn.metrics.protocols import PROTOCOLS
from omenn.viz.bench_table import Column, fewer

GAE, IND = "gae", "insertion-deletion[step=128]"
TRIVIAL = ("constant", "centre", "edges", "random")
# method → (gae, insertion − deletion, complexity), of which less is better
NUMBERS: Mapping[str, tuple[float | None, float | None, float | None]] = {
    "omenn": (0.50, 0.30, 5.0),
    "abslrp": (0.47, 0.10, 4.9),
    "saliency": (0.30, 0.20, 9.0),
    "constant": (0.00, 0.25, 8.0),
    "centre": (0.40, 0.02, 7.0),
    "edges": (0.10, 0.01, 6.0),
    "random": (0.00, None, 9.5),
}
HALF = 0.04  # of an interval


def measured(metric: str, measure: str, value: float | None) -> dict[str, Any]:
    ends = {k: None if value is None else value + d for k, d in (("low", -HALF), ("high", HALF))}
    return {
        "metric": metric,
        "measure": measure,
        "value": value,
        **ends,
        "images": 8,
        "chance": None,
    }


def line(name: str, numbers: tuple[float | None, ...]) -> dict[str, Any]:
    names = ((GAE, "gae"), (IND, "insertion − deletion"), ("complexity", "complexity"))
    return {
        "method": name,
        "trivial": name in TRIVIAL,
        "promise": None if name in TRIVIAL else "exact",
        "seconds_per_picture": 0.01,
        "peak_memory_bytes": 1000,
        "values": [measured(*names[k], value) for k, value in enumerate(numbers)],
        "counted": {"gae": {"constant maps": 8}} if name == "constant" else {},
        "failures": {},
    }


def failed(name: str, why: str) -> dict[str, Any]:
    empty = {**line(name, ()), "seconds_per_picture": None}
    return {**empty, "failures": dict.fromkeys((GAE, IND, "complexity"), why)}


def result(folder: Path, **changes: Any) -> Path:
    """A folder of results with the numbers above."""
    words = {
        "methods": ["omenn", "abslrp", "saliency", "rollout"],
        "metrics": [GAE, IND, "complexity"],
        "models": ["birds-resnet"],
        "limit": 8,
        "seed": 3,
        **changes,
    }
    methods = [line(name, numbers) for name, numbers in NUMBERS.items()]
    methods.insert(3, failed("rollout", "the model has no attention."))
    record = {
        "data": f"{words.get('data', 'birds')}, split test",
        "versions": {"omenn": "1.2.3", "torch": "4.5.6"},
        "seed": 3,
        "plan": Plan.from_words(words).toml(),
        "metrics": {},
        "models": [
            {
                "model": Plan.from_words(words).models[0].name,
                "weights": "trained",
                "warning": "",
                "pictures": 8,
                "facts": {
                    "accuracy": {"value": 1, "low": 1, "high": 1, "images": 8, "chance": None}
                },
                "methods": methods,
            }
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read(result(tmp_path / "few"))


def column(run: Run, measure: str) -> Column:
    return next(c for c in run.bench.columns if c.measure == measure)


def table_of(text: str, first: str) -> dict[str, list[str]]:
    """The rows of the Markdown table whose head begins with a word, by their first cell."""
    lines = text.splitlines()
    start = next(k for k, row in enumerate(lines) if row.startswith(f"| {first} |"))
    rows = {}
    for row in lines[start + 2 :]:
        if not row.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in row.strip("|").split(" | "))
        rows[name] = cells
    return rows


# --- who is first --------------------------------------------------------------------------------


def test_first_within_its_interval_and_below_the_trivial_rows(run: Run) -> None:
    (table,) = run.models.values()
    rows = table_of(tables_text.winners(run, table), "measure")
    # .47 is in [.46, .54]; a constant map has .25 on insertion − deletion, which two do not reach
    assert rows["gae: gae"] == ["omenn 0.500", "abslrp", "*centre* 0.400", "saliency", "1 of 3"]
    assert rows[IND] == ["omenn 0.300", "none", "*constant* 0.250", "abslrp, saliency", "1 of 3"]
    assert rows["complexity ↓"] == ["abslrp 4.900", "none", "*edges* 6.000", "saliency", "2 of 3"]


def test_every_exact_row_of_ours_has_its_place(tmp_path: Path) -> None:
    folder = result(tmp_path / "few")
    record = json.loads((folder / "results.json").read_text())
    own = line("omenn-focused[steps=4]", (0.49, 0.35, 5.5))
    record["models"][0]["methods"].insert(1, own)
    (folder / "results.json").write_text(json.dumps(record))
    run = read(folder)
    (table,) = run.models.values()
    text = tables_text.winners(run, table)
    assert "| place of `omenn` | place of `omenn-focused[steps=4]` |" in text.splitlines()[0]
    rows = table_of(text, "measure")
    assert [cells[-2:] for cells in rows.values()] == [
        ["1 of 4", "2 of 4"],
        ["2 of 4", "1 of 4"],
        ["2 of 4", "3 of 4"],
    ]


def test_less_may_be_better(run: Run) -> None:
    (table,) = run.models.values()
    lines = {ln.name: ln for ln in table.lines}
    best = lines["abslrp"].values[column(run, "complexity")]
    assert best.high == pytest.approx(4.94)
    assert not tables_text.near(table, lines["omenn"], column(run, "complexity"))
    assert tables_text.near(table, lines["abslrp"], column(run, "gae"))
    assert tables_text.below(table, column(run, "complexity")) == [lines["saliency"]]


def test_it_is_said_plainly_where_no_method_is_above_the_trivial_rows(tmp_path: Path) -> None:
    folder = result(tmp_path / "few")
    record = json.loads((folder / "results.json").read_text())
    for entry in record["models"][0]["methods"]:
        for value in entry["values"]:
            if entry["method"] == "constant" and value["metric"] == GAE:
                value["value"] = 0.9
    (folder / "results.json").write_text(json.dumps(record))
    run = read(folder)
    (table,) = run.models.values()
    said = tables_text.in_words(run, table)
    assert "No method is better than the best trivial row on gae: gae." in said
    assert "Better than it on no measure: saliency." in said
    assert "3 methods on 3 measures." in said
    assert "**0.500**†" in tables_text.rows(run, table, [column(run, "gae")])


def test_without_trivial_rows_it_is_said(tmp_path: Path) -> None:
    folder = result(tmp_path / "few", trivial=False)
    record = json.loads((folder / "results.json").read_text())
    rows = record["models"][0]["methods"]
    record["models"][0]["methods"] = [row for row in rows if not row["trivial"]]
    (folder / "results.json").write_text(json.dumps(record))
    run = read(folder)
    assert run.command.endswith("--no-trivial -o runs/bench/few")
    assert "no trivial rows" in tables_text.block(run, {})


# --- the rows ------------------------------------------------------------------------------------


def test_every_row_is_there_and_trivial_ones_are_in_italics(run: Run) -> None:
    text = tables_text.block(run, {})
    assert text.index("<details><summary>Every row of every measure") < text.index("**What the")
    rows = table_of(text.split("**What the model says of changed pictures**")[1], "method")
    # by the first column, gae
    wanted = ["`omenn`", "`abslrp`", "*centre*", "`saliency`", "*edges*", "*constant*", "*random*"]
    assert list(rows) == wanted
    assert rows["`omenn`"] == ["**0.500** [0.46, 0.54]", "**0.300** [0.26, 0.34]"]
    assert rows["`abslrp`"] == ["0.470≈ [0.43, 0.51]", "0.100† [0.06, 0.14]"]
    assert rows["*constant*"][1] == "0.250 [0.21, 0.29]"
    assert rows["*random*"][1] == "–"


def test_what_failed_and_what_was_counted_is_below(run: Run) -> None:
    text = tables_text.block(run, {})
    assert "No value: rollout: the model has no attention." in text
    assert "- gae: constant maps: constant 8" in text


def test_provenance_stands_beside(run: Run) -> None:
    text = tables_text.block(run, {})
    said = "Data: birds, split test; 8 pictures. Seed 3. Versions: omenn 1.2.3, torch 4.5.6."
    assert said in text
    assert "Trained; accuracy 1.000 [1.00, 1.00]." in text
    assert run.command in text


def test_how_many_numbers_there_are_is_said_where_it_is_not_one_a_picture(tmp_path: Path) -> None:
    folder = result(tmp_path / "few")
    record = json.loads((folder / "results.json").read_text())
    for entry in record["models"][0]["methods"]:
        for value in entry["values"]:
            if value["metric"] == GAE:
                value["images"] = 1
            elif entry["method"] == "omenn":
                value["images"] = 7
    (folder / "results.json").write_text(json.dumps(record))
    run = read(folder)
    (table,) = run.models.values()
    said = fewer(table, tables_text.shown(run))
    assert said == f"Fewer numbers than pictures, of a row: gae 1, {IND} 7 to 8, complexity 7 to 8."
    # one number has no interval, and nothing is within it
    assert "| **0.500** |" in tables_text.rows(run, table, [column(run, "gae")])
    assert table_of(tables_text.winners(run, table), "measure")["gae: gae"][1] == "none"


def test_every_protocol_has_a_group() -> None:
    grouped = [name for group in tables_text.GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(PROTOCOLS)


def test_a_metric_with_a_name_of_its_own_is_told_from_the_plain_one() -> None:
    metrics = ["funnybirds", {"metric": "funnybirds", "name": "other", "published": True}]
    plan = Plan.from_words({"metrics": metrics})
    columns = tuple(
        Column(m.name, x.name, headline=x.headline)
        for m in plan.metrics
        for x in PROTOCOLS[m.base].measures
    )
    bench = tables_read.Bench("", columns, {}, (), "", {}, 0)
    heads = [tables_text.head(c, Run("x", plan, bench, "")) for c in bench.headlines]
    assert heads[:2] == ["mean", "completeness"]
    assert heads[5:7] == ["other: mean", "other: completeness"]


def test_a_protocol_that_is_there_twice_has_two_tables(tmp_path: Path) -> None:
    other = {"metric": "gae", "name": "other gae", "steps": 4}
    folder = result(tmp_path / "few", metrics=[GAE, IND, "complexity", other])
    record = json.loads((folder / "results.json").read_text())
    for entry in record["models"][0]["methods"]:
        if entry["values"]:
            entry["values"].append(measured("other gae", "gae", 0.1))
    (folder / "results.json").write_text(json.dumps(record))
    run = read(folder)
    (table,) = run.models.values()
    titles = [text.partition("\n")[0].strip("*") for text in tables_text.tables(run, table)]
    changed = "What the model says of changed pictures"
    assert titles == [changed, f"{changed}: other gae", "The form of the map"]


# --- commands ------------------------------------------------------------------------------------


def test_command_names_the_plan_and_what_differs(tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    plans.mkdir()
    (plans / "mine.toml").write_text(f'metrics = ["{GAE}"]\nmethods = ["omenn"]\nlimit = 9\n')
    plan = Plan.from_file(plans / "mine.toml", {"limit": 4, "seed": 2})
    assert tables_read.same(plan, plans) == plans / "mine.toml"
    said = tables_read.command(plan, plans / "mine.toml", "mine")
    assert said == "omenn bench experiments/plans/mine.toml --limit 4 --seed 2 -o runs/bench/mine"
    other = Plan.from_file(plans / "mine.toml", {"methods": ["abslrp"]})
    assert "mine.toml --methods abslrp -o" in tables_read.command(other, plans / "mine.toml", "x")
    assert tables_read.same(Plan.from_words({"metrics": ["gae", "srg"]}), plans) is None


def test_a_command_makes_the_plan_again(run: Run) -> None:
    import shlex

    words = shlex.split(run.command)
    flags = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
    given = {name.removeprefix("--"): value for name, value in flags.items()}
    numbers = {key: int(given[key]) for key in ("limit", "seed")}
    assert Plan.from_words({**given, **numbers}) == run.plan


def test_no_folder_of_somebody_is_written() -> None:
    net = "experiments/cifar10.py:resnet20[weights=/home/somebody/resnet20.th]"
    words = {"data": "cifar10:/home/somebody/cifar", "models": [net]}
    plan = Plan.from_file(PLANS / "cifar.toml", words)
    said = tables_read.command(plan, PLANS / "cifar.toml", "cifar")
    assert "somebody" not in said
    assert "--data cifar10:FOLDER" in said
    assert "experiments/cifar10.py:resnet20[weights=resnet20.th]" in said
    assert model_name(plan.models[0]) == "resnet20"
    assert opened("funnybirds:../x/y") == "funnybirds:FOLDER"


# --- the plans -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(PLANS.glob("*.toml")), ids=lambda file: file.name)
def test_a_plan_is_right_and_has_every_method(file: Path) -> None:
    plan = Plan.from_file(file)
    plan.check_methods()
    homes = {name: str(m.function.__module__) for name, m in omenn.methods().items()}
    own = {name for name, home in homes.items() if home.startswith("omenn.")}
    assert len(own) >= 23  # whatever else other tests have registered
    if file.name == "small.toml":  # a look, and not published
        return
    assert own <= {entry.base for entry in plan.methods}
    assert plan.trivial
    for metric in plan.metrics:
        found = PROTOCOLS[metric.base]
        assert set(metric.options) <= set(found.options), metric.name
    if plan.data.base == "birds":
        plan.check_data()


def test_the_birds_are_judged_by_every_protocol() -> None:
    plans = [Plan.from_file(file) for file in PLANS.glob("birds*.toml")]
    bases = [metric.base for plan in plans for metric in plan.metrics]
    assert sorted(bases) == sorted(PROTOCOLS)


def test_the_official_plan_has_the_published_protocol_as_the_page_looks_for_it() -> None:
    plan = Plan.from_file(PLANS / "official.toml")
    named = {metric.name: metric for metric in plan.metrics}
    assert named[AS_PUBLISHED].options == {"published": True}
    assert named["funnybirds"].options == {}


# --- the leaderboard -----------------------------------------------------------------------------


def test_published_means_follow_from_their_parts() -> None:
    printed = {("ViT-B/16", "Rollout"), ("ViT-B/16", "RISE"), ("a network of its own", "BagNet")}
    for entry in PUBLISHED:
        mean = math.fsum(part or 0.0 for part in entry.parts) / 3
        fits = abs(mean - entry.mean) < 0.0101
        assert fits is ((entry.model, entry.method) not in printed), entry


def test_names_of_the_leaderboard_exist() -> None:
    methods = {entry.method for entry in PUBLISHED}
    assert set(tables_published.OURS.values()) <= methods
    assert set(tables_published.OURS) <= set(omenn.methods())


def test_the_leaderboard_stands_beside_ours(tmp_path: Path) -> None:
    words = {
        "metrics": [{"metric": "funnybirds", "name": AS_PUBLISHED, "published": True}],
        "methods": ["omenn", "deeplift"],
    }
    folder = result(tmp_path / "official", **words)
    record = json.loads((folder / "results.json").read_text())
    record["models"][0]["methods"] = [
        {
            **line(name, ()),
            "values": [
                measured(AS_PUBLISHED, measure, value)
                for measure in ("mean", "completeness", "correctness", "contrastivity")
            ],
        }
        for name, value in (("omenn", 0.7), ("deeplift", 0.6), ("constant", 0.65))
    ]
    (folder / "results.json").write_text(json.dumps(record))
    run = read(folder)
    text = tables_published.beside([run], {"birds-resnet": (1_600_000, 96)})
    assert "**These are not the same models.**" in text
    assert "`birds-resnet`, with 1.6 million parameters at 96 pixels, 100 % right" in text
    assert "judged on 8 test pictures" in text
    rows = table_of(text, "method")
    assert rows["`deeplift`"] == ["0.91", "0.85", "0.53", "0.600† [0.56, 0.64]"]
    assert rows["`omenn`"] == ["", "", "", "0.700 [0.66, 0.74]"]
    assert rows["*constant*"][3] == "0.650 [0.61, 0.69]"
    assert rows["ResLRP (preprint)"][2] == "0.89"
    assert "| our `birds-resnet` | `omenn` | 1.000 | – | 0.700 | 0.700 | 0.700 | 0.700 |" in text


def test_without_the_published_protocol_there_is_no_leaderboard(run: Run) -> None:
    assert tables_published.beside([run], {}) == ""


# --- the page ------------------------------------------------------------------------------------


def page(folder: Path, kind: str = "birds") -> Path:
    file = folder / "docs" / "benchmarks.md"
    file.parent.mkdir()
    file.write_text(f"before\n<!-- bench-{kind}:begin -->\nold\n<!-- bench-{kind}:end -->\nafter\n")
    return file


def test_the_block_and_its_pictures_are_written(tmp_path: Path) -> None:
    folder, file = result(tmp_path / "few"), page(tmp_path)
    tables.main(["birds", "--results", str(folder), "--write", "--page", str(file)])
    text = file.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    (link,) = re.findall(r"\]\((images/[^)]+)\)", text)
    assert (file.parent / link).read_bytes().startswith(b"\x89PNG")
    tables.main(["birds", "--results", str(folder), "--write", "--page", str(file)])
    assert file.read_text(encoding="utf-8") == text


def test_without_write_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables.main(["birds", "--results", str(result(tmp_path / "few"))])
    assert "#### few: birds-resnet" in capsys.readouterr().out
    assert [path.name for path in tmp_path.rglob("*.png")] == []


def test_a_picture_shows_headlines_that_have_a_value(run: Run) -> None:
    (table,) = run.models.values()
    columns = tables_figure.chosen(run, table)
    assert [c.measure for c in columns] == ["gae", "insertion − deletion", "complexity"]
    assert [ln.name for ln in tables_figure.ordered(table, columns)][:3] == [
        "omenn",
        "abslrp",
        "centre",
    ]


def test_a_picture_marks_the_exact_rows_of_ours(run: Run, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    (table,) = run.models.values()
    colours = {ln.name: tables_figure._colour(ln) for ln in table.lines}
    ours = {name for name, colour in colours.items() if colour == tables_figure.OURS}
    assert ours == {"omenn"}
    more = replace(
        next(ln for ln in table.lines if ln.name == "omenn"), name="omenn-focused[steps=4]"
    )
    assert tables_figure._colour(more) == tables_figure.OURS
    tables_figure.draw(run, table, "net", tmp_path / "net.png")
    pixels = np.asarray(Image.open(tmp_path / "net.png").convert("RGB")).reshape(-1, 3)
    orange = np.array([int(tables_figure.OURS[k : k + 2], 16) for k in (1, 3, 5)])
    assert (np.abs(pixels - orange).max(1) <= 2).sum() > 20


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("gae: gae", ["gae: gae"]),
        ("funnybirds: single deletion given area", ["funnybirds: single", "deletion given area"]),
        ("insertion-deletion[step=128]", ["insertion-deletion", "[step=128]"]),
        ("idsds[pictures=500;epochs=3] ↓", ["idsds[pictures=500;", "epochs=3] ↓"]),
        ("smooth-mprt[samples=2] ↓", ["smooth-mprt[samples=2] ↓"]),
    ],
)
def test_titles_break_between_words_and_options(text: str, lines: list[str]) -> None:
    assert tables_figure._title(text).split("\n") == lines


def test_results_of_a_real_run(tmp_path: Path) -> None:
    net = bench_plans.networks(tmp_path)
    done = bench_plans.run(tmp_path / "out", models=[net], trivial=True)
    run = read(tmp_path / "out")
    (table,) = run.models.values()
    assert list(run.models) == ["build"]
    recorded = done.record["models"][0]["methods"]
    assert [ln.name for ln in table.lines] == [entry["method"] for entry in recorded]
    for own, entry in zip(table.lines, recorded, strict=True):
        by_measure = {value["measure"]: value for value in entry["values"]}
        for c, value in own.values.items():
            there = by_measure[c.measure]["value"]
            assert value.value == there or (there is None and math.isnan(value.value))
            assert table.good(own, c) is by_measure[c.measure]["above_trivial"]
    assert "*constant*" in tables_text.block(run, {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"results\.json cannot be read \(No such file.*\)\. Make it with omenn bench -o"),
        ("{", r"no result of this version of omenn bench \(JSONDecodeError: .*run it again\."),
        ('{"plan": "limit = 0"}', r"no result of .* \(InputError: limit is 0, expected 1 or more"),
        ("[]", r"no result of .* \(TypeError"),
    ],
)
def test_results_that_cannot_be_used(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=words):
        tables.main(["birds", "--results", str(tmp_path)])


def test_the_same_twice_is_refused(tmp_path: Path) -> None:
    folder = str(result(tmp_path / "few"))
    with pytest.raises(SystemExit, match="two folders hold results of 'few'"):
        tables.main(["birds", "--results", folder, folder])


def test_a_page_without_the_block(tmp_path: Path) -> None:
    folder, file = result(tmp_path / "few"), page(tmp_path, "cifar")
    with pytest.raises(SystemExit, match="has no block 'bench-birds'"):
        tables.main(["birds", "--results", str(folder), "--write", "--page", str(file)])


def test_short_names() -> None:
    assert model_name(Entry.read({"model": "a.py:b", "name": "mine"}, "model")) == "mine"
    assert model_name(Entry.read("timm:vit[seed=1]", "model")) == "timm:vit[seed=1]"
    assert tables.picture("birds", "birds-vit") == "bench-birds-vit.png"
