"""Ctrl-C: one line that says what is left, exit code 2."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import omenn
from commands import NET, Run, subprocess_of, written
from omenn.data.birds import dataset
from omenn.models import training

RESUMABLE = "omenn: interrupted; finished work is kept; run the same command again to continue\n"
NOTHING_KEPT = "omenn: interrupted; nothing is left half-written\n"


class TestInterruption:
    def test_in_this_process(
        self, run: Run, net: str, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(omenn, "explain", interrupted)
        code, out, err = run("explain", picture, "-m", net, "-o", "x.html")
        assert (code, out, err) == (2, "", NOTHING_KEPT)
        assert written() == set()

    def test_a_signal(self, net: str, picture: Path) -> None:
        text = (
            f"{NET}\ndef slow():\n    import time\n    open('begun', 'w').close()\n"
            "    time.sleep(60)\n"
        )
        Path("slow.py").write_text(text, encoding="utf-8")
        # A job in the background is deaf to Ctrl-C, and so is what it starts, unless it is told.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess_of("explain", picture, "-m", "slow.py:slow", "-o", "x.html")
        finally:
            signal.signal(signal.SIGINT, before)
        deadline = time.monotonic() + 60
        while not Path("begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 2
        assert (out, err) == ("", NOTHING_KEPT)
        assert written() == {"begun", "slow.py"}

    def test_the_same_command_goes_on(
        self, run: Run, inside_tmp: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("data", "birds", "birds", "--train-scenes", 4, "--test-scenes", 0, "--size", 16)
        draw, drawn = dataset.render, []

        def interrupted_at_the_third(*scene: Any, **options: Any) -> Image.Image:
            drawn.append(scene)
            if len(drawn) == 3:
                raise KeyboardInterrupt
            return draw(*scene, **options)

        monkeypatch.setattr(dataset, "render", interrupted_at_the_third)
        assert run(*words) == (2, "", RESUMABLE)
        half = {name for name in written() if name.endswith(".png")}
        assert len(half) == 4
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        assert "wrote birds" in out
        assert half < {name for name in written() if name.endswith(".png")}
        assert len(drawn) == 5

    @pytest.mark.parametrize("kept", [True, False])
    def test_training_says_so_if_there_is_a_checkpoint(
        self, run: Run, inside_tmp: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
    ) -> None:
        def interrupted(*_: object, **__: object) -> None:
            if kept:
                Path("x/birds-convnet.checkpoint.pt").touch()
            raise KeyboardInterrupt

        monkeypatch.setattr(training, "scene_arrays", interrupted)
        words = ("train", "birds", "--arch", "birds-convnet", "--out", "x")
        assert run(*words) == (2, "", RESUMABLE if kept else NOTHING_KEPT)
