"""Networks on CSV tables: ROC-AUC, splits, training, resuming, stopping, loading."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import omenn
from omenn.data.tables import Table, read_table
from omenn.errors import InputError, ModelError, OutputError, WeightsError
from omenn.models import table_training, tabular
from omenn.models.table_training import split, train_table
from omenn.models.tabular import TableNetwork, roc_auc
from omenn.xdnn import AttributionPrior
from omenn.xdnn.priors import sparsity
from refusals import refused

SMALL = {"hidden": (8, 4), "epochs": 6, "learning_rate": 0.02}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """60 rows of two classes; the first of three columns tells them apart, the last is constant."""
    return written(tmp_path / "t.csv", kinds=2)


def written(path: Path, kinds: int, rows: int = 60) -> Path:
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(3))
    lines = [
        f"{float(a) + 3 * (k % kinds):.4f},{float(b):.4f},7,{'abc'[k % kinds]}"
        for k, (a, b) in enumerate(x)
    ]
    path.write_text("\n".join(["real,noise,same,kind", *lines]) + "\n")
    return path


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return tabular.load(folder).state_dict()


class TestRocAuc:
    @given(
        rows=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
            lambda rows: len({label for _, label in rows}) == 2
        )
    )
    def test_like_scikit_learn_with_ties(self, rows) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        scores, labels = np.array([s for s, _ in rows], float), np.array([k for _, k in rows])
        found = roc_auc(torch.from_numpy(scores), torch.from_numpy(labels).long())
        assert found == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)

    def test_several_classes_like_scikit_learn(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        probabilities = torch.randn(50, 4, dtype=torch.float64).softmax(1)
        target = torch.arange(50) % 4
        expected = metrics.roc_auc_score(
            target.numpy(), probabilities.numpy(), multi_class="ovr", average="macro"
        )
        assert roc_auc(probabilities, target) == pytest.approx(expected, abs=1e-12)

    def test_perfect_reversed_and_constant_scores(self) -> None:
        target = torch.tensor([0, 0, 1])
        assert roc_auc(torch.tensor([1.0, 2, 3]), target) == 1
        assert roc_auc(torch.tensor([3.0, 2, 1]), target) == 0
        assert roc_auc(torch.zeros(3), target) == 0.5

    def test_refuses(self) -> None:
        with refused("target", "one class"):
            roc_auc(torch.zeros(3), torch.ones(3).long())
        with refused("scores", "nan"):
            roc_auc(torch.tensor([0.0, math.nan]), torch.tensor([0, 1]))


class TestSplit:
    def test_every_row_once_and_every_class_in_every_part(self) -> None:
        target = torch.tensor([0] * 40 + [1] * 3 + [2] * 10)
        parts = split(Table(torch.zeros(53, 1), target, ("a",), ("x", "y", "z")), seed=0)
        assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(53))
        counts = {part: target[rows].bincount().tolist() for part, rows in parts.items()}
        assert counts == {"validation": [8, 1, 2], "test": [8, 1, 2], "train": [24, 1, 6]}

    def test_the_seed_decides(self) -> None:
        table = Table(torch.zeros(30, 1), torch.arange(30) % 2, ("a",), ("x", "y"))
        assert split(table, 0)["test"].equal(split(table, 0)["test"])
        assert not split(table, 0)["test"].equal(split(table, 1)["test"])

    def test_a_class_that_is_too_small(self) -> None:
        table = Table(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), ("a",), ("x", "rare"))
        with refused("target", "1 row"):
            split(table, 0)


class TestTraining:
    @pytest.mark.parametrize("kinds", [2, 3])
    def test_it_learns_and_says_how_well(self, tmp_path: Path, kinds: int) -> None:
        file = written(tmp_path / "t.csv", kinds)
        path = train_table(
            file, "kind", tmp_path / "out", **SMALL | {"epochs": 60, "hidden": (32,)}
        )
        card = json.loads(path.with_suffix(".json").read_text())
        network = tabular.load(tmp_path / "out")
        assert network.names == ("real", "noise", "same")
        assert network.classes == tuple("abc"[:kinds])
        assert card["result"]["validation_auc"] > 0.85
        assert card["prior"] is None
        assert card["data"] | {"train": 36, "validation": 12, "test": 12} == card["data"]
        table = read_table(file, "kind")
        rows = split(table, 0)["test"]
        p = network.probabilities(network.standardised(table.features[rows]))
        assert p.shape == (12, kinds)
        torch.testing.assert_close(p.sum(1), torch.ones(12))
        scores = p[:, 1] if kinds == 2 else p
        assert roc_auc(scores, table.target[rows]) == card["result"]["test_auc"]
        hits = (p.argmax(1) == table.target[rows]).double().mean()
        assert float(hits) == card["result"]["test_accuracy"]

    def test_the_accuracy_on_the_card_is_that_of_the_test_rows(self, tmp_path: Path) -> None:
        file = written(tmp_path / "t.csv", 2)
        train_table(file, "kind", tmp_path / "out", seed=1, **SMALL | {"epochs": 3})
        table, network = read_table(file, "kind"), tabular.load(tmp_path / "out")
        right = network.probabilities(network.standardised(table.features)).argmax(1)
        right = (right == table.target).double()
        found = {part: float(right[rows].mean()) for part, rows in split(table, 1).items()}
        assert len(set(found.values())) == 3  # so that one cannot stand for another
        card = json.loads((tmp_path / "out" / "table.json").read_text())
        assert card["result"]["test_accuracy"] == found["test"]

    def test_scaled_by_training_rows_alone(self, file: Path, tmp_path: Path) -> None:
        train_table(file, "kind", tmp_path / "out", **SMALL)
        table = read_table(file, "kind")
        features = table.features[split(table, 0)["train"]]
        network = tabular.load(tmp_path / "out")
        torch.testing.assert_close(network.mean, features.mean(0))
        torch.testing.assert_close(network.deviation[:2], features[:, :2].std(0, correction=0))
        assert network.deviation[2] == 1

    def test_the_first_best_weights_on_validation_are_kept(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        auc, seen, states = table_training._Run.auc, [], []

        def watched(self, part: str) -> float:
            if part == "validation":
                seen.append(auc(self, part))
                states.append(copy.deepcopy(self.network.state_dict()))
            return auc(self, part)

        monkeypatch.setattr(table_training._Run, "auc", watched)
        path = train_table(file, "kind", tmp_path / "out", **SMALL | {"epochs": 12})
        result = json.loads(path.with_suffix(".json").read_text())["result"]
        best = max(range(12), key=seen.__getitem__)
        assert best < 11
        assert (result["validation_auc"], result["epoch"]) == (seen[best], best + 1)
        kept = weights_of(tmp_path / "out")
        assert all(kept[name].equal(value) for name, value in states[best].items())

    def test_same_seed_same_weights_and_the_callers_numbers(self, file, tmp_path) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        for k, seed in enumerate((0, 0, 1)):
            train_table(file, "kind", tmp_path / str(k), seed=seed, **SMALL)
        assert torch.rand(3).equal(expected)
        a, b, c = (weights_of(tmp_path / str(k)) for k in range(3))
        assert all(a[name].equal(b[name]) for name in a)
        assert not a["layers.0.weight"].equal(c["layers.0.weight"])

    def test_missing_cells_where_allowed(self, tmp_path: Path) -> None:
        file = tmp_path / "t.csv"
        file.write_text(
            "a,b,y\n" + "".join(f"{k % 2},{'' if k % 3 else k},{k % 2}\n" for k in range(30))
        )
        with pytest.raises(InputError, match="no value in column 'b'"):
            train_table(file, "y", tmp_path / "out", **SMALL)
        path = train_table(file, "y", tmp_path / "out", missing="mean", **SMALL)
        assert " --missing mean " in json.loads(path.with_suffix(".json").read_text())["command"]
        network = tabular.load(tmp_path / "out")
        x = network.standardised(torch.tensor([[0.0, math.nan]]))
        assert x.isfinite().all()
        assert x[0, 1] == 0

    def test_the_command_on_the_card_trains_it_again(self, file: Path, tmp_path: Path) -> None:
        prior = AttributionPrior("sparsity", 0.5, "xgradient")
        out = tmp_path / "out"
        path = train_table(file, "kind", out, bias=False, prior=prior, seed=3, **SMALL)
        command = json.loads(path.with_suffix(".json").read_text())["command"]
        from omenn import cli

        assert cli.main([*command.split()[1:], "--out", str(tmp_path / "again")]) == 0
        a, b = weights_of(out), weights_of(tmp_path / "again")
        assert all(a[name].equal(b[name]) for name in a)


class TestPrior:
    @pytest.mark.parametrize(("bias", "method"), [(False, "xgradient"), (True, "omenn")])
    def test_a_sparsity_prior_makes_attributions_sparser(self, bias, method, file, tmp_path):
        last = []
        for weight in (1e-9, 1.0):
            seen = []

            def recorded(attributions: torch.Tensor) -> torch.Tensor:
                value = sparsity(attributions)
                seen.append(float(value.detach()))  # noqa: B023
                return value

            prior = AttributionPrior(recorded, weight, method)
            settings = SMALL | {"epochs": 40, "bias": bias, "prior": prior}
            train_table(file, "kind", tmp_path / str(weight), **settings)
            assert len(seen) == 40
            last.append(seen[-1])
        assert last[1] < last[0] - 0.05

    def test_the_prior_is_asked_for_the_only_output_or_the_class(self, tmp_path: Path) -> None:
        for kinds in (2, 3):
            seen = []

            def prior(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                seen.append(y)  # noqa: B023
                return model(x).sum() * 0

            file = written(tmp_path / "t.csv", kinds)
            train_table(file, "kind", tmp_path / str(kinds), prior=prior, **SMALL)
            table = read_table(file, "kind")
            target = table.target[split(table, 0)["train"]]
            assert seen[0].equal(target if kinds == 3 else torch.zeros_like(target))

    def test_without_biases_x_gradient_is_proved_and_with_them_refused(self, file, tmp_path):
        x = None
        for bias in (False, True):
            train_table(file, "kind", tmp_path / str(bias), bias=bias, **SMALL)
            network = tabular.load(tmp_path / str(bias))
            x = network.standardised(read_table(file, "kind").features)
            if bias:
                with pytest.raises(ModelError, match="not homogeneous"):
                    omenn.explain(network, x, method="xgradient", check=True)
            else:
                e = omenn.explain(network, x, method="xgradient", check=True)
                assert e.exact
                torch.testing.assert_close(e.contribution.sum(1), network(x)[:, 0])


class TestInterruption:
    @pytest.mark.parametrize("method", ["xgradient", "expected-gradients"])
    def test_resumed_bit_for_bit(self, file, tmp_path, monkeypatch, method) -> None:
        monkeypatch.setattr(table_training, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
        table = read_table(file, "kind")

        def prior() -> AttributionPrior:
            options = {"references": table.features} if method == "expected-gradients" else {}
            return AttributionPrior("sparsity", 0.3, method, **options)

        train_table(file, "kind", tmp_path / "whole", prior=prior(), **SMALL)
        step, steps = table_training._Run._step, []

        def interrupted(self, *args):
            steps.append(self.training.epoch)
            if len(steps) == 4:
                raise KeyboardInterrupt
            return step(self, *args)

        monkeypatch.setattr(table_training._Run, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_table(file, "kind", tmp_path / "cut", prior=prior(), **SMALL)
        assert [p.name for p in (tmp_path / "cut").iterdir()] == ["table.checkpoint.pt"]
        train_table(file, "kind", tmp_path / "cut", prior=prior(), **SMALL)
        assert steps == [0, 1, 2, 3, 3, 4, 5]
        whole, cut = (
            torch.load(tmp_path / name / "table.checkpoint.pt")["network"]
            for name in ("whole", "cut")
        )  # those of the last step, which may not be the best
        assert all(whole[name].equal(cut[name]) for name in whole)
        whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
        assert all(whole[name].equal(cut[name]) for name in whole)

    def test_a_finished_training_is_not_done_again(self, file, tmp_path, monkeypatch) -> None:
        first = train_table(file, "kind", tmp_path / "out", **SMALL).read_bytes()
        monkeypatch.setattr(table_training._Run, "_step", lambda *_: pytest.fail("it trained"))
        assert train_table(file, "kind", tmp_path / "out", **SMALL).read_bytes() == first

    def test_random_numbers_of_a_prior(self, file: Path, tmp_path: Path) -> None:
        """They begin where the caller's are, which stay; those of another seed do not fit."""
        prior = AttributionPrior("sparsity", 5.0, fraction=0.3)
        before = prior.state_dict()["generator"]
        one, two = (train_table(file, "kind", tmp_path / k, prior=prior, **SMALL) for k in "ab")
        assert prior.state_dict()["generator"].equal(before)
        assert one.read_bytes() == two.read_bytes()
        prior = AttributionPrior("sparsity", 5.0, fraction=0.3, seed=7)
        with pytest.raises(WeightsError, match="belongs to another training"):
            train_table(file, "kind", tmp_path / "a", prior=prior, **SMALL)

    def test_checkpoints_that_do_not_fit(self, file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        train_table(file, "kind", out, **SMALL)
        checkpoint = out / "table.checkpoint.pt"
        whole = checkpoint.read_bytes()
        for part in ("best", "optimiser", "history"):  # as other versions wrote it
            state = torch.load(checkpoint, weights_only=True)
            del state[part]
            torch.save(state, checkpoint)
            with pytest.raises(WeightsError, match=f"lacks {part}: ") as caught:
                train_table(file, "kind", out, **SMALL)
            assert caught.value.got == str(checkpoint)
            checkpoint.write_bytes(whole)
        prior = AttributionPrior("sparsity", 1.0)
        for other in ({"seed": 3}, {"bias": False}, {"prior": prior}, {"hidden": (8,)}):
            with pytest.raises(WeightsError, match="belongs to another training"):
                train_table(file, "kind", out, **SMALL | other)
        file.write_text(file.read_text() + "1,1,7,a\n")
        with pytest.raises(WeightsError, match="belongs to another training"):
            train_table(file, "kind", out, **SMALL)
        torch.save([1, 2], checkpoint)
        with pytest.raises(WeightsError, match="belongs to another training"):
            train_table(file, "kind", out, **SMALL)
        checkpoint.write_bytes(whole[:500])
        with refused("path", str(checkpoint), WeightsError):
            train_table(file, "kind", out, **SMALL)


class TestNotFinite:
    @staticmethod
    def nan_from(step: int):
        calls = []

        def prior(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            calls.append(step)
            return model(x).sum() * (math.nan if len(calls) >= step else 0)

        return prior

    def test_the_step_and_the_last_good_weights(self, file: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError) as caught:
            train_table(file, "kind", tmp_path / "out", prior=self.nan_from(4), **SMALL)
        text = str(caught.value)
        assert "training stopped at step 4 of 6: the loss is nan. The weights of step " in text
        assert f"are in {tmp_path}/out/table.safetensors. Use a smaller weight of the prior" in text
        assert "a smaller learning rate than 0.02, and another folder." in text
        train_table(file, "kind", tmp_path / "three", **SMALL | {"epochs": 3})
        good, kept = weights_of(tmp_path / "three"), weights_of(tmp_path / "out")
        assert all(good[name].equal(kept[name]) for name in good)
        card = json.loads((tmp_path / "out/table.json").read_text())
        assert card["stopped"] == "at step 4: the loss is nan"

    def test_at_the_first_step_nothing_is_written(self, file: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"step 1 of 6.*so no weights were written"):
            train_table(file, "kind", tmp_path / "out", prior=self.nan_from(1), **SMALL)
        assert not (tmp_path / "out").exists()

    def test_a_gradient_that_is_not_finite(self, file: Path, tmp_path: Path) -> None:
        def prior(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (model(x).sum() * 0).sqrt()  # 0, with an infinite derivative

        with pytest.raises(ModelError, match="the length of the gradient is nan"):
            train_table(file, "kind", tmp_path / "out", prior=prior, **SMALL)

    def test_weights_that_overflow(self, file: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"not finite.*a smaller learning rate than 1e\+30"):
            train_table(file, "kind", tmp_path / "out", **SMALL | {"learning_rate": 1e30})

    def test_a_prior_that_refuses_later_on(self, file: Path, tmp_path: Path) -> None:
        calls = []

        def grown(attributions: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return attributions.sum() * (math.inf if len(calls) == 3 else 0.0)

        prior = AttributionPrior(grown, 1.0)
        with pytest.raises(ModelError, match=r"step 3 of 6: the prior 'grown' is .* not be finite"):
            train_table(file, "kind", tmp_path / "out", prior=prior, **SMALL)
        assert tabular.load(tmp_path / "out")


class TestRefuses:
    def test_requests_without_sense(self, file: Path, tmp_path: Path) -> None:
        for argument, value, got in (
            ("epochs", 0, "0"),
            ("hidden", (8, 0), "0"),
            ("learning_rate", 0.0, "0.0"),
            ("learning_rate", math.nan, "nan"),
            ("learning_rate", 1e300, "1e+300"),
            ("seed", -1, "-1"),
        ):
            with refused(argument, got):
                train_table(file, "kind", tmp_path / "out", **SMALL | {argument: value})
        with refused("hidden", "'8;4'"):
            table_training.widths("8;4")

    def test_a_place_that_cannot_be_written(self, file: Path) -> None:
        with refused("path", str(file), OutputError):
            train_table(file, "kind", file / "out", **SMALL)

    def test_folders_without_a_network(self, file: Path, tmp_path: Path) -> None:
        with refused("path", "table.json", WeightsError):
            tabular.load(tmp_path)
        out = tmp_path / "out"
        train_table(file, "kind", out, **SMALL)
        (out / "table.safetensors").unlink()
        with refused("path", "table.safetensors", WeightsError):
            tabular.load(out)
        for text in ("{", "[]", "{}"):
            (out / "table.json").write_text(text)
            with refused("path", "table.json", WeightsError):
                tabular.load(out)


def test_a_network_without_hidden_layers_is_linear() -> None:
    network = TableNetwork(("a", "b"), ("x", "y", "z"), hidden=(), bias=False)
    assert [tuple(p.shape) for p in network.parameters()] == [(3, 2)]
