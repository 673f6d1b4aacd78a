"""``omenn data birds`` and ``omenn train birds``."""

from __future__ import annotations

from pathlib import Path

from commands import Run, refused, written


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
