"""``omenn data birds`` and ``omenn train birds``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from commands import Run, refused, written
from omenn.models.recipes import BIRD_PRIORS, RECIPES


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, recipe in RECIPES.items():
        cut = replace(
            recipe, batch_size=8, train_scenes=16, validation_scenes=4, test_scenes=4, epochs=1
        )
        monkeypatch.setitem(RECIPES, name, cut)


class TestDataAndTraining:
    def test_birds_are_written(self, run: Run, inside_tmp: Path) -> None:
        words = ("--train-scenes", 2, "--test-scenes", 1, "--size", 16)
        code, out, err = run("data", "birds", "birds", *words)
        assert (code, err) == (0, "")
        assert "wrote birds" in out
        assert {"birds/classes.json", "birds/parts.json"} <= written()

    def test_mistakes(self, run: Run, inside_tmp: Path) -> None:
        refused(run("data", "birds", "birds", "--size", 1), "size")
        refused(run("data", "birds", "birds", "--train-scenes", -1), "-1")
        refused(run("train", "birds", "--arch", "birds-resnat"), "birds-resnat")
        refused(run("train", "birds", "--arch", "birds-vit", "--device", "tpu"), "cannot be used")
        refused(run("train", "birds", "--arch", "birds-vit", "--epochs", 0), "epochs")
        assert not any(name.endswith(".safetensors") for name in written())

    @pytest.mark.parametrize(
        ("arch", "method"), [("birds-xconvnet", "xgradient"), ("birds-convnet", "omenn")]
    )
    def test_birds_with_a_prior(
        self, arch: str, method: str, run: Run, inside_tmp: Path, tiny: None
    ) -> None:
        words = ("--prior", "right-reasons", "--prior-weight", 2, "--prior-fraction", 0.5)
        code, out, err = run("train", "birds", "--arch", arch, "--out", "x", *words)
        assert code == 0, err
        assert out == f"wrote x/{arch}.safetensors\n"
        card = json.loads(Path(f"x/{arch}.json").read_text())
        assert card["prior"]["name"] == "right-reasons"
        assert (card["prior"]["weight"], card["prior"]["fraction"]) == (2, 0.5)
        assert card["prior"]["method"] == method
        again = run(*card["command"].split()[1:], "--out", "x")
        assert again[:2] == (0, out)  # the checkpoint fits: it is the same training

    def test_birds_with_a_learning_rate(self, run: Run, inside_tmp: Path, tiny: None) -> None:
        words = ("--arch", "birds-xconvnet", "--learning-rate", 0.01, "--out", "x")
        assert run("train", "birds", *words)[0] == 0
        assert json.loads(Path("x/birds-xconvnet.json").read_text())["recipe"] == {
            **vars(RECIPES["birds-xconvnet"]), "learning_rate": 0.01
        }  # fmt: skip

    def test_mistakes_with_priors(self, run: Run, inside_tmp: Path, tiny: None) -> None:
        birds = ("train", "birds", "--arch", "birds-xvit")
        for words in (("--prior-weight", 1), ("--prior-method", "omenn"), ("--prior-fraction", 1)):
            refused(run(*birds, *words), f"{words[0]} is an option of a prior. Add --prior")
        refused(run(*birds, "--prior", "sparse"), "'sparse'")
        refused(run(*birds, "--prior", "sparsity", "--prior-method", "shap"), "'shap'")
        refused(
            run(*birds, "--prior", "sparsity", "--prior-weight", -1),
            "weight must be a finite number of at least 0, but -1",
        )
        refused(run(*birds, "--prior", "sparsity", "--prior-fraction", 0), "fraction")
        refused(run(*birds, "--learning-rate", 0), "learning_rate must be above 0")
        refused(run(*birds, "--seed", 10**20), "seed must be .*, but 1000")
        assert not any(name.endswith(".safetensors") for name in written())

    def test_a_training_that_diverges(self, run: Run, inside_tmp: Path, tiny: None) -> None:
        words = ("--arch", "birds-xconvnet", "--prior", "smoothness", "--prior-weight", 1e38)
        code, out, err = run("train", "birds", *words, "--learning-rate", 1e4)
        assert (code, out) == (2, "")
        assert "stopped at step" in err
        assert "Choose a smaller --prior-weight than 1e+38" in err
        assert "Traceback" not in err


def test_every_bundled_architecture_and_prior_has_its_word() -> None:
    from typing import get_args

    from omenn.cli import train_command

    assert get_args(get_args(train_command.Arch)[0]) == tuple(RECIPES)
    words, _none = get_args(get_args(train_command.BirdPrior)[0])
    assert get_args(words) == BIRD_PRIORS
