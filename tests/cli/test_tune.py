"""``omenn tune`` as a person uses it: a folder, a file, and the file in ``omenn explain``."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import Run, refused
from omenn.tuning.judging import Judge

RESUMABLE = "omenn: interrupted; finished work is kept; run the same command again to continue\n"
SMALL = ("--sets", 12, "--across", 4, "--candidates", "gamma[gamma=0.1;complete=true],omenn-clear")


@pytest.fixture
def pictures(inside_tmp: Path) -> Path:
    folder = inside_tmp / "pictures"
    (folder / "more").mkdir(parents=True)
    for k in range(13):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if k % 2 else ".") / f"{k}.png")
    return Path("pictures")


def test_from_a_folder_to_an_explanation(run: Run, net: str, pictures: Path) -> None:
    code, out, err = run("tune", net, pictures, *SMALL, "-o", "tuned")
    assert (code, err) == (0, "")
    assert "12 of 13 pictures are used." in out
    for word in ("omenn-clear", "constant", "centre", "edges", "random", "insertion − deletion"):
        assert word in out
    files = {path.name for path in Path("tuned").iterdir()}
    assert files == {"method.toml", "index.html", "results.json", "tuning.json", "pictures"}
    found = tomllib.loads(Path("tuned/method.toml").read_text("utf-8"))
    record = json.loads(Path("tuned/results.json").read_text("utf-8"))
    assert (found["method"], found.get("options", {})) == (record["method"], record["options"])
    assert found["tuned"]["verdict"] == record["verdict"]
    assert record["verdict"] in out
    page = Path("tuned/index.html").read_text("utf-8")
    assert record["rows"][0]["name"] in page
    assert page.count("<h3>Input</h3>") == 2
    shutil.copy("pictures/0.png", "one.png")
    words = ("explain", "one.png", "-m", net, "--json", "--method")
    by_file = run(*words, "tuned/method.toml")
    options = ";".join(f"{k}={str(v).lower()}" for k, v in record["options"].items())
    by_name = run(*words, f"{record['method']}[{options}]" if options else record["method"])
    assert by_file[0] == by_name[0] == 0
    one, two = (json.loads(text)["results"][0] for _, text, _ in (by_file, by_name))
    assert (one["method"], one["largest"]) == (two["method"], two["largest"])


def test_json_and_the_model_as_an_option(run: Run, net: str, pictures: Path) -> None:
    code, out, err = run("tune", pictures, "-m", net, *SMALL, "--json", "--no-check", "--seed", 3)
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["model"] == net
    assert record["checked"] is None
    assert record["settings"]["seed"] == 3
    assert [row["kind"] for row in record["rows"]] == [
        "default",
        *["candidate"] * 2,
        *["trivial"] * 4,
    ]
    assert Path("omenn-tuned/method.toml").exists()


def test_it_goes_on_where_it_stopped(
    run: Run, net: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("tune", net, pictures, *SMALL, "-o", "whole")[0] == 0
    asked, judged = Judge.asked, []

    def interrupted(self: Judge, image: Any) -> Any:
        judged.append(image)
        if len(judged) == 9:
            raise KeyboardInterrupt
        return asked(self, image)

    monkeypatch.setattr(Judge, "asked", interrupted)
    words = ("tune", net, pictures, *SMALL, "-o", "half")
    assert run(*words) == (2, "", RESUMABLE)
    assert not Path("half/method.toml").exists()
    assert run(*words)[0] == 0
    assert len(judged) == 9 + 4
    for name in ("method.toml", "index.html", "results.json"):
        assert Path("half", name).read_bytes() == Path("whole", name).read_bytes()
    refused(run(*words, "--seed", 1), "half.*holds another search.*seed.*Choose another folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net.py:build"], "no picture was named"),
        (["net.py:build", "empty"], "holds no picture"),
        (["net.py:build", "pictures/0.png"], "1 given, 1 different.*needs 6"),
        (["net.py:build", "pictures", "--passes", "0"], "passes.*at least 1"),
        (["net.py:build", "pictures", "--passes", "9"], "9 passes is not enough"),
        (["net.py:build", "pictures", "--seconds", "0"], "seconds must be above 0"),
        (["net.py:build", "pictures", "--candidates", "rollout"], "no candidate|exact sum"),
        (["net.py:build", "pictures", "--candidates", "gama"], "unknown method 'gama'"),
        (["net.py:build", "pictures", "--fill", "red"], "fill='red' is not known"),
        (["net.py:build", "pictures", "--against", "nothing"], "unknown method 'nothing'"),
        (["pictures"], "unknown model 'pictures'"),
        (["net.py:build", "net.py"], "not a picture"),
        ([], "Missing argument"),
    ],
)
def test_refused(run: Run, net: str, pictures: Path, words: list[str], message: str) -> None:
    Path("empty").mkdir()
    refused(run("tune", *words), message)
    assert not Path("omenn-tuned").exists()


def test_copies_of_one_picture(run: Run, net: str, pictures: Path) -> None:
    Path("same").mkdir()
    for k in range(20):
        shutil.copy("pictures/0.png", f"same/{k}.png")
    refused(run("tune", net, "same"), "20 given, 1 different")


def test_a_constant_model(run: Run, net: str, pictures: Path) -> None:
    still = (
        "\nclass Still(Net):\n    def forward(self, x):\n"
        "        return super().forward(x) * 0 + torch.arange(5.0)\n"
    )
    with Path("net.py").open("a") as file:
        file.write(still)
    refused(run("tune", "net.py:Still", pictures, *SMALL), "same answer whatever is replaced")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method = [", "is no TOML"),
        ("models = ['birds-resnet']", "no method file of omenn"),
        ('format = "omenn-method"\nversion = 9\nmethod = "omenn"', "version 9.*reads 1"),
        ('format = "omenn-method"\nversion = 1\nmethod = "omen"', "did you mean 'omenn'"),
        ('format = "omenn-method"\nversion = 1\nmethod = "gamma"\n[options]\nbeta = 1', "'beta'"),
    ],
)
def test_files_that_explain_refuses(
    run: Run, net: str, picture: Path, text: str, message: str
) -> None:
    Path("method.toml").write_text(text)
    refused(run("explain", picture, "-m", net, "--method", "method.toml"), message)
