"""The figure of the dials and its table, and completed rules in the zoo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiments import dials, zoo_completed
from experiments.dials import Shown
from experiments.zoo_entries import Entry


def test_maps_of_a_bird_add_up_under_every_setting() -> None:
    image, found = dials.maps("birds-convnet")
    assert image.shape == (64, 64, 3)
    assert list(found) == list(dials.DIALS)
    for shown in found.values():
        assert shown.off < 1e-5
        assert float(shown.matrix.sum()) == pytest.approx(shown.output, rel=1e-4)
        assert sum(shown.parts) == pytest.approx(shown.output, rel=1e-4)
    assert found["all as given"].differs == 0
    assert found["gamma=0.1"].differs > 0.01
    assert len(dials.rows("birds-convnet", found)[0]) == len(dials.HEADER)


def test_a_row_a_model_and_a_column_a_setting() -> None:
    shown = Shown(np.eye(8), 8.0, 0.0, 0.5, 0.0)
    drawn = dials.drawn({"one": (np.zeros((8, 8, 3)), dict.fromkeys(dials.DIALS, shown))})
    assert len(drawn.axes) == 1 + len(dials.DIALS)
    assert drawn.axes[1].get_xlabel() == "ΣC = 8.00, kept 50%"


def test_a_part_is_not_published(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dials.main(["--models", "birds-vit", "--write"])
    assert "omit --models" in capsys.readouterr().err


def test_a_row_of_the_zoo_has_the_residual_of_completed_rules() -> None:
    def build() -> tuple[nn.Module, torch.Tensor]:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                             nn.Linear(144, 3)), torch.randn(1, 3, 8, 8)  # fmt: skip

    row = zoo_completed.row(Entry("timm", "family", "good", (build,)))
    assert row["status"] == "exact"
    assert row["residual"] < 1e-5
    assert 0 < row["kept"] < 1

    def bessel() -> tuple[nn.Module, torch.Tensor]:
        class Bessel(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.special.bessel_j0(x)

        return Bessel(), torch.randn(1, 3)

    bad = Entry("timm", "family", "bad", (bessel,))
    assert "bessel_j0" in zoo_completed.row(bad)["reason"]
    said = zoo_completed.report([
        {"family": "family", "name": "good", **row},
        {"family": "family", "name": "bad", **zoo_completed.row(bad)},
    ])  # fmt: skip
    assert said.startswith("1 of 2 families are exact")
    assert "- bad: unsupported: " in said


def test_families_by_size(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    a = zoo_completed.COMMAND.parse(["--most", "3", "--work", str(tmp_path)])
    known = zoo_completed.sizes()
    sizes = [known[entry.name] for entry in zoo_completed.entries(a)]
    assert sizes == sorted(sizes)
    assert len(sizes) > 3
    assert max(sizes) <= 3
