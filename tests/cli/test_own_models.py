"""Models in a file of one's own: what is assumed is said, and what is wrong can be mended there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import omenn
from commands import Run, refused
from omenn.models import sources

OWN = """
import torch
from torch import nn

def own():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 2))

def grey():
    net = own()
    net[0] = nn.Conv2d(1, 4, 3)
    return net

def declared():
    net = grey()
    net.preprocess = {"size": 28, "mean": [0.5], "std": [0.5]}
    net.classes = ["cat", "dog"]
    return net

def seeded():
    torch.manual_seed(0)
    return own()

def probabilities():
    return nn.Sequential(seeded(), nn.Softmax(1))

def segment():
    return nn.Conv2d(3, 2, 3)

class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = own()
    def forward(self, x):
        return {"features": self.n[:3](x), "scores": self.n(x)}

class Pair(Mapped):
    def forward(self, x):
        return self.n[:3](x), self.n(x)

class Raising(nn.Module):
    def forward(self, x):
        return x.no_such_thing

net = own()

def fails():
    return int("x")
"""


@pytest.fixture
def own(inside_tmp: Path, picture: Path) -> Path:
    Path("own.py").write_text(OWN, encoding="utf-8")
    return picture


def test_the_logits_in_front_of_probabilities(run: Run, own: Path) -> None:
    code, out, err = run("explain", own, "-m", "own.py:probabilities")
    assert (code, err) == (0, "")
    assert "the logit before softmax" in out
    found = []
    for name in ("seeded", "probabilities"):
        source = f"own.py:{name}"
        _, out, _ = run(
            "compare", own, "-m", source, "--methods", "omenn", "--classes", 2, "--json"
        )
        found.append(
            [(a["target"], a["logit"], a["probability"]) for a in json.loads(out)["answers"]]
        )
    assert found[0] == found[1]


def test_what_was_assumed_is_said(run: Run, own: Path) -> None:
    for command in (("explain", own), ("compare", own, "--methods", "omenn", "--classes", 0)):
        code, out, err = run(*command, "-m", "own.py:own")
        assert (code, err) == (0, "")
        assert "Without a model.preprocess" in out
        assert "224 × 224" in out
    _, out, _ = run("explain", own, "-m", "own.py:own", "--json")
    assert "model.preprocess" in json.loads(out)["results"][0]["warning"]
    assert "model.preprocess" in run("certify", "-m", "own.py:own")[1]


def test_what_is_declared_is_taken(run: Run, own: Path) -> None:
    code, out, _ = run("explain", own, "-m", "own.py:declared", "--target", "dog", "-o", "e.json")
    assert code == 0
    assert "model.preprocess" not in out
    found = json.loads(Path("e.json").read_text(encoding="utf-8"))
    assert found["answer"] == "dog"
    assert torch.tensor(found["matrix"]).shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grey", r"own\.py:grey' cannot take .* model\.preprocess = \{.* one number per channel"),
        ("segment", r"a tensor \(1, 2, 222, 222\), expected one row .*returns a module.*'own\.py'"),
        ("Mapped", r"'features': .*'scores': a tensor \(1, 2\).*--output"),
        ("Pair", r"a tuple of a tensor \(1, 4, 1, 1\), a tensor \(1, 2\).*--output"),
        ("net", r"'net' of 'own\.py' is a module \(Sequential\), expected a function that returns"),
        ("Raising", r"AttributeError: .*no_such_thing.* \(own\.py, line 43\)"),
        ("fails", r"raised ValueError: .* \(own\.py, line 48\)"),
    ],
)
def test_what_to_write_in_the_file(run: Run, own: Path, name: str, words: str) -> None:
    refused(run("explain", own, "-m", f"own.py:{name}"), words)


def test_a_mistake_in_the_file_has_its_line(run: Run, own: Path) -> None:
    Path("bad.py").write_text("def build():\n    return (\n", encoding="utf-8")
    refused(run("explain", own, "-m", "bad.py:build"), r"SyntaxError: .* \(bad\.py, line 2\)")


@pytest.mark.parametrize(("name", "part"), [("Mapped", "scores"), ("Pair", "1")])
def test_the_output_is_named(run: Run, own: Path, name: str, part: str) -> None:
    words = ("-m", f"own.py:{name}", "--output", part)
    code, out, err = run("explain", own, *words, "--target", 1, "--json")
    assert (code, err) == (0, "")
    source = sources.load(f"own.py:{name}")
    x = torch.zeros(1, 3, 224, 224)
    assert omenn.explain(source.model, x, 1, output=part if part == "scores" else 1).exact
    assert json.loads(out)["results"][0]["exact"]
    assert run("compare", own, *words, "--methods", "omenn,xgradient", "--classes", 0)[0] == 0
    assert run("certify", "--input", own, *words)[0] == 0


@pytest.mark.parametrize(("name", "part"), [("Mapped", "none"), ("Pair", "7"), ("own", "0")])
def test_an_output_that_is_not_there(run: Run, own: Path, name: str, part: str) -> None:
    refused(run("explain", own, "-m", f"own.py:{name}", "--output", part), "returned")


def test_a_segmentation_on_certify(run: Run, own: Path) -> None:
    refused(run("certify", "-m", "own.py:segment"), "On the command line: .*returns a module")
