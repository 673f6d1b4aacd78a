"""``omenn bench``: a plan from flags or a file, what is printed, what is refused, Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bench_trees
from bench_plans import NETWORKS, networks, without_costs
from commands import Run, refused, written
from omenn.bench.cell_store import Store
from omenn.bench.plan import Plan
from omenn.data.imagenet import ImageNet, imagenet_synsets
from omenn.metrics.explainers import explainer
from omenn.metrics.faithfulness import faithfulness_correlation
from omenn.models import sources

ROOT = Path(__file__).parents[2]
RESUMABLE = "omenn: interrupted; finished work is kept; run the same command again to continue\n"
METRICS = "srg[patch=8],sparseness"


@pytest.fixture
def bird_net(inside_tmp: Path) -> str:
    networks(inside_tmp)
    return "nets.py:build"


@pytest.fixture
def quick(bird_net: str) -> tuple[object, ...]:
    """A benchmark that takes a moment."""
    methods = ("--methods", "omenn,rollout")
    return ("bench", "--models", bird_net, *methods, "--metrics", METRICS, "--limit", 2)


class TestBench:
    def test_flags(self, run: Run, quick: tuple[object, ...]) -> None:
        code, out, err = run(*quick, "-o", "x")
        assert (code, err) == (0, "")
        assert "nets.py:build, 2 pictures of birds, split test" in out
        for name in ("omenn", "rollout", "constant", "centre", "edges", "random"):
            assert f"\n{name} " in out
        assert "not better than the best trivial map" in out
        assert out.count("no softmax attention") == 1
        assert out.endswith("wrote x/index.html\n")
        names = {"index.html", "results.json", "results.md", "results.parquet"}
        assert {Path(name).name for name in written() if "/cells/" not in name} >= names

    def test_a_file_and_json(self, run: Run, quick: tuple[object, ...], bird_net: str) -> None:
        Path("plan.toml").write_text(
            f'models = ["{bird_net}"]\nmethods = ["omenn", {{ method = "rollout" }}]\n'
            'metrics = [{ metric = "srg", patch = 8 }, "sparseness"]\nlimit = 2\nseed = 5\n'
        )
        code, out, err = run("bench", "plan.toml", "--seed", 0, "-o", "a", "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert Path(found["files"][0]).exists()
        assert "results.json" in {Path(name).name for name in found.pop("files")}
        assert found == json.loads(Path("a/results.json").read_text())
        code, out, _ = run(*quick, "-o", "b", "--json")
        again = json.loads(out)
        del again["files"]
        assert without_costs(again) == without_costs(found)

    def test_no_trivial(self, run: Run, quick: tuple[object, ...]) -> None:
        code, out, _ = run(*quick, "--no-trivial", "-o", "x")
        assert code == 0
        assert "constant" not in out
        assert "trivial" not in out

    def test_all_failed(self, run: Run, quick: tuple[object, ...]) -> None:
        code, out, _ = run(*quick, "--methods", "rollout", "-o", "x")
        assert code == 1
        assert "failed: nets.py:build, rollout" in out

    def test_a_metric_that_judged_nothing(self, run: Run, quick: tuple[object, ...]) -> None:
        code, out, _ = run(*quick, "--metrics", "sparseness,gae[steps=1]", "-o", "x")
        assert code == 1
        assert "failed: nets.py:build, omenn, gae[steps=1]: mosaics need four pictures" in out

    @pytest.mark.slow
    def test_the_small_plan(self, run: Run, inside_tmp: Path) -> None:
        """That of the documentation, with four pictures, one model, and the metrics but for GAE.

        GAE explains each picture many times; other plans here have it.
        """
        plan = str(ROOT / "experiments/plans/small.toml")
        named = [entry.name for entry in Plan.from_file(Path(plan)).metrics]
        words = ("--metrics", ",".join(name for name in named if name != "gae"))
        code, _, err = run("bench", plan, "--models", "birds-vit", "--limit", 4, *words, "-o", "x")
        assert (code, err) == (0, "")
        found = json.loads(Path("x/results.json").read_text())["models"][0]
        assert [m["method"] for m in found["methods"] if not m["trivial"]] == [
            entry.name for entry in Plan.from_file(Path(plan)).methods
        ]
        assert not any(method["failures"] for method in found["methods"])
        means = {m["method"]: m["values"][0]["value"] for m in found["methods"]}
        assert means["omenn"] > max(means[name] for name in ("constant", "random"))

    def test_trivial_maps_alone_are_no_failure(self, run: Run, quick: tuple[object, ...]) -> None:
        code, out, _ = run(*quick, "--methods", "constant,random", "-o", "x")
        assert code == 0
        assert "failed" not in out

    def test_every_method_that_failed_is_named(self, run: Run, quick: tuple[object, ...]) -> None:
        run(*quick, "--methods", "rollout,generic-attention", "-o", "x")
        said = [ln for ln in Path("x/results.md").read_text().splitlines() if "Failed" in ln]
        assert any("rollout (" in ln and "generic-attention (" in ln for ln in said)

    def test_without_a_flag_it_is_birds(self, run: Run, bird_net: str) -> None:
        words = ("bench", "--models", bird_net, "--methods", "omenn", "--limit", 4)
        code, out, err = run(*words, "--no-trivial")
        assert (code, err) == (0, "")
        assert out.endswith("wrote omenn-bench/index.html\n")
        plan = json.loads(Path("omenn-bench/run.json").read_text())["plan"]
        assert (plan["data"], plan["split"]) == ("birds", "test")
        assert plan["metrics"] == ["funnybirds", "gae"]

    def test_faithfulness_on_one_class_of_imagenet(self, run: Run, inside_tmp: Path) -> None:
        """Pearson's correlation with what the logit loses, of omenn and of baselines."""
        bench_trees.imagenet(Path("imagenet"), each=3)
        Path("nets.py").write_text(NETWORKS.replace("50)", "1000)"))
        words = ("bench", "--data", "imagenet:imagenet", "--classes", 207)
        words += ("--models", "nets.py:build", "--methods", "omenn,input-x-gradient,saliency")
        code, out, err = run(*words, "--metrics", "faithfulness-correlation", "-o", "x")
        assert (code, err) == (0, "")
        assert "nets.py:build, 3 pictures of imagenet:imagenet, split val, class 207" in out
        record = json.loads(Path("x/results.json").read_text())
        found = {m["method"]: m["values"][0] for m in record["models"][0]["methods"]}

        source = sources.load("nets.py:build")
        data = ImageNet("imagenet", classes=imagenet_synsets())
        rows = [k for k in range(len(data)) if data.label(k) == 207]
        images = torch.cat([source.preprocessing(data.image(k)) for k in rows])
        targets = source.model(images).argmax(1)
        for name in ("omenn", "saliency", "constant"):
            maps = explainer(source.model, name)(images, targets)
            score = faithfulness_correlation(source.model, images, targets, maps)
            assert found[name]["images"] == 3
            assert found[name]["value"] == pytest.approx(score.mean)
        assert found["omenn"]["value"] != found["constant"]["value"] == 0

    def test_a_folder_of_another_layout(self, run: Run, bird_net: str) -> None:
        (Path("cats") / "tom").mkdir(parents=True)
        model = ("bench", "--models", bird_net)
        message = r"cats does not hold ImageNet's layout. Expected: val/<synset>/.* Found: tom/\."
        refused(run(*model, "--data", "imagenet:cats"), message)
        message = r"cats does not hold data of a known layout\. Expected: .* Found: tom/\."
        refused(run(*model, "--data", "cats"), message)

    def test_masks_that_are_missing(self, run: Run, bird_net: str) -> None:
        bench_trees.imagenet(Path("imagenet"), boxes=0)
        words = ("bench", "--models", bird_net, "--data", "imagenet", "--metrics")
        message = "metric 'pointing-game' needs masks, and 'imagenet' has none in the split 'val'"
        refused(run(*words, "srg,pointing-game", "-o", "x"), message)
        assert not Path("x").exists()

    def test_a_list(self, run: Run, inside_tmp: Path) -> None:
        import omenn
        from omenn.metrics.metric_registry import metrics

        code, out, err = run("bench", "--list")
        assert (code, err, written()) == (0, "", set())
        some = ("birds", "voc:FOLDER", "quantus:NAME", "birds-resnet", "constant")
        for name in (*some, *metrics(), *omenn.methods()):
            assert f"  {name} " in out
        code, out, _ = run("bench", "--list", "--json")
        found = json.loads(out)
        assert list(found) == ["data", "models", "methods", "metrics"]
        assert found["metrics"][0]["needs"] == ["parts"]
        assert all(entry["summary"] for entries in found.values() for entry in entries)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metrics", "gea"), "unknown metric 'gea': did you mean 'gae'"),
        (("--methods", "omen"), "unknown method 'omen': did you mean 'omenn'"),
        (("--models", "birds-resnt"), "unknown model 'birds-resnt': did you mean 'birds-resnet'"),
        (("--models", "timm:resnet8"), "unknown model 'timm:resnet8': did you mean"),
        (("--data", "brids"), "unknown data 'brids': did you mean 'birds'"),
        (("--classes", "50"), "the data has no class 50: its 50 classes are numbered from 0 to 49"),
        (
            ("--classes", "dog"),
            "classes must be a list of whole numbers such as .207., but 'dog' was",
        ),
        (("--split", "trian"), "has no split 'trian': did you mean 'train'"),
        (("--limit", 0), "limit must be an integer from 1 to 1000000, but 0 was given"),
        (("--metrics", "gae[step=2]"), "metric 'gae' has no option 'step': did you mean 'steps'"),
        (("--device", "gpu"), "the device 'gpu' cannot be used here"),
        (("nowhere.toml",), "the plan 'nowhere.toml' cannot be read"),
        (("plan.toml",), "the plan has an unknown key 'metric': did you mean 'metrics'"),
    ],
)
def test_refused_before_any_work(
    run: Run, bird_net: str, words: tuple[object, ...], message: str
) -> None:
    Path("plan.toml").write_text('metric = "gae"\n')
    model = () if "--models" in words else ("--models", bird_net)
    refused(run("bench", *model, *words, "-o", "x"), message)
    assert written() == {"nets.py", "plan.toml"}


