"""Trainings on birds with a prior on attributions, interrupted and stopped ones. Tiny runs only."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from omenn.data.birds.arrays import SceneArrays
from omenn.errors import ModelError, WeightsError
from omenn.models import training
from omenn.models.architectures import ARCHITECTURES
from omenn.models.bird_priors import bird_prior, described, takes_mask
from omenn.models.checkpoints import load_weights
from omenn.models.training import train_birds
from omenn.xdnn import AttributionPrior
from omenn.xdnn.priors import right_reasons
from refusals import refused

pytestmark = pytest.mark.usefixtures("tiny_recipes")


def tensors(content: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested state, by where they stand."""
    if isinstance(content, torch.Tensor):
        return {path: content}
    pairs: Any = ()
    if isinstance(content, dict):
        pairs = content.items()
    elif isinstance(content, list | tuple):
        pairs = enumerate(content)
    return {k: v for key, part in pairs for k, v in tensors(part, f"{path}/{key}").items()}


def all_of(out, arch: str) -> dict[str, torch.Tensor]:
    """Every tensor that a training leaves: weights, and the whole checkpoint."""
    checkpoint = torch.load(out / f"{arch}.checkpoint.pt", weights_only=True)
    return tensors([load_file(out / f"{arch}.safetensors"), checkpoint])


def interrupt_at(monkeypatch, call: int) -> list[int]:
    """Ctrl-C in the step number ``call``; the list of the steps that are taken."""
    step, steps = training._Run._step, []

    def interrupted(self, scenes, rows, number, *rest):
        steps.append(number)
        if len(steps) == call:
            raise KeyboardInterrupt
        return step(self, scenes, rows, number, *rest)

    monkeypatch.setattr(training._Run, "_step", interrupted)
    return steps


CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "resnet": ("birds-resnet", ()),
    "xvit": ("birds-xvit", ()),
    "resnet, right reasons": ("birds-resnet", ("right-reasons", 30.0, "omenn")),
    "xconvnet, sparsity": ("birds-xconvnet", ("sparsity", 1.0, "xgradient")),
    "convnet, drawn": ("birds-convnet", ("smoothness", 1.0, "expected-gradients")),
}


def prior_of(words: tuple[Any, ...]) -> AttributionPrior | None:
    return bird_prior(*words, fraction=0.5) if words else None


QUICK = [("xvit", 2), ("convnet, drawn", 4), ("convnet, drawn", 5)]
SLOW = [(case, 5) for case in CASES if case != "convnet, drawn"]


