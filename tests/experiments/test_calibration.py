"""The measurement of intervals: its tables from made-up results, and its mistakes in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import calibration
from experiments.calibration import CLEAR, EVEN, MAPS, NONE, main, row


def kept(count: int, seed: int) -> list[Any]:
    """Pictures whose drops are the sums of one map, with noise that grows with them."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        shares = torch.cat([torch.tensor([0.05, 0.05, 0.05, 0.3]), torch.full((16,), 1 / 16)])
        sums = {name: torch.randn(20, generator=g).tolist() for name in MAPS if name != NONE}
        m = torch.tensor(sums[CLEAR])
        drops = m + 0.1 * m.abs() * torch.randn(20, generator=g)
        found.append(
            {
                "drawn": 4,
                "logit": 1.0,
                "shares": shares.tolist(),
                "drops": drops.tolist(),
                "sums": sums,
            }
        )
    return found


def test_the_map_that_knows_the_drops_has_narrow_intervals_that_hold() -> None:
    both = {"calibrate": kept(150, 0), "report": kept(150, 1)}
    rows = {name: row(both, name) for name in MAPS} | {EVEN: row(both, CLEAR, even=True)}
    assert min(rows, key=lambda name: rows[name].half_width) == CLEAR
    for name, found in rows.items():
        assert 0.85 <= sum(found.covered) / 150 <= 0.97, name
    shown = {name: sum(rows[name].shown) / 150 for name in (CLEAR, EVEN)}
    assert shown[CLEAR] > 0.85 > shown[EVEN]


def test_tables_of_stored_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parts = [{"pictures": kept(10, k)} for k in range(12)]
    monkeypatch.setattr(calibration.COMMAND, "results", lambda a, jobs: parts[: len(jobs)])
    main(["--models", "birds-vit", "--pictures", "60", "--work", str(tmp_path)])
    out = capsys.readouterr().out
    assert "| birds-vit | `omenn-clear` |" in out
    assert "| birds-vit | 5.0–5 |" in out
    assert "--models birds-vit" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "efficientnet-lite0"], "needs --photos"),
        (["--models", "cifar-resnet20"], "needs --cifar"),
        (["--models", "cifar-resnet20", "--cifar", "."], "needs --weights"),
        (["--models", "vgg"], "no network 'vgg'"),
        (["--pictures", "0"], "at least 1"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
