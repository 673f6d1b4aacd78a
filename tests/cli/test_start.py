"""Help, version, mistakes on the command line, and silence without a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import omenn
from commands import Run, refused, subprocess_of


class TestStart:
    def test_help_does_not_import_torch(self) -> None:
        code = (
            "import sys\nfrom omenn.cli import main\nmain(['--help'])\n"
            "heavy = {'torch', 'numpy', 'PIL', 'matplotlib', 'timm', 'torchvision'}\n"
            "print(sorted(heavy & set(sys.modules)))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr

    @pytest.mark.parametrize(
        "command",
        [
            [],
            ["demo"],
            ["explain"],
            ["compare"],
            ["methods"],
            ["certify"],
            ["tune"],
            ["train"],
            ["train", "birds"],
            ["data", "birds"],
        ],
    )
    def test_every_command_explains_itself(self, run: Run, command: list[str]) -> None:
        code, out, err = run(*command, "--help")
        assert (code, err) == (0, "")
        assert "Usage: omenn" in out
        if command not in ([], ["train"]):
            assert "Example" in out

    def test_alone_it_shows_the_help(self, run: Run) -> None:
        code, out, err = run()
        assert (code, err) == (2, "")
        assert "omenn demo" in out

    def test_version(self, run: Run) -> None:
        assert run("--version") == (0, f"omenn {omenn.__version__}\n", "")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["explian"], "No such command 'explian'. Did you mean 'explain'\\? See omenn --help"),
            (["explain"], "Missing argument 'FILE...'"),
            (["explain", "x.png"], "Missing option '--model'"),
            (["explain", "x.png", "-m", "birds-resnet", "--bias", "here"], "'here' is not one of"),
            (["explain", "x.png", "-m", "birds-resnet", "--smooth", "-1"], "--smooth"),
            (["certify", "-m", "birds-resnet", "--sede", "3"], "No such option"),
            (["certify", "-m", "birds-resnet", "--seed", "x"], "--seed.*integer"),
        ],
    )
    def test_mistakes_on_the_command_line(self, run: Run, words: list[str], message: str) -> None:
        refused(run(*words), message)


def test_nothing_is_printed_about_progress_without_a_terminal(net: str, picture: Path) -> None:
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess_of("explain", picture, "-m", net, "-o", "x.png", env=environment)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")


def test_python_m_omenn() -> None:
    for module in ("omenn",):
        done = subprocess.run(
            [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("omenn ")
