"""A command to run, a network in a file, and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import NET, Run
from omenn import cli


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
