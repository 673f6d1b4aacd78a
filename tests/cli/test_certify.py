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
