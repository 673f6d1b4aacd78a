"""``omenn compare``: several methods side by side, and what happens when one fails."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import omenn
from commands import NET, Run, refused, written
from omenn.attribution import registry
from omenn.bench import profiling as costs
from omenn.cli import comparing
from omenn.data import birds

FEW = "omenn,cp-lrp,abslrp"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """A method of a user that raises what it likes."""

    def fails(model: Any, inputs: Any, target: Any = None) -> omenn.Explanation:
        raise ZeroDivisionError("a defect <b>of theirs</b>\nand more")

    method = registry.Method("broken", fails, "none", "always fails", "this test")
    monkeypatch.setitem(registry._METHODS, "broken", method)
    return "broken"


def compared(run: Run, *words: object) -> dict[str, Any]:
    code, out, err = run("compare", *words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


class TestCompare:
    def test_a_table_without_an_output(self, run: Run, net: str, picture: Path) -> None:
        code, out, err = run("compare", picture, "-m", net, "--methods", FEW, "--classes", 0)
        assert (code, err) == (0, "")
        assert all(name in out for name in FEW.split(","))
        assert "To see the maps, add -o" in out
        assert written() == set()

    def test_the_numbers_are_those_of_explain(self, run: Run, net: str, picture: Path) -> None:
        found = compared(run, picture, "-m", net, "--methods", FEW, "--target", "dog")
        assert [row["method"] for row in found["methods"]] == FEW.split(",")
        for row in found["methods"]:
            words = ("explain", picture, "-m", net, "--target", "dog", "--method", row["method"])
            (alone,) = json.loads(run(*words, "--json")[1])["results"]
            for key in ("sum", "residual", "exact", "promise"):
                assert row[key] == alone[key], (row["method"], key)
            assert row["seconds"] > 0
            assert row["error"] is None
            assert found["output"] == alone["output"]

    def test_the_likeliest_answers(self, run: Run, net: str, picture: Path) -> None:
        found = compared(run, picture, "-m", net, "--methods", "omenn", "--classes", 3)
        logits = [answer["logit"] for answer in found["answers"]]
        assert logits == sorted(logits, reverse=True)
        assert len(logits) == 3
        (row,) = found["methods"]
        assert [one["sum"] for one in row["answers"]] == pytest.approx(logits, abs=1e-5)
        every = compared(run, picture, "-m", net, "--methods", "omenn", "--classes", 9)
        assert sum(answer["probability"] for answer in every["answers"]) == pytest.approx(1)
        assert len(every["answers"]) == 5
        none = compared(run, picture, "-m", net, "--methods", "omenn", "--classes", 0)
        assert (none["answers"], none["methods"][0]["answers"]) == ([], [])

    @pytest.mark.parametrize("ending", ["html", "png", "HTML"])
    def test_one_file(self, run: Run, net: str, picture: Path, ending: str) -> None:
        words = ("compare", picture, "-m", net, "--methods", FEW, "--classes", 2)
        code, out, err = run(*words, "-o", f"new/x.{ending}")
        assert (code, err) == (0, "")
        assert written() == {f"new/x.{ending}"}
        assert f"wrote new/x.{ending}" in out
        if ending == "png":
            with Image.open("new/x.png") as image:
                assert image.format == "PNG"

    def test_options_of_each_method(self, run: Run, net: str, picture: Path) -> None:
        words = (picture, "-m", net, "--classes", 0, "--methods")
        plain = compared(run, *words, "gamma,epsilon")
        set_ = compared(run, *words, "gamma[gamma=3],epsilon[epsilon=1]")
        assert [row["options"] for row in set_["methods"]] == ["gamma=3", "epsilon=1"]
        for one, two in zip(plain["methods"], set_["methods"], strict=True):
            assert one["sum"] != two["sum"]

    def test_a_contrast(self, run: Run, net: str, picture: Path) -> None:
        words = (picture, "-m", net, "--methods", "omenn", "-c", "runner-up", "--classes", 2)
        found = compared(run, *words)
        first, second = (answer["logit"] for answer in found["answers"])
        assert found["output"] == pytest.approx(first - second, abs=1e-6)
        assert found["methods"][0]["sum"] == pytest.approx(first - second, abs=1e-5)

    def test_what_is_compared_without_being_named(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert {"omenn", "attnlrp", "abslrp"} < set(comparing.chosen(None))
        assert set(comparing.chosen("all")) == set(omenn.methods())
        monkeypatch.setattr(comparing, "installed", lambda extra: False)
        needy = {name for name, method in omenn.methods().items() if method.extra}
        assert not needy & set(comparing.chosen(None))
        assert list(comparing.chosen(" abslrp, omenn,abslrp")) == ["abslrp", "omenn"]

    def test_a_method_in_the_file_of_the_model(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
        text = (
            '\nimport omenn\n@omenn.method("mine", promise="exact", summary="", source="here")\n'
            "def mine(model, inputs, target=None):\n"
            "    return omenn.explain(model, inputs, target)\n"
        )
        Path("own.py").write_text(NET + text, encoding="utf-8")
        found = compared(run, picture, "-m", "own.py:build", "--methods", "mine", "--classes", 0)
        assert found["methods"][0]["exact"] is True
        assert run("explain", picture, "-m", "own.py:build", "--method", "mine")[0] == 0

    def test_bundled_networks(self, run: Run, inside_tmp: Path) -> None:
        birds.render(birds.sample_scene(3, "test"), 64).save("bird.png")
        words = ("bird.png", "--methods", "omenn,rollout", "--classes", 1, "-m")
        resnet, vit = (compared(run, *words, f"birds-{kind}") for kind in ("resnet", "vit"))
        assert "no softmax attention" in resnet["methods"][1]["error"]
        assert vit["methods"][1]["error"] is None
        assert resnet["answers"][0]["probability"] > 0.9


class TestFailures:
    def test_one_says_its_reason_and_the_others_go_on(
        self, run: Run, net: str, picture: Path, broken: str
    ) -> None:
        methods = f"omenn,{broken},abslrp"
        words = ("compare", picture, "-m", net, "--methods", methods, "--classes", 1)
        code, out, err = run(*words, "-o", "x.html")
        assert (code, err) == (0, "")
        assert "broken: unexpected ZeroDivisionError: a defect <b>of theirs</b>." in out
        html = Path("x.html").read_text(encoding="utf-8")
        assert "a defect &lt;b&gt;of theirs&lt;/b&gt;" in html
        assert "<b>of theirs" not in html
        assert run(*words, "-o", "x.png")[0] == 0
        rows = compared(run, *words[1:])["methods"]
        assert [row["error"] is None for row in rows] == [True, False, True]
        assert (rows[1]["sum"], rows[1]["seconds"], rows[1]["exact"]) == (None, None, None)
        assert all(one["error"] for one in rows[1]["answers"])

    def test_what_fails_once_is_not_tried_for_every_answer(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def fails(model: Any, inputs: Any, target: Any = None) -> omenn.Explanation:
            calls.append(target)
            raise MemoryError

        method = registry.Method("large", fails, "none", "too large", "this test")
        monkeypatch.setitem(registry._METHODS, "large", method)
        rows = compared(run, picture, "-m", net, "--methods", "large,omenn")["methods"]
        assert rows[0]["error"] == "not enough memory."
        assert len(calls) == 1

    def test_a_missing_package(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("captum", "captum.attr"):  # it may be imported already
            monkeypatch.setitem(sys.modules, name, None)
        rows = compared(run, picture, "-m", net, "--methods", "omenn,deeplift")["methods"]
        assert "Run: pip install 'omenn[peers]'" in rows[1]["error"]

    def test_all_fail(self, run: Run, net: str, picture: Path, broken: str) -> None:
        words = ("compare", picture, "-m", net, "--methods", f"{broken},rollout", "-o", "x.html")
        refused(run(*words), r"every method failed\. broken: unexpected Zero.*; rollout: ")
        assert written() == set()

    @pytest.mark.parametrize(("promise", "code"), [("exact", 1), ("approximate", 0)])
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
        found, out, err = run("compare", picture, "-m", net, "--methods", "omenn,off")
        assert (found, err) == (code, "")
        assert ("NOT EXACT" in out) == bool(code)

    def test_interrupted(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(model: Any, inputs: Any, target: Any = None) -> omenn.Explanation:
            raise KeyboardInterrupt

        method = registry.Method("stop", interrupted, "none", "Ctrl-C", "this test")
        monkeypatch.setitem(registry._METHODS, "stop", method)
        words = ("compare", picture, "-m", net, "--methods", "omenn,stop", "-o", "new/x.html")
        assert run(*words) == (2, "", "omenn: interrupted; nothing is left half-written\n")
        assert written() == set()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--methods", "omenn,abslp"], "unknown method 'abslp': did you mean 'abslrp'"),
            (["--methods", " ,"], "--methods names no method"),
            (["--methods", "gamma[gamma"], "is no NAME or NAME"),
            (["--methods", "gamma,gamma[gamma=1]"], "'gamma' with different options"),
            (["--methods", "gama[gamma=1]"], "unknown method 'gama': did you mean 'gamma'"),
            (["--methods", "abslrp[poling=1]"], "has no option 'poling': did you mean 'pooling'"),
            (["--target", "dgo"], "did you mean 'dog'"),
            (["--classes", "-1"], "--classes"),
            (["--smooth", "nan"], "--smooth"),
            (["-o", "x.jpg"], r"ends in '\.jpg', expected \.html or \.png"),
            (["-o", "net.py/x.html"], "is a file, not a folder"),
        ],
    )
    def test_mistakes(
        self, run: Run, net: str, picture: Path, options: list[str], words: str
    ) -> None:
        options = options if "-o" in options else [*options, "-o", "x.html"]
        options = options if "--methods" in options else [*options, "--methods", "omenn,abslrp"]
        refused(run("compare", picture, "-m", net, *options), words)
        assert written() == set()

    def test_an_unreadable_picture(self, run: Run, net: str) -> None:
        Path("bad.png").write_bytes(b"hello, world")
        refused(run("compare", "bad.png", "-m", net, "-o", "x.html"), "not a picture")
        refused(run("compare", "none.png", "-m", net, "-o", "x.html"), "does not exist")
        assert written() == {"bad.png"}


class TestSpending:
    def test_a_peak_that_is_gone_again_is_seen(self) -> None:
        import time

        import torch

        with costs.spending() as spent:
            large = torch.ones(64 * 2**20, dtype=torch.uint8)
            time.sleep(0.05)
            del large
        assert spent.seconds > 0.05
        assert spent.memory is None or 48 * 2**20 < spent.memory < 200 * 2**20

    def test_where_nothing_can_be_known_it_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "_STATM", Path("/no/such/file"))
        with costs.spending() as spent:
            pass
        assert spent.memory is None

    def test_an_error_passes_and_the_thread_ends(self) -> None:
        import threading

        before = threading.active_count()
        with pytest.raises(ValueError, match="inside"), costs.spending():
            raise ValueError("inside")
        assert threading.active_count() == before
