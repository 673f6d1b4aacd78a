"""Runs on folders in the official layouts, with training on, and by the metrics of Quantus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bench_trees
from bench_plans import cell, cells, run, without_costs
from omenn.bench.cell_store import file_name
from omenn.bench.plan import Plan
from omenn.data.dataset_registry import open_data
from omenn.metrics import in_domain
from omenn.metrics.explainers import explainer
from omenn.metrics.idsds import idsds
from omenn.metrics.in_domain import Recipe, fine_tune
from omenn.metrics.quantus import quantus_metric
from omenn.models import sources


class TestFolders:
    """Data in the official layouts, on tiny trees."""

    def test_localisation(self, tmp_path: Path, net: str) -> None:
        """A constant map gets the marked share; what is not marked is left out and counted."""
        metrics = "energy-pointing-game,pointing-game,relevance-mass,relevance-rank"
        some = bench_trees.imagenet(tmp_path / "net", boxes=1)
        for name, data, classes in (
            ("a", f"imagenet:{some}[mapping=folders]", 3),
            ("b", f"{bench_trees.imagenet_s(tmp_path / 's')}[mapping=folders]", 3),
            ("c", f"voc:{bench_trees.voc(tmp_path / 'voc')}", 20),
        ):
            plan = {"data": data, "models": [net], "methods": ["omenn", "constant"]}
            run(tmp_path / name, **plan, metrics=metrics, limit=64)
            known = cells(tmp_path / name)
            assert f"the data {classes} classes" in known[f"{file_name(net)}.json"]["warning"]
            found = cell(tmp_path / name, net, "constant", "relevance-mass")
            value = found["measures"]["relevance mass accuracy"]
            assert value["value"] == pytest.approx(value["chance"])
            skipped = found["counted"].get("skipped: nothing is marked", 0)
            assert skipped == {"a": 3, "b": 0, "c": 0}[name]
            assert value["images"] == {"a": 3, "b": 6, "c": 4}[name]

    def test_parts_of_an_official_layout(self, tmp_path: Path, net: str) -> None:
        from omenn.data import birds

        birds.write(tmp_path / "set", train_scenes=50, test_scenes=4, size=16)
        plan = {"models": [net], "metrics": ["funnybirds"]}
        done = run(tmp_path / "out", data=str(tmp_path / "set"), **plan)
        assert not done.failed
        assert done.record["data"] == f"{tmp_path / 'set'}, split test"

    def test_classes_and_their_words(self, tmp_path: Path, net: str) -> None:
        out = tmp_path / "out"
        done = run(out, models=[net], classes=[3], metrics=["sparseness"])
        assert done.record["data"] == "birds, split test, class 3"
        assert "classes = [3]" in (out / "plan.toml").read_text()

    def test_a_picture_that_cannot_be_read(self, tmp_path: Path, net: str) -> None:
        root = bench_trees.imagenet(tmp_path / "net")
        broken = next((root / "val").rglob("*.JPEG"))
        broken.write_bytes(b"none")
        data = f"imagenet:{root}[mapping=folders]"
        done = run(tmp_path / "out", data=data, models=[net], metrics=["sparseness"], limit=64)
        assert done.failed
        assert any(f"{broken} is not a picture that can be read" in line for line in done.remarks)


class TestFineTuning:
    METRIC = "idsds[pictures=8;epochs=3;batch=4]"

    def test_the_numbers_are_those_of_the_fine_tuned_model(self, tmp_path: Path, net: str) -> None:
        out = tmp_path / "out"
        run(out, models=[net], methods=["omenn", "xgradient"], metrics=[self.METRIC])
        source = sources.load(net)
        birds = Plan.from_words({"limit": 4}).dataset(16)
        train = open_data("birds", "train", 8, side=16).samples
        rows = [source.preprocessing(train.image(k)) for k in range(8)]
        labels = torch.tensor([train.label(k) for k in range(8)])
        recipe = Recipe(epochs=3, batch=4, step=1)
        tuned = fine_tune(source.model, (torch.cat(rows), labels), recipe)
        images = torch.cat([source.preprocessing(birds.sample(k)) for k in range(4)])
        targets = torch.arange(4)
        maps = explainer(tuned, "xgradient")(images, targets)
        wanted = idsds(tuned, images, targets, maps).values.tolist()
        found = cell(out, net, "xgradient", self.METRIC)["measures"]["idsds"]
        assert found["values"] == pytest.approx(wanted)

    def test_it_is_done_once_and_goes_on(
        self, tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = {"models": [net], "metrics": [self.METRIC]}
        whole = run(tmp_path / "whole", **plan)
        epochs: list[int] = []
        train = in_domain._Run.train

        def counting(self: Any, pictures: Any) -> float:
            epochs.append(self.training.epoch)
            if len(epochs) == 3:
                raise KeyboardInterrupt
            return train(self, pictures)

        monkeypatch.setattr(in_domain._Run, "train", counting)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", **plan)
        again = run(tmp_path / "out", **plan)
        assert epochs == [0, 1, 2, 2]
        assert without_costs(again.record) == without_costs(whole.record)


def test_quantus_by_name(tmp_path: Path, net: str) -> None:
    pytest.importorskip("quantus")
    metrics = ["quantus:sparseness", "quantus:pixel-flipping[features_in_step=64]", "sparseness"]
    metrics += ["quantus:RelevanceRankAccuracy", "relevance-rank"]
    out = tmp_path / "out"
    done = run(out, models=[net], methods=["omenn"], metrics=metrics)
    found = {
        (value["metric"], value["measure"]): value
        for value in done.record["models"][0]["methods"][0]["values"]
    }
    model, prepare = sources.load(net).model, sources.load(net).preprocessing
    birds = Plan.from_words({"limit": 4}).dataset(16).samples
    images = torch.cat([prepare(birds.image(k)) for k in range(4)])
    wanted = quantus_metric(
        "Sparseness", model, images, model(images).argmax(1), explainer(model, "omenn")
    )
    theirs = found["quantus:sparseness", "Sparseness"]
    assert theirs["value"] == pytest.approx(wanted.mean)
    assert theirs["value"] == pytest.approx(found["sparseness", "sparseness"]["value"], rel=1e-3)
    rank = found["relevance-rank", "relevance rank accuracy"]
    theirs = found["quantus:RelevanceRankAccuracy", "RelevanceRankAccuracy"]
    assert theirs["value"] == pytest.approx(rank["value"], abs=1e-5)
    assert not found[metrics[1], "PixelFlipping"]["higher_is_better"]
