"""Cells: the numbers are those of the protocols, a run goes on, what fails says why."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import bench_trees
import omenn
from bench_plans import QUICK, cell, cells, networks, run, without_costs
from omenn.attribution import registry
from omenn.bench import cell_store, results, running
from omenn.bench.cell_store import Store, file_name
from omenn.bench.plan import Plan
from omenn.bench.trial import REPLACED
from omenn.errors import InputError, ModelError, OutputError
from omenn.metrics.explainers import explainer
from omenn.metrics.funnybirds_protocol import funnybirds
from omenn.metrics.masking import symmetric_relevance_gain
from omenn.metrics.parts import responses
from omenn.models import sources


class TestNumbers:
    def test_they_are_those_of_the_protocols(self, tmp_path: Path, net: str) -> None:
        out = tmp_path / "out"
        plan = {"models": [net], "metrics": ["funnybirds", "srg"], "seed": 3}
        plan |= {"methods": ["abslrp", "constant"]}
        run(out, **plan)
        source = sources.load(net, seed=3)
        data = Plan.from_words({"limit": 4}).dataset(16).samples
        seen = responses(source.model, data, source.preprocessing, indices=range(4))
        wanted = funnybirds(explainer(source.model, "abslrp"), seen)
        found = cell(out, net, "abslrp", "funnybirds")
        for name, value in wanted.values.items():
            if name not in ("single_deletion", "target_sensitivity"):
                got = found["measures"][name.replace("_", " ")]["value"]
                assert got is None if math.isnan(value) else got == pytest.approx(value)
        maps = explainer(source.model, "constant")(seen.images, seen.predicted)
        gain = symmetric_relevance_gain(source.model, seen.images, seen.predicted, maps, seed=3)
        srg = cell(out, net, "constant", "srg")
        assert srg["measures"]["srg"]["values"] == pytest.approx(gain.values.tolist())
        low, high = gain.interval(3)
        assert (srg["measures"]["srg"]["low"], srg["measures"]["srg"]["high"]) == (
            pytest.approx(low),
            pytest.approx(high),
        )
        assert srg["counted"] == {"constant maps": 4}
        about = cells(out)[f"{file_name(net)}.json"]
        assert about["pictures"] == 4
        assert set(about["facts"]) == {"accuracy", "background_independence"}
        assert (
            about["facts"]["accuracy"]["value"] == (seen.predicted == seen.labels).double().mean()
        )

    def test_the_same_plan_gives_the_same_numbers(self, tmp_path: Path, net: str) -> None:
        plan = {"models": [net], "methods": ["omenn", "smoothgrad"], "seed": 1}
        one, two = (run(tmp_path / name, **plan) for name in ("one", "two"))
        assert without_costs(one.record) == without_costs(two.record)
        assert without_costs(cells(tmp_path / "one")) == without_costs(cells(tmp_path / "two"))
        other = run(tmp_path / "other", **{**plan, "seed": 2})
        assert without_costs(one.record) != without_costs(other.record)

    def test_the_seed_reaches_methods_that_draw(
        self, tmp_path: Path, net: str, registered: Any
    ) -> None:
        seeds: list[int] = []

        def draws(model: Any, inputs: Any, target: Any = None, *, seed: int = 0) -> Any:
            seeds.append(seed)
            return omenn.explain(model, inputs, target)

        registered("draws", draws)
        plan = {"models": [net], "metrics": ["sparseness"], "seed": 7, "trivial": False}
        run(tmp_path / "one", methods=["draws", "draws[seed=2]"], **plan)
        assert set(seeds) == {7, 2}

    def test_maps_are_made_once_for_all_metrics(
        self, tmp_path: Path, net: str, registered: Any
    ) -> None:
        asked: list[int] = []

        def counting(model: Any, inputs: Any, target: Any = None) -> Any:
            asked.append(len(inputs))
            return omenn.explain(model, inputs, target)

        registered("counting", counting)
        metrics = ["sparseness", "complexity", "srg[patch=8]", "completeness"]
        run(tmp_path / "out", models=[net], methods=["counting"], metrics=metrics, chunk=3)
        assert asked == [1, 3, 1]  # the first picture before, so that no cost is that of beginning

    def test_time_and_memory_of_each_method(self, tmp_path: Path, net: str) -> None:
        found = run(tmp_path / "out", models=[net]).record["models"][0]["methods"]
        assert all(method["seconds_per_picture"] > 0 for method in found)
        cost = found[0]["peak_memory_bytes"]
        assert cost is None or cost >= 0


class TestGoingOn:
    def test_an_interrupted_run_goes_on(
        self, tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run(tmp_path / "whole", models=[net])
        write, calls = Store.write, []

        def interrupted(self: Store, content: Any, *names: str) -> None:
            calls.append(names)
            if len(calls) == 7:
                raise KeyboardInterrupt
            write(self, content, *names)

        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(out, models=[net])
        half = cells(out)
        assert 0 < len(half) < len(cells(tmp_path / "whole"))
        assert not (out / "index.html").exists()
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", lambda *a: (calls.append(a[2:]), write(*a)))
            calls.clear()
            again = run(out, models=[net])
        assert without_costs(again.record) == without_costs(whole.record)
        done = {name for name, content in half.items() if "metric" in content}
        anew = {"/".join(map(file_name, names)) + ".json" for names in calls if len(names) == 3}
        assert done
        assert not done & anew
        assert {name: cells(out)[name] for name in done} == {name: half[name] for name in done}

    def test_a_finished_run_computes_nothing(
        self, tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        first = run(out, models=[net])
        monkeypatch.setattr(sources, "load", None)
        (out / "index.html").unlink()
        assert run(out, models=[net]).record == first.record
        assert (out / "index.html").exists()

    def test_a_cell_that_cannot_be_read_is_made_again(self, tmp_path: Path, net: str) -> None:
        out = tmp_path / "out"
        first = run(out, models=[net])
        path = next((out / "cells").rglob("omenn/sparseness.json"))
        for broken in ('{"measures": ', '{"measures": {"sparseness": {"value": 3}}}', "[]"):
            path.write_text(broken)
            assert without_costs(run(out, models=[net]).record) == without_costs(first.record)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"limit": 5}, "limit is 4 there and 5 here"),
            ({"seed": 1}, "seed is 0 there and 1 here"),
            (
                {"methods": ["omenn"]},
                r'methods is \["omenn", "abslrp"\] there and \["omenn"\] here',
            ),
            ({"trivial": True, "limit": 5}, "limit is 4 there and 5 here; trivial is false there"),
        ],
    )
    def test_another_plan_in_the_same_folder(
        self, tmp_path: Path, net: str, change: dict[str, Any], words: str
    ) -> None:
        out = tmp_path / "out"
        plan = {"models": [net], "metrics": ["sparseness"]}
        run(out, **plan)
        before = cells(out)
        with pytest.raises(
            InputError,
            match=f"'.*out' holds the results of another plan or of other code: {words}.*Choose",
        ):
            run(out, **{**plan, **change})
        assert cells(out) == before

    def test_other_versions(self, tmp_path: Path, net: str) -> None:
        out = tmp_path / "out"
        run(out, models=[net], metrics=["sparseness"])
        identity = json.loads((out / "run.json").read_text())
        identity["versions"]["torch"] = "1.0"
        (out / "run.json").write_text(json.dumps(identity))
        with pytest.raises(InputError, match=r'torch is "1.0" there and "2'):
            run(out, models=[net], metrics=["sparseness"])

    def test_a_model_whose_weights_have_changed(self, tmp_path: Path, net: str) -> None:
        out, weights = tmp_path / "out", tmp_path / "w.pt"
        model = sources.load(net).model
        torch.save(model.state_dict(), weights)
        plan = {"models": [f"{net}[weights={weights}]"], "metrics": ["sparseness"]}
        run(out, **plan)
        next((out / "cells").rglob("omenn/sparseness.json")).unlink()
        torch.save({name: 2 * t for name, t in model.state_dict().items()}, weights)
        with pytest.raises(InputError, match=r"another .* its parameters have changed"):
            run(out, **plan)

    def test_other_code(self, tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "out"
        run(out, models=[net], metrics=["sparseness"])
        package = tmp_path / "omenn"
        shutil.copytree(Path(omenn.__file__).parent, package, ignore=lambda *_: {"__pycache__"})
        monkeypatch.setattr(omenn, "__file__", str(package / "__init__.py"))
        shown, judged = package / "viz" / "page.py", package / "metrics" / "gae.py"
        shown.write_text(shown.read_text() + "# another page\n")
        cell_store.versions.cache_clear()
        run(out, models=[net], metrics=["sparseness"])
        judged.write_text(judged.read_text() + "# another number\n")
        cell_store.versions.cache_clear()
        with pytest.raises(
            InputError, match=r'of other code: code is "\w{8}" there and "\w{8}" here'
        ):
            run(out, models=[net], metrics=["sparseness"])
        cell_store.versions.cache_clear()

    def test_other_pictures(self, tmp_path: Path, inside_tmp: Path, net: str) -> None:
        bench_trees.voc(Path("pictures"))
        out = tmp_path / "out"
        plan = {"data": "voc:pictures", "models": [net], "metrics": ["sparseness"]}
        run(out, **plan)
        next((out / "cells").rglob("omenn/sparseness.json")).unlink()
        for picture in Path("pictures").rglob("*.jpg"):
            with Image.open(picture) as old:
                size = old.size
            Image.new("RGB", size, "red").save(picture)
        with pytest.raises(InputError, match=r"other pictures: those of 'voc:pictures' have"):
            run(out, **plan)

    @pytest.mark.parametrize("name", ["index.html", "results.json", "run.json"])
    def test_a_folder_with_something_else(self, tmp_path: Path, net: str, name: str) -> None:
        (tmp_path / name).write_text("mine")
        with pytest.raises(
            InputError, match=f"holds '{name}', which was not written by omenn bench"
        ):
            run(tmp_path, models=[net])
        assert (tmp_path / name).read_text() == "mine"

    def test_file_names_of_odd_names(self) -> None:
        names = ["a/b", "a:b", "a-b", "A-B", "x" * 300, "x" * 301, "ü", ".."]
        files = [file_name(name) for name in names]
        assert len(set(map(str.lower, files))) == len(names)
        assert all(len(file) < 100 and "/" not in file and "." not in file for file in files)


class TestFailures:
    def test_a_cell_that_fails_says_why_and_the_others_go_on(
        self, tmp_path: Path, net: str, registered: Any
    ) -> None:
        def fails(model: Any, inputs: Any, target: Any = None) -> Any:
            raise ZeroDivisionError("a defect\nof theirs")

        out = tmp_path / "out"
        registered("fails", fails)
        methods = ["omenn", "rollout", "fails"]
        done = run(out, models=[net], methods=methods)
        assert not done.failed
        for metric in QUICK:
            assert "no softmax attention" in cell(out, net, "rollout", metric)["error"]
            error = "unexpected ZeroDivisionError: a defect."
            assert cell(out, net, "fails", metric)["error"] == error
            assert "measures" in cell(out, net, "omenn", metric)
        (said,) = [line for line in done.remarks if "ZeroDivisionError" in line]
        assert said == f"failed: {net}, fails, {', '.join(QUICK)}: {error}"
        failures = done.record["models"][0]["methods"][2]["failures"]
        assert failures == dict.fromkeys(QUICK, error)

    def test_what_failed_is_tried_again(self, tmp_path: Path, net: str, registered: Any) -> None:
        broken = True

        def sometimes(model: Any, inputs: Any, target: Any = None) -> Any:
            if broken:
                raise InputError("not today.")
            return omenn.explain(model, inputs, target)

        registered("sometimes", sometimes)
        plan = {"models": [net], "methods": ["sometimes"], "trivial": False}
        assert run(tmp_path / "out", **plan).failed
        broken = False
        done = run(tmp_path / "out", **plan)
        assert not done.failed
        assert done.record["models"][0]["methods"][0]["failures"] == {}

    def test_one_metric_that_fails(self, tmp_path: Path, net: str) -> None:
        out = tmp_path / "out"
        run(out, models=[net], metrics=["sparseness", "gae"], limit=3)
        assert "mosaics need four pictures" in cell(out, net, "omenn", "gae")["error"]
        assert "measures" in cell(out, net, "omenn", "sparseness")

    def test_not_enough_memory(self, tmp_path: Path, net: str, registered: Any) -> None:
        def large(model: Any, inputs: Any, target: Any = None) -> Any:
            raise MemoryError

        registered("large", large)
        run(tmp_path / "out", models=[net], methods=["large"], metrics=["sparseness"])
        found = cell(tmp_path / "out", net, "large", "sparseness")
        assert found["error"] == "not enough memory. Lower chunk or limit."

    def test_a_model_that_cannot_be_judged(self, tmp_path: Path, net: str) -> None:
        out, root = tmp_path / "out", net.removesuffix(":build")
        models = [f"{root}:Few", f"{root}:Raising", net]
        done = run(out, models=models, metrics=["sparseness"])
        error = cell(out, models[0], "omenn", "sparseness")["error"]
        assert error.startswith("the model has 5 outputs, the data 50 classes.")
        assert "KeyError" in cell(out, models[1], "abslrp", "sparseness")["error"]
        assert "measures" in cell(out, net, "omenn", "sparseness")
        assert not done.failed

    def test_parts_that_are_missing_are_looked_for_once(
        self, tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from omenn.data.generated import GeneratedBirds

        calls = []

        def missing(self: Any, *arguments: Any) -> Any:
            calls.append(arguments)
            raise InputError("x.png does not exist; the set is not complete")

        monkeypatch.setattr(GeneratedBirds, "with_parts", missing)
        out = tmp_path / "out"
        run(out, models=[net], metrics=["funnybirds", "sparseness"])
        assert "x.png does not exist" in cell(out, net, "omenn", "funnybirds")["error"]
        assert "measures" in cell(out, net, "omenn", "sparseness")
        assert len(calls) == 1

    def test_maps_that_are_not_finite(self, tmp_path: Path, net: str, registered: Any) -> None:
        def broken(model: Any, inputs: Any, target: Any = None) -> Any:
            e = omenn.explain(model, inputs, target)
            e.matrix[0] = torch.nan
            return e

        registered("broken", broken)
        out = tmp_path / "out"
        run(out, models=[net], methods=["broken"], chunk=4)
        counted = cell(out, net, "broken", "sparseness")["counted"]
        assert counted == {REPLACED: 1, "constant maps": 1}

    def test_what_is_counted_is_said(self, tmp_path: Path, net: str, registered: Any) -> None:
        """In the terminal and in Markdown, not in the page and the data alone."""

        def broken(model: Any, inputs: Any, target: Any = None) -> Any:
            e = omenn.explain(model, inputs, target)
            e.matrix[:] = torch.nan
            return e

        registered("broken", broken)
        out = tmp_path / "out"
        plan = {"methods": ["omenn", "broken"], "metrics": ["sparseness"], "trivial": True}
        done = run(out, models=[net], **plan)
        assert f"counted: {net}, sparseness: {REPLACED}: broken 4" in done.remarks
        assert not any("constant 4" in said for said in done.remarks)  # a trivial map is constant
        written = (out / "results.md").read_text()
        assert f"Counted: {REPLACED}: broken 4.\n" in written
        assert "Counted: constant maps: broken 4, constant 4.\n" in written

    def test_maps_of_another_shape(self, tmp_path: Path, net: str, registered: Any) -> None:
        def halved(model: Any, inputs: Any, target: Any = None) -> Any:
            e = omenn.explain(model, inputs, target)
            return replace(e, matrix=e.matrix[..., ::2])

        out = tmp_path / "out"
        registered("halved", halved)
        done = run(out, models=[net], methods=["halved", "omenn"])
        error = cell(out, net, "halved", "sparseness")["error"]
        assert error == (
            "the method gives maps of the shape (1, 16, 8) for images of the shape "
            "(1, 3, 16, 16), expected (1, 16, 16). Bring them to the input."
        )
        assert error in (out / "results.md").read_text()
        assert not done.failed

    def test_constant_maps_are_scored_and_counted(self, tmp_path: Path, net: str) -> None:
        out = tmp_path / "out"
        done = run(out, models=[net], methods=["constant", "omenn"], metrics=["pointing-game"])
        found = cell(out, net, "constant", "pointing-game")
        assert found["counted"] == {"constant maps": 4}
        assert found["measures"]["pointing game"]["images"] == 4
        assert done.record["models"][0]["methods"][0]["counted"] == {
            "pointing-game": {"constant maps": 4}
        }
        page = (out / "index.html").read_text()
        assert 'pointing-game</td><td class="text">constant maps</td><td>4</td>' in page

    def test_a_full_disk(self, tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
        write = Path.write_bytes
        out = tmp_path / "out"

        def full(self: Path, content: bytes) -> int:
            if "cells" in self.parts and len(cells(out)) >= 4:
                write(self, content[:1])
                raise OSError(28, "No space left on device")
            return write(self, content)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(OutputError, match="cannot be written: No space left on device"):
                run(out, models=[net])
        assert len(cells(out)) == 4
        assert not list(out.rglob("*.part"))
        run(out, models=[net])
        assert (out / "index.html").exists()

    def test_a_model_that_is_not_known_is_refused_before_any_work(
        self, tmp_path: Path, net: str
    ) -> None:
        with pytest.raises(
            ModelError, match="unknown model 'birds-resnt': did you mean 'birds-res"
        ):
            run(tmp_path / "out", models=[net, "birds-resnt"])
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, running.Done]:
    """A run in which a method fails."""
    folder = tmp_path_factory.mktemp("results")
    methods = ["omenn", "rollout", "abslrp"]
    metrics = ["gae[steps=3]", *QUICK]
    out = folder / "out"
    plan = {"models": [networks(folder)], "methods": methods, "metrics": metrics}
    return out, run(out, **plan, trivial=True)


class TestResults:
    def test_files(self, done: tuple[Path, running.Done]) -> None:
        out, found = done
        names = {"results.json", "results.md", "index.html", "results.parquet"}
        assert {path.name for path in found.files} == names
        assert {path.name for path in out.iterdir()} == {*names, "cells", "run.json", "plan.toml"}
        assert json.loads((out / "results.json").read_text()) == found.record
        assert (
            Plan.from_file(out / "plan.toml").record()
            == json.loads((out / "run.json").read_text())["plan"]
        )

    def test_parquet_has_every_number(self, done: tuple[Path, running.Done]) -> None:
        from pyarrow import parquet

        rows = parquet.read_table(done[0] / "results.parquet").to_pylist()
        there = {(r["method"], r["metric"], r["measure"]): r for r in rows}
        for method in done[1].record["models"][0]["methods"]:
            for value in method["values"]:
                row = there.pop((method["method"], value["metric"], value["measure"]))
                assert row["value"] == pytest.approx(value["value"])
                assert row["above_trivial"] == value["above_trivial"]
                numbers = [v for v in row["values"] if v is not None and not math.isnan(v)]
                assert sum(numbers) / len(numbers) == pytest.approx(row["value"])
        assert {name for name, _, measure in there if measure is None} == {"rollout"}
        assert all("no softmax attention" in row["error"] for row in there.values())

    def test_markdown(self, done: tuple[Path, running.Done]) -> None:
        text = (done[0] / "results.md").read_text()
        page = (done[0] / "index.html").read_text()
        method = done[1].record["models"][0]["methods"][0]
        srg = next(value for value in method["values"] if value["measure"] == "srg")
        assert f"{srg['value']:.3f}".replace("-", "−") in text
        assert "| *constant* (trivial) |" in text
        assert "| rollout | failed |" in text
        assert "Failed: rollout (gae[steps=3]): the model has no softmax attention" in text
        assert results.LEGEND in text
        assert "Fewer numbers than pictures, of a row: gae[steps=3] 1" in text
        assert "Fewer numbers than pictures, of a row: gae[steps=3] 1" in page

    def test_without_pyarrow(
        self, tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        done = run(tmp_path / "out", models=[net], metrics=["sparseness"])
        assert not (tmp_path / "out" / "results.parquet").exists()
        assert (tmp_path / "out" / "index.html").exists()
        assert (
            "results.parquet needs the package 'pyarrow', which is not installed. "
            "Run: pip install 'omenn[bench]'"
        ) in done.remarks

    def test_what_is_above_the_trivial_maps(
        self, tmp_path: Path, net: str, registered: Any
    ) -> None:
        """Of four methods with known sparseness: more than any trivial map, as much, and less."""

        def of(share: float) -> Any:
            def maps(model: Any, inputs: Tensor, target: Any = None) -> Any:
                e = omenn.explain(model, inputs, target)
                e.matrix.zero_()
                e.matrix.flatten(1)[:, : round(share * e.matrix[0].numel())] = 1
                return e

            return maps

        for name, share in (("few", 0.01), ("some", 0.1), ("every", 1.0)):
            registered(name, of(share))
        plan = {"models": [net], "methods": ["every", "few", "some"], "metrics": ["sparseness"]}
        plan["trivial"] = True
        done = run(tmp_path / "out", **plan)
        found = {m["method"]: m["values"][0] for m in done.record["models"][0]["methods"]}
        assert [found[n]["above_trivial"] for n in ("few", "some", "every")] == [True, True, False]
        assert [found[n]["best"] for n in ("few", "some", "every")] == [True, False, False]
        assert not any(found[n]["above_trivial"] for n in ("constant", "centre", "edges", "random"))
        text = (tmp_path / "out" / "results.md").read_text()
        few, every = found["few"]["value"], found["every"]["value"]
        assert f"| few | **{few:.3f}** |" in text
        assert f"| every | ({every:.3f}) |" in text
        page = (tmp_path / "out" / "index.html").read_text()
        assert f"<strong>{few:.3f}</strong>" in page
        assert f'<td class="low" data-value="{every!r}">' in page

    def test_without_trivial_maps_nothing_is_below(self, tmp_path: Path, net: str) -> None:
        done = run(tmp_path / "out", models=[net], trivial=False)
        values = [v for m in done.record["models"][0]["methods"] for v in m["values"]]
        assert all(value["above_trivial"] for value in values)
        assert "no trivial maps to compare with" in (tmp_path / "out" / "index.html").read_text()


def test_a_method_of_the_file_of_a_model(
    tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(registry._METHODS.pop, "theirs", None)
        path = Path(net.removesuffix(":build"))
        path.write_text(
            path.read_text() + "\nimport omenn\nfrom omenn.attribution import method\n"
            '@method("theirs", promise="exact", summary="as omenn", source="a file")\n'
            "def theirs(model, inputs, target=None):\n"
            "    return omenn.explain(model, inputs, target)\n"
        )
        done = run(tmp_path / "out", models=[net], methods=["theirs"], metrics=["sparseness"])
        assert not done.failed


def test_many_measures_stand_in_several_tables(tmp_path: Path, net: str) -> None:
    metrics = ["srg[patch=8]", "sparseness", "complexity", "effective-complexity", "completeness"]
    metrics += ["relevance-mass", "relevance-rank", "pointing-game"]
    done = run(tmp_path / "out", models=[net], methods=["omenn"], metrics=metrics)
    tables = [table for table in done.tables if not isinstance(table, str)]
    heads = [[str(column.header) for column in table.columns] for table in tables]
    assert [head[0] for head in heads] == ["method", "method"]
    assert heads[0][1:] == [
        "srg",
        "sparseness",
        "complexity ↓",
        "effective complexity ↓",
        "adds up",
        "relevance mass accuracy",
    ]
    assert heads[1][1:] == ["relevance rank accuracy", "pointing game", "time", "memory"]


def test_parameters_of_half_precision(tmp_path: Path, net: str) -> None:
    half = net.replace(":build", ":Half")
    out = tmp_path / "out"
    done = run(out, models=[half], methods=["omenn"], limit=2)
    assert not done.failed
    assert all("error" not in content for content in cells(out).values())
