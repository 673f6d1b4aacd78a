"""What comes from outside a command: names and exceptions that a terminal would obey, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import Run, refused, written
from omenn.cli import data_command
from omenn.data import birds
from omenn.files.locks import locked

ESCAPES = "\x1b[2J\x1b]0;title\x07"

BAD = f"""
from torch import nn
def raising(): raise ValueError({ESCAPES!r})
class Net(nn.Module):
    preprocess = {{"size": 8}}
    classes = ["{ESCAPES}cat", "dog"]
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 2)
    def forward(self, x): return self.head(x.flatten(1))
def build(): return Net()
"""


@pytest.fixture
def bad(inside_tmp: Path) -> str:
    Path("bad.py").write_text(BAD, encoding="utf-8")
    return "bad.py:build"


def test_an_exception_of_a_model(run: Run, bad: str) -> None:
    result = run("certify", "-m", "bad.py:raising")
    refused(result, r"\\x1b\[2J\\x1b\]0;title\\x07")
    assert "\x1b" not in result[2]
    _, _, err = run("certify", "-m", "bad.py:raising", "-v")
    assert "Traceback" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("out", ["o.html", "o.png", "o.json", "o.safetensors", "folder"])
@pytest.mark.parametrize("name", [b"caf\xe9.png", b"a\x1b[2J.png"])
def test_names_of_pictures_and_classes(
    run: Run, bad: str, picture: Path, name: bytes, out: str
) -> None:
    given = os.fsdecode(name)
    shutil.copy(picture, given)
    code, text, err = run("explain", given, "-m", bad, "--target", 0, "-o", out)
    assert (code, err) == (0, "")
    assert not set(text) & set("\x1b\x07")
    text.encode()
    files = written() - {given, "bad.py"}
    assert files
    for file in files:
        file.encode()
        assert "\x1b" not in file
        if file.endswith((".html", ".json")):
            assert b"\x1b" not in Path(file).read_bytes()
            assert b"\\x1b]0;title" in Path(file).read_bytes().replace(rb"\\", b"\\")


def test_json(run: Run, bad: str, picture: Path) -> None:
    given = os.fsdecode(b"caf\xe9.png")
    shutil.copy(picture, given)
    _, out, _ = run("explain", given, "-m", bad, "--target", 0, "--json")
    out.encode()
    assert "\x1b" not in out
    assert json.loads(out)["results"][0]["input"] == r"caf\xe9.png"


def test_names_that_a_plan_cannot_hold(run: Run, inside_tmp: Path) -> None:
    spec = os.fsdecode(b"caf\xe9.py:build")
    refused(run("bench", "--models", spec, "-o", "b"), "no text")
    assert written() == set()


@pytest.mark.parametrize("option", ["[seed=nan]", "[seed=-1]", "[weights=1]", "[wieghts=a.pt]"])
def test_options_of_models(run: Run, inside_tmp: Path, option: str) -> None:
    refused(run("bench", "--models", f"birds-resnet{option}", "-o", "b"), "seed|w[ei]{2}ghts")
    assert written() == set()


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "-o"),
        ("data", "birds"),
        ("train", "birds", "--arch", "birds-convnet", "--out"),
    ],
)
def test_a_folder_at_which_another_is_at_work(
    run: Run, inside_tmp: Path, words: tuple[str, ...]
) -> None:
    with locked(Path("out")):
        refused(run(*words, "out"), "another omenn is writing into 'out'")
        assert [path.name for path in Path("out").iterdir()] == [".omenn-lock"]
    assert not Path("out").exists()


def test_the_lock_is_held_while_it_works(
    run: Run, inside_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(out: Path, **_: object) -> Path:
        assert (out / ".omenn-lock").exists()
        return out

    monkeypatch.setattr(birds, "write", write)
    assert data_command.data_birds.__name__ == "data_birds"
    assert run("data", "birds", "out")[0] == 0


@pytest.mark.parametrize("seconds", [0.08, 0.2])
def test_an_interruption_at_the_beginning(inside_tmp: Path, seconds: float) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # the wait stands for imports that take long
        code = """
import sys, time, builtins
plain = builtins.__import__
def slow(name, *rest, **named):
    if name == "typer":
        print("importing", flush=True)
        time.sleep(20)
    return plain(name, *rest, **named)
builtins.__import__ = slow
from omenn.__main__ import main
sys.exit(main())
"""
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == "omenn: interrupted; nothing is left half-written\n"