def test_a_folder_that_cannot_be_written(run: Run, quick: tuple[object, ...]) -> None:
    Path("file").write_text("")
    refused(run(*quick, "-o", "file/x"), "cannot be written: .*file' is a file, not a folder")
    refused(run(*quick, "-o", "file"), "cannot be written: .*file' is a file, not a folder")


def test_another_plan_in_the_folder(run: Run, quick: tuple[object, ...]) -> None:
    assert run(*quick, "-o", "x")[0] == 0
    refused(
        run(*quick, "--limit", 3, "-o", "x"),
        "another plan or of other code: limit is 2 there and 3",
    )


def test_a_full_disk(run: Run, quick: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(run(*quick, "-o", "x"), "cannot be written: No space left on device. Choose another")
    assert written() == {"nets.py"}


def test_an_interrupted_run_goes_on(
    run: Run, quick: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = Store.write, []

    def interrupted(self: Store, content: Any, *names: str) -> None:
        calls.append(names)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(self, content, *names)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", interrupted)
        assert run(*quick, "-o", "x") == (2, "", RESUMABLE)
    half = {name for name in written() if "/cells/" in name}
    assert len(half) == 4
    code, out, err = run(*quick, "-o", "x")
    assert (code, err) == (0, "")
    assert "wrote x/index.html" in out
    assert half < written()
