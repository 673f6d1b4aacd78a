"""docs/benchmarks.md from results of the benchmark: who is first, and that no row is dropped."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import bench_plans
import omenn
from experiments import bench_command, bench_results, leaderboard, tables, tables_figure
from experiments.bench_command import model_name, opened
from experiments.bench_results import PLANS, Run, keep
from experiments.leaderboard import AS_PUBLISHED
from omenn.bench.plan import Plan
from omenn.bench.plan_entries import Entry
from omenn.metrics.metric_registry import metrics

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
        "higher_is_better": measure != "complexity",
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


def changed(folder: Path, change: Callable[[dict[str, Any]], object], **words: Any) -> Run:
    """A run whose record was changed before it is kept."""
    file = result(folder / "few", **words) / "results.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    return keep(folder / "few", folder / "kept")


def values(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in record["models"][0]["methods"]:
        for value in entry["values"]:
            yield entry["method"], value


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return keep(result(tmp_path / "few"), tmp_path / "kept")


def full(run: Run) -> dict[str, dict[str, str]]:
    """Measure → everything that is said of it, for the only model."""
    (model,) = run.models
    return {name: tables.winner(rows) for name, rows in tables.measured(run.of(model))}


def wide(run: Run, group: str) -> dict[str, list[str]]:
    """Method → its cells in a table of the long form."""
    rows = run.rows[run.rows.group == group]
    return {row[0]: list(row[1:]) for row in tables.every_row(rows).itertuples(index=False)}


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
    rows = {name: list(found.values()) for name, found in full(run).items()}
    # .47 is in [.46, .54]; a constant map has .25 on insertion − deletion, which two do not reach
    assert rows["gae: gae"][:4] == ["omenn 0.500", "abslrp", "*centre* 0.400", "saliency"]
    assert rows[IND][:4] == ["omenn 0.300", "none", "*constant* 0.250", "abslrp, saliency"]
    assert rows["complexity ↓"][:4] == ["abslrp 4.900", "none", "*edges* 6.000", "saliency"]
    assert [found["place of omenn"] for found in full(run).values()] == [
        "1 of 3",
        "1 of 3",
        "2 of 3",
    ]


def test_every_exact_row_of_ours_has_its_place(tmp_path: Path) -> None:
    own = line("omenn-focused[steps=4]", (0.49, 0.35, 5.5))
    run = changed(tmp_path, lambda record: record["models"][0]["methods"].insert(1, own))
    assert [found["places"] for found in full(run).values()] == ["1, 2", "2, 1", "2, 3"]
    assert "place of omenn-focused[steps=4]" in full(run)["gae: gae"]


def test_less_may_be_better(run: Run) -> None:
    rows = run.rows[run.rows.measure == "complexity"].set_index("method")
    assert rows.high["abslrp"] == pytest.approx(4.94)
    assert not rows.near["omenn"]
    assert rows["first"]["abslrp"]
    assert list(rows.index[~rows.good & ~rows.trivial]) == ["saliency"]


def test_it_is_said_plainly_where_no_method_is_above_the_trivial_rows(tmp_path: Path) -> None:
    def raise_constant(record: dict[str, Any]) -> None:
        for method, value in values(record):
            if (method, value["metric"]) == ("constant", GAE):
                value["value"] = 0.9

    run = changed(tmp_path, raise_constant)
    said = run.models["birds-resnet"]["summary"]
    assert "No method is better than the best trivial row on gae: gae." in said
    assert "Better than it on no measure: saliency." in said
    assert "3 methods on 3 measures." in said
    assert full(run)["gae: gae"]["first"] == "omenn 0.500†"


def test_without_trivial_rows_it_is_said(tmp_path: Path) -> None:
    def without(record: dict[str, Any]) -> None:
        rows = record["models"][0]["methods"]
        record["models"][0]["methods"] = [row for row in rows if not row["trivial"]]

    run = changed(tmp_path, without, trivial=False)
    assert run.about["command"].endswith("--no-trivial -o runs/bench/few")
    assert "no trivial rows" in tables.section(run, None)


# --- the rows ------------------------------------------------------------------------------------


def test_every_row_is_there_and_trivial_ones_are_in_italics(run: Run) -> None:
    rows = wide(run, "What the model says of changed pictures")
    # by the first column, gae
    wanted = ["omenn", "abslrp", "<i>centre</i>", "saliency", "<i>edges</i>", "<i>constant</i>"]
    assert list(rows)[:6] == wanted
    assert rows["omenn"] == ["<b>0.500 [0.46, 0.54]</b>", "<b>0.300 [0.26, 0.34]</b>"]
    assert rows["abslrp"] == ["0.470≈ [0.43, 0.51]", "0.100† [0.06, 0.14]"]
    assert rows["<i>constant</i>"][1] == "0.250 [0.21, 0.29]"
    assert rows["<i>random</i>"][1] == "–"


def test_what_failed_and_what_was_counted_is_below(run: Run) -> None:
    text = tables.long_form(run)
    assert "No value: rollout: the model has no attention." in text
    assert "gae: constant maps: constant 8" in text


def test_provenance_stands_beside(run: Run) -> None:
    said = "Data: birds, split test; 8 pictures. Seed 3. Versions: omenn 1.2.3, torch 4.5.6."
    for text in (tables.section(run, None), tables.long_form(run)):
        assert said in text
        assert "Trained; accuracy 1.000 [1.00, 1.00]." in text
        assert run.about["command"] in html.unescape(text)


def test_how_many_numbers_there_are_is_said_where_it_is_not_one_a_picture(tmp_path: Path) -> None:
    def fewer(record: dict[str, Any]) -> None:
        for method, value in values(record):
            if value["metric"] == GAE:
                value["images"] = 1
            elif method == "omenn":
                value["images"] = 7

    run = changed(tmp_path, fewer)
    said = run.models["birds-resnet"]["few"]
    assert said == f"Fewer numbers than pictures, of a row: gae 1, {IND} 7 to 8, complexity 7 to 8."
    # one number has no interval, and nothing is within it
    assert wide(run, "What the model says of changed pictures")["omenn"][0] == "<b>0.500</b>"
    assert full(run)["gae: gae"]["within its interval"] == "none"


def test_every_protocol_has_a_group() -> None:
    grouped = [name for group in bench_results.GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(metrics())


def test_a_metric_with_a_name_of_its_own_is_told_from_the_plain_one(tmp_path: Path) -> None:
    other = {"metric": "gae", "name": "other gae", "steps": 4}

    def twice(record: dict[str, Any]) -> None:
        for entry in record["models"][0]["methods"]:
            if entry["values"]:
                entry["values"].append(measured("other gae", "gae", 0.1))

    run = changed(tmp_path, twice, metrics=[GAE, IND, "complexity", other])
    groups = list(run.of("birds-resnet").group.drop_duplicates())
    same = "What the model says of changed pictures"
    assert sorted(groups) == ["The form of the map", same, f"{same}: other gae"]
    assert {"gae: gae", "other gae: gae"} <= set(full(run))


@pytest.mark.parametrize(
    ("names", "most", "said"),
    [
        ("", None, "none"),
        ("abcdefgh", None, "all"),
        ("abcdef", None, "all but g, h"),
        ("abc", 2, "a, b, c"),
        ("abcd", 2, "a, b and 2 more"),
    ],
)
def test_many_names_are_shortened(names: str, most: int | None, said: str) -> None:
    assert tables.some(list(names), list("abcdefgh"), most) == said


# --- commands ------------------------------------------------------------------------------------


def test_command_names_the_plan_and_what_differs(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'metrics = ["{GAE}"]\nmethods = ["omenn"]\nlimit = 9\n')
    file = tmp_path / "mine.toml"
    plan = Plan.from_file(file, {"limit": 4, "seed": 2})
    assert bench_command.same(plan, tmp_path) == file
    said = bench_command.command(plan, file, "mine")
    assert said == "omenn bench experiments/plans/mine.toml --limit 4 --seed 2 -o runs/bench/mine"
    other = Plan.from_file(file, {"methods": ["abslrp"]})
    assert "mine.toml --methods abslrp -o" in bench_command.command(other, file, "x")
    assert bench_command.same(Plan.from_words({"metrics": ["gae", "srg"]}), tmp_path) is None


def test_a_command_makes_the_plan_again(run: Run, tmp_path: Path) -> None:
    import shlex

    written = json.loads((tmp_path / "few" / "results.json").read_text())["plan"]
    words = shlex.split(run.about["command"])
    flags = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
    given = {name.removeprefix("--"): value for name, value in flags.items()}
    numbers = {key: int(given[key]) for key in ("limit", "seed")}
    assert Plan.from_words({**given, **numbers}).toml() == written


def test_no_folder_of_somebody_is_written() -> None:
    net = "experiments/cifar10.py:resnet20[weights=/home/somebody/resnet20.th]"
    words = {"data": "cifar10:/home/somebody/cifar", "models": [net]}
    plan = Plan.from_file(PLANS / "cifar.toml", words)
    said = bench_command.command(plan, PLANS / "cifar.toml", "cifar")
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
        found = metrics()[metric.base]
        assert set(metric.options) <= set(found.options), metric.name
    if plan.data.base == "birds":
        plan.check_data()


def test_the_birds_are_judged_by_every_protocol() -> None:
    plans = [Plan.from_file(file) for file in PLANS.glob("birds*.toml")]
    bases = [metric.base for plan in plans for metric in plan.metrics]
    assert sorted(bases) == sorted(metrics())


def test_the_official_plan_has_the_published_protocol_as_the_page_looks_for_it() -> None:
    plan = Plan.from_file(PLANS / "official.toml")
    named = {metric.name: metric for metric in plan.metrics}
    assert named[AS_PUBLISHED].options == {"published": True}
    assert named["funnybirds"].options == {}


# --- the leaderboard -----------------------------------------------------------------------------


def test_published_means_follow_from_their_parts() -> None:
    printed = {("ViT-B/16", "Rollout"), ("ViT-B/16", "RISE"), ("a network of its own", "BagNet")}
    for row in leaderboard.published().fillna(0).itertuples():
        mean = (row.completeness + row.correctness + row.contrastivity) / 3
        fits = abs(mean - row.mean) < 0.0101
        assert fits is ((row.model, row.method) not in printed), row


def test_names_of_the_leaderboard_exist() -> None:
    assert set(leaderboard.OURS.values()) <= set(leaderboard.published().method)
    assert set(leaderboard.OURS) <= set(omenn.methods())


def test_the_leaderboard_stands_beside_ours(tmp_path: Path) -> None:
    words = {
        "metrics": [{"metric": "funnybirds", "name": AS_PUBLISHED, "published": True}],
        "methods": ["omenn", "deeplift"],
    }

    def published(record: dict[str, Any]) -> None:
        record["models"][0]["methods"] = [
            {
                **line(name, ()),
                "values": [measured(AS_PUBLISHED, part, value) for part in leaderboard.PARTS],
            }
            for name, value in (("omenn", 0.7), ("deeplift", 0.6), ("constant", 0.65))
        ]

    run = changed(tmp_path, published, **words)
    text = leaderboard.beside([run])
    assert "**These are not the same models.**" in text
    described = r"`birds-resnet`, with \d\.\d million parameters at 64 pixels, 100 % right"
    assert re.search(described, text)
    assert "judged on 8 test pictures" in text
    rows = table_of(text, "method")
    assert rows["`deeplift`"] == ["0.91", "0.85", "0.53", "0.600† [0.56, 0.64]"]
    assert rows["`omenn`"] == ["", "", "", "0.700 [0.66, 0.74]"]
    assert rows["*constant*"][3] == "0.650 [0.61, 0.69]"
    assert rows["ResLRP (preprint)"][2] == "0.89"
    own = leaderboard.parts([run]).query("model == 'our birds-resnet'").set_index("method")
    assert list(own.loc["omenn", list(leaderboard.PARTS)]) == [0.7] * 4


def test_without_the_published_protocol_there_is_no_leaderboard(run: Run) -> None:
    assert leaderboard.beside([run]) == ""


# --- the page ------------------------------------------------------------------------------------


def page(folder: Path) -> Path:
    file = folder / "docs" / "benchmarks.md"
    file.parent.mkdir()
    blocks = [f"<!-- bench-{kind}:begin -->\nold\n<!-- bench-{kind}:end -->" for kind in ("birds",)]
    file.write_text("\n".join(["before", *blocks, "after"]) + "\n")
    return file


def test_the_block_and_its_pictures_are_written(tmp_path: Path) -> None:
    folder, file = result(tmp_path / "birds", metrics=[GAE, IND, "complexity"]), page(tmp_path)
    words = ["--kept", str(tmp_path / "kept"), "--write", "--page", str(file)]
    tables.main(["--results", str(folder), *words])
    text = file.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    (link,) = re.findall(r"\]\((images/[^)]+)\)", text)
    assert (file.parent / link).read_bytes().startswith(b"\x89PNG")
    tables.main(words)  # from what was kept
    assert file.read_text(encoding="utf-8") == text


def test_what_is_published_is_written_as_it_stands() -> None:
    text = tables.PAGE.read_text(encoding="utf-8")
    for kind, stems in tables.KINDS.items():
        runs = [bench_results.read(stem) for stem in stems]
        assert tables.block(kind, runs, None) in text


def test_the_long_form_has_every_row(tmp_path: Path) -> None:
    tables.main(["--out", str(tmp_path)])
    for stem in (stem for stems in tables.KINDS.values() for stem in stems):
        text, run = (tmp_path / f"{stem}.html").read_text(), bench_results.read(stem)
        assert text.count("<tr>") > run.rows.method.nunique() * len(run.models)
        assert all(method in text for method in run.rows.method)
    assert "resnet18" in (tmp_path / "support.html").read_text()


def test_without_write_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, kept = result(tmp_path / "few"), tmp_path / "kept"
    tables.main(["--results", str(folder), "--kept", str(kept)])
    assert "### few" in capsys.readouterr().out
    assert [path.name for path in tmp_path.rglob("*.png")] == []


def test_a_picture_shows_headlines_and_marks_the_exact_rows_of_ours(
    run: Run, tmp_path: Path
) -> None:
    import numpy as np
    from PIL import Image

    rows = run.of("birds-resnet")
    assert tables_figure.chosen(rows) == ["gae: gae", IND, "complexity"]
    colours = {
        row.method: tables_figure.colour(row.method, row.trivial) for row in rows.itertuples()
    }
    assert {n for n, colour in colours.items() if colour == tables_figure.OURS} == {"omenn"}
    assert tables_figure.colour("omenn-focused[steps=4]", False) == tables_figure.OURS
    tables_figure.draw(rows, "net", tmp_path / "net.png")
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
    assert tables_figure.broken(text).split("\n") == lines


def test_results_of_a_real_run(tmp_path: Path) -> None:
    net = bench_plans.networks(tmp_path)
    done = bench_plans.run(tmp_path / "out", models=[net], trivial=True)
    run = keep(tmp_path / "out", tmp_path / "kept")
    assert list(run.models) == ["build"]
    rows = run.of("build")
    recorded = {entry["method"]: entry for entry in done.record["models"][0]["methods"]}
    assert set(rows.method) == set(recorded)
    for row in rows.itertuples():
        there = {value["value"]: value["above_trivial"] for value in recorded[row.method]["values"]}
        close = [good for value, good in there.items() if value == pytest.approx(row.value, 1e-4)]
        assert row.good in close


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"results\.json cannot be read \(No such file.*\)\. Make it with omenn bench -o"),
        ("{", r"no result of this version of omenn bench \(JSONDecodeError: .*run it again\."),
        ('{"plan": "limit = 0"}', r"no result of .* \(InputError: limit must be an integer from 1"),
        ("[]", r"no result of .* \(TypeError"),
    ],
)
def test_results_that_cannot_be_used(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=words):
        keep(tmp_path, tmp_path / "kept")


def test_the_same_twice_is_refused(tmp_path: Path) -> None:
    folder = str(result(tmp_path / "few"))
    with pytest.raises(SystemExit, match="two folders hold results of 'few'"):
        tables.main(["--results", folder, folder, "--kept", str(tmp_path / "kept")])


def test_short_names() -> None:
    assert model_name(Entry.read({"model": "a.py:b", "name": "mine"}, "model")) == "mine"
    assert model_name(Entry.read("timm:vit[seed=1]", "model")) == "timm:vit[seed=1]"
    assert tables.picture("birds", "birds-vit") == "bench-birds-vit.png"
