"""Experiment 3: the data, the batched trainings against single ones, the command, its table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.xdnn import sparsity, sparsity_data, sparsity_single, sparsity_stacked
from experiments.xdnn import sparsity_tables as tables
from experiments.xdnn.sparsity_data import Rows, repetition, stacked, survey
from experiments.xdnn.sparsity_stacked import METHODS, Method, Stack, areas, draws, gini, network
from omenn.errors import InputError
from omenn.models.tabular import roc_auc

NAMES = ("none", "no-bias", "grad", "rrr", "rrr-squares", "x-gradient", "eg-1", "eg-4")


@pytest.fixture
def rows() -> Rows:
    """220 rows of 6 columns, of which one matters; some cells are missing."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(220, 6, generator=generator)
    target = (features[:, 0] + torch.randn(220, generator=generator) > 0).float()
    return Rows(
        "few", features.where(torch.rand(220, 6, generator=generator) > 0.05, torch.nan), target
    )


class TestSurvey:
    @staticmethod
    def write(folder: Path, lines: list[str], target: object) -> Path:
        (folder / "X_sparsity.csv").write_text("\n".join([",age,sex_2.0,bp", *lines]) + "\n")
        np.save(folder / "y_sparsity.npy", np.asarray(target))
        return folder

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        lines = [
            f"{k},{20 + k % 50},{bool(k % 2)},{'' if k % 7 == 0 else 100 + k % 9}"
            for k in range(210)
        ]
        return self.write(tmp_path, lines, np.arange(210) % 4 > 0)

    def test_a_small_file_of_the_same_form(self, folder: Path) -> None:
        found = survey(folder)
        assert found.name == "survey"
        assert found.features.shape == (210, 3)
        assert found.features[1].tolist() == [21, 1, 101]
        assert found.features[:, 2].isnan().sum() == 30
        assert found.target.tolist() == [float(k % 4 > 0) for k in range(210)]
        x, y = repetition(found, 0).train
        assert x.shape == (100, 3)
        assert x.isfinite().all()
        assert y.shape == (100,)

    def test_filled_and_scaled_as_in_the_first_implementation(self, folder: Path) -> None:
        impute = pytest.importorskip("sklearn.impute")
        preprocessing = pytest.importorskip("sklearn.preprocessing")
        found = survey(folder)
        order = torch.randperm(210, generator=torch.Generator().manual_seed(3))
        train, test = (found.features[rows].double() for rows in (order[:100], order[200:]))
        filler = impute.SimpleImputer().fit(train)
        scaler = preprocessing.StandardScaler().fit(filler.transform(train))
        expected = scaler.transform(filler.transform(test))
        np.testing.assert_allclose(repetition(found, 3).test[0].numpy(), expected, atol=1e-5)

    def test_files_of_another_form(self, folder: Path, tmp_path: Path) -> None:
        lines = [f"{k},{k},1,1" for k in range(210)]
        target = np.arange(210) % 2
        for bad, values, text in (
            (["0,1,2"], target, r"line 2 of .* has 3 cells, the header 4"),
            (["0,old,1,2"], target, "line 2 .* holds 'old' in column 'age', which is not a number"),
            (lines, target[:9], r"has 210 rows, .*y_sparsity.npy 9"),
            (lines, target + 1, "has to hold both 0 and 1"),
            (lines[:50], target[:50], "has 50 rows; more than 200 are needed"),
            ([], target, "holds no features"),
        ):
            with pytest.raises(InputError, match=text):
                survey(self.write(tmp_path, bad, values))
        self.write(tmp_path, lines, target)
        (folder / "y_sparsity.npy").write_bytes(b"no array")
        with pytest.raises(InputError, match=r"y_sparsity.npy cannot be read"):
            survey(folder)
        (folder / "y_sparsity.npy").unlink()
        with pytest.raises(InputError, match=r"y_sparsity.npy does not exist. Give the folder"):
            survey(folder)


class TestData:
    def test_breast_cancer_is_widened(self) -> None:
        pytest.importorskip("sklearn")
        found = sparsity_data.breast_cancer()
        assert found.features.shape == (569, 118)
        assert found.target.mean() == pytest.approx(357 / 569)
        noise = found.features[:, 30:]
        assert abs(float(noise.mean())) < 0.02
        assert noise.equal(sparsity_data.breast_cancer().features[:, 30:])

    def test_sparse_rows(self) -> None:
        found = sparsity_data.sparse()
        assert found.features.shape == (13_442, 118)
        assert float(found.target.mean()) == pytest.approx(0.75, abs=0.03)
        related = torch.corrcoef(torch.cat([found.features, found.target[:, None]], 1).T)[-1, :-1]
        assert related[:8].abs().min() > 0.1
        assert related[8:].abs().max() < 0.05

    def test_splits_are_disjoint_and_standardised(self) -> None:
        features = torch.arange(569.0)[:, None] * torch.ones(2)
        split = repetition(Rows("n", features, torch.arange(569) % 2.0), 1)
        x = [part[0][:, 0] for part in (split.train, split.validation, split.test)]
        assert [len(part) for part in x] == [100, 100, 369]
        assert len(torch.cat(x).unique()) == 569
        assert abs(float(x[0].mean())) < 1e-5
        assert float(x[0].square().mean()) == pytest.approx(1, abs=1e-5)


