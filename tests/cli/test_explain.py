"""``omenn explain``: what it prints and writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import escape
from PIL import Image
from safetensors.torch import save_file

import omenn
from commands import Run, written
from omenn.attribution import registry
from omenn.cli import explain_images
from omenn.models import sources


class TestExplain:
    def test_a_table_without_an_output(self, run: Run, net: str, picture: Path) -> None:
        code, out, err = run("explain", picture, "-m", net)
        assert (code, err) == (0, "")
        assert "picture.png" in out
        assert "yes" in out
        assert written() == set()

    def test_json_on_standard_output(self, run: Run, net: str, picture: Path) -> None:
        code, out, _ = run("explain", picture, "-m", net, "--target", "dog", "--json")
        (found,) = json.loads(out)["results"]
        assert code == 0
        assert (found["target"], found["answer"], found["exact"]) == (2, "dog", True)
        assert found["sum"] == pytest.approx(found["output"], abs=1e-5)
        constants = sum(found["sources"].values())
        assert constants == pytest.approx(found["bias"], abs=1e-5)
        assert "not known" in found["weights"]

    def test_it_is_the_same_as_from_python(self, run: Run, net: str, picture: Path) -> None:
        run("explain", picture, "-m", net, "--target", 1, "-o", "e.safetensors")
        source = sources.load(net)
        with Image.open(picture) as image:
            x = source.preprocessing(image.convert("RGB"))
        here = omenn.explain(source.model, x, 1)
        there = omenn.Explanation.load("e.safetensors")
        assert torch.equal(here.matrix, there.matrix)
        assert torch.equal(here.weight, there.weight)

    @pytest.mark.parametrize("ending", ["png", "html", "safetensors", "json", "PNG"])
    def test_one_file(self, run: Run, net: str, picture: Path, ending: str) -> None:
        code, out, err = run("explain", picture, "-m", net, "-o", f"new/x.{ending}")
        assert (code, err) == (0, "")
        assert written() == {f"new/x.{ending}"}
        assert f"wrote new/x.{ending}" in out

    def test_the_page_shows_the_readable_map_first(self, run: Run, net: str, picture: Path) -> None:
        code, out, _ = run("explain", picture, "-m", net, "-o", "x.html")
        html = Path("x.html").read_text(encoding="utf-8")
        assert code == 0
        assert html.index('<figure class="large">') == html.index("<figure")
        assert "R and C both add up to the logit" in html
        assert "readable maps, by omenn-clear: the entries add up to the same logit" in out

    def test_json_says_which_map_is_which(self, run: Run, net: str, picture: Path) -> None:
        words = ("explain", picture, "-m", net, "--target", "dog")
        (found,) = json.loads(run(*words, "--json")[1])["results"]
        (alone,) = json.loads(run(*words, "--json", "--method", "omenn-clear")[1])["results"]
        (plain,) = json.loads(run(*words, "--json", "--method", "omenn")[1])["results"]
        readable = found.pop("readable")
        assert plain.pop("readable") is alone["readable"] is None
        assert (found["method"], readable["method"]) == ("omenn", "omenn-clear")
        assert {**found, "seconds": 0} == {**plain, "seconds": 0}
        for key in ("sum", "residual", "exact", "promise", "processing", "largest"):
            assert readable[key] == alone[key]
        assert readable["error"] is None
        run(*words, "-o", "x.json")
        file = json.loads(Path("x.json").read_text(encoding="utf-8"))
        for one in (file, file["readable"]):
            entries = [value for line in one["matrix"][0] for value in line]
            assert sum(entries) == pytest.approx(found["output"], abs=1e-4)
        assert file["matrix"] != file["readable"]["matrix"]

    @pytest.mark.parametrize(
        "words",
        [
            ["--method", "omenn"],
            ["--at", "second"],
            ["--post", "clean"],
            ["--bias", "separate"],
        ],
    )
    def test_what_is_asked_for_alone_stands_alone(
        self, run: Run, net: str, picture: Path, words: list[str]
    ) -> None:
        code, out, err = run("explain", picture, "-m", net, *words, "-o", "x.html")
        html = Path("x.html").read_text(encoding="utf-8")
        assert (code, err) == (0, "")
        assert 'class="large"' not in html
        assert "eadable map" not in out + html

    def test_one_explanation_in_a_file_is_that_of_omenn(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*words: Any) -> None:
            raise AssertionError("nobody would see it")

        monkeypatch.setattr(explain_images, "readable_maps", never)
        run("explain", picture, "-m", net, "-o", "x.safetensors")
        assert omenn.Explanation.load("x.safetensors").method == "omenn"

    def test_a_model_that_the_readable_map_cannot_explain(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuses(model: Any, inputs: Any, target: Any = None) -> omenn.Explanation:
            raise omenn.UnsupportedOperator("it", "head", "it has <b>no rule</b>", "")

        clear = registry.Method("omenn-clear", refuses, "exact", "refuses", "this test")
        monkeypatch.setitem(registry._METHODS, "omenn-clear", clear)
        words = ("explain", picture, "-m", net)
        code, out, err = run(*words, "-o", "x.html")
        html = Path("x.html").read_text(encoding="utf-8")
        assert (code, err) == (0, "")
        why = "omenn-clear: operator 'it' in module 'head': it has <b>no rule</b>."
        assert f"no readable map, {why}" in out
        assert f"No readable map: {escape(why)}" in html
        assert 'class="large"' not in html
        assert "C over input" in html
        (found,) = json.loads(run(*words, "--json")[1])["results"]
        assert found["readable"] == {"error": why}
        assert found["exact"]

    def test_a_readable_map_that_is_not_exact_is_exit_code_1(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        explain = omenn.explain

        def off(*words: Any, **options: Any) -> omenn.Explanation:
            found = explain(*words, **options)
            return found.with_matrix(2 * found.matrix) if "method" in options else found

        monkeypatch.setattr(omenn, "explain", off)
        code, out, _ = run("explain", picture, "-m", net)
        assert code == 1
        assert "readable maps, by omenn-clear: the entries do not add up" in out

    def test_several_pictures_on_one_page(self, run: Run, net: str, picture: Path) -> None:
        code, _, _ = run("explain", picture, picture, "-m", net, "-o", "x.html")
        html = Path("x.html").read_text(encoding="utf-8")
        assert code == 0
        assert html.count('<article class="answer"') == 2
        assert "whether they are trained is not known" in html

    def test_several_pictures_into_a_folder(self, run: Run, net: str, picture: Path) -> None:
        Path("other").mkdir()
        Image.open(picture).convert("L").save("other/PICTURE.png")
        code, _, _ = run("explain", picture, "other/PICTURE.png", picture, "-m", net, "-o", "out")
        assert code == 0
        assert written() - {"other/PICTURE.png"} == {
            "out/index.html",
            "out/picture.png",
            "out/PICTURE-2.png",
            "out/picture-3.png",
        }

    def test_contrast_is_the_difference_of_two_targets(
        self, run: Run, net: str, picture: Path
    ) -> None:
        def output(*words: object) -> Any:
            return json.loads(run("explain", picture, "-m", net, "--json", *words)[1])["results"][0]

        difference = output("--target", "cat", "--contrast", "dog")
        one, two = output("--target", 1)["output"], output("--target", 2)["output"]
        assert difference["output"] == pytest.approx(one - two, abs=1e-6)
        assert difference["answer"] == "cat − dog"

    @pytest.mark.parametrize("bias", ["spatial", "bilinear", "attention", "uniform", "separate"])
    @pytest.mark.parametrize("ending", ["html", "png"])
    def test_every_place_of_the_bias(
        self, run: Run, net: str, picture: Path, bias: str, ending: str
    ) -> None:
        out = f"x.{ending}"
        code, text, err = run("explain", picture, "-m", net, "--bias", bias, "-o", out)
        assert (code, err) == (0, "")
        assert "yes" in text
        assert written() == {out}

    @pytest.mark.parametrize("model", ["Named", "Listed"])
    def test_logits_are_found_in_structured_outputs(
        self, run: Run, net: str, picture: Path, model: str
    ) -> None:
        words = ("explain", picture, "--target", "dog", "--json", "-m")
        plain = json.loads(run(*words, net)[1])["results"][0]
        code, out, err = run(*words, f"net.py:{model}")
        assert (code, err) == (0, "")
        assert json.loads(out)["results"][0]["output"] == plain["output"]

    @pytest.mark.parametrize("options", [[], ["--json"], ["-o", "x.html"]])
    def test_not_exact_is_exit_code_1(
        self,
        run: Run,
        net: str,
        picture: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: list[str],
    ) -> None:
        explain = omenn.explain

        def off(*words: Any, **options: Any) -> omenn.Explanation:
            found = explain(*words, **options)
            return dataclasses.replace(found, residual=found.residual + 1)

        monkeypatch.setattr(omenn, "explain", off)
        code, out, err = run("explain", picture, "-m", net, *options)
        assert (code, err) == (1, "")
        if "--json" in options:
            assert json.loads(out)["results"][0]["exact"] is False
        else:
            assert "NOT EXACT: a matrix misses its logit" in out
        assert written() == set(options[1:])

    def test_the_certificate_is_about_the_number_on_the_page(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        certify = omenn.certify

        def noted(model: Any, inputs: Any, target: Any, **options: Any) -> omenn.Certificate:
            asked.append(target)
            return certify(model, inputs, target, **options)

        monkeypatch.setattr(omenn, "certify", noted)
        words = ("explain", picture, "-m", net, "-o", "x.html", "--target", "dog")
        assert (run(*words)[0], run(*words, "--contrast", "cat")[0]) == (0, 0)
        assert asked == [2, omenn.Contrast(2, 1)]

    def test_at_a_module(self, run: Run, net: str, picture: Path) -> None:
        code, out, err = run("explain", picture, "-m", net, "--at", "second", "-o", "x.html")
        assert (code, err) == (0, "")
        assert "the output of second" in Path("x.html").read_text(encoding="utf-8")
        assert "yes" in out

    def test_smoothing_is_said_on_the_page(self, run: Run, net: str, picture: Path) -> None:
        run("explain", picture, "-m", net, "--smooth", "3", "-o", "x.html")
        assert "Gaussian, σ = 3" in Path("x.html").read_text(encoding="utf-8")
        run("explain", picture, "-m", net, "--smooth", "0", "-o", "x.html")
        assert "Gaussian" not in Path("x.html").read_text(encoding="utf-8")

    def test_weights_from_a_file(self, run: Run, net: str, picture: Path) -> None:
        state = sources.load(net, seed=5).model.state_dict()
        save_file(state, "w.safetensors")
        words = ("explain", picture, "-m", net, "--json")
        trained = json.loads(run(*words, "--weights", "w.safetensors")[1])["results"][0]
        random = json.loads(run(*words, "--seed", 5)[1])["results"][0]
        assert trained["output"] == random["output"]
        assert (trained["weights"], trained["warning"]) == ("weights of w.safetensors", "")

    def test_random_weights_are_said_on_the_page(self, run: Run, picture: Path) -> None:
        pytest.importorskip("timm")
        code, out, _ = run("explain", picture, "-m", "timm:test_resnet", "-o", "x.html")
        words = "Random weights, seed 0: the model is not trained."
        assert code == 0
        assert words in out
        assert words in Path("x.html").read_text(encoding="utf-8")

    def test_names_are_printed_as_they_are(self, run: Run, net: str, picture: Path) -> None:
        picture.rename("[bold]a[i].png")
        code, out, _ = run("explain", "[bold]a[i].png", "-m", net, "-o", "[red]/x.json")
        Path("[bold]a[i].png").rename(picture)
        assert code == 0
        assert "[bold]a[i].png" in out
        assert "wrote [red]/x.json" in out


def test_tokens_of_a_picture_are_drawn_as_their_grid(run: Run, picture: Path) -> None:
    words = (
        "-m",
        "birds-vit",
        "--at",
        "blocks.1",
        "--method",
        "omenn[resample=none]",
        "-o",
        "x.html",
    )
    code, _, err = run("explain", picture, *words)
    assert (code, err) == (0, "")
    html = Path("x.html").read_text(encoding="utf-8")
    assert html.count("above it 1 token in front: ") == 4  # C, both of its parts, the contrast
    assert 'width="8" height="9"' in html  # 8 x 8 patches, and the class token above
