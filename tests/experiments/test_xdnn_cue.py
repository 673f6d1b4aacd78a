"""The spurious cue: marks, the prior, training, table and figure; one tiny run of the command."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from experiments import command
from experiments.xdnn import cue, cue_figure, cue_tables
from experiments.xdnn.cue_conditions import ORDER, ROWS
from experiments.xdnn.cue_data import (
    MARK,
    MARKS,
    PAINTS,
    Birds,
    drawn,
    mark,
    marked,
    places,
)  # fmt: skip
from experiments.xdnn.cue_figure import Point, Strip, draw
from experiments.xdnn.cue_training import (
    BLOCK,
    Centred,
    Condition,
    Recipe,
    Training,
    accuracy,
    before_others,
    blocks,
    moved,
    network_of,
)  # fmt: skip

TINY = Recipe(
    epochs=2, train_scenes=16, validation_scenes=4, test_scenes=8, widths=(4,), batch_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> Birds:
    return drawn("train", 16)


# --- scenes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["corner", "anywhere"])
def test_marks_tell_the_class_and_never_cover_the_bird(plain, place):
    with_marks = marked(plain, "true", 0, place)
    assert with_marks.cues.equal(plain.labels)
    changed = (with_marks.images != plain.images).any(1, keepdim=True)
    assert not (changed & plain.masks).any()
    for row in range(len(plain)):
        paints = mark(int(plain.labels[row])).flatten(1).unique(dim=1).T.tolist()
        assert len(paints) == 2
        for colour in with_marks.images[row].permute(1, 2, 0)[changed[row, 0]].tolist():
            assert colour in paints
    assert 0 < int(changed.flatten(1).sum(1).max()) <= MARKS[place] * MARK**2


def test_every_class_has_a_mark_of_its_own():
    marks = {tuple(mark(code).flatten().tolist()) for code in range(50)}
    assert len(marks) == 50
    assert mark(0)[:, 0, 0].tolist() == list(PAINTS[0])
    assert mark(0)[:, -1, 0].tolist() == list(PAINTS[1])


def test_lying_marks_are_never_right_and_random_ones_tell_nothing(plain):
    many = Birds(*(t.repeat(20, *[1] * (t.ndim - 1)) for t in vars(plain).values()))
    many.masks[:] = True  # so that no mark is seen, and the loop is all there is
    many.masks[:, :, :16] = False
    lying, random = (marked(many, kind, 3) for kind in ("lying", "random"))
    assert not (lying.cues == lying.labels).any()
    right = float((random.cues == random.labels).float().mean())
    assert 0 < right < 0.06
    assert lying.cues.unique().numel() == 50


def test_marks_are_seeded_and_leave_the_scenes_alone(plain):
    before = plain.images.clone()
    one, again, other = (marked(plain, "lying", seed) for seed in (0, 0, 1))
    assert one.images.equal(again.images)
    assert not one.images.equal(other.images)
    assert plain.images.equal(before)
    assert marked(plain, "none", 0) is plain


def test_a_place_meets_least_of_the_bird():
    masks = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 20:30, 40:50] = False
    assert list(places(masks, torch.Generator(), "anywhere")) == [(20, 40)] * 2
    masks[:, :, 51:61, 3:13] = False
    assert list(places(masks, torch.Generator(), "corner")) == [(51, 3)] * 2


def test_every_corner_is_taken():
    found = set(places(torch.zeros(64, 1, 64, 64, dtype=torch.bool), torch.Generator()))
    assert found == {(top, left) for top in (3, 51) for left in (3, 51)}


def test_a_bird_that_fills_the_picture_is_not_painted_over(plain):
    filled = replace(plain, masks=torch.ones_like(plain.masks))
    assert marked(filled, "true", 0).images.equal(plain.images)


def test_drawn_scenes_are_kept(tmp_path, plain):
    made = drawn("train", 2, tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = drawn("train", 2, tmp_path)
    assert path.stat().st_mtime_ns == written
    assert again.images.equal(made.images)
    assert again.masks.equal(made.masks)
    assert made.images.equal(plain.images[:2])


# --- training ---------------------------------------------------------------------------------


def test_the_prior_is_about_blocks_outside_the_bird():
    a = torch.zeros(2, 3, 16, 16)
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask[:, :, :, :BLOCK] = True
    a[0, :, 0, BLOCK] = 1.0  # outside: 3 in one block
    a[0, :, 0, 0] = 5.0  # inside
    a[1, 0, BLOCK, BLOCK], a[1, 0, -1, -1] = 2.0, -2.0  # of one block: nothing is left
    a[1, 0, 0, BLOCK], a[1, 1, 0, BLOCK] = 4.0, -5.0  # of one block, but of two channels
    assert blocks(a, mask) == pytest.approx((3 + 1) / 2)
    assert blocks(a, mask, by_channel=True) == pytest.approx((3 + 9) / 2)


def test_pictures_and_masks_move_alike():
    masks = torch.zeros(32, 1, 16, 16, dtype=torch.bool)
    masks[:, :, 4:9, 5:12] = True
    images = masks.float().expand(-1, 3, -1, -1)
    seen, there = moved(images, masks, torch.Generator().manual_seed(0))
    bright = seen > seen.amin((2, 3), keepdim=True)
    assert (bright == there).all()
    assert not there.equal(masks)


def test_other_backgrounds_keep_the_bird_and_nothing_of_the_other_one():
    images = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 4, 4).clone()
    masks = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    masks[0, :, 0], masks[1, :, 1] = True, True
    images[1, :, 1] = 9.0
    found = before_others(images, masks)
    assert (found[0, :, 0] == 0).all()
    assert (found[0, :, 1:] == 1).all()
    assert (found[1, :, 1] == 9).all()
    assert (found[1, :, [0, 2, 3]] == 0).all()


def test_centred_logits_add_up_to_nothing():
    network = network_of(ROWS["cue"].condition, TINY, 0).eval()
    x = torch.randn(2, 3, 64, 64)
    logits = Centred(network)(x)
    torch.testing.assert_close(logits.sum(1), torch.zeros(2), atol=1e-4, rtol=0)
    assert logits.argmax(1).equal(network(x).argmax(1))


def test_the_same_seed_is_the_same_training_and_no_state_of_torch_is_changed(plain):
    state = torch.get_rng_state()
    condition = replace(ROWS["omenn"].condition, weight=0.3)
    runs = [Training(condition, TINY, seed, plain) for seed in (0, 0, 1)]
    for run in runs:
        run.epoch()
    assert runs[0].losses == runs[1].losses != runs[2].losses
    assert all(term > 0 for _, term in runs[0].losses)
    assert torch.get_rng_state().equal(state)
    assert 0 <= accuracy(runs[0].averaged(), plain) <= 1


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].condition.method])
def test_every_prior_has_a_part_in_the_step(plain, name):
    condition = ROWS[name].condition
    with_prior, without = (
        Training(replace(condition, weight=weight), TINY, 0, plain) for weight in (10.0, 0.0)
    )
    for run in (with_prior, without):
        run.step(torch.arange(8), torch.Generator().manual_seed(0))
    assert with_prior.losses[0][0] == without.losses[0][0]
    assert with_prior.losses[0][1] > 0 == without.losses[0][1]
    pairs = zip(with_prior.network.parameters(), without.network.parameters(), strict=True)
    assert any(not a.equal(b) for a, b in pairs)


def test_the_x_network_has_no_additive_term():
    network = network_of(Condition("x", network="x"), TINY, 0).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(0.5 * x), 0.5 * network(x))
    assert not any("bias" in name for name, _ in network.named_parameters())


def test_the_weight_of_a_prior_rises(plain):
    recipe = replace(TINY, epochs=4, rise=0.5)
    run = Training(replace(ROWS["omenn"].condition, weight=2.0), recipe, 0, plain)
    weights = []
    for _ in range(3):
        run.epoch()
        assert run.prior is not None
        weights.append(run.prior.weight)
    assert weights == [1.0, 2.0, 2.0]


# --- table ------------------------------------------------------------------------------------


def result(name: str, lying: float, weight: float = 0.0) -> dict[str, Any]:
    condition = replace(ROWS[name].condition, weight=weight)
    settings = cue._settings(condition, cue.RECIPE, 0)
    test = {"lying": lying, "true": 1.0, "none": 0.5}
    return {"settings": settings, "accuracy": {"test": test}, "environment": "torch"}


@pytest.fixture
def found() -> dict[str, dict[int, dict[str, Any]]]:
    return {
        "random": {0: result("random", 1.0), 1: result("random", 0.9)},
        "cue": {0: result("cue", 0.0), 1: result("cue", 0.1)},
        "omenn": {0: result("omenn", 0.75, 0.3), 1: result("omenn", 0.7, 0.3)},
    }


COSTS = {"random": [1.0, 2.0, 3.0], "cue": [1.0, 2.0, 3.0], "omenn": [2.0, 5.0, 6.0]}


def test_every_row_is_trained():
    assert set(ORDER) == set(ROWS)
    assert len(ORDER) == len(ROWS)
    for row in ROWS.values():
        others = {row.limit, row.without} | ({row.like} if row.like else set())
        assert others <= set(ROWS)
        assert (row.condition.method is not None) == bool(row.weights or row.like)


def test_what_is_recovered_is_a_part_of_what_was_lost(found):
    assert cue_tables.recovered(found, "omenn") == pytest.approx([75, 75])
    assert cue_tables.recovered(found, "cue") == []
    assert cue_tables.recovered(found, "random") == []
    found["anywhere-cue"] = {0: result("anywhere-cue", 0.5)}
    assert cue_tables.recovered(found, "anywhere-cue") == []
    found["cue"][1] = result("cue", 0.9)  # nothing was lost
    assert cue_tables.recovered(found, "omenn") == pytest.approx([75])
    assert ROWS["xgradient"].limit == "x-random"
    assert ROWS["xgradient"].without == "x-cue"


def test_the_ratio_is_taken_within_rounds():
    assert cue_tables.ratio(COSTS, "omenn") == 2.0
    assert cue_tables.ratio(COSTS, "cue") == 1.0
    assert cue_tables.ratio(COSTS, "eg-1") is None


def test_rows_have_what_is_known(found):
    lines = cue_tables.rows(found, COSTS, replace(cue.RECIPE, train_scenes=1_280))
    assert lines[2] == [
        "omenn prior", "0.3", "72.5 ± 3.5", "75.0 ± 0.0", "100.0 ± 0.0", "50.0 ± 0.0", "2.00", "50",
    ]  # fmt: skip
    assert lines[1][1] == "–"
    assert lines[1][3] == "–"
    assert cue_tables.rows(found, {}, cue.RECIPE)[2][6:] == ["–", "–"]


def test_the_text_says_whether_the_goal_is_met(found):
    words = cue_tables.text(found, COSTS, cue.RECIPE)
    assert "omenn prior: 75 % of the loss is back at 2.00 × the time" in words
    assert "80 % at no more than 2.5 ×, is missed." in words
    found["omenn"] = {0: result("omenn", 0.85, 0.3)}
    assert "is met." in cue_tables.text(found, COSTS, cue.RECIPE)
    slow = COSTS | {"omenn": [3.0, 6.0, 9.0]}
    assert "is missed." in cue_tables.text(found, slow, cue.RECIPE)
    assert cue_tables.verdict(found, COSTS, "eg-1") == ""


def test_priors_controls_and_limits_have_their_colours():
    colours = {name: cue_figure.COLOURS[name] for name in ROWS}
    assert colours["cue"] == colours["anywhere-cue"] == colours["x-cue"]
    assert colours["random"] == colours["anywhere-random"] == colours["none"]
    assert colours["omenn"] == colours["anywhere-omenn"] == colours["eg-4"]
    assert len({colours[n] for n in ("cue", "random", "omenn", "other-masks")}) == 4


def test_the_figure_has_points_and_maps(tmp_path):
    points = {n: Point(n, 1.0 + k, [50.0, 60.0][: k % 2 + 1]) for k, n in enumerate(ROWS)}
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    strips = [Strip("cue, no prior", torch.randn(3, 64, 64), ["says: mark"] * 3)] * 2
    sizes = []
    for number, (pictures, maps) in enumerate(((None, []), (images, strips))):
        path = tmp_path / f"{number}.png"
        draw(points, 2.5, pictures, maps, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        sizes.append(path.stat().st_size)
    assert 10_000 < sizes[0] < sizes[1]


# --- command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--conditions", "eg-3"], "no condition 'eg-3'. Choose from: random, none, cue"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--short", "--write"], "omit --short"),
        (["--no-train", "--work", "nowhere"], "nothing is finished in nowhere"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, inside_tmp):
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as caught:
            cue.main(words)
    finally:
        torch.set_num_threads(threads)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_is_made_once_kept_and_written(tmp_path, monkeypatch, capsys):
    document = tmp_path / "xdnn-experiments.md"
    document.write_text("before\n<!-- cue:begin -->\nold\n<!-- cue:end -->\nafter\n")
    monkeypatch.setattr(command, "DOCS", tmp_path)
    monkeypatch.setattr(cue, "PICTURE", tmp_path / "images" / "cue.png")
    monkeypatch.setattr(cue, "RECIPE", replace(TINY, epochs=1))
    words = ["--conditions", "random", "cue", "omenn", "other-masks", "--seeds", "1"]
    words += ["--work", str(tmp_path / "work"), "--threads", str(torch.get_num_threads())]
    cue.main(words)
    first = capsys.readouterr().out
    for line in ("| cue, no prior | – |", "| omenn prior | 0.", "| *omenn prior, masks of other"):
        assert line in first
    kept = {p.name for p in (tmp_path / "work" / "tuning").iterdir()}
    assert kept == {f"omenn-{w:g}.json" for w in ROWS["omenn"].weights}
    best = json.loads((tmp_path / "work/omenn-0.json").read_text())["settings"]["condition"]
    control = json.loads((tmp_path / "work/other-masks-0.json").read_text())["settings"]
    assert control["condition"]["weight"] == best["weight"] in ROWS["omenn"].weights
    monkeypatch.setattr(cue, "Training", None)  # what is finished is read
    cue.main([*words, "--no-train", "--write"])
    again = capsys.readouterr().out
    table = [line for line in first.splitlines() if line.startswith("|")]
    assert [line for line in again.splitlines() if line.startswith("|")] == table
    written = document.read_text()
    assert "old" not in written
    assert table[2] in written
    assert (tmp_path / "images" / "cue.png").exists()
    monkeypatch.setattr(cue, "RECIPE", replace(TINY, epochs=1, clip=2.0))
    with pytest.raises(SystemExit):
        cue.main(words)
    assert "is of other settings. Remove it, or choose another --work." in capsys.readouterr().err


def test_an_interrupted_training_comes_to_the_same_result(tmp_path, monkeypatch):
    condition = replace(ROWS["omenn"].condition, weight=0.3)
    whole = cue.Experiment(TINY, tmp_path / "whole")
    wanted, _ = whole._trained("one", condition, TINY, 0)
    trained: list[int] = []

    class Watched(Training):
        def epoch(self) -> float:
            trained.append(self.done)
            if len(trained) == 2:
                raise KeyboardInterrupt
            return super().epoch()

    monkeypatch.setattr(cue, "Training", Watched)
    torn = cue.Experiment(TINY, tmp_path / "torn")
    with pytest.raises(KeyboardInterrupt):
        torn._trained("one", condition, TINY, 0)
    found, seconds = torn._trained("one", condition, TINY, 0)
    assert trained == [0, 2, 2]  # in steps
    assert len(seconds) == TINY.epochs
    assert found.losses == wanted.losses
    for one, other in zip(
        found.averaged().state_dict().values(), wanted.averaged().state_dict().values(), strict=True
    ):
        assert one.equal(other)


def test_an_interruption_is_one_line(tmp_path, monkeypatch, capsys):
    def stopped(self: Training) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "epoch", stopped)
    monkeypatch.setattr(cue, "RECIPE", TINY)
    words = ["--conditions", "cue", "--seeds", "1", "--work", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        cue.main([*words, "--threads", str(torch.get_num_threads())])
    assert caught.value.code == 2
    assert capsys.readouterr().err.strip().endswith("run the same command again to go on")
