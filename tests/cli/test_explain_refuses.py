"""``omenn explain`` with bad input: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import omenn
from commands import NET, Run, refused, written


class TestExplainRefuses:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--target", "5"], "target 5 is out of range: the model has 5 outputs, 0 to 4"),
            (["--target", "-1"], "there is no target -1"),
            (["--target", "9" * 30], "there is no target 9"),
            (["--target", "1.5"], "unknown target '1.5'"),
            (["--target", "dgo"], "unknown target 'dgo': did you mean 'dog'"),
            (["--target", "crane, lifting", "--contrast", "9"], "target 9 is out of range"),
            (["--contrast", "dgo"], "did you mean 'dog'"),
            (["--at", "secnod"], "secnod"),
            (["--device", "tpu"], "device 'tpu' cannot be used here"),
            (["--weights", "none.safetensors"], "cannot be read"),
            (["-o", "x.jpg"], r"ends in '\.jpg', expected \.safetensors, \.json, \.png, \.html or"),
            (["-o", "net.py/x.png"], "is a file, not a folder"),
            (
                ["--output", "logits"],
                r"returned a tensor \(1, 5\), which has no parts. Omit --output",
            ),
            (["--smooth", "inf"], "--smooth.*inf is not a number"),
            (["--smooth", "nan"], "--smooth"),
            (["-o", "x.json", "--smooth", "2"], "--smooth changes pictures only"),
        ],
    )
    def test_options(
        self, run: Run, net: str, picture: Path, options: list[str], words: str
    ) -> None:
        options = options if "-o" in options else [*options, "-o", "x.html"]
        refused(run("explain", picture, "-m", net, *options), words)
        assert written() == set()

    @pytest.mark.parametrize("ending", ["png", "json", "safetensors"])
    def test_several_pictures_in_one_file(
        self, run: Run, net: str, picture: Path, ending: str
    ) -> None:
        refused(
            run("explain", picture, picture, "-m", net, "-o", f"x.{ending}"),
            "2 pictures do not fit into",
        )

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "does not exist"),
            (b"", "is empty"),
            (b"hello, world", "not a picture"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10", "damaged or incomplete|not a picture"),
        ],
    )
    def test_pictures(self, run: Run, net: str, content: bytes | None, words: str) -> None:
        if content is not None:
            Path("bad.png").write_bytes(content)
        refused(run("explain", "bad.png", "-m", net, "-o", "x.html"), words)
        assert written() <= {"bad.png"}

    def test_one_bad_picture_among_good_ones(self, run: Run, net: str, picture: Path) -> None:
        refused(run("explain", picture, "none.png", "-m", net, "-o", "x.html"), "none.png")
        assert written() == set()

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            ("birds-resnat", "did you mean 'birds-resnet'"),
            ("net.py:biuld", "did you mean 'build'"),
            ("net.py", "names no function"),
            ("net.py:Table", r"'net.py:Table' cannot take a picture of .* missing 1 required"),
            ("net.py:Wide", r"cannot take a picture of the shape .*4 channels"),
            (
                "net.py:Rows",
                r"cannot take a picture of the shape \(1, 3, 16, 16\): RuntimeError: mat1 and mat2",
            ),
            (
                "net.py:Raising",
                r"cannot take a picture of .*: KeyError: 0 \(net\.py, line \d+\)",
            ),
            ("net.py:Scores", r"'names': a list of str, 'scores': a tensor \(1, 5\)"),
            ("net.py:Dense", r"'out': a tensor \(1, 8, 8, 8\), expected one row"),
        ],
    )
    def test_models(self, run: Run, net: str, picture: Path, model: str, words: str) -> None:
        refused(run("explain", picture, "-m", model), words)
        refused(run("explain", picture, "-m", model, "--target", 1, "-o", "x.html"), words)
        assert written() == set()

    def test_an_unsupported_operator(self, run: Run, net: str, picture: Path) -> None:
        refused(run("explain", picture, "-m", "net.py:Sorted", "-o", "x.png"), "inv")
        assert written() == set()

    def test_an_output_that_is_not_finite(self, run: Run, net: str, picture: Path) -> None:
        refused(run("explain", picture, "-m", "net.py:Broken"), "not finite|NaN|infinite")

    def test_a_pickle_with_code(self, run: Run, net: str, picture: Path) -> None:
        Path("evil.pt").write_bytes(b"cos\nsystem\n(S'touch trace'\ntR.")
        refused(run("explain", picture, "-m", net, "--weights", "evil.pt"), "could run code")
        assert not Path("trace").exists()

    def test_a_target_with_two_meanings_or_without_names(
        self, run: Run, net: str, picture: Path
    ) -> None:
        assert json.loads(run("explain", picture, "-m", net, "--target", "Crane", "--json")[1])
        text = NET.replace('"crane", "crane, lifting"', '"crane, bird", "crane, lifting"')
        Path("two.py").write_text(text, encoding="utf-8")
        words = ("explain", picture, "--target", "crane", "-m")
        refused(run(*words, "two.py:build"), r"several classes: 3, 4\. Give a number")
        Path("none.py").write_text(re.sub("classes = .*", "", NET), encoding="utf-8")
        refused(run(*words, "none.py:build"), "have no names here")

    def test_an_unknown_error_is_one_line_with_a_hint(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a defect\nof ours")

        monkeypatch.setattr(omenn, "explain", broken)
        words = "unexpected ZeroDivisionError: a defect. Run again with -v for the traceback"
        refused(run("explain", picture, "-m", net, "-o", "x.png"), words)
        code, _, err = run("explain", picture, "-m", net, "-o", "x.png", "-v")
        assert code == 2
        assert "Traceback" in err
        assert err.endswith("omenn: error: unexpected ZeroDivisionError: a defect.\n")
