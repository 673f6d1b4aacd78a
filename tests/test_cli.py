"""The command ``omenn``: what it writes, what it prints, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import omenn
from omenn import cli
from omenn.models import sources

NET = """
import torch
from torch import nn

class Net(nn.Module):
    preprocess = {"size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    classes = ["tench, Tinca tinca", "cat", "dog", "crane", "crane, lifting"]

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))

def build():
    return Net()

class Table(nn.Module):
    example_inputs = {"a": torch.ones(2, 3), "b": torch.ones(2, 4)}

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, a, b):
        return torch.relu(self.left(a)) + self.right(b)

class Sorted(Net):
    def forward(self, x):
        return torch.linalg.inv(super().forward(x)[:, :4].reshape(-1, 2, 2)).flatten(1)

class Broken(Net):
    def forward(self, x):
        return super().forward(x) / 0.0
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, standard output, standard error."""

    def runner(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return runner


@pytest.fixture
def net(inside_tmp: Path) -> str:
    (inside_tmp / "net.py").write_text(NET, encoding="utf-8")
    return "net.py:build"


@pytest.fixture
def picture(inside_tmp: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("picture.png")
    return Path("picture.png")


def refused(result: tuple[int, str, str], words: str) -> None:
    """One line on standard error, nothing on standard output, exit code 2."""
    code, out, err = result
    assert re.search(words, err), err
    assert (code, out) == (2, "")
    assert err.startswith("omenn: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def written() -> set[str]:
    """Every file below the working directory that a command may have left."""
    given = {"net.py", "picture.png"}
    found = {str(path) for path in Path().rglob("*") if path.is_file()}
    return {path for path in found if path not in given and "__pycache__" not in path}


def subprocess_of(*words: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "omenn.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


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
        [[], ["demo"], ["explain"], ["certify"], ["train"], ["train", "birds"], ["data", "birds"]],
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

    @pytest.mark.parametrize("bias", ["spatial", "uniform", "separate"])
    @pytest.mark.parametrize("ending", ["html", "png"])
    def test_every_place_of_the_bias(
        self, run: Run, net: str, picture: Path, bias: str, ending: str
    ) -> None:
        out = f"x.{ending}"
        code, text, err = run("explain", picture, "-m", net, "--bias", bias, "-o", out)
        assert (code, err) == (0, "")
        assert "yes" in text
        assert written() == {out}

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
        words = "Random weights, seed 0: the model has learned nothing."
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


class TestExplainRefuses:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--target", "5"], "there is no target 5: 'net.py:build' has 5 outputs, 0 to 4"),
            (["--target", "-1"], "there is no target -1"),
            (["--target", "9" * 30], "there is no target 9"),
            (["--target", "1.5"], "unknown target '1.5'"),
            (["--target", "dgo"], "unknown target 'dgo': did you mean 'dog'"),
            (["--target", "crane, lifting", "--contrast", "9"], "there is no target 9"),
            (["--contrast", "dgo"], "did you mean 'dog'"),
            (["--at", "secnod"], "secnod"),
            (["--device", "tpu"], "device 'tpu' cannot be used here"),
            (["--weights", "none.safetensors"], "cannot be read"),
            (["-o", "x.jpg"], r"ends in '\.jpg', expected \.png, \.html"),
            (["-o", "net.py/x.png"], "is a file, not a folder"),
            (["--smooth", "inf"], "--smooth is inf, expected a number"),
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
            ("net.py:Table", r"unexpected|missing|argument"),
        ],
    )
    def test_models(self, run: Run, net: str, picture: Path, model: str, words: str) -> None:
        refused(run("explain", picture, "-m", model), words)

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


class TestInterruption:
    def test_in_this_process(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(omenn, "explain", interrupted)
        code, out, err = run("explain", picture, "-m", net, "-o", "x.html")
        assert (code, out, err) == (130, "", "omenn: interrupted; nothing is left half-written\n")
        assert written() == set()

    def test_a_signal(self, net: str, picture: Path) -> None:
        text = (
            f"{NET}\ndef slow():\n    import time\n    open('begun', 'w').close()\n"
            "    time.sleep(60)\n"
        )
        Path("slow.py").write_text(text, encoding="utf-8")
        process = subprocess_of("explain", picture, "-m", "slow.py:slow", "-o", "x.html")
        deadline = time.monotonic() + 60
        while not Path("begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert (out, err) == ("", "omenn: interrupted; nothing is left half-written\n")
        assert written() == {"begun", "slow.py"}


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

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--input", "none.png"], "does not exist"),
            (["--at", "secnod"], "secnod"),
            (["--device", "tpu"], "cannot be used here"),
        ],
    )
    def test_mistakes(self, run: Run, net: str, options: list[str], words: str) -> None:
        refused(run("certify", "-m", net, *options), words)


class TestDataAndTraining:
    def test_birds_are_written(self, run: Run, inside_tmp: Path) -> None:
        words = ("--train-scenes", 2, "--test-scenes", 1, "--size", 16)
        code, out, err = run("data", "birds", "birds", *words)
        assert (code, err) == (0, "")
        assert "wrote birds" in out
        assert {"birds/classes.json", "birds/parts.json"} <= written()

    def test_mistakes(self, run: Run, inside_tmp: Path) -> None:
        refused(run("data", "birds", "birds", "--size", 1), "size")
        refused(run("data", "birds", "birds", "--train-scenes", -1), "-1")
        refused(run("train", "birds", "--arch", "birds-resnat"), "birds-resnat")
        refused(run("train", "birds", "--arch", "birds-vit", "--device", "tpu"), "cannot be used")
        refused(run("train", "birds", "--arch", "birds-vit", "--epochs", 0), "epochs")
        assert not any(name.endswith(".safetensors") for name in written())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one demonstration."""
    out = tmp_path_factory.mktemp("demo") / "omenn-demo"
    assert cli.main(["demo", "--out", str(out)]) == 0
    return out


