"""``omenn methods`` and ``omenn explain --method``: options, promises, what is said of the sum."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import omenn
from commands import Run, refused, written
from omenn.attribution import registry
from omenn.cli import method_list
from omenn.models import sources
from omenn.viz import wording

RULE_BOOKS = ["cp-lrp", "attnlrp", "abslrp", "epsilon", "gamma", "zplus"]


def one(run: Run, *words: object) -> dict[str, Any]:
    code, out, err = run("explain", *words, "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)["results"]
    return found


class TestList:
    def test_every_method_with_its_promise_options_and_source(self, run: Run) -> None:
        code, out, err = run("methods")
        assert (code, err) == (0, "")
        for method in omenn.methods().values():
            assert method.name in out
            assert method.source in out
        assert "gamma=0.25 epsilon=1e-06" in out
        assert "not promised" in out
        assert "the same as alpha1beta0" in out
        assert "the same as omenn by default" in out
        count = len(omenn.methods()) - sum(m.same_as is not None for m in omenn.methods().values())
        assert out.rstrip().endswith(f"{count} methods, 2 of them under two names")

    def test_json(self, run: Run) -> None:
        found = {one["name"]: one for one in json.loads(run("methods", "--json")[1])["methods"]}
        assert set(found) == set(omenn.methods())
        assert found["gamma"]["options"]["gamma"] == 0.25
        assert found["omenn"]["promise"] == "exact"
        assert (found["zplus"]["same_as"], found["omenn"]["same_as"]) == ("alpha1beta0", None)
        assert (found["omenn"]["extra"], found["omenn"]["installed"]) == (None, True)

    @pytest.mark.parametrize("width", [80, 120])
    def test_nothing_is_cut_off(self, width: int) -> None:
        out = io.StringIO()
        Console(file=out, width=width).print(method_list.table())
        assert "…" not in out.getvalue()
        assert max(map(len, out.getvalue().splitlines())) <= width
        words = " ".join(out.getvalue().split())
        assert all(name in words for name in omenn.methods())

    def test_what_an_extra_needs(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        method = dataclasses.replace(omenn.methods()["omenn"], name="far", extra="peers")
        monkeypatch.setitem(registry._METHODS, "far", method)
        assert method_list.installed("peers")
        assert "needs omenn[peers], installed" in run("methods")[1]
        monkeypatch.setattr(method_list, "_there", lambda distribution: distribution != "captum")
        assert "needs omenn[peers], not installed" in run("methods")[1]
        found = json.loads(run("methods", "--json")[1])["methods"]
        assert [one["installed"] for one in found if one["name"] == "far"] == [False]


class TestMethod:
    @pytest.mark.parametrize("name", RULE_BOOKS)
    def test_the_result_says_what_it_is(self, run: Run, net: str, picture: Path, name: str) -> None:
        found = one(run, picture, "-m", net, "--method", name, "--target", "dog")
        assert (found["method"], found["promise"]) == (name, omenn.methods()[name].promise)
        assert (found["bias"], found["located"]) == (None, None)
        assert found["sum"] + found["residual"] == pytest.approx(found["output"], abs=1e-9)

    def test_it_is_the_same_as_from_python(self, run: Run, net: str, picture: Path) -> None:
        words = ("--method", "gamma[gamma=0.5;epsilon=1e-3]")
        run("explain", picture, "-m", net, "--target", 1, *words, "-o", "e.safetensors")
        source = sources.load(net)
        with Image.open(picture) as image:
            x = source.preprocessing(image.convert("RGB"))
        here = omenn.explain(source.model, x, 1, method="gamma", gamma=0.5, epsilon=1e-3)
        there = omenn.Explanation.load("e.safetensors")
        assert torch.equal(here.matrix, there.matrix)
        assert there.method == "gamma"

    @pytest.mark.parametrize("name", ["abslrp", "epsilon"])
    def test_no_other_method_is_called_C(
        self, run: Run, net: str, picture: Path, name: str
    ) -> None:
        code, out, err = run("explain", picture, "-m", net, "--method", name, "-o", "x.html")
        assert (code, err) == (0, "")
        assert name in out
        html = Path("x.html").read_text(encoding="utf-8")
        html = html[html.index("<body>") :]
        for symbol in ("C<sub>", "ΣC", "<h4>C", "C_b", "the residual is rounding"):
            assert symbol not in html
        assert html.count("<figure>") == (3 if name == "abslrp" else 4)
        assert f"R is the map of the method <em>{name}</em>" in html
        promised = {"abslrp": "no sum promised", "epsilon": "approximate"}[name]
        assert f'<span class="badge plain">{promised}</span>' in html
        assert "Certificate</h2>" not in html

    @pytest.mark.parametrize("ending", ["png", "json"])
    def test_other_files(self, run: Run, net: str, picture: Path, ending: str) -> None:
        words = ("explain", picture, "-m", net, "--method", "abslrp", "-o", f"x.{ending}")
        assert run(*words)[::2] == (0, "")
        assert written() == {f"x.{ending}"}
        if ending == "json":
            found = json.loads(Path("x.json").read_text(encoding="utf-8"))
            assert (found["method"], found["promise"]) == ("abslrp", "none")
            assert torch.tensor(found["matrix"]).sum().item() == pytest.approx(
                found["sum"], abs=1e-4
            )

    @pytest.mark.parametrize(("promise", "code"), [("exact", 1), ("approximate", 0), ("none", 0)])
    def test_only_a_broken_promise_is_exit_code_1(
        self,
        run: Run,
        net: str,
        picture: Path,
        monkeypatch: pytest.MonkeyPatch,
        promise: str,
        code: int,
    ) -> None:
        def off(model: Any, inputs: Any, target: Any = None) -> omenn.Explanation:
            found = omenn.explain(model, inputs, target)
            return dataclasses.replace(found, residual=found.residual + 1)

        method = registry.Method("off", off, promise, "one too few", "this test")
        monkeypatch.setitem(registry._METHODS, "off", method)
        found, out, err = run("explain", picture, "-m", net, "--method", "off", "-o", "x.html")
        assert (found, err) == (code, "")
        assert ("NOT EXACT" in out) == bool(code)
        html = Path("x.html").read_text(encoding="utf-8")
        assert ("not exact</span>" in html) == bool(code)

    def test_depths(self, run: Run, net: str, picture: Path) -> None:
        words = ("--at", "input,first", "--method", "omenn[mix=0.25,0.75]")
        found = one(run, picture, "-m", net, *words)
        assert found["exact"] is True
        run("explain", picture, "-m", net, "--at", "input,first", "-o", "x.html")
        assert "a mixture of the depths input, first" in Path("x.html").read_text(encoding="utf-8")


class TestOptions:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--method", "abslp"], r"unknown method 'abslp': did you mean 'abslrp'\? See omenn m"),
            (["--method", "q"], "unknown method 'q': known are omenn, "),
            (["--method", "omenn[steps]"], "as 'steps', which is no option=value"),
            (["--method", "omenn[=3]"], "as '=3', which is no option=value"),
            (["--method", "omenn[steps=3"], "is no NAME or NAME"),
            (
                ["--method", "gamma[gama=1]"],
                r"method 'gamma' has no option 'gama': did you mean 'gamma'\?",
            ),
            (["--method", "gamma[gamma=much]"], "'gamma' of the method 'gamma' is 'much', expec"),
            (["--method", "gamma[gamma=nan]"], "'gamma' of the method 'gamma' is 'nan', expected"),
            (["--method", "gamma[gamma=-1]"], "gamma"),
            (["--method", "gamma[gamma=1;gamma=2]"], "has the option 'gamma' twice"),
            (["--at", "first", "--method", "omenn[at=second]"], "'at' is given twice"),
            (["--method", "omenn[create_graph=2]"], "is 2, expected true or false"),
            (["--method", "omenn[mix=half,half]"], "expected a list or none"),
            (["--method", "omenn[channel_dim=1.5]"], "is 1.5, expected a whole number or none"),
            (["--method", "omenn[products=thrice]"], "products"),
            (
                ["--method", "abslrp", "--bias", "uniform"],
                "method 'abslrp' has no option 'bias': known are pooling",
            ),
            (["--post", "claen"], "unknown step 'claen': did you mean 'clean'"),
            (["--post", "clamp:much"], "'much' is not a number"),
            (["--contrast", "runner"], "unknown target 'runner'"),
        ],
    )
    def test_mistakes(
        self, run: Run, net: str, picture: Path, words: list[str], message: str
    ) -> None:
        refused(run("explain", picture, "-m", net, *words, "-o", "x.html"), message)
        assert written() == set()

    def test_a_method_whose_package_is_missing(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("captum", "captum.attr"):  # it may be imported already
            monkeypatch.setitem(sys.modules, name, None)
        words = "needs the package 'captum', which is not installed. Run: pip install 'omenn.peers"
        refused(run("explain", picture, "-m", net, "--method", "grad-cam"), words)


class TestContrast:
    @pytest.mark.parametrize("against", ["rest", "runner-up"])
    def test_rest_and_runner_up(self, run: Run, net: str, picture: Path, against: str) -> None:
        found = one(run, picture, "-m", net, "--target", "dog", "-c", against)
        logits = [one(run, picture, "-m", net, "--target", k)["output"] for k in range(5)]
        dog = logits.pop(2)
        other = max(logits) if against == "runner-up" else sum(logits) / 4
        assert found["output"] == pytest.approx(dog - other, abs=1e-6)
        assert found["answer"] == f"dog − {'all others' if against == 'rest' else 'the runner-up'}"
        assert found["exact"] is True


class TestPost:
    def test_a_form_that_keeps_the_sum(self, run: Run, net: str, picture: Path) -> None:
        code, out, err = run("explain", picture, "-m", net, "--post", "clean", "-o", "x.html")
        assert (code, err) == (0, "")
        assert "processed: clamp:0.01, gaussian:0.5." in out
        assert "no longer" not in out
        html = Path("x.html").read_text(encoding="utf-8")
        assert "<h4>C, processed</h4>" in html
        assert "<h4>C before</h4>" in html
        assert "<h4>C<sub>b</sub></h4>" not in html
        found = one(run, picture, "-m", net, "--post", "clamp:0.1", "--post", "gaussian:2")
        assert (found["exact"], found["processing"]) == (True, ["clamp:0.1", "gaussian:2"])

    def test_a_lossy_form_is_told_and_no_failure(self, run: Run, net: str, picture: Path) -> None:
        words = ("explain", picture, "-m", net, "--post", "clamp-lossy:0.1", "-o")
        code, out, err = run(*words, "x.html")
        assert (code, err) == (0, "")
        assert "The sum is no longer the logit; the residual says by how much." in out
        page = Path("x.html").read_text(encoding="utf-8")
        assert "sum changed by processing" in page
        assert "omenn, processed afterwards: its sum is no longer the logit." in page
        assert "exact sum" not in page
        assert "is rounding" not in page
        assert run(*words, "x.png")[0] == 0
        found = one(run, picture, "-m", net, "--post", "clamp-lossy:0.1")
        assert found["exact"] is False
        assert abs(found["residual"]) > 1e-3


def test_the_line_about_the_sum_is_as_sure_as_the_method() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    x = torch.rand(1, 3)
    lines = [
        wording.sum_line(omenn.explain(net, x, 0, method=name))
        for name in ("omenn", "epsilon", "abslrp")
    ]
    assert " = ΣC " in lines[0]
    assert " ≈ ΣR " in lines[1]
    assert "; ΣR " in lines[2]
    assert "residual" not in lines[2]
