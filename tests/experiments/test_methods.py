"""What methods cost, and at which depth maps are faithful: commands, rows, scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import depth, methods


@pytest.fixture
def threads() -> int:
    return torch.get_num_threads()


class TestCost:
    def test_a_row_for_each_method_and_the_reason_where_there_is_none(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, threads: int
    ) -> None:
        words = ["--models", "tiny", "--methods", "omenn", "rollout", "--rounds", "1"]
        methods.main([*words, "--threads", str(threads), "--work", str(tmp_path)])
        lines = capsys.readouterr().out.splitlines()
        (row,) = (line for line in lines if line.startswith("| omenn |"))
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert float(cells[2].split()[0]) > 1
        assert float(cells[5]) < 1e-6
        (row,) = (line for line in lines if line.startswith("| rollout |"))
        assert "the model has no softmax attention" in row
        assert len(list(tmp_path.iterdir())) == 2
        methods.loaded.cache_clear()

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["--methods", "omen"], "no method 'omen'. Choose from: omenn, "),
            (["--models", "huge"], "no model 'huge'. Choose from: "),
            (["--rounds", "0"], "--rounds is 0; it must be at least 1."),
        ],
    )
    def test_what_is_not_known(self, words, text, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as exit:
            methods.main(words)
        assert exit.value.code == 2
        assert capsys.readouterr().err.startswith(f"experiments.methods: error: {text}")


class TestScores:
    def test_given_area_finds_what_area_does_not_explain(self) -> None:
        rng = np.random.default_rng(0)
        drop, area = (np.stack([rng.permutation(5) + 1.0 for _ in range(400)]) for _ in range(2))
        score = lambda importance: depth.given_area(np.stack([importance, drop, area], 1))  # noqa: E731
        assert score(drop) == pytest.approx(1)
        assert score(6 - drop) == pytest.approx(-1)
        assert score(area) == 0
        assert abs(score(np.stack([rng.permutation(5) + 1.0 for _ in range(400)]))) < 0.1

    def test_insertion_minus_deletion_of_a_model_that_sees_one_quadrant(self) -> None:
        """The probability is the share of the quadrant that is shown, so the order is all."""

        class Quadrant:
            def model(self, x: torch.Tensor) -> torch.Tensor:
                share = x[:, 0, :8, :8].mean((1, 2)).clamp(1e-6, 1 - 1e-6)
                return torch.stack([share.log(), (1 - share).log()], 1)

        x = torch.zeros(1, 3, 16, 16)
        x[:, :, :8, :8] = 1.0
        batch = depth.Batch(x, torch.tensor([0]), x[:, None], torch.ones(1, 1, 16, 16))
        right, wrong = x[:, 0], 1 - x[:, 0]
        best = depth._insertion_minus_deletion(Quadrant(), right, batch)
        worst = depth._insertion_minus_deletion(Quadrant(), wrong, batch)
        assert float(best) > 0.4 > -0.1 > float(worst)

    def test_scenes_have_all_parts(self) -> None:
        assert all(len(s.parts) == 5 for s in depth.scenes_of("train", 3))

    def test_only_test_scenes_are_published(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            depth.main(["--write"])
        assert "--write publishes test scenes: add --split test" in capsys.readouterr().err