def slow_gini(a: Tensor) -> Tensor:
    g = a.abs().mean(0)
    return (g[:, None] - g).abs().sum() / (2 * len(g) ** 2 * g.mean())


class TestStacked:
    def test_gini_and_areas_like_their_definitions(self) -> None:
        a = torch.randn(3, 5, 7, dtype=torch.float64)
        torch.testing.assert_close(gini(a), torch.stack([slow_gini(one) for one in a]))
        assert gini(torch.zeros(1, 2, 3)).tolist() == [0]
        scores = torch.randint(0, 9, (4, 30)).double()
        target = torch.stack([torch.randperm(30) % 2 for _ in range(4)]).double()
        expected = [roc_auc(s, t.long()) for s, t in zip(scores, target, strict=True)]
        assert areas(scores, target).tolist() == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("name", NAMES)
    def test_loss_and_its_derivative_like_attribution_prior(self, name: str) -> None:
        method, weight = METHODS[name], 0.7
        x = torch.randn(3, 12, 5, dtype=torch.float64)
        y = torch.randint(0, 2, (3, 12)).double()
        networks = [network(5, number, bias=method.bias).double() for number in range(3)]
        stack = Stack(networks)
        generators = [torch.Generator().manual_seed(number) for number in range(3)]
        losses = sparsity_stacked._loss(stack, method, weight, x, y, generators)
        losses.sum().backward()
        for k, net in enumerate(networks):
            term = sparsity_single.term(method, weight, x[k], seed=k)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x[k])[:, 0], y[k])
            loss = loss + term(net)
            loss.backward()
            torch.testing.assert_close(losses[k].detach(), loss.detach(), rtol=1e-7, atol=1e-8)
            layers = [layer for layer in net.layers if isinstance(layer, torch.nn.Linear)]
            for layer, matrix in zip(layers, stack.matrices, strict=True):
                assert matrix.grad is not None
                torch.testing.assert_close(
                    matrix.grad[k].T, layer.weight.grad, rtol=1e-5, atol=1e-7
                )
            assert len(stack.biases) == (len(layers) if method.bias else 0)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_training_like_one_with_attribution_prior(self, name: str, rows: Rows) -> None:
        numbers = [4, 7]
        splits = [repetition(rows, number) for number in numbers]
        found = sparsity_stacked.train(METHODS[name], 0.3, stacked(splits), numbers, epochs=3)
        for number, split, aucs in zip(numbers, splits, found, strict=True):
            _, single = sparsity_single.train(METHODS[name], 0.3, split, number, epochs=3)
            assert aucs == pytest.approx(single, abs=0.01)  # a pair may be ordered otherwise

    def test_a_repetition_does_not_depend_on_those_beside_it(self, rows: Rows) -> None:
        splits = [repetition(rows, number) for number in range(3)]
        together = sparsity_stacked.train(METHODS["eg-4"], 0.3, stacked(splits), range(3), epochs=2)
        alone = sparsity_stacked.train(METHODS["eg-4"], 0.3, stacked(splits[2:]), [2], epochs=2)
        assert alone[0] == pytest.approx(together[2], abs=0.01)

    def test_references_are_rows_of_the_same_repetition(self) -> None:
        rows, place = draws(6, 3, torch.Generator().manual_seed(0))
        assert rows.shape == place.shape == (6, 3)
        assert 0 <= int(rows.min()) <= int(rows.max()) < 6
        x = torch.randn(2, 6, 4, dtype=torch.float64)
        stack = Stack([network(4, k, bias=True).double() for k in range(2)])
        drawn = torch.stack([rows, rows.flip(0)]), torch.stack([place, place.flip(0)]).double()
        found = sparsity_stacked._expected_gradients(stack, x, *drawn)
        net = network(4, 1, bias=True).double()
        for sample in range(6):
            expected = torch.zeros(4, dtype=torch.float64)
            for number, t in zip(drawn[0][1, sample], drawn[1][1, sample], strict=True):
                way = x[1, sample] - x[1, number]
                point = (x[1, number] + t * way).requires_grad_()
                expected += way * torch.autograd.grad(net(point[None])[0, 0], point)[0] / 3
            torch.testing.assert_close(found[1, sample].detach(), expected)


