"""``omenn train table``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import omenn
from commands import Run, refused, written
from omenn.models import tabular

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
        assert run(*words)[0] == 0
        card = Path("runs/table/table.json").read_text()
        assert '"method": "omenn"' in card
        assert '"weight": 1.0' in card

    def test_the_same_again_is_not_trained_again(self, run: Run, file: str) -> None:
        words = ("train", "table", file, "--target", "outcome", *WORDS)
        assert run(*words)[1] == run(*words)[1]

    def test_mistakes(self, run: Run, file: str) -> None:
        base = ("train", "table", file, "--target")
        refused(run(*base, "outcom"), "did you mean 'outcome'?")
        refused(run("train", "table", "none.csv", "--target", "y"), "No such file")
        refused(run(*base, "outcome", "--prior", "sparcity"), "sparcity")
        refused(run(*base, "outcome", "--prior-weight", 2), "need a prior: add --prior sparsity")
        refused(run(*base, "outcome", "--prior", "sparsity", "--prior-weight", -1), "weight must")
        refused(run(*base, "outcome", "--hidden", "a"), "hidden is 'a'")
        refused(run(*base, "outcome", "--epochs", 0), "epochs is 0")
        refused(run(*base, "outcome", "--device", "tpu"), "cannot be used")
        assert not any(name.endswith(".safetensors") for name in written())

    def test_a_weight_that_is_too_large(self, run: Run, file: str) -> None:
        words = ("--learning-rate", "1e30", *WORDS)
        refused(run("train", "table", file, "--target", "outcome", *words), "training stopped at")
