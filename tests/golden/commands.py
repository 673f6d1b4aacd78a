"""What the command line answers: helps, lists, results, refusals.

NOTE [what may differ]
Of results, times and memory are left out, and numbers in a text have three digits, residuals none:
the networks run in single precision. Numbers in JSON are kept. Runs of spaces and of lines are one,
as their lengths depend on what is written between them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from golden.flat import Record

PLAIN = {"COLUMNS": "140", "NO_COLOR": "1", "TERM": "dumb"}
HELPS = [
    "", "bench", "calibrate", "demo", "explain", "compare", "methods", "certify", "train",
    "train birds", "train table", "data", "data birds", "tune",
]  # fmt: skip
LISTS = ["--version", "methods", "methods --json", "bench --list"]
RESULTS = [
    "explain bird.png -m birds-resnet",
    "explain bird.png -m birds-resnet --json",
    "explain bird.png -m birds-vit --contrast runner-up --json -o bird.json",
    "explain bird.png -m birds-vit --method gamma[gamma=0.5] --at blocks.1 --json",
    "explain bird.png -m birds-convnet --target 3 --post clean --bias uniform --json -o out.png",
    "explain bird.png -m net.py:build --smooth 2 -o bird.html",
    "certify -m birds-convnet",
    "certify -m net.py:build --json",
    "certify -m birds-xconvnet --homogeneous",
    "certify -m birds-vit --homogeneous --json",
]
REFUSALS = [
    "",
    "explain",
    "explane bird.png",
    "explain bird.png -m birds-resnet --frobnicate",
    "explain missing.png -m birds-resnet",
    "explain net.py -m birds-resnet",
    "explain bird.png -m resnet18",
    "explain bird.png -m timm:no_such_model",
    "explain bird.png -m net.py:missing",
    "explain bird.png -m missing.py:build",
    "explain bird.png -m birds-resnet --weights net.py",
    "explain bird.png -m birds-resnet --target Nobody",
    "explain bird.png -m birds-resnet --target 50",
    "explain bird.png -m birds-resnet --contrast 99",
    "explain bird.png -m birds-resnet --method lrp",
    "explain bird.png -m birds-resnet --method gamma[beta=1]",
    "explain bird.png -m birds-resnet --method gamma[gamma]",
    "explain bird.png -m birds-resnet --method rollout",
    "explain bird.png -m birds-resnet --at stages.9",
    "explain bird.png -m birds-resnet --bias nowhere",
    "explain bird.png -m birds-resnet --post smoothest",
    "explain bird.png -m birds-resnet --smooth -1",
    "explain bird.png -m birds-resnet --output logits",
    "explain bird.png -m birds-resnet -o bird.odd",
    "explain bird.png -m birds-resnet -o bird.png/x.png",
    "explain bird.png -m net.py:broken",
    "compare bird.png -m birds-vit --methods omenn,lrp",
    "compare bird.png -m birds-vit --methods omenn -o page.txt",
    "certify -m net.py:table",
    "certify -m birds-resnet --homogeneous --at stages.1",
    "bench --models birds-resnet --methods omenn --metrics nothing -o bench",
    "bench missing.toml",
    "bench --data imagenet:nowhere --models birds-resnet -o bench",
    "train table missing.csv --target outcome",
    "train birds --arch resnet50",
    "data birds net.py",
    "tune birds-resnet bird.png",
    "tune birds-resnet",
    "tune birds-resnet . --candidates rollout",
    "explain bird.png -m birds-resnet --method plan.toml",
]
LONG = [
    "demo",
    "compare bird.png -m birds-vit --methods omenn,gamma,rollout --classes 2",
    "compare bird.png -m birds-resnet --methods omenn,gamma,rollout --classes 2 --json -o a.html",
    "bench --models birds-resnet --methods omenn,gamma --metrics insertion-deletion[step=512] "
    "--limit 2 --chunk 2 --json -o bench",
]
MEASURED = re.compile("seconds|memory|versions")
NET = """
from torch import nn

def build():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))
    net.preprocess = {"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    net.classes = ["cat", "dog", "bird"]
    return net

def broken():
    return nn.Linear(3, 2)

def table():
    raise KeyError("table")
"""


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """A working directory of its own, with a picture and a file with networks."""
    from omenn.data import birds

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            birds.render(birds.sample_scene(3, "test"), size=64).save("bird.png")
            Path("net.py").write_text(NET, encoding="utf-8")
            yield
        finally:
            os.chdir(before)


def run(words: str) -> Record:
    """Exit code and both outputs of ``python -m omenn``, in this process."""
    out, err = io.StringIO(), io.StringIO()
    sys.modules.pop("omenn.__main__", None)  # another test may have imported it
    outside = {name: v for name, v in os.environ.items() if "COLOR" not in name} | PLAIN
    with (
        mock.patch.dict(os.environ, outside, clear=True),
        mock.patch.object(sys, "argv", ["omenn", *shlex.split(words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            runpy.run_module("omenn", run_name="__main__", alter_sys=True)
            code: Any = "no exit"
        except SystemExit as end:
            code = end.code
    text = out.getvalue()
    shown = _unmeasured(json.loads(text)) if "--json" in words and text else lines(text)
    return {"code": code, "out": shown, "err": lines(err.getvalue())}


def lines(text: str) -> list[str]:
    """The lines of an output, with single spaces."""
    text = text.replace(str(Path.cwd()), "FOLDER")
    return [line.rstrip() for line in re.sub(r"([ ─━])\1+", r"\1", text).splitlines()]


def rounded(line: str) -> str:
    """A line without what is measured or due to rounding."""
    line = re.sub(r"[\d.]+ (ms|s|min|[kKMG]?B)\b", "measured", line)
    line = re.sub(r"[−-]?[\d.]+(·10⁻[⁰¹⁵-⁹][⁰¹²³⁴-⁹]*|e-(0[5-9]|[1-9]\d)|e\+00)", "tiny", line)
    return re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.3g}", line)


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: None if MEASURED.search(key) else _unmeasured(v) for key, v in value.items()}
    return [_unmeasured(v) for v in value] if isinstance(value, list) else value


def answers(commands: list[str]) -> Record:
    """What each command answers, and the files that all of them leave."""
    record: Record = {}
    with workplace():
        for words in commands:
            record |= {f"omenn {words}/{key}": value for key, value in run(words).items()}
        files = (path for path in Path().rglob("*") if path.is_file() and path.suffix != ".pyc")
        record["files"] = sorted(map(str, files))
    return record


def results(commands: list[str]) -> Record:
    """The same, with numbers in texts rounded."""
    found = answers(commands)
    for name, value in found.items():
        if name.endswith("/out") and isinstance(value, list):
            found[name] = list(map(rounded, value))
    return found


SLOW = {"long commands": partial(results, LONG)}
PARTS = {
    "helps": partial(answers, [f"{words} --help".strip() for words in HELPS]),
    "lists": partial(answers, LISTS),
    "results": partial(results, RESULTS),
    "refusals": partial(answers, REFUSALS),
    **SLOW,
}
