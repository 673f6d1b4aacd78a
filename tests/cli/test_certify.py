"""``omenn certify``: the evidence, and exit code 0 only if exact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from commands import Run, refused


class TestCertify:
    def test_exact(self, run: Run, net: str) -> None:
        code, out, err = run("certify", "-m", net)
        assert (code, err) == (0, "")
        assert re.search(r"verdict +exact", out)
        assert "random numbers (1, 3, 16, 16), seed 0" in out
        for word in ("structure", "fidelity", "sum", "bias"):
            assert re.search(rf"^{word} ", out, re.MULTILINE)

    def test_on_a_picture_as_json(self, run: Run, net: str, picture: Path) -> None:
        code, out, _ = run("certify", "-m", net, "--input", picture, "--json")
        found = json.loads(out)
        assert code == 0
        assert (found["exact"], found["input"], found["violations"]) == (True, "picture.png", [])
        assert set(found["sources"]) == {"first", "second", "head"}

    def test_a_model_without_pictures_brings_its_own_inputs(self, run: Run, net: str) -> None:
        code, out, _ = run("certify", "-m", "net.py:Table")
        assert code == 0
        assert "the model's example_inputs" in out

    def test_not_exact_is_exit_code_1(self, run: Run, net: str) -> None:
        code, out, err = run("certify", "-m", "net.py:Sorted")
        assert (code, err) == (1, "")
        assert "NOT EXACT" in out
        assert "inv" in out
        code, out, _ = run("certify", "-m", "net.py:Sorted", "--json")
        assert code == 1
        assert json.loads(out)["exact"] is False
        assert json.loads(out)["fidelity"] is None

    @pytest.mark.parametrize("target", [["--target", "dog"], ["--target", 2], []])
    def test_a_target_of_its_own(
        self, run: Run, net: str, picture: Path, target: list[object]
    ) -> None:
        _, out, _ = run("explain", picture, "-m", net, "--json", *target)
        explained = json.loads(out)["results"][0]
        code, out, _ = run("certify", "-m", net, "--input", picture, "--json", *target)
        found = json.loads(out)
        assert code == 0
        total = sum(share[0] for share in found["sources"].values())
        assert total == pytest.approx(explained["bias"], abs=1e-6)

    def test_a_place_for_the_bias(self, run: Run, net: str) -> None:
        def located(bias: str) -> float:
            code, out, _ = run("certify", "-m", net, "--bias", bias, "--json")
            assert code == 0
            return json.loads(out)["located"]

        assert located("spatial") > located("uniform") == located("separate") == 0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--input", "none.png"], "does not exist"),
            (["--at", "secnod"], "secnod"),
            (["--target", "dgo"], "did you mean 'dog'"),
            (["--target", "5"], "target 5 is out of range: the model has 5 outputs"),
            (["--target", "-1"], "there is no target -1"),
            (["--bias", "here"], "'here' is not one of"),
            (["--device", "tpu"], "cannot be used here"),
        ],
    )
    def test_mistakes(self, run: Run, net: str, options: list[str], words: str) -> None:
        refused(run("certify", "-m", net, *options), words)


PLAIN = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 2, bias=False))

def zeroed():
    net = plain()
    net[4] = nn.Linear(4, 2)
    nn.init.zeros_(net[4].bias)
    return net

class Normed(nn.Module):
    example_inputs = torch.ones(2, 3) + torch.arange(3)

    def forward(self, x):
        return nn.functional.layer_norm(x, (3,), eps=1e-12) * x.norm(dim=1, keepdim=True)
"""


class TestHomogeneous:
    @pytest.fixture(autouse=True)
    def plain(self, net: str) -> None:
        Path("plain.py").write_text(PLAIN, encoding="utf-8")

    @pytest.mark.parametrize("name", ["plain", "zeroed"])
    def test_homogeneous_is_exit_code_0(self, run: Run, name: str) -> None:
        code, out, err = run("certify", "--homogeneous", "-m", f"plain.py:{name}")
        assert (code, err) == (0, "")
        assert re.search(r"^verdict +homogeneous$", out.strip(), re.MULTILINE)
        assert re.search(r"^structure +\d+ operators prove .* of degree 1 *$", out, re.MULTILINE)
        assert "at α = 0.1" in out

    def test_what_is_not_is_named_by_module(self, run: Run, net: str) -> None:
        code, out, err = run("certify", "--homogeneous", "-m", net)
        assert (code, err) == (1, "")
        assert re.search(r"verdict +NOT HOMOGENEOUS", out)
        named = re.findall(r"(\w+) in '(\w+)': its bias is a constant beside degree 1", out)
        assert named == [("conv2d", "first"), ("conv2d", "second"), ("linear", "head")]

    def test_as_json(self, run: Run, net: str, picture: Path) -> None:
        words = ("certify", "--homogeneous", "--json", "-m")
        code, out, _ = run(*words, net, "--input", picture)
        found = json.loads(out)
        assert code == 1
        assert (found["homogeneous"], found["degree"], found["input"]) == (
            False, None, "picture.png"
        )  # fmt: skip
        assert [each["module"] for each in found["offenders"]] == ["first", "second", "head"]
        assert found["offenders"][0]["operator"] == "conv2d"
        assert list(found["errors"]) == ["0", "0.1", "0.5", "2", "10"]
        assert min(found["errors"].values()) > found["tolerance"]
        code, out, _ = run(*words, "plain.py:plain")
        found = json.loads(out)
        assert code == 0
        assert (found["homogeneous"], found["degree"], found["offenders"]) == (True, 1, [])

    def test_structure_and_numbers_that_disagree_are_shown(self, run: Run) -> None:
        code, out, _ = run("certify", "--homogeneous", "-m", "plain.py:Normed")
        assert code == 1
        assert "the model's example_inputs" in out
        assert re.search(r"^warning +the structure cannot prove what the numbers show", out, re.M)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                ["--target", "dog"],
                "--target does not go with --homogeneous, which checks the whole",
            ),
            (["--at", "first"], r"--at does not go with --homogeneous.* Omit --at first\."),
            (["--bias", "separate"], "--bias does not go with --homogeneous"),
            (["--input", "none.png"], "does not exist"),
        ],
    )
    def test_mistakes(self, run: Run, net: str, options: list[str], words: str) -> None:
        refused(run("certify", "--homogeneous", "-m", net, *options), words)
