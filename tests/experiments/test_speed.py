"""The cost of an explanation: commands as a person gives them, tables that are computed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import command, speed, speed_tables, store, timing
from experiments.timed_models import PUBLISHED, SUBJECTS

ROOT = Path(__file__).parents[2]
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """``python -m experiments.speed`` in this process: exit code, standard output and error."""
    threads = torch.get_num_threads()

    def runner(*words: object) -> tuple[int, str, str]:
        code = 0
        with warnings.catch_warnings():
            try:
                speed.main([*map(str, words), "--threads", str(threads)])
            except SystemExit as exit:
                code = int(exit.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    yield runner
    speed._loaded.cache_clear()


@pytest.fixture
def quick(tmp_path: Path) -> tuple[object, ...]:
    return ("--models", "tiny", "--quick", "--rounds", 2, "--batch", 1, 2, "--work", tmp_path)


class TestCommand:
    def test_everything_on_a_tiny_network(self, run: Main, tmp_path: Path) -> None:
        code, out, _ = run("--models", "tiny", "--rounds", 1, "--batch", 1, "--work", tmp_path)
        assert code == 0
        for words in ("with bias", "100 rows", "InputXGradient", "peak memory", "a tiny network"):
            assert words in out
        kinds = {path.stem.split("-t")[1].split("-", 1)[1] for path in tmp_path.iterdir()}
        assert {k.rsplit("-", 1)[0] for k in kinds} == {
            "own", "rows_10", "rows_100", "input_x_gradient", "integrated_gradients", "memory",
        }  # fmt: skip

    def test_it_goes_on_where_it_was_interrupted(
        self, run: Main, quick: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        paired, measured = timing.paired, []

        def interrupted_at_the_second(*a: Any, **k: Any) -> Any:
            measured.append(a)
            if len(measured) == 2:
                raise KeyboardInterrupt
            return paired(*a, **k)

        monkeypatch.setattr(timing, "paired", interrupted_at_the_second)
        line = f"experiments.speed: {command.RESUMABLE}\n"
        assert run(*quick) == (2, "", line)
        assert len(list(tmp_path.iterdir())) == 1
        code, out, _ = run(*quick)
        assert (code, len(measured)) == (0, 3)
        assert out.count("| a tiny network |") == 4  # two batch sizes in two tables
        assert run(*quick)[1] == out
        assert len(measured) == 3
        assert run(*quick, "--fresh")[0] == 0
        assert len(measured) == 5

    def test_results_of_another_engine_are_measured_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = store.Results(tmp_path)
        results.put("a", {"seconds": 1})
        assert results.get("a") == {"seconds": 1}
        assert store.Results(tmp_path, versions="2").get("a") is None
        monkeypatch.setattr(store, "engine", lambda: "another")
        assert results.get("a") is None
        assert store.Results(tmp_path, older=True).get("a") == {"seconds": 1}
        results.path("a").write_text('{"engine": "ano')  # as a full disk leaves it
        assert results.get("a") is None

    def test_bfloat16(self, run: Main, quick: tuple[object, ...]) -> None:
        code, out, _ = run(*quick, "--dtype", "bfloat16")
        assert code == 0
        assert "bfloat16 on cpu" in out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--models", "resnet5"), "no model 'resnet5'. Choose from: resnet50, "),
            (("--rounds", 0), "--rounds is 0; it must be at least 1."),
            (("--batch", 1, 0), "--batch is 0; it must be at least 1."),
        ],
    )
    def test_a_mistake_is_one_line(self, run: Main, words: Any, message: str) -> None:
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"experiments.speed: error: {message}")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu_is_one_line(self) -> None:
        command = [sys.executable, "-m", "experiments.speed", "--device", "cuda"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        line = "experiments.speed: error: --device cuda: this torch sees no GPU.\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line)

    def test_write_fills_the_block_of_its_device_and_type(
        self, run: Main, quick: tuple[object, ...], tmp_path: Path, monkeypatch: Any
    ) -> None:
        (tmp_path / "docs").mkdir()
        files = [tmp_path / "docs" / "performance.md", tmp_path / "README.md"]
        for path in files:
            blocks = [f"<!-- {m}:begin -->\nold\n<!-- {m}:end -->\n" for m in ("speed", "other")]
            path.write_text("before\n" + "after\n".join(blocks), encoding="utf-8")
        monkeypatch.setattr(speed, "ROOT", tmp_path)
        monkeypatch.setattr(command, "DOCS", tmp_path / "docs")
        assert run(*quick, "--write")[0] == 0
        for path in files:
            text = path.read_text(encoding="utf-8")
            assert text.startswith("before\n<!-- speed:begin -->\n|")
            assert text.endswith("other:begin -->\nold\n<!-- other:end -->\n")
            assert "a tiny network" in text
        assert speed_tables.marker(_setting(dtype="bfloat16")) == "speed-cpu-bfloat16"
        document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
        for name in ("speed", "speed-cuda-float32", "speed-cuda-bfloat16"):
            assert f"<!-- {name}:begin -->" in document


def _setting(**changes: Any) -> Namespace:
    values = {"models": ["vit_base"], "batch": [1], "device": "cpu", "dtype": "float32"}
    return Namespace(**(values | {"quick": False} | changes))


def _found(explain: list[float], megabytes: float, rows: float) -> Any:
    """Measurements of ViT-B/16 in which a gradient takes a second and 100 MB."""
    own = {"forward": [0.4] * 3, "gradient": [1.0] * 3, "contribution": [0.9] * 3}
    slow = {"gradient": [1.0] * 3, "explain": [1.0] * 3}
    return {
        ("vit_base", 1): {
            "own": {"seconds": own | {"explain": explain}},
            "memory": {"megabytes": {"gradient": 100.0, "explain": megabytes, "rows_100": 120.0}},
            "rows_10": {"seconds": slow | {"rows_10": [6.0] * 3}},
            "rows_100": {"seconds": slow | {"rows_100": [rows] * 3}},
            "epsilon_plus": {"failed": "not installed"},
        }
    }


class TestTables:
    def test_a_goal_is_met_or_not_by_what_was_measured(self) -> None:
        good = _found([0.94, 0.95, 0.97], 105, 80)
        bad = _found([0.94, 0.96, 0.97], 106, 81)
        assert "| **0.95 (0.94–0.97)** | 0.95 | yes | 1.05 | 1.05 | yes |" in speed_tables.goals(
            good
        )
        assert "| **0.96 (0.94–0.97)** | 0.95 | **no** | 1.06 | 1.05 | **no** |" in (
            speed_tables.goals(bad)
        )
        assert "| **0.80 (0.80–0.80)** | 0.80 | yes | 1.20 |" in speed_tables.rows(good)
        assert "| **0.81 (0.81–0.81)** | 0.80 | **no** | 1.20 |" in speed_tables.rows(bad)

    def test_what_is_missing_is_said(self) -> None:
        found = _found([1.0] * 3, 100, 80)
        assert speed_tables.peers(found).endswith("| – | – | not installed |")
        text = speed_tables.complete(found, _setting())
        assert "medians of 3 paired rounds" in text
        del found["vit_base", 1]["memory"]
        assert speed_tables.goals(found).endswith("| – | 1.05 | – |")

    def test_the_goals_are_those_of_the_published_models(self) -> None:
        goals = {name: SUBJECTS[name].goal for name in PUBLISHED}
        assert goals["vit_base"] == 0.95
        assert goals["resnet50"] == 1.0
        assert {goals[n] for n in ("convnext_tiny", "swin_tiny", "efficientnet_b0")} == {1.05}


class TestTiming:
    def test_every_call_is_timed_in_every_round(self) -> None:
        order: list[str] = []
        calls = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
        taken = timing.paired(calls, rounds=3, warm_up=1)
        assert {name: len(t) for name, t in taken.items()} == {"a": 3, "b": 3}
        assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells")
    def test_peak_memory_is_that_of_the_call(self) -> None:
        code = (
            "import torch; from experiments.timing import high_water\n"
            "def call(): torch.ones(2**24).sum()\n"
            "call()\nprint(high_water(call, call))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert 60 < float(done.stdout) < 80