# in the first epoch, at the beginning of the second, and amid it
@pytest.mark.parametrize(
    ("case", "at"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_an_interrupted_training_ends_the_same_bit_for_bit(case, at, tmp_path, cache, monkeypatch):
    arch, words = CASES[case]
    train_birds(arch, tmp_path / "whole", prior=prior_of(words), cache=cache)
    steps = interrupt_at(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        train_birds(arch, tmp_path / "cut", prior=prior_of(words), cache=cache)
    left = [p.name for p in (tmp_path / "cut").glob("*")]
    assert left == ([f"{arch}.checkpoint.pt"] if at > 3 else [])
    train_birds(arch, tmp_path / "cut", prior=prior_of(words), cache=cache)
    assert steps[at:] == ([3, 4, 5] if at > 3 else [0, 1, 2, 3, 4, 5])  # that epoch again
    whole, cut = all_of(tmp_path / "whole", arch), all_of(tmp_path / "cut", arch)
    assert whole.keys() == cut.keys()
    assert len(whole) > 50
    assert [name for name in whole if not whole[name].equal(cut[name])] == []


def test_a_prior_changes_the_training_and_its_seed_does_too(tmp_path, cache):
    def head(name: str, prior: AttributionPrior | None) -> torch.Tensor:
        path = train_birds("birds-xconvnet", tmp_path / name, epochs=1, prior=prior, cache=cache)
        return load_file(path)["head.weight"]

    def of(weight: float, seed: int = 0) -> AttributionPrior:
        return bird_prior("sparsity", weight, "xgradient", fraction=0.25, seed=seed)

    none, zero = head("none", None), head("zero", of(0.0))
    one, again, other = head("one", of(5.0)), head("again", of(5.0)), head("other", of(5.0, 1))
    assert none.equal(zero)
    assert one.equal(again)
    assert not any(one.equal(rest) for rest in (none, other))


@pytest.mark.slow  # 16 epochs
def test_right_reasons_bring_attribution_onto_the_bird(tmp_path, cache):
    scenes = training.scene_arrays("train", 24, masks=True)
    images = training.normalised(scenes.images)
    prior = AttributionPrior(partial(right_reasons, share=True), 20.0)

    def outside(name: str, prior: AttributionPrior | None) -> float:
        path = train_birds("birds-xconvnet", tmp_path / name, epochs=8, prior=prior, cache=cache)
        network = ARCHITECTURES["birds-xconvnet"]()
        load_weights(network, path)
        a = judge.attributions(network.eval(), images, scenes.labels).detach()
        return float(right_reasons(a, mask=scenes.masks, share=True))

    judge = AttributionPrior("sparsity", 1.0)
    with_prior, without = outside("with", prior), outside("without", None)
    assert with_prior < 0.9 * without


def test_the_callers_prior_and_random_numbers_are_left_alone(tmp_path, cache):
    prior = bird_prior("sparsity", 1.0, "xgradient", fraction=0.5)
    before = prior.state_dict()["generator"].clone()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_birds("birds-xvit", tmp_path, epochs=1, prior=prior, cache=cache)
    assert torch.rand(3).equal(expected)
    assert prior.state_dict()["generator"].equal(before)


class Recorder(AttributionPrior):
    """A prior that keeps what it is called with."""

    calls: ClassVar[list[dict[str, Any]]] = []

    def __call__(self, model: Any, x: Any, y: Any = None, **context: Any) -> torch.Tensor:
        cast = torch.is_autocast_enabled("cpu")
        self.calls.append({"x": x, "y": y, "cast": cast, "model": model, **context})
        return super().__call__(model, x, y, **context)


def test_the_mask_lies_on_the_picture_that_the_network_sees(tmp_path, cache, monkeypatch):
    """Scenes whose birds are white before black: the mask is where the picture is light."""
    real = training.scene_arrays

    def painted(split: Any, count: int, **options: Any) -> SceneArrays:
        found = real(split, count, **(options | {"masks": True, "cache": None}))
        assert found.masks is not None
        white = (found.masks * 255).to(torch.uint8).expand(-1, 3, -1, -1)
        return SceneArrays(white, found.labels, found.compatible, found.parts, found.masks)

    monkeypatch.setattr(training, "scene_arrays", painted)
    recipe = training.recipe_of("birds-xconvnet", precision="bfloat16")
    monkeypatch.setattr(training, "recipe_of", lambda *_, **__: recipe)
    Recorder.calls.clear()
    train_birds("birds-xconvnet", tmp_path, prior=Recorder("right-reasons", 1.0), cache=cache)
    assert len(Recorder.calls) == 6
    for call in Recorder.calls:
        middle = (call["x"].amax((2, 3), keepdim=True) + call["x"].amin((2, 3), keepdim=True)) / 2
        assert ((call["x"] > middle).all(1, keepdim=True) == call["mask"]).all()
        assert call["mask"].shape == (8, 1, 64, 64)
        assert call["x"].dtype == torch.float32
        assert not call["cast"]
        assert call["y"].shape == (8,)
    seen = torch.stack([call["mask"] for call in Recorder.calls]).float().std(0)
    assert float(seen.mean()) > 0


def test_priors_without_a_mask_draw_none(tmp_path, cache):
    Recorder.calls.clear()
    train_birds("birds-xconvnet", tmp_path, prior=Recorder("sparsity", 1.0), cache=tmp_path / "c")
    assert all("mask" not in call for call in Recorder.calls)
    assert not list((tmp_path / "c").glob("*masks*"))
    assert takes_mask(bird_prior("right-reasons", 1.0))
    assert not takes_mask(None)


# Card and checkpoint --------------------------------------------------------------------------


def test_card_and_checkpoint_record_the_prior(tmp_path, cache):
    prior = bird_prior("right-reasons", 2.5, "integrated-gradients", fraction=0.125)
    path = train_birds("birds-convnet", tmp_path, epochs=1, prior=prior, cache=cache)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["prior"] == described(prior)
    assert card["prior"]["method"] == "integrated-gradients"
    assert card["prior"]["options"]["steps"] == 16
    assert card["command"].endswith(
        "--prior right-reasons --prior-weight 2.5 --prior-method integrated-gradients "
        "--prior-fraction 0.125"
    )
    others = {
        "weight": bird_prior("right-reasons", 2.6, "integrated-gradients", fraction=0.125),
        "seed": bird_prior("right-reasons", 2.5, "integrated-gradients", fraction=0.125, seed=1),
        "none": None,
    }
    for other in others.values():
        with pytest.raises(WeightsError, match="belongs to another training"):
            train_birds("birds-convnet", tmp_path, epochs=1, prior=other, cache=cache)


def test_a_prior_of_ones_own_has_no_command(tmp_path, cache):
    def calm(attributions: torch.Tensor) -> torch.Tensor:
        return attributions.square().mean()

    prior = AttributionPrior(calm, 1.0, "gradient")
    path = train_birds("birds-xresnet", tmp_path, epochs=1, prior=prior, cache=cache)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["command"] is None
    assert card["prior"]["name"] == "calm"


def test_references_of_expected_gradients_are_described_by_a_hash():
    first = described(bird_prior("sparsity", 1.0, "expected-gradients"))
    other = described(bird_prior("sparsity", 1.0, "expected-gradients", seed=1))
    assert first is not None
    assert other is not None
    assert first["options"]["references"].startswith("tensor (128, 3, 64, 64), digest ")
    assert first["options"]["references"] != other["options"]["references"]


def test_priors_that_there_are_not():
    with refused("prior", "right_reasons"):
        bird_prior("right_reasons", 1.0)
    with refused("weight", "-1.0"):
        bird_prior("sparsity", -1.0)


# A loss that is no longer finite ---------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_the_training(tmp_path, cache, monkeypatch):
    train_birds("birds-convnet", tmp_path / "whole", cache=cache)
    forward, calls = training.Student.forward, []

    def broken(self, *args):
        calls.append(args)
        return forward(self, *args) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(training.Student, "forward", broken)
    checkpoint = tmp_path / "cut/birds-convnet.checkpoint.pt"
    kept = checkpoint.with_name("birds-convnet.stopped.pt")
    with pytest.raises(ModelError) as caught:
        train_birds("birds-convnet", tmp_path / "cut", cache=cache)
    assert str(caught.value) == (
        "the training of birds-convnet stopped at step 2 of 3 in epoch 2: the loss is nan. "
        f"The weights before that step are in {kept}. "
        "Choose a smaller learning rate than 0.001, and another folder."
    )
    assert {p.name for p in checkpoint.parent.iterdir()} == {checkpoint.name, kept.name}
    network = ARCHITECTURES["birds-convnet"]()
    heads = [network.head.weight.detach().clone()]
    for path in (checkpoint, kept):  # after epoch 1, and one step later
        load_weights(network, path)
        assert all(p.isfinite().all() for p in network.parameters())
        assert not any(network.head.weight.equal(head) for head in heads)
        heads.append(network.head.weight.detach().clone())
    train_birds("birds-convnet", tmp_path / "cut", cache=cache)  # the cause is gone: it goes on
    whole, cut = (
        all_of(tmp_path / "whole", "birds-convnet"),
        all_of(tmp_path / "cut", "birds-convnet"),
    )
    assert [name for name in whole if not whole[name].equal(cut[name])] == []


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm(tmp_path, cache):
    def sharp(attributions: torch.Tensor) -> torch.Tensor:  # 0, with an infinite slope
        return (attributions * 0).sum().sqrt()

    prior = AttributionPrior(sharp, 3.0)
    with pytest.raises(ModelError) as caught:
        train_birds("birds-xconvnet", tmp_path, prior=prior, cache=cache)
    assert str(caught.value) == (
        "the training of birds-xconvnet stopped at step 1 of 3 in epoch 1: the length of the "
        "gradient is nan. No step was finished, so no weights were written. Choose a smaller "
        "--prior-weight than 3 or a smaller learning rate than 0.003, and another folder."
    )
    assert not list(tmp_path.iterdir())


def test_a_weight_that_is_too_large_stops_the_training(tmp_path, cache):
    def large(attributions: torch.Tensor) -> torch.Tensor:
        return attributions.sum() * 0 + 1e6

    with pytest.raises(ModelError, match=r"step 1 of 3 in epoch 1: in the prior, .*1e\+38") as got:
        train_birds("birds-xconvnet", tmp_path, prior=AttributionPrior(large, 1e38), cache=cache)
    assert "a smaller --prior-weight than 1e+38" in got.value.remedy
