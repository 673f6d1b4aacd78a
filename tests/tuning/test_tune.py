"""The search: the right candidate wins, equal ones do not, and it goes on where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn.attribution import registry
from omenn.errors import ModelError
from omenn.metrics.removal import filled
from omenn.metrics.score import Measured
from omenn.tuning import Candidate, Tuned, prepared
from omenn.tuning.judging import Judge
from omenn.tuning.search import _contradiction
from refusals import refused

SIDE = 8
SMALL: dict[str, Any] = {"sets": 24, "across": 4, "fill": "zero"}


class Sum(nn.Module):
    """f_c(x) = Σ w_c ⊙ x: what each pixel is worth is known."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, 3, SIDE, SIDE, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.flatten(1).T


class Both(nn.Module):
    """Two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = Sum()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.sum(x)
        return {"first": first, "second": -first}


class Still(nn.Module):
    """The same answer whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight + 0 * x.sum((1, 2, 3))[:, None]


@pytest.fixture
def net() -> nn.Module:
    return Sum().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(16, 3, SIDE, SIDE)


@pytest.fixture(autouse=True)
def methods(nothing_registered: None) -> None:
    """``mixed``: the exact map, and ``noise`` of it moved elsewhere. The sum stays."""

    @registry.method("mixed", promise="exact", summary="noise added", source="this file")
    def mixed(
        model: Any, inputs: Any, target: Any = None, *, noise: float = 1.0, seed: int = 7
    ) -> Any:
        e = omenn.explain(model, inputs, target)
        picture = int(1e4 * float(inputs.double().abs().sum()))
        generator = torch.Generator().manual_seed(seed + picture)
        other = torch.randn(e.matrix.shape, generator=generator)
        other = other - other.mean((1, 2), keepdim=True)
        return e.with_matrix(e.matrix + noise * other, promise="exact")

    @registry.method("failing", promise="exact", summary="fails at times", source="this file")
    def failing(model: Any, inputs: Any, target: Any = None, *, least: float = 0.0) -> Any:
        if float(inputs.mean()) < least:
            raise ZeroDivisionError("no luck")
        return omenn.explain(model, inputs, target)


def given(**more: Any) -> dict[str, Any]:
    candidates = ["mixed[noise=3.0]", "omenn", "mixed[noise=1.0]"]
    return {**SMALL, "against": "mixed[noise=9.0]", "candidates": candidates, **more}


def test_the_right_candidate_wins(net: nn.Module, images: Tensor) -> None:
    found = omenn.tune(net, images, **given())
    assert isinstance(found, Tuned)
    assert found.better
    assert (found.best.name, found.chosen.name, found.method) == ("omenn", "omenn", "omenn")
    rows = {row.name: row for row in found.rows}
    assert list(rows)[:4] == ["mixed[noise=9.0]", "mixed[noise=3.0]", "omenn", "mixed[noise=1.0]"]
    assert list(rows)[4:] == ["constant", "centre", "edges", "random"]
    assert rows["omenn"].held is not None
    assert rows["omenn"].held.value == pytest.approx(1.0, abs=1e-6)  # additive: the map is the drop
    order = [rows[name].chosen for name in ("omenn", "mixed[noise=1.0]", "mixed[noise=3.0]")]
    assert [one.value for one in order] == sorted((one.value for one in order), reverse=True)
    assert rows["mixed[noise=1.0]"].held is None  # no finalist
    assert rows["constant"].held.value == 0.0
    assert found.gain.low > 0
    assert found.gain.images == 8
    assert "omenn is better than mixed[noise=9.0]" in found.verdict
    assert found.record()["better"] is True
    json.dumps(found.record())


def test_the_gain_is_the_mean_difference_of_held_out_pictures(
    net: nn.Module, images: Tensor
) -> None:
    found = omenn.tune(net, images, **given())
    search = prepared(net, images, **given())
    judge, finalists = search.judge, (found.best, found.default)
    differences = []
    for index in search.order[8:]:
        asked = judge.asked(images[index : index + 1])
        best, default = (
            asked.correlation(judge.map_of(one, asked.image, asked.target)) for one in finalists
        )
        differences.append(best - default)
    assert found.gain.values == pytest.approx(differences, abs=1e-9)
    assert set(found.examples) <= set(search.order[8:])
    assert not set(search.order[:8]) & set(search.order[8:])