class TestCommand:
    @pytest.fixture
    def words(self, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        monkeypatch.setattr(
            sparsity_data,
            "breast_cancer",
            lambda: Rows("breast-cancer", rows.features, rows.target),
        )
        words = (
            "--repetitions 3 --selection 2 --timed 1 --epochs 2 --methods none x-gradient eg-1 eg-2"
        )
        return [*words.split(), "--work", str(tmp_path)]

    def test_it_measures_chooses_and_shows(self, words, tmp_path, capsys) -> None:
        sparsity.main(words)
        out = capsys.readouterr().out
        for text in ("| no prior | .", "**X-Gradient**", "over no prior", ".7673", "220 rows"):
            assert text in out
        known = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")}
        assert set(known) == {"none", "x-gradient", "eg-1", "eg-2"}
        chosen = known["eg-1"]
        means = {w: np.mean([v for v, _ in f.values()]) for w, f in chosen["selection"].items()}
        assert set(means) == {"0.01", "0.1", "1.0", "10.0", "100.0"}
        assert means[str(chosen["weight"])] == max(means.values())
        assert known["eg-2"]["weight"] == chosen["weight"]
        assert known["none"]["weight"] == 0
        for content in known.values():
            assert set(content["repetitions"]) == {"0", "1", "2"}
            assert len(content["seconds"]) == 1

    def test_it_goes_on_where_it_was_interrupted(self, words, tmp_path, monkeypatch, capsys):
        train, trained = sparsity_stacked.train, []

        def counted(method: Method, weight: float, split, numbers, epochs):
            trained.append((method.name, list(numbers)))
            if len(trained) == 4:
                raise KeyboardInterrupt
            return train(method, weight, split, numbers, epochs)

        monkeypatch.setattr(sparsity_stacked, "train", counted)
        with pytest.raises(KeyboardInterrupt):
            sparsity.main(words)
        sparsity.main(words)
        first = trained[:3] + trained[4:]
        assert trained[3] == trained[4]
        assert len([t for t in first if t[0] == "none"]) == 1
        done = len(trained)
        sparsity.main(words)
        assert len(trained) == done
        sparsity.main([*words, "--repetitions", "4"])
        assert trained[done:] == [(name, [3]) for name in ("none", "x-gradient", "eg-1", "eg-2")]
        with pytest.raises(SystemExit, match=r"of other settings\. Remove it, or choose --work"):
            sparsity.main([*words, "--selection", "3"])

    def test_the_page_and_the_figure(self, words, tmp_path, monkeypatch) -> None:
        page = tmp_path / "xdnn-experiments.md"
        page.write_text("a\n<!-- sparsity:begin -->\nold\n<!-- sparsity:end -->\nz\n")
        monkeypatch.setattr(tables, "PAGE", page)
        monkeypatch.setattr(tables, "FIGURE", tmp_path / "images" / "f.png")
        sparsity.main([*words, "--write"])
        text = page.read_text()
        assert "old" not in text
        assert text.startswith("a\n")
        assert "![ROC-AUC and time of sparsity priors](images/f.png)" in text
        assert (tmp_path / "images" / "f.png").stat().st_size > 5_000
        (tmp_path / "breast-cancer" / "none.json").unlink()
        with pytest.raises(SystemExit, match="measure --methods none first"):
            tables.write(tmp_path)
        assert page.read_text() == text

    def test_short_leaves_no_cache(self, words, tmp_path, capsys, monkeypatch) -> None:
        sparsity.main([*words, "--short", "--epochs", "1"])
        assert "eg-2: done" in capsys.readouterr().out
        assert not list(tmp_path.glob("*/*.json"))

    def test_mistakes(self, words, tmp_path, capsys) -> None:
        with pytest.raises(SystemExit):
            sparsity.main([*words, "--short", "--write"])
        assert "--write publishes the full form: omit --short." in capsys.readouterr().err
        with pytest.raises(SystemExit):
            sparsity.main([*words, "--repetitions", "0"])
        assert "it must be at least 1." in capsys.readouterr().err
        with pytest.raises(SystemExit, match=r"X_sparsity.csv does not exist"):
            sparsity.main([*words, "--survey", str(tmp_path)])


def test_differences_are_within_repetitions() -> None:
    def record(tests: dict[str, float]) -> dict[str, object]:
        pairs = {number: (0.9, test) for number, test in tests.items()}
        return {"repetitions": pairs, "seconds": [0.5], "weight": 0.1}

    found = {
        "none": record({"0": 0.5, "1": 0.9}),
        "x-gradient": record({"0": 0.6, "1": 1.0, "2": 0.2}),
    }
    name, *numbers = tables.rows(found)[1]
    assert name == "**X-Gradient**, no bias"
    assert numbers[:3] == [".6000 ± .2309", "+.1000 ± .0000", "–"]
    assert numbers[3:] == ["0.5", "0.1", "3", ".7673"]
    assert tables.rows(found)[0][3] == "−.1000 ± .0000"
    places = tables.points(found)
    assert places["none"] == (0.5, 0, 0)
    assert places["x-gradient"] == pytest.approx((0.5, 0.1, 0))


def test_methods_with_fewer_repetitions_are_named(tmp_path: Path) -> None:
    for name, count in (("none", 3), ("x-gradient", 2)):
        content = {
            "settings": {"rows": [9, 2], "weights": [1.0], "selection": 2},
            "repetitions": {str(k): (0.9, 0.8) for k in range(count)},
            "seconds": [1.0],
            "weight": 0.0,
        }
        folder = tmp_path / "sparse"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content))
        text = tables.block(tmp_path, ["breast-cancer", "sparse"])
        if name == "none":
            assert "fewer repetitions" not in text
    assert "Of fewer repetitions, the first: compare those rows by the differences." in text
    assert "Breast cancer" not in text