class TestDemo:
    def test_what_is_there(self, demo: Path) -> None:
        from omenn.models import bundled

        pictures = {path.name for path in (demo / "pictures").iterdir()}
        for bird in range(1, 5):
            for network in bundled.names():
                for panel in ("input", "c", "weight", "bias", "overlay", "contrast"):
                    assert f"bird-{bird}-{network}-{panel}.png" in pictures
                assert f"bird-{bird}-{network}.png" in pictures
        assert {path.name for path in demo.iterdir()} == {"index.html", "pictures"}

    def test_the_page_holds_what_is_promised(self, demo: Path) -> None:
        html = (demo / "index.html").read_text(encoding="utf-8")
        assert html.count('<article class="answer"') == 12
        assert html.count('<span class="badge yes">exact</span>') == 15
        assert "not exact" not in html.replace("exact is not", "")
        assert html.count("Where the logit comes from, module by module") == 12
        assert 'class="badge warn"' not in html
        assert "http" not in re.sub(r'"data:[^"]*"', "", html)

    def test_most_birds_are_recognised(self, demo: Path) -> None:
        html = (demo / "index.html").read_text(encoding="utf-8")
        assert html.count("(right)</h3>") >= 10

    def test_json_and_a_second_run_over_the_first(self, demo: Path, run: Run) -> None:
        before = (demo / "pictures" / "bird-1-birds-resnet-c.png").read_bytes()
        code, out, err = run("demo", "--out", demo, "--json")
        found = json.loads(out)
        assert (code, err) == (0, "")
        assert len(found["results"]) == 12
        assert all(result["exact"] for result in found["results"])
        assert all(certificate["exact"] for certificate in found["certificates"].values())
        assert (demo / "pictures" / "bird-1-birds-resnet-c.png").read_bytes() == before

    def test_a_place_that_cannot_be_written(self, run: Run, inside_tmp: Path) -> None:
        Path("file").touch()
        refused(run("demo", "--out", "file"), "is a file, not a folder")
        assert written() == {"file"}


def test_nothing_is_printed_about_progress_without_a_terminal(net: str, picture: Path) -> None:
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess_of("explain", picture, "-m", net, "-o", "x.png", env=environment)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
