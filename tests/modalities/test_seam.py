"""A new modality is one class: the command line and the pages use it through the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import omenn
from omenn.cli.explain_images import Request, explain_file
from omenn.cli.explain_results import LARGEST, record, report
from omenn.models import sources
from omenn.viz.page import page

NET = '''
from pathlib import Path

import torch

from omenn.errors import InputError
from omenn.modalities import Unit
from omenn.viz.panels import panels

NAMES = ("age", "weight", "height")


class Columns:
    """Rows of a table: a text file with three numbers."""

    description, assumption, size = "rows of three columns", "", (3,)

    def from_user(self, given):
        words = Path(given).read_text().split()
        if len(words) != len(NAMES):
            raise InputError("a row has three numbers.", argument="row", got=str(len(words)))
        return torch.tensor([[float(word) for word in words]])

    def noise(self):
        return torch.randn(1, 3)

    def remedy(self, file):
        return "Give a row of three numbers."

    def shown(self, inputs):
        return None

    def usual_smoothing(self, shape):
        return 0.0

    def units(self, explanation, index=0, most=None):
        values = explanation.matrix[index].tolist()
        units = [Unit(name, value) for name, value in zip(NAMES, values, strict=True)]
        return sorted(units, key=lambda unit: -abs(unit.value))[:most] if most else units

    def views(self, case, *, sigma=0.0):
        (panel,) = [panel for panel in panels(case) if panel.key == "c"]
        return [panel]


def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    model.modality, model.classes = Columns(), ["well", "ill"]
    return model
'''


@pytest.fixture
def source(tmp_path: Path) -> sources.Source:
    (tmp_path / "net.py").write_text(NET)
    return sources.load(f"{tmp_path / 'net.py'}:build")


@pytest.fixture
def case(tmp_path: Path, source: sources.Source) -> Any:
    (tmp_path / "row.txt").write_text("61 80 1.7")
    return explain_file(tmp_path / "row.txt", source, Request())


def test_the_input_comes_from_the_modality(case: Any, source: sources.Source) -> None:
    assert case.explanation.exact
    assert torch.equal(case.explanation.inputs, torch.tensor([[61, 80, 1.7]]))
    assert not source.modality.assumption


def test_units_are_named_and_add_up(case: Any) -> None:
    largest = record(case)["largest"]
    assert sorted(unit["unit"] for unit in largest) == ["age", "height", "weight"]
    total = sum(unit["value"] for unit in largest)
    assert total == pytest.approx(record(case)["output"], abs=1e-4)
    json.dumps(largest)


def test_views_are_those_of_the_modality(case: Any, source: sources.Source) -> None:
    assert [panel.key for panel in case.views()] == ["c"]
    text = page(report([case], source, None, None))
    assert "rows of three columns" in text
    assert text.count("<figure>") == 1


def test_certify_draws_its_noise(source: sources.Source) -> None:
    assert omenn.certify(source.model, source.modality.noise(), 0)


def test_pictures_name_the_largest_entries() -> None:
    source = sources.load("birds-resnet")
    x = source.modality.noise()
    e = omenn.explain(source.model, x, 0)
    units = source.modality.units(e, most=LARGEST)
    assert [abs(u.value) for u in units] == e.matrix.abs().double().flatten().topk(
        10
    ).values.tolist()
    row, column = divmod(int(e.matrix.abs().argmax()), 64)
    assert units[0].name == f"row {row}, column {column}"
    assert sum(u.value for u in source.modality.units(e)) == pytest.approx(float(e.total), abs=1e-9)