def test_no_better_than_the_default(net: nn.Module, images: Tensor) -> None:
    best = omenn.tune(net, images, **given(against="omenn"))
    assert not best.better
    assert best.best is best.default
    assert best.gain is None
    assert best.verdict.startswith("No better than the default")
    # the same map under another name: chosen or not, it is no better
    equal = omenn.tune(net, images, **given(candidates=["mixed[noise=0.0]"], against="omenn"))
    assert not equal.better
    assert equal.chosen.name == "omenn"
    # other maps that are as good on average: one is chosen by chance, but it is no better
    others = [f"mixed[noise=9.0;seed={seed}]" for seed in range(4)]
    chance = omenn.tune(net, images, **given(candidates=others))
    assert chance.best.name in others
    assert chance.gain.low < 0 < chance.gain.high
    assert not chance.better
    assert chance.chosen.name == "mixed[noise=9.0]"


def test_what_is_written_is_used(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    found = omenn.tune(net, images, **given(candidates=["mixed[noise=0.5]"]))
    assert found.better
    path = tmp_path / "method.toml"
    found.save(path)
    e = omenn.explain(net, images, 0, method=str(path))
    assert torch.equal(e.matrix, omenn.explain(net, images, 0, method="mixed", noise=0.5).matrix)
    assert "better than" in path.read_text()
    with refused("path", "method.txt"):
        found.save(tmp_path / "method.txt")


def test_the_same_seed_gives_the_same_result(net: nn.Module, images: Tensor) -> None:
    one, two = (omenn.tune(net, images, **given(seed=5)) for _ in range(2))
    assert one.record() == two.record()
    other = omenn.tune(net, images, **given(seed=6))
    assert one.record() != other.record()
    assert one.examples != other.examples


def test_pictures_one_by_one_are_as_in_a_batch(net: nn.Module, images: Tensor) -> None:
    batch = omenn.tune(net, images, **given())
    assert omenn.tune(net, list(images), **given()).record() == batch.record()
    assert omenn.tune(net, [x[None] for x in images], **given()).record() == batch.record()


class TestResume:
    def test_after_an_interruption(
        self, net: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = omenn.tune(net, images, **given(folder=tmp_path / "whole"))
        half = tmp_path / "half"
        judged, asked = [], Judge.asked

        def interrupted(self: Judge, image: Tensor) -> Any:
            judged.append(image)
            if len(judged) == 11:  # in the second half
                raise KeyboardInterrupt
            return asked(self, image)

        monkeypatch.setattr(Judge, "asked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            omenn.tune(net, images, **given(folder=half))
        assert len(list((half / "pictures").iterdir())) == 10
        again = omenn.tune(net, images, **given(folder=half))
        assert len(judged) == 11 + 6  # only what was missing
        assert again.record() == whole.record()
        assert again.toml() == whole.toml()
        omenn.tune(net, images, **given(folder=half))
        assert len(judged) == 17

    def test_a_budget_of_seconds_is_decided_once(
        self, net: nn.Module, images: Tensor, tmp_path: Path
    ) -> None:
        options = given(folder=tmp_path / "a", seconds=1e6)
        first = omenn.tune(net, images, **options)
        run = tmp_path / "a" / "tuning.json"
        content = json.loads(run.read_text())
        content["extent"]["pictures"] = 7
        run.write_text(json.dumps(content))
        assert first.pictures == 8
        assert omenn.tune(net, images, **options).pictures == 7

    def test_the_folder_of_another_search(
        self, net: nn.Module, images: Tensor, tmp_path: Path
    ) -> None:
        omenn.tune(net, images, **given(folder=tmp_path))
        for other in ({"seed": 1}, {"sets": 25}, {"candidates": ["omenn"]}, {"passes": 9999}):
            with refused("folder", str(tmp_path)):
                omenn.tune(net, images, **given(folder=tmp_path, **other))
        with torch.no_grad():
            net.weight += 1
        with refused("folder", str(tmp_path)):
            omenn.tune(net, images, **given(folder=tmp_path))

    def test_the_folder_of_another_output(self, images: Tensor, tmp_path: Path) -> None:
        net, exact = Both().eval(), {"against": None, "candidates": ["gamma[complete=true]"]}
        omenn.tune(net, images, **given(folder=tmp_path, output="first", **exact))
        with refused("folder", str(tmp_path)):
            omenn.tune(net, images, **given(folder=tmp_path, output="second", **exact))

    def test_a_file_that_cannot_be_read_is_judged_again(
        self, net: nn.Module, images: Tensor, tmp_path: Path
    ) -> None:
        whole = omenn.tune(net, images, **given(folder=tmp_path))
        files = sorted((tmp_path / "pictures").iterdir())
        files[0].write_text("{")
        files[-1].write_text('{"target": 1}')
        assert omenn.tune(net, images, **given(folder=tmp_path)).record() == whole.record()


@pytest.mark.parametrize("shape", [(1, SIDE, SIDE), (3, SIDE + 1, SIDE)])
def test_pictures_that_the_model_cannot_take(net: nn.Module, shape: tuple[int, ...]) -> None:
    with refused("images", str(shape)):
        omenn.tune(net, torch.randn(12, *shape), **given())


class TestBudget:
    def test_fewer_pictures(self, net: nn.Module, images: Tensor) -> None:
        maps = prepared(net, images, **given()).costs
        pair = 2 * 26 + sum(maps.values()) + maps["mixed[noise=9.0]"] + max(maps.values()) + 6 * 22
        found = omenn.tune(net, images, **given(passes=math.ceil(7 * pair)))
        assert found.pictures == 7
        assert "14 of 16 pictures are used." in found.remarks
        assert omenn.tune(net, images, **given(passes=math.floor(7 * pair) - 1)).pictures == 6
        assert omenn.tune(net, images, **given(passes=10**6)).pictures == 8

    def test_too_small(self, net: nn.Module, images: Tensor) -> None:
        with refused("passes", "50"):
            omenn.tune(net, images, **given(passes=50))
        with refused("seconds", "1e-06"):
            omenn.tune(net, images, **given(seconds=1e-6))

    def test_nothing_or_two(self, net: nn.Module, images: Tensor) -> None:
        for name, value in (("passes", 0), ("passes", -3), ("seconds", 0), ("passes", 1.5)):
            with refused(name, str(value)):
                omenn.tune(net, images, **given(**{name: value}))
        with refused("seconds", "5"):
            omenn.tune(net, images, **given(seconds=5, passes=5000))


class TestRefused:
    @pytest.mark.parametrize(
        ("pictures", "argument"),
        [
            ([], "images"),
            (None, "images"),
            (5, "images"),
            (torch.randn(3, SIDE, SIDE), "images"),
            (torch.randn(1, 3, SIDE, SIDE), "images"),
            (torch.randn(11, 3, SIDE, SIDE), "images"),
            (torch.randn(1, 3, SIDE, SIDE).repeat(20, 1, 1, 1), "images"),
            (["picture.png"] * 12, "images["),
            (torch.zeros(12, 3, SIDE, SIDE, dtype=torch.long), "images["),
            ([torch.randn(2, 3, SIDE, SIDE)] * 12, "images["),
        ],
    )
    def test_pictures(self, pictures: Any, argument: str, net: nn.Module) -> None:
        with pytest.raises(omenn.InputError) as caught:
            omenn.tune(net, pictures, **given())
        assert caught.value.argument.startswith(argument)
        assert caught.value.expected or caught.value.remedy

    def test_copies_count_once(self, net: nn.Module, images: Tensor) -> None:
        found = omenn.tune(net, images[:12].repeat(3, 1, 1, 1), **given())
        assert found.pictures == 6
        with refused("images", "11 different"):
            omenn.tune(net, images[:11].repeat(3, 1, 1, 1), **given())

    def test_a_model_that_answers_the_same(self, images: Tensor) -> None:
        with refused("model"):
            omenn.tune(Still().eval(), images, **given())

    def test_a_model_that_cannot_be_asked(self, net: nn.Module, images: Tensor) -> None:
        with pytest.raises(ModelError, match="training mode"):
            omenn.tune(net.train(), images, **given())
        with pytest.raises(ModelError):
            omenn.tune(5, images, **given())
        with refused("f"):
            omenn.tune(lambda x: x.sum(), images, **given())
        with refused("f"):
            omenn.tune(lambda x: x.sum((2, 3)) * math.nan, images, **given())

    @pytest.mark.parametrize(
        ("change", "argument", "got"),
        [
            ({"candidates": ["mixed[noice=1]"]}, "noice", "noice"),
            ({"candidates": ["mixd"]}, "method", "mixd"),
            ({"candidates": ["gamma"]}, "candidates", "gamma"),
            ({"candidates": "grad-cam,omenn"}, "candidates", "grad-cam"),
            ({"candidates": []}, "candidates", "mixed"),
            ({"candidates": ["mixed[noise=9.0]"]}, "candidates", "mixed"),
            ({"candidates": [5]}, "candidates", "5"),
            ({"candidates": 5}, "candidates", "5"),
            ({"against": "mine"}, "method", "mine"),
            ({"sets": 1}, "sets", "1"),
            ({"across": 9}, "across", "9"),
            ({"across": 1}, "across", "1"),
            ({"share": 2}, "share", "2"),
            ({"fill": "red"}, "fill", "red"),
            ({"seed": -1}, "seed", "-1"),
            ({"chunk": 0}, "chunk", "0"),
            ({"check": 1}, "check", "1"),
        ],
    )
    def test_options(
        self, change: Any, argument: str, got: str, net: nn.Module, images: Tensor
    ) -> None:
        with refused(argument, got):
            omenn.tune(net, images, **given(**change))


class TestFailures:
    def test_a_candidate_that_fails_is_left_out(self, net: nn.Module, images: Tensor) -> None:
        found = omenn.tune(net, images, **given(candidates=["failing[least=0.02]", "omenn"]))
        row = next(row for row in found.rows if row.name == "failing[least=0.02]")
        assert "no luck" in row.error
        assert row.chosen is None
        assert found.best.name == "omenn"
        assert "no luck" in str(found)

    def test_a_default_that_fails_is_an_error(self, net: nn.Module, images: Tensor) -> None:
        images[:, 0, 0, 0] += torch.arange(16.0) * 1000  # only one of them is below
        low = float(images.mean((1, 2, 3)).sort().values[1]) - 1e-4
        with pytest.raises((omenn.InputError, ZeroDivisionError)):
            omenn.tune(net, images, **given(against=f"failing[least={low}]"))

    def test_a_sum_that_is_not_kept_is_a_failure(self, net: nn.Module, images: Tensor) -> None:
        @registry.method("false", promise="exact", summary="twice", source="this file")
        def false(model: Any, inputs: Any, target: Any = None) -> Any:
            e = omenn.explain(model, inputs, target)
            return e.with_matrix(2 * e.matrix, promise="exact")

        found = omenn.tune(net, images, **given(candidates=["false", "mixed[noise=1.0]"]))
        assert "misses the logit" in next(r.error for r in found.rows if r.name == "false")
        assert found.best.name == "mixed[noise=1.0]"


def test_nothing_of_the_model_is_touched(images: Tensor) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    ).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    given_images, state = images.clone(), torch.get_rng_state()
    omenn.tune(net, images, candidates=["omenn-clear"], **SMALL)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(images, given_images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())


def test_black_white_and_blur_are_all_fills(net: nn.Module, images: Tensor) -> None:
    for fill in ("black", "blur", 0.5):
        asked = prepared(net, images, **given(fill=fill)).judge.asked(images[:1])
        assert torch.equal(asked.fill, filled(images[:1], fill))


def test_a_second_opinion_that_contradicts_is_said() -> None:
    plus, both, minus = (Measured(v, v - 0.1, v + 0.1, 20) for v in (0.3, 0.0, -0.3))
    one, two = Candidate.read("omenn"), Candidate.read("gamma[complete=true]")

    def said(gain: Measured, checked: Measured | None) -> list[str]:
        return _contradiction(Tuned(one, two, gain, checked, [], 20, [], {}))

    for gain, checked in ((plus, plus), (plus, both), (both, both), (both, minus), (plus, None)):
        assert said(gain, checked) == []
    (worse,), (better,) = said(plus, minus), said(both, plus)
    assert "is worse than omenn: −0.300" in worse
    assert "is better than omenn: +0.300" in better
