"""Plans: entries with options, files and flags, and what is refused with the nearest name."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import bench_trees
from omenn.bench.plan import Plan
from omenn.bench.plan_entries import Entry, check_options, words
from omenn.errors import InputError, MissingExtra


class TestEntries:
    @pytest.mark.parametrize(
        ("text", "base", "options"),
        [
            ("omenn", "omenn", {}),
            (" omenn [at=auto] ", "omenn", {"at": "auto"}),
            ("x[a=1;b=0.5;c=true;d=none]", "x", {"a": 1, "b": 0.5, "c": True, "d": None}),
            ("x[a=1,2;b=input,stages.1]", "x", {"a": [1, 2], "b": ["input", "stages.1"]}),
            ("x[path=a b/c=d.pt]", "x", {"path": "a b/c=d.pt"}),
            ("x[a=nan;b=2020-01-01;c='q']", "x", {"a": "nan", "b": "2020-01-01", "c": "q"}),
            ("file.py:f[weights=w.pt]", "file.py:f", {"weights": "w.pt"}),
            ("x[]", "x", {}),
        ],
    )
    def test_words(self, text: str, base: str, options: dict[str, Any]) -> None:
        entry = Entry.read(text, "method")
        assert (entry.base, dict(entry.options)) == (base, options)
        again = Entry.read(entry.record("method"), "method")
        assert again == entry

    def test_tables(self) -> None:
        entry = Entry.read({"method": "omenn", "at": ["input", "1"], "name": "both"}, "method")
        assert (entry.name, entry.base, entry.options) == ("both", "omenn", {"at": ["input", "1"]})
        assert entry.record("method") == {"name": "both", "method": "omenn", "at": ["input", "1"]}
        assert Entry.read({"metric": "gae", "steps": 3}, "metric").name == "gae[steps=3]"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("omenn[at=auto", r"the method 'omenn\[at=auto' is no NAME or NAME\[option=value"),
            ("[at=auto]", "is no NAME"),
            ("omenn]", "is no NAME"),
            ("omenn[at]", r"has the option 'at' as 'at', which is no option=value"),
            ("omenn[at=a;at=b]", "has the option 'at' twice"),
            (3, r'a method of the plan is 3, expected "NAME" or \{ method = "NAME", option = 1 \}'),
            ({"at": "auto"}, "a method of the plan is {'at': 'auto'}, expected"),
            ({"method": "omenn", "name": ""}, "the name of a method is '', expected a word"),
        ],
    )
    def test_refused(self, given: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            Entry.read(given, "method")

    def test_commas_inside_of_brackets(self) -> None:
        assert words("a[x=1,2],b , c[y=3,4;z=5]") == ["a[x=1,2]", "b", "c[y=3,4;z=5]"]
        assert words(" , ") == []

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("m[stesp=3]", "metric 'm' has no option 'stesp': did you mean 'steps'"),
            (
                "m[steps=many]",
                "option 'steps' of the metric 'm' is 'many', expected a whole number",
            ),
            ("m[steps=true]", "is True, expected a whole number"),
            ("m[share=x]", "is 'x', expected a number or none"),
            ("m[kind=c]", "option 'kind' of the metric 'm' is 'c', expected 'a' or 'b'"),
            ("m[sizes=1,x]", r"is \[1, 'x'\], expected a list"),
            ("m[flag=1]", "is 1, expected true or false"),
        ],
    )
    def test_options_of_another_type(self, text: str, message: str) -> None:
        from collections.abc import Sequence
        from typing import Literal

        def function(
            *,
            steps: int = 1,
            share: float | None = None,
            kind: Literal["a", "b"] = "a",
            sizes: Sequence[int] = (),
            flag: bool = False,
        ) -> None: ...

        # as `from __future__ import annotations` hides local names
        function.__annotations__ = {
            "steps": int,
            "share": float | None,
            "kind": Literal["a", "b"],
            "sizes": Sequence[int],
            "flag": bool,
        }
        known = {"steps": 1, "share": None, "kind": "a", "sizes": (), "flag": False}
        right = Entry.read("m[steps=3;share=1;kind=b;sizes=1,2;flag=true]", "metric")
        check_options(right, "metric", known, function)
        check_options(Entry.read("m[share=none]", "metric"), "metric", known, function)
        with pytest.raises(InputError, match=message):
            check_options(Entry.read(text, "metric"), "metric", known, function)

    def test_options_of_what_has_none(self) -> None:
        with pytest.raises(InputError, match="trivial map 'centre' has no option 'x': it has none"):
            check_options(Entry.read("centre[x=1]", "trivial map"), "trivial map", {})


def test_words_stay_words_where_a_method_takes_no_numbers() -> None:
    plan = Plan.from_words({"methods": "omenn[at=3;resample=none]", "models": "birds-resnet"})
    (entry,) = plan.check_methods().methods
    assert entry.options == {"at": "3", "resample": "none"}
    assert entry.name == "omenn[at=3;resample=none]"


def checked(words: dict[str, Any], methods: bool = False) -> None:
    plan = Plan.from_words(words)
    (plan.check_methods if methods else plan.check_data)()


class TestPlans:
    def test_a_file_is_what_flags_are(self, tmp_path: Path) -> None:
        file = tmp_path / "plan.toml"
        file.write_text(
            'models = ["birds-vit", { model = "file.py:f", weights = "w.pt", name = "mine" }]\n'
            'methods = ["omenn[at=auto]", "abslrp"]\nmetrics = "gae, funnybirds[positive=true]"\n'
            "limit = 8\nseed = 3\ntrivial = false\n"
        )
        plan = Plan.from_file(file)
        assert [model.name for model in plan.models] == ["birds-vit", "mine"]
        assert plan.models[1].options == {"weights": "w.pt"}
        assert [metric.name for metric in plan.metrics] == ["gae", "funnybirds[positive=true]"]
        assert (plan.limit, plan.seed, plan.trivial) == (8, 3, False)
        assert plan.rows == plan.methods
        # and is written so that it is the same again
        assert Plan.from_words(tomllib.loads(plan.toml())) == plan
        assert Plan.from_file(file, {"limit": 2}).limit == 2

    def test_trivial_maps_are_rows_once(self) -> None:
        plan = Plan.from_words({"methods": "edges,omenn"})
        names = [row.name for row in plan.rows]
        assert names == ["edges", "omenn", "constant", "centre", "random"]
        assert plan.cells == 1 * 5 * 2

    def test_all(self) -> None:
        import omenn
        from omenn.metrics.metric_registry import metrics

        plan = Plan.from_words({"methods": "omenn[at=auto],all", "metrics": "all", "limit": 1})
        assert {m.name for m in plan.methods} == {"omenn[at=auto]", *omenn.methods()}
        assert [m.name for m in plan.metrics] == list(metrics())

    @pytest.mark.parametrize(
        ("plan", "message"),
        [
            ({"metods": "omenn"}, r"the plan has an unknown key 'metods': did you mean 'methods'"),
            ({"methods": "omenn,omenn"}, "methods has 'omenn' twice. Leave one out, or name it"),
        ],
    )
    def test_refused(self, plan: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Plan.from_words(plan)

    @pytest.mark.parametrize(
        ("plan", "expected"),
        [
            ({"limit": 0}, "an integer from 1"),
            ({"limit": 10**14}, "an integer from 1 to 1000000"),
            ({"limit": "8"}, "an integer"),
            ({"limit": True}, "an integer"),
            ({"seed": -1}, "an integer of at least 0"),
            ({"trivial": 1}, "true or false"),
            ({"split": 3}, "a word"),
            ({"methods": []}, 'a list such as ["omenn", "abslrp"]'),
            ({"metrics": ""}, "a list"),
            ({"models": 3}, "a list"),
            ({"classes": "one"}, "a list of whole numbers such as [207]"),
            ({"classes": [True]}, "a list of whole numbers"),
            ({"classes": ""}, "a list of whole numbers"),
            ({"classes": 207}, "a list of whole numbers"),
        ],
    )
    def test_values_refused(self, plan: dict[str, Any], expected: str) -> None:
        ((key, value),) = plan.items()
        with pytest.raises(InputError) as caught:
            Plan.from_words(plan)
        assert (caught.value.argument, caught.value.got) == (key, repr(value))
        assert caught.value.expected.startswith(expected)

    @pytest.mark.parametrize(
        ("plan", "message"),
        [
            ({"data": "bird"}, "unknown data 'bird': did you mean 'birds'"),
            ({"classes": "50"}, "the data has no class 50: its 50 classes are numbered from 0"),
            (
                {"metrics": "quantus:Sparsness"},
                "unknown metric of Quantus 'Sparsness': did you mean 'Sparseness'",
            ),
            (
                {"metrics": "quantus:focus"},
                "metric 'quantus:focus' is not offered: it needs mosaics; use omenn's grid",
            ),
            (
                {"metrics": "quantus:PixelFlipping[features_in_stp=3]"},
                "has no option 'features_in_stp': did you mean 'features_in_step'",
            ),
            (
                {"metrics": "quantus:PixelFlipping[features_in_step=many]"},
                "option 'features_in_step' of the metric .* is 'many', expected a whole number",
            ),
            ({"data": "birds[seeds=1]"}, "data 'birds' has no option 'seeds': did you mean 'seed'"),
            (
                {"data": "birds[seed=x]"},
                "option 'seed' of the data 'birds' is 'x', expected",
            ),
            ({"split": "tests"}, "data 'birds' has no split 'tests': did you mean 'test'"),
            ({"metrics": "funybirds"}, "unknown metric 'funybirds': did you mean 'funnybirds'"),
            ({"metrics": "gae[step=3]"}, "metric 'gae' has no option 'step': did you mean 'steps'"),
            ({"methods": "omen"}, "unknown method 'omen': did you mean 'omenn'"),
            ({"methods": "center"}, "unknown method 'center': did you mean 'centre'"),
            ({"methods": "gamma[gama=1]"}, "method 'gamma' has no option 'gama': did you mean"),
            (
                {"methods": "gamma[gamma=x]"},
                "option 'gamma' of the method 'gamma' is 'x', expected",
            ),
            ({"methods": "edges[x=1]"}, "trivial map 'edges' has no option 'x': it has none"),
        ],
    )
    def test_names_that_are_not_known(self, plan: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            checked({"limit": 1, **plan}, methods="methods" in plan)

    def test_metrics_that_need_masks_of_data_without(self, tmp_path: Path) -> None:
        from omenn.data import birds

        birds.write(tmp_path / "set", train_scenes=50, test_scenes=0, size=16)
        data = f"funnybirds:{tmp_path / 'set'}"
        given = {"data": data, "split": "train", "metrics": "pointing-game"}
        words = rf"metric 'pointing-game' needs masks, and '{data}' has none in the split 'train'"
        with pytest.raises(InputError, match=words):
            Plan.from_words(given).check_data()
        every = Plan.from_words({**given, "metrics": "all"})
        assert "funnybirds" not in {metric.name for metric in every.metrics}
        every.check_data()

    def test_masks_that_a_set_has_or_not(self, tmp_path: Path) -> None:
        with_boxes, without = (
            f"imagenet:{bench_trees.imagenet(tmp_path / str(boxes), boxes=boxes)}"
            for boxes in (1, 0)
        )
        masked = {"metrics": "relevance-mass,quantus:RelevanceMassAccuracy"}
        checked({"data": with_boxes, **masked})
        words = rf"metric 'relevance-mass' needs masks, and '{without}' has none in the split 'val'"
        with pytest.raises(InputError, match=words):
            checked({"data": without, **masked})
        with pytest.raises(InputError, match="metric 'funnybirds' needs parts, and 'imagenet"):
            checked({"data": with_boxes, "metrics": "funnybirds"})
        with pytest.raises(InputError, match="metric 'idsds' needs training pictures, and"):
            checked({"data": with_boxes, "metrics": "idsds"})

    def test_the_split_is_the_usual_one_of_the_data(self, tmp_path: Path) -> None:
        roots = {
            "val": f"imagenet:{bench_trees.imagenet(tmp_path / 'a')}",
            "validation": str(bench_trees.imagenet_s(tmp_path / "b")),
            "test": "birds",
        }
        for split, data in roots.items():
            plan = Plan.from_words({"data": data})
            assert plan.split == split
            assert Plan.from_words(tomllib.loads(plan.toml())) == plan
        assert Plan.from_words({"data": roots["val"], "split": "train"}).split == "train"

    def test_classes(self) -> None:
        for given in ("207, 3,207", [207, 3, 207]):
            plan = Plan.from_words({"classes": given})
            assert plan.classes == (207, 3)
            assert plan.record()["classes"] == [207, 3]
            assert Plan.from_words(tomllib.loads(plan.toml())) == plan
        assert Plan.from_words({"classes": []}) == Plan()

    def test_quantus_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "quantus", None)
        words = (
            "the metric 'quantus:Sparseness' needs the package 'quantus', which is not installed. "
            r"Run: pip install 'omenn\[bench\]'"
        )
        with pytest.raises(MissingExtra, match=words):
            checked({"limit": 1, "metrics": "quantus:sparseness"})

    def test_files_that_are_no_plan(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"the plan '.*nowhere.toml' cannot be read"):
            Plan.from_file(tmp_path / "nowhere.toml")
        file = tmp_path / "plan.toml"
        file.write_text("limit = \n")
        with pytest.raises(InputError, match=r"the plan '.*plan.toml' is no TOML: Invalid value"):
            Plan.from_file(file)
