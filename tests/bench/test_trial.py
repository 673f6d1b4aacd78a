"""Every registered metric judges a method and gives the measures that it declares."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omenn.bench import trial as trials
from omenn.bench.trial import REPLACED, Subject, Trial
from omenn.data.dataset_registry import MASKS, PARTS, TRAINING, Dataset, open_data
from omenn.errors import InputError
from omenn.metrics import metric_registry, quantus
from omenn.metrics.explainers import Explainer, explainer
from omenn.metrics.in_domain import in_domain_deletion
from omenn.metrics.localisation import boxed
from omenn.metrics.metric_registry import Measure, Metric, metrics
from omenn.metrics.score import Measured, Score
from omenn.modalities.image.pictures import Pictures
from omenn.modalities.image.preprocessing import Preprocessing

QUICK: dict[str, dict[str, Any]] = {
    "gae": {"steps": 3},
    "insertion-deletion": {"step": 64},
    "pixel-flipping": {"step": 64},
    "srg": {"patch": 4},
    "faithfulness-correlation": {"runs": 10},
    "faithfulness-estimate": {"step": 64},
    "sensitivity-n": {"runs": 10, "sizes": [5, 50]},
    "monotonicity-correlation": {"step": 64, "samples": 3},
    "sensitivity": {"samples": 3},
    "local-lipschitz": {"samples": 3},
    "smooth-mprt": {"samples": 2},
    "grid-pointing-game": {"confidence": 0.0},
    "idsds": {"pictures": 8, "epochs": 1, "batch": 4},
}


class Network(nn.Module):
    """Takes pictures of any size, as mosaics need it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 50)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


BIRDS = open_data("birds", "test", 8, side=16)
SMALL = Pictures(Preprocessing(size=(16, 16)))


