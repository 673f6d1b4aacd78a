"""A method with its options as a TOML file: written, read, used, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import omenn
from omenn.attribution.method_file import method_text, read_method
from omenn.bench.method_options import method_and_options
from refusals import refused

NET = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)).eval()
X = torch.randn(2, 3, 4, 4)
GOOD = 'format = "omenn-method"\nversion = 1\nmethod = "gamma"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "method.toml"
    path.write_text(f"{GOOD}[options]\ngamma = 0.1\ncomplete = true\n[tuned]\nby = 'hand'\n")
    return path


@pytest.mark.parametrize("form", [str, Path])
def test_explain_takes_a_file(form: Any, file: Path) -> None:
    found = omenn.explain(NET, X, 1, method=form(file))
    wanted = omenn.explain(NET, X, 1, method="gamma", gamma=0.1, complete=True)
    assert torch.equal(found.matrix, wanted.matrix)
    assert (found.method, found.promise, found.exact) == ("gamma", "exact", True)


def test_options_beside_the_file(file: Path) -> None:
    found = omenn.explain(NET, X, 1, method=str(file), bias="uniform")
    wanted = omenn.explain(NET, X, 1, method="gamma", gamma=0.1, complete=True, bias="uniform")
    assert torch.equal(found.matrix, wanted.matrix)
    with refused("gamma", "0.5"):
        omenn.explain(NET, X, 1, method=str(file), gamma=0.5)


def test_the_command_line_reads_it_too(file: Path) -> None:
    assert method_and_options(str(file)) == ("gamma", {"gamma": 0.1, "complete": True})
    found = method_and_options(str(file), {"bias": "uniform", "at": None})
    assert found == ("gamma", {"gamma": 0.1, "complete": True, "bias": "uniform"})
    with refused("complete"):
        method_and_options(str(file), {"complete": False})
    file.write_text(f"{GOOD}[options]\ngamma = 'much'\n")
    with refused("gamma", "much"):
        method_and_options(str(file))


@pytest.mark.parametrize(
    ("text", "argument", "got"),
    [
        ("gamma = [", "path", "method.toml"),
        ("a = 1", "path", "method.toml"),
        (GOOD.replace("= 1", "= 2"), "version", "2"),
        (GOOD.replace("= 1", "= true"), "version", "True"),
        (GOOD.replace("= 1", "= '1'"), "version", "1"),
        (GOOD.replace("gamma", "gama"), "method", "gama"),
        (GOOD.replace('"gamma"', "5"), "path", "method.toml"),
        (GOOD + "options = 3", "path", "method.toml"),
        (GOOD + "[options]\nbeta = 1", "beta", "beta"),
        (GOOD + "option = 1", "option", "option"),
        ("", "path", "method.toml"),
    ],
)
def test_refused(text: str, argument: str, got: str, file: Path) -> None:
    file.write_text(text)
    with refused(argument, got):
        read_method(file)
    with refused(argument, got):
        omenn.explain(NET, X, 1, method=str(file))
    with refused(argument, got):
        method_and_options(str(file))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with refused("path", "none.toml"):
        omenn.explain(NET, X, 1, method=str(tmp_path / "none.toml"))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, width=64),
    st.text(st.characters(exclude_categories=["Cs"])),
)  # fmt: skip


@given(VALUES, st.lists(st.floats(-5, 5), min_size=1))
@settings(max_examples=60)
def test_what_is_written_is_read(value: Any, numbers: list[float]) -> None:
    import tempfile

    if value in ("none", float("inf"), float("-inf")):
        return
    options = {"rules": value, "low": numbers, "complete": True}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.toml"
        path.write_text(method_text("composite", options, {"a name": value}), encoding="utf-8")
        assert read_method(path) == ("composite", options)
