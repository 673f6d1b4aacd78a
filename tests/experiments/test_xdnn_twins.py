"""``experiments.xdnn.twins``: plan, table and figure on cards made up, one short training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import command
from experiments.report import deviation
from experiments.xdnn import twins
from experiments.xdnn.networks import PAIRS
from experiments.xdnn.twins import Job, accuracies, differences, draw, early, jobs, rows, text
from omenn.models.recipes import RECIPES


def card(arch: str, top1: float, minutes: float = 2.0, first: float | None = 0.5) -> dict[str, Any]:
    return {
        "name": arch,
        "parameters": 12_345,
        "recipe": {"epochs": 3, "train_scenes": 20_000, "learning_rate": 1e-3},
        "result": {"test_top1": top1, "test_scenes": 5_000},
        "training": {"minutes": minutes, "device": "cpu", "threads": 1, "torch": "2.13"},
        "first": first,
    }


@pytest.fixture
def cards() -> dict[tuple[str, int], dict[str, Any]]:
    shares = {
        "birds-resnet": [0.99, 0.97, 0.98],
        "birds-xresnet": [0.98, 0.93],
        "birds-vit": [1.0],
        "birds-xvit": [0.95],
    }
    return {(a, k): card(a, share) for a, found in shares.items() for k, share in enumerate(found)}


def test_the_first_seed_of_all_networks_comes_before_the_second(tmp_path):
    found = jobs(PAIRS, 2, twins.BUDGETS["medium"], tmp_path)
    assert [job.seed for job in found] == [0] * 6 + [1] * 6
    assert [job.arch for job in found[:4]] == [
        "birds-resnet", "birds-xresnet", "birds-convnet", "birds-xconvnet"
    ]  # fmt: skip
    assert {job.scenes for job in found} == {20_000}
    epochs = {job.arch: job.epochs for job in found}
    assert epochs["birds-resnet"] == epochs["birds-xresnet"] == 3
    assert epochs["birds-convnet"] == epochs["birds-xconvnet"] == 5
    assert epochs["birds-vit"] == epochs["birds-xvit"] == 4
    assert found[1].folder == tmp_path / "birds-xresnet-0"


def test_the_full_budget_is_that_of_the_recipes():
    budget = twins.BUDGETS["full"]
    for regular, twin in PAIRS.items():
        for name in (regular, twin):
            assert budget.epochs[regular] == RECIPES[name].epochs
            assert budget.scenes == RECIPES[name].train_scenes


def test_spread_is_mean_and_standard_deviation():
    assert deviation([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert deviation([1.5]) == "1.5"
    assert deviation([-1.0, -2.0, -3.0], sign=True) == "−2.0 ± 1.0"
    assert deviation([0.25], 1, sign=True) == "+0.2"


def test_differences_are_taken_within_a_seed(cards):
    found = accuracies(cards)
    assert differences(found, "birds-resnet") == pytest.approx([-1, -4])
    assert differences(found, "birds-convnet") == []


def test_rows_have_means_of_what_is_finished(cards):
    found = {row[0]: row[1:] for row in rows(cards)}
    assert list(found) == ["birds-resnet", "birds-xresnet", "birds-vit", "birds-xvit"]
    assert found["birds-resnet"] == ["12,345", "98.00 ± 1.00", "", "50.0 ± 0.0", "2.0 ± 0.0"]
    assert found["birds-xresnet"][1:3] == ["95.50 ± 3.54", "−2.50 ± 2.12"]
    assert found["birds-xvit"] == ["12,345", "95.00", "−5.00", "50.0", "2.0"]


def test_the_text_tells_how_many_reach_the_goal(cards):
    assert "in 0 of 2 architectures" in text(cards, "a command")
    cards["birds-xvit", 0] = card("birds-xvit", 0.981)
    words = text(cards, "a command")
    assert "within 2 points of its regular twin, on the mean over seeds, in 1 of 2" in words
    assert "over 3 seeds" in words
    assert "epochs: resnet 3, vit 3," in words
    assert "learning rates differ in: none." in words
    cards["birds-xvit", 0]["recipe"]["learning_rate"] = 3e-3
    assert "differ in: birds-xvit 0.003 instead of 0.001." in text(cards, "a command")
    assert words.endswith("`a command`")
    assert all(len(line) < 800 for line in words.splitlines())


def test_the_figure_shows_what_there_is(tmp_path, cards):
    single = {("birds-vit", 0): card("birds-vit", 0.5)}
    for number, panels in enumerate(
        (
            {"test": accuracies(cards), "validation": early(cards)},
            {"test": accuracies(single)},
        )
    ):
        path = tmp_path / f"{number}.png"
        draw(panels, 2.0, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5_000


def test_what_is_not_known_of_the_first_epoch_is_left_out():
    found = {("birds-vit", k): card("birds-vit", 0.5, first=f) for k, f in enumerate((None, 0.25))}
    assert early(found) == {"birds-vit": {1: 25.0}}
    assert rows(found)[0][4] == "25.0"


def test_finished_trainings_are_read_and_those_of_others_refused(tmp_path, capsys):
    job = Job("birds-vit", 1, 3, 20_000, tmp_path)
    assert job.card() is None
    job.folder.mkdir()
    written = {k: v for k, v in card("birds-vit", 0.5).items() if k != "first"}
    (job.folder / "birds-vit.json").write_text(json.dumps(written))
    found = twins.trained(job)
    assert found == written | {"first": None}
    state = {"history": [{"epoch": 1, "validation": 0.25}, {"epoch": 2, "validation": 0.5}]}
    torch.save(state, job.folder / "birds-vit.checkpoint.pt")
    assert twins.trained(job)["first"] == 0.25
    with pytest.raises(SystemExit):
        replace(job, epochs=4).card()
    assert "of another training (epochs 3 instead of 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--archs", "birds-xvit"], "no network 'birds-xvit'. Choose from: "),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--epochs", "2"], "make other networks: give an --out"),
        (["--short", "--write"], "omit the shortening options"),
        (["--train-scenes", "500", "--write"], "omit the shortening options"),
        (["--no-train", "--out", "nowhere"], "nothing is finished in nowhere"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, inside_tmp):
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as caught:
            twins.main(words)
    finally:
        torch.set_num_threads(threads)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pair_is_trained_and_reported(tmp_path, monkeypatch, capsys):
    for name, recipe in RECIPES.items():
        cut = replace(recipe, batch_size=8, validation_scenes=10, test_scenes=10)
        monkeypatch.setitem(RECIPES, name, cut)
    words = ["--archs", "birds-convnet", "--seeds", "1", "--epochs", "1", "--train-scenes", "16"]
    words += ["--out", str(tmp_path), "--short", "--threads", str(torch.get_num_threads())]
    twins.main(words)
    first = capsys.readouterr().out
    assert "| birds-convnet |" in first
    assert "| birds-xconvnet |" in first
    assert "2 of 2 trainings, 16 scenes" in first
    assert "Short form" in first
    assert (tmp_path / "birds-xconvnet-0/birds-xconvnet.safetensors").exists()
    assert (tmp_path / "twins.png").exists()
    monkeypatch.setattr(twins, "train_birds", None)  # what is finished is read
    twins.main(words)
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line.startswith("|")] == [
        line for line in first.splitlines() if line.startswith("|")
    ]


def test_the_block_is_written(tmp_path, monkeypatch, cards):
    document = tmp_path / "xdnn-experiments.md"
    document.write_text("before\n<!-- twins:begin -->\nold\n<!-- twins:end -->\nafter\n")
    monkeypatch.setattr(command, "DOCS", tmp_path)
    monkeypatch.setattr(twins, "PICTURE", tmp_path / "images/xdnn-twins.png")
    monkeypatch.setattr(Job, "card", lambda self: cards.get((self.arch, self.seed)))
    twins.main(["--no-train", "--write", "--out", str(tmp_path)])
    written = document.read_text()
    assert "old" not in written
    assert "| birds-xresnet | 12,345 | 95.50 ± 3.54 |" in written
    assert (tmp_path / "images/xdnn-twins.png").exists()
    assert Path(tmp_path / "images").is_dir()