def made(network: nn.Module, data: Dataset = BIRDS, **options: Any) -> Subject:
    return Subject(network, data, SMALL, **options)


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Eight birds, and a network that is right about all of them."""
    torch.manual_seed(0)
    network = Network().eval()
    found = made(network)
    with torch.no_grad():
        rows = network.features(found.images)
        rows = torch.cat([rows, torch.ones(8, 1)], 1).double()
        wanted = 10 * torch.eye(50, dtype=torch.float64)[found.labels]
        solved = (torch.linalg.pinv(rows) @ wanted).float()
        network.head.weight.copy_(solved[:8].T)
        network.head.bias.copy_(solved[8])
    return made(network)


def trial(subject: Subject, method: str = "omenn") -> Trial:
    return Trial(subject, lambda model: explainer(model, method))


def with_maps(subject: Subject, maps: Explainer) -> Trial:
    """A trial of an explainer that is none of a model."""
    return Trial(subject, lambda model: maps)


@pytest.mark.parametrize("name", metrics())
@pytest.mark.parametrize("method", ["omenn", "constant"])
def test_every_row_gives_what_it_declares(
    subject: Subject, name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Score] = []
    of = Measured.of

    def noting(score: Score, seed: int) -> Measured:
        seen.append(score)
        return of(score, seed)

    monkeypatch.setattr(Measured, "of", noting)
    metric = metrics()[name]
    found = trial(subject, method).judge(metric, **QUICK.get(name, {}))
    assert set(found.measures) == {measure.name for measure in metric.measures}
    for value in found.measures.values():
        assert math.isnan(value.value) or value.low - 1e-9 <= value.value <= value.high + 1e-9
    assert all(count > 0 for count in found.counted.values())
    # the table and the scores agree about which way is better
    for measure, score in zip(metric.measures, seen, strict=False):
        assert score.higher == measure.higher, measure.name
    for measure in metric.measures:
        value = found.measures[measure.name].value
        if measure.axis:
            assert measure.higher
            assert math.isnan(value) or -1e-9 <= value <= 1 + 1e-9, measure.name


def test_names_and_words_of_the_table() -> None:
    assert list(metrics()) == [protocol.name for protocol in metrics().values()]
    for protocol in metrics().values():
        assert any(measure.headline for measure in protocol.measures), protocol.name
        assert protocol.summary[:1].islower() or protocol.summary.startswith("Gini")
        assert not protocol.summary.endswith(".")
        assert protocol.source


def test_an_unknown_metric() -> None:
    with pytest.raises(InputError, match=r"^unknown metric 'funybirds': did you mean 'funnybirds'"):
        metric_registry.find("funybirds")


def test_options_are_what_a_plan_can_write() -> None:
    options = {name: dict(protocol.options) for name, protocol in metrics().items()}
    assert options["funnybirds"] == {"published": False, "positive": False, "dilation": None}
    assert "fill" not in options["pixel-flipping"]  # pictures
    assert options["faithfulness-correlation"]["fill"] == "black"  # also pictures, but first a word
    assert not any({"seed", "chunk", "tick", "maps"} & set(own) for own in options.values())


def test_what_a_metric_needs() -> None:
    needs = {name: set(protocol.needs) for name, protocol in metrics().items() if protocol.needs}
    assert needs["funnybirds"] == {PARTS}
    assert needs["pointing-game"] == {MASKS}
    assert needs["idsds"] == {TRAINING}
    assert "gae" not in needs


@pytest.mark.parametrize(
    "name", ["energy-pointing-game", "pointing-game", "relevance-mass", "relevance-rank"]
)
def test_where_the_labelled_class_is(subject: Subject, name: str) -> None:
    """The map is that of the label, also where another class is predicted."""
    other = made(subject.model)
    other.labels = subject.labels.roll(1)
    seen: list[Tensor] = []

    def pointing(images: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return other.masks.double()

    found = with_maps(made(subject.model), pointing).judge(metrics()[name])
    assert torch.equal(torch.cat(seen), subject.labels)
    one = with_maps(other, pointing)
    seen.clear()
    found = one.judge(metrics()[name])
    assert torch.equal(torch.cat(seen), other.labels)
    (value,) = found.measures.values()
    assert value.value == 1
    assert value.chance is not None
    assert 0 < value.chance < 1


def test_the_box_around_a_mask() -> None:
    masks = torch.zeros(3, 5, 6, dtype=torch.bool)
    masks[0, 1, 4] = masks[0, 3, 2] = True
    masks[1, 2, 2] = True
    wanted = torch.zeros_like(masks)
    wanted[0, 1:4, 2:5] = True
    wanted[1, 2, 2] = True
    assert torch.equal(boxed(masks), wanted)


def test_energy_in_the_box_or_in_the_mask(subject: Subject) -> None:
    metric = metrics()["energy-pointing-game"]
    one = trial(subject, "constant")
    chance = {
        box: one.judge(metric, box=box).measures["energy pointing game"].chance
        for box in (True, False)
    }
    mask, box = subject.masks.double(), boxed(subject.masks).double()
    assert chance == {True: pytest.approx(float(box.mean())), False: float(mask.mean())}
    assert chance[True] > chance[False]


class TestQuantusRows:
    def test_every_metric_of_the_adapter_has_a_row(self) -> None:
        for name in quantus.METRICS:
            found = metric_registry.find(f"quantus:{name}")
            assert found.name == f"quantus:{name}"
            assert found.needs == ({MASKS} if name in quantus.MASKED else set())
            (measure,) = found.measures
            assert measure.headline

    def test_names_may_be_written_otherwise(self) -> None:
        for name in ("pixel-flipping", "PIXELFLIPPING", "Pixel Flipping"):
            assert metric_registry.find(f"quantus:{name}").name == "quantus:PixelFlipping"

    def test_which_way_is_better_and_options(self) -> None:
        pytest.importorskip("quantus")
        package = quantus.package_for("Sparseness")
        for name in quantus.METRICS:
            found = metric_registry.find(f"quantus:{name}")
            if name != "Completeness":
                better = str(getattr(package, name).score_direction.value) == "higher"
                assert found.measures[0].higher == better, name
                assert not any(option.endswith("_func") for option in found.options)
        options = dict(metric_registry.find("quantus:PixelFlipping").options)
        assert options["features_in_step"] == 1
        assert set(metric_registry.find("quantus:Completeness").options) == {"fill", "tolerance"}

    @pytest.mark.parametrize("name", ["Sparseness", "EfficientMPRT", "PointingGame"])
    def test_it_judges(self, subject: Subject, name: str) -> None:
        pytest.importorskip("quantus")
        found = trial(subject).judge(metric_registry.find(f"quantus:{name}"))
        assert set(found.measures) == {name}
        assert found.measures[name].images == 8


def test_a_new_row_is_a_function_as_it_stands(subject: Subject) -> None:
    def mine(maps: Tensor, labels: Tensor, *, power: int = 1) -> Score:
        return Score("mine", (maps.flatten(1).sum(1) * 0 + labels.double()) ** power, {"odd": 0})

    row = Metric("mine", mine, "complexity", "the label", "this test", (Measure("label"),))
    assert dict(row.options) == {"power": 1}
    found = trial(subject, "constant").judge(row, power=2)
    assert found.measures["label"].value == subject.labels.double().square().mean()
    assert found.counted == {}


def test_a_row_that_gives_another_number_of_measures_is_an_error(subject: Subject) -> None:
    def two(maps: Tensor) -> tuple[Score, Score]:
        return Score("a", maps.sum((1, 2)).double()), Score("b", maps.sum((1, 2)).double())

    row = Metric("two", two, "complexity", "two", "this test", (Measure("a"),))
    with pytest.raises(InputError, match=r"'two' returned tuple, and not a Score for each .*: a\."):
        trial(subject, "constant").judge(row)
    bare = dataclasses.replace(row, name="bare", function=lambda maps: maps.sum((1, 2)))
    with pytest.raises(InputError, match="'bare' returned Tensor, and not a Score"):
        trial(subject, "constant").judge(bare)


class TestTrial:
    def test_maps_are_made_once_in_chunks_and_shared(self, subject: Subject) -> None:
        calls: list[int] = []

        def counting(images: Tensor, targets: Tensor) -> Tensor:
            calls.append(len(images))
            return images.sum(1) * (1 + targets.view(-1, 1, 1))

        own = made(subject.model, chunk=3)
        around: list[int] = []

        @contextlib.contextmanager
        def noting(count: int) -> Iterator[None]:
            around.append(count)
            yield

        one = with_maps(own, counting)
        one.compute(noting)
        assert around == [3, 3, 2]
        assert calls == [1, *around]  # the first picture once before
        wanted = counting(own.images, own.predicted)
        calls.clear()
        assert torch.equal(one.maps, wanted)
        for name in ("sparseness", "srg", "pointing-game"):
            one.judge(metrics()[name], **QUICK.get(name, {}))
        assert calls == []
        # another class is another map; a part of the pictures is known
        targets = own.predicted.clone()
        targets[5:] += 1
        assert torch.equal(one.explain(own.images, targets), counting(own.images, targets))
        assert calls[:-1] == [3]

    def test_what_was_judged_before_changes_nothing(self, subject: Subject) -> None:
        alone, after = trial(subject, "abslrp"), trial(subject, "abslrp")
        for one in (alone, after):
            one.compute(lambda count: contextlib.nullcontext())
        after.judge(metrics()["funnybirds"])
        assert after.judge(metrics()["gae"], steps=3) == alone.judge(metrics()["gae"], steps=3)

    def test_maps_that_are_not_finite_are_zero_and_counted(self, subject: Subject) -> None:
        def broken(images: Tensor, targets: Tensor) -> Tensor:
            maps = images.sum(1).abs() + 1
            maps[targets == 2, 0, 0] = torch.nan
            maps[targets == 5, 1, 1] = torch.inf
            return maps

        def mended(images: Tensor, targets: Tensor) -> Tensor:
            maps = images.sum(1).abs() + 1
            maps[(targets == 2) | (targets == 5)] = 0
            return maps

        for computed in (False, True):
            one, other = with_maps(subject, broken), with_maps(subject, mended)
            if computed:
                one.compute(lambda count: contextlib.nullcontext())
            for name in ("funnybirds", "srg", "sparseness"):
                found, wanted = (
                    t.judge(metrics()[name], **QUICK.get(name, {})) for t in (one, other)
                )
                assert repr(found.measures) == repr(wanted.measures)  # NaN is not NaN
                assert found.counted == {**wanted.counted, REPLACED: 2}
            assert torch.equal(one.explain(subject.images, subject.predicted), other.maps)

    def test_the_method_on_another_model(self, subject: Subject) -> None:
        other = Network().eval()
        found = trial(subject).make(other)(subject.images, subject.predicted)
        assert torch.equal(found, explainer(other, "omenn")(subject.images, subject.predicted))
        assert not torch.equal(found, trial(subject).maps)

    def test_a_map_of_another_shape(self, subject: Subject) -> None:
        one = with_maps(subject, lambda images, targets: images.sum(1)[:, ::2])
        with pytest.raises(
            InputError,
            match=r"the method gives maps of the shape \(8, 8, 16\) for images of the shape "
            r"\(8, 3, 16, 16\), expected \(8, 16, 16\)",
        ):
            one.judge(metrics()["sparseness"])


class TestSubject:
    def test_parts_and_masks_as_the_model_sees_them(self, subject: Subject) -> None:
        assert subject.seen.labels.tolist() == subject.labels.tolist() == list(range(8))
        assert torch.equal(subject.masks, subject.seen.masks.any(1))
        assert torch.equal(subject.images, subject.seen.images)
        assert subject.accuracy().mean == 1

    def test_data_without_parts_or_masks(self, subject: Subject) -> None:
        bare = made(subject.model, dataclasses.replace(BIRDS, parts=False, where=None))
        with pytest.raises(InputError, match="the data has no pictures with parts removed"):
            trial(bare).judge(metrics()["funnybirds"])
        with pytest.raises(InputError, match="the data has no masks of the subject"):
            trial(bare).judge(metrics()["pointing-game"])

    def test_more_outputs_than_classes_are_said(self, subject: Subject) -> None:
        assert subject.remark == ""
        more = made(nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 60)).eval())
        assert more.remark == (
            "It has 60 outputs and the data 50 classes: what depends on the label assumes that "
            "the first 50 outputs are these classes."
        )

    def test_data_without_training_pictures(self, subject: Subject) -> None:
        bare = made(subject.model, dataclasses.replace(BIRDS, train=None))
        with pytest.raises(InputError, match="the data has no training pictures"):
            trial(bare).judge(metrics()["idsds"])

    def test_a_model_with_too_few_outputs(self) -> None:
        with pytest.raises(InputError, match=r"the model has 5 outputs, the data 50 classes\."):
            made(nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 5)).eval())


def test_more_pictures_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from omenn.bench import trial

    monkeypatch.setattr(trial, "_memory", lambda: 3 * 8 * (3 * 256 * 4) - 1)
    message = r"8 pictures of the shape \(3, 16, 16\) are in memory at once .* Lower limit\."
    with pytest.raises(InputError, match=message):
        made(Network().eval())
    monkeypatch.setattr(trial, "_memory", lambda: 3 * 8 * (3 * 256 * 4))
    assert len(made(Network().eval()).images) == 8


def test_idsds_with_no_picture() -> None:
    with pytest.raises(InputError, match="pictures must be an integer of at least 1"):
        in_domain_deletion(None, None, torch.zeros(1), torch.zeros(1), pictures=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("epochs", "falls"), [(1, 1), (2, 1), (3, 1), (5, 2), (8, 3), (30, 10)])
def test_the_rate_of_idsds_falls_after_each_third(epochs: int, falls: int) -> None:
    asked: list[Any] = []

    def tuned(pictures: int, recipe: Any) -> Any:
        asked.append(recipe)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        in_domain_deletion(tuned, lambda net: None, torch.zeros(1), torch.zeros(1), epochs=epochs)  # type: ignore[arg-type, return-value]
    assert asked[0].step == falls


def test_the_model_is_asked_once_about_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def f(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images.flatten(1)[:, :2]

    remembered = trials.Remembered(f)
    x, y = torch.arange(8.0).view(2, 1, 2, 2), torch.ones(3, 1, 2, 2)
    first = remembered(x)
    first += 1  # what a protocol does with an answer is its own
    assert torch.equal(remembered(x), f(x))
    assert torch.equal(remembered(x.view(2, 2, 2, 1)), f(x))  # other pictures of the same numbers
    assert asked == [2, 2, 2, 2]
    monkeypatch.setattr(trials, "MEMORY", 2 * x[:, 0, 0].nbytes + 1)
    remembered(y)  # the answer about x goes
    remembered(x)
    assert asked == [2, 2, 2, 2, 3, 2]
