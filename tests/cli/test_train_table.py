"""``omenn train table``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import omenn
from commands import Run, refused, written
from omenn.models import table_training, tabular

WORDS = ("--hidden", "8,4", "--epochs", 5)


@pytest.fixture
def file(inside_tmp: Path) -> str:
    rows = [f"{k % 2 + k / 50},{k % 5},{'ill' if k % 2 else 'well'}" for k in range(30)]
    Path("people.csv").write_text("\n".join(["age,dose,outcome", *rows]) + "\n")
    return "people.csv"


class TestTrainTable:
    def test_a_network_is_trained_and_can_be_explained(self, run: Run, file: str) -> None:
        prior = ("--prior", "sparsity", "--prior-weight", 0.1, "--prior-method", "xgradient")
        code, out, err = run(
            "train", "table", file, "--target", "outcome", "--no-bias", *prior, *WORDS, "-o", "net"
        )
        assert (code, err) == (0, "")
        assert "wrote net/table.safetensors: ROC-AUC" in out
        assert "omenn.models.tabular.load('net')" in out
        assert {"net/table.safetensors", "net/table.json"} <= written()
        network = tabular.load("net")
        x = network.standardised(torch.tensor([[1.0, 2.0]]))
        assert omenn.explain(network, x, method="xgradient", check=True).exact

    def test_with_biases_the_prior_is_on_exact_attributions(self, run: Run, file: str) -> None:
        words = ("train", "table", file, "--target", "outcome", *WORDS, "--prior", "sparsity")
        assert run(*words, "--seed", 3)[0] == 0
        card = Path("runs/table/table.json").read_text()
        assert '"method": "omenn"' in card
        assert '"weight": 1.0' in card
        assert '"seed": 3' in card

    def test_the_same_again_is_not_trained_again(self, run: Run, file: str) -> None:
        words = ("train", "table", file, "--target", "outcome", *WORDS)
        assert run(*words)[1] == run(*words)[1]

    def test_mistakes(self, run: Run, file: str) -> None:
        base = ("train", "table", file, "--target")
        refused(run(*base, "outcom"), "did you mean 'outcome'?")
        refused(run("train", "table", "none.csv", "--target", "y"), "does not exist")
        refused(run(*base, "outcome", "--prior", "sparcity"), "sparcity")
        refused(
            run(*base, "outcome", "--prior-weight", 2),
            "--prior-weight is an option of a prior. Add --prior spars",
        )
        refused(run(*base, "outcome", "--prior", "sparsity", "--prior-weight", -1), "weight must")
        refused(run(*base, "outcome", "--hidden", "a"), "hidden must be .* but 'a'")
        refused(run(*base, "outcome", "--epochs", 0), "epochs must be .*, but 0")
        refused(run(*base, "outcome", "--seed", -1), "seed must be .*, but -1")
        refused(run(*base, "outcome", "--seed", 10**20), "seed must be .*, but 1000")
        refused(run(*base, "outcome", "--device", "tpu"), "cannot be used")
        assert not any(name.endswith(".safetensors") for name in written())

    def test_cells_that_are_missing_or_no_numbers(self, run: Run, file: str) -> None:
        text = Path(file).read_text()
        words = ("train", "table", "other.csv", "--target", "outcome", *WORDS)
        Path("other.csv").write_text(text.replace(",3,ill", ",high,ill"))
        refused(run(*words), "line 5 of other.csv holds 'high' in column 'dose'.*not a number")
        Path("other.csv").write_text(text.replace(",3,ill", ",,ill"))
        refused(run(*words), "line 5 of other.csv has no value in column 'dose'")
        code, out, err = run(*words, "--missing", "mean")
        assert (code, err) == (0, "")
        assert "wrote runs/table/table.safetensors" in out

    def test_a_step_or_a_weight_of_the_prior_that_is_too_large(self, run: Run, file: str) -> None:
        words = ("train", "table", file, "--target", "outcome", *WORDS)
        refused(run(*words, "--learning-rate", "1e30"), "training stopped at step")
        for weight in ("1e30", "1e39", "1e300"):
            prior = ("--prior", "sparsity", "--prior-weight", weight, "--no-bias")
            refused(run(*words, *prior), r"stopped at step 1 of 5: .*a smaller weight of the prior")

    def test_a_damaged_checkpoint(self, run: Run, file: str) -> None:
        words = ("train", "table", file, "--target", "outcome", *WORDS, "--out", "x")
        Path("x").mkdir()
        Path("x/table.checkpoint.pt").write_bytes(b"nothing of the kind")
        message = (
            r"x/table.checkpoint.pt cannot be read: it is damaged, or not a checkpoint\. Remove it"
        )
        refused(run(*words), message)
        Path("x/table.checkpoint.pt").unlink()
        Path("x/table.checkpoint.pt").mkdir()
        refused(run(*words), r"table\.checkpoint\.pt' cannot be read: it is a folder")

    def test_interrupted_before_a_checkpoint_it_promises_nothing(
        self, run: Run, file: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(table_training._Run, "_step", interrupted)
        words = ("train", "table", file, "--target", "outcome", *WORDS, "--out", "x")
        assert run(*words) == (2, "", "omenn: interrupted; nothing is left half-written\n")
        assert not Path("x").exists()

    def test_interrupted_it_goes_on_to_the_same_weights(
        self, run: Run, file: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("train", "table", file, "--target", "outcome", "--prior", "sparsity", *WORDS)
        assert run(*words, "--out", "whole")[0] == 0
        step, steps = table_training._Run._step, []

        def interrupted(self, *args):
            steps.append(self.training.epoch)
            if len(steps) == 3:
                raise KeyboardInterrupt
            return step(self, *args)

        monkeypatch.setattr(table_training, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
        monkeypatch.setattr(table_training._Run, "_step", interrupted)
        code, out, err = run(*words, "--out", "cut")
        assert (code, out) == (2, "")
        assert "run the same command again to continue" in err
        assert run(*words, "--out", "cut")[0] == 0
        assert steps == [0, 1, 2, 2, 3, 4]
        whole, cut = (Path(name, "table.safetensors").read_bytes() for name in ("whole", "cut"))
        assert whole == cut
