"""Explanations on disk: everything comes back, and nothing else is accepted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import omenn
from omenn import Explanation
from omenn.errors import InputError, OutputError
from refusals import refused


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two) and one.dtype == two.dtype
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


class Two(nn.Module):
    """Two inputs, one answer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.left(a)) + self.right(b)


def explained(kind: str, network: nn.Module) -> Explanation:
    if kind == "picture":
        return omenn.explain(network, torch.randn(2, 3, 16, 16))
    if kind == "separate":
        return omenn.explain(network, torch.randn(2, 3, 16, 16), bias="separate")
    if kind == "bfloat16":
        return omenn.explain(network.bfloat16(), torch.randn(2, 3, 16, 16).bfloat16())
    pair = torch.randn(2, 3), torch.randn(2, 4)
    inputs = pair if kind == "tuple" else {"a": pair[0], "b": pair[1]}
    return omenn.explain(Two().eval(), inputs)


@pytest.mark.parametrize("kind", ["picture", "separate", "bfloat16", "tuple", "dict"])
def test_everything_comes_back(tmp_path: Path, network: nn.Module, kind: str) -> None:
    before = explained(kind, network)
    assert before.save(tmp_path / "e.safetensors") == tmp_path / "e.safetensors"
    after = Explanation.load(tmp_path / "e.safetensors")
    for field in dataclasses.fields(Explanation):
        assert same(getattr(before, field.name), getattr(after, field.name)), field.name
    assert after.exact == before.exact
    assert repr(after) == repr(before)


def test_json_can_be_read_by_others(tmp_path: Path, explanation: Explanation) -> None:
    explanation.save(tmp_path / "e.json")
    content = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert content["exact"] is True
    assert torch.allclose(torch.tensor(content["matrix"]), explanation.matrix)
    sums = torch.tensor(content["matrix"], dtype=torch.float64).sum((1, 2))
    assert sums.tolist() == pytest.approx(content["output"], abs=1e-5)


def test_pictures(tmp_path: Path, explanation: Explanation) -> None:
    with Image.open(explanation.save(tmp_path / "e.png")) as image:
        assert image.size[0] > 1000
    explanation.save(tmp_path / "e.html")
    html = (tmp_path / "e.html").read_text(encoding="utf-8")
    assert html.count('<section class="case"') == 2


def test_a_table_row_has_a_picture_too(tmp_path: Path) -> None:
    result = omenn.explain(nn.Linear(7, 2).eval(), torch.randn(1, 7))
    with Image.open(result.save(tmp_path / "e.png")) as image:
        assert image.format == "PNG"


def test_several_inputs_have_no_one_picture(tmp_path: Path, network: nn.Module) -> None:
    with refused("input", "None"):
        explained("tuple", network).save(tmp_path / "e.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["e", "e.jpg", "e.pt", "e.png.txt"])
def test_unknown_endings(tmp_path: Path, explanation: Explanation, name: str) -> None:
    with refused("path", Path(name).suffix, OutputError):
        explanation.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path, explanation: Explanation) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, not a folder"):
        explanation.save(tmp_path / "file" / "e.json")


class TestLoading:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            Explanation.load(tmp_path / "none.safetensors")

    @pytest.mark.parametrize("content", [b"", b"{}", b"hello" * 50])
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "e.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            Explanation.load(tmp_path / "e.safetensors")

    def test_weights_are_no_explanation(self, tmp_path: Path) -> None:
        save_file({"x": torch.ones(2)}, tmp_path / "e.safetensors")
        with refused("path"):
            Explanation.load(tmp_path / "e.safetensors")

    @pytest.mark.parametrize("header", ["nonsense", "[1]", '{"format": "omenn explanation 99"}'])
    def test_headers_of_others(self, tmp_path: Path, header: str) -> None:
        save_file({"x": torch.ones(2)}, tmp_path / "e.safetensors", {"explanation": header})
        with refused("path"):
            Explanation.load(tmp_path / "e.safetensors")

    @pytest.mark.parametrize(
        "fields", ['{"output": {"tensor": "gone"}}', '{"unknown": {"value": 1}}', "{}", "3"]
    )
    def test_incomplete_fields(self, tmp_path: Path, fields: str) -> None:
        header = f'{{"format": "omenn explanation 1", "fields": {fields}}}'
        save_file({"x": torch.ones(2)}, tmp_path / "e.safetensors", {"explanation": header})
        with refused("path"):
            Explanation.load(tmp_path / "e.safetensors")

    def test_a_truncated_file(self, tmp_path: Path, explanation: Explanation) -> None:
        path = explanation.save(tmp_path / "e.safetensors")
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(InputError, match="cannot be read"):
            Explanation.load(path)


def test_json_is_valid_whatever_the_numbers(tmp_path: Path) -> None:
    e = omenn.explain(nn.Linear(3, 2).eval(), torch.ones(2, 3), target=0)
    broken = e.matrix.clone()
    broken[0, 0], broken[1, 2] = float("nan"), float("-inf")
    e = dataclasses.replace(e, matrix=broken, residual=torch.full((2,), float("inf")))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    path = e.save(tmp_path / "e.json")
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["matrix"][0][0] is content["matrix"][1][2] is None
    assert content["residual"] == [None, None]
    assert content["matrix"][0][1] == pytest.approx(float(e.matrix[0, 1]))
