"""``omenn calibrate``, and ``omenn explain --calibration``, as a person uses them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import Run, refused, written

COUNT = 24


@pytest.fixture
def photos(inside_tmp: Path) -> Path:
    rng = np.random.default_rng(3)
    (inside_tmp / "photos").mkdir()
    for k in range(COUNT):
        pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(inside_tmp / "photos" / f"{k}.png")
    return Path("photos")


def calibrated(run: Run, net: str, photos: Path, *words: object) -> tuple[int, str, str]:
    return run("calibrate", net, photos, "-o", "c.json", "--each", 2, *words)


def test_a_file_is_made_and_used(run: Run, net: str, photos: Path, picture: Path) -> None:
    code, out, err = calibrated(run, net, photos)
    assert (code, err) == (0, "")
    assert re.search(r"\d to \d+ % .*regions of 12 pictures", out)
    assert "wrote c.json" in out
    assert not Path("c.json.parts").exists()
    first = Path("c.json").read_bytes()
    assert calibrated(run, net, photos)[0] == 0
    assert Path("c.json").read_bytes() == first

    words = ("explain", picture, "-m", net, "--calibration", "c.json")
    code, out, _ = run(*words, "-o", "a.html")
    assert code == 0
    said = [line for line in out.splitlines() if line.startswith("picture.png, row")]
    assert len(said) == 4
    assert all(
        re.search(r"of 4 x 4: [+−]?[\d.]+, blurring it (costs|adds|changes)", s) for s in said
    )
    assert all(line.endswith("(90 %)") for line in said)
    page = Path("a.html").read_text("utf-8")
    assert page.count('class="stated-picture"') == 1
    assert "Blurring it" in page
    code, out, _ = run(*words, "--json")
    record = json.loads(out)["results"][0]["regions"]
    assert code == 0
    assert len(record["regions"]) == 4
    assert record["pictures"] == COUNT
    assert "regions" not in json.loads(run(*words[:4], "--json")[1])["results"][0]


def test_json_and_a_budget(run: Run, net: str, photos: Path) -> None:
    code, out, _ = calibrated(run, net, photos, "--budget", 15 * 20, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["pictures"] == [10, 10]
    assert all(size["half_width"] >= 0 for size in found["sizes"])


def test_ctrl_c_keeps_what_is_finished(
    run: Run, net: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omenn.cli.calibrating_pictures import Inputs

    assert calibrated(run, net, photos)[0] == 0
    whole = Path("c.json").read_bytes()
    Path("c.json").unlink()
    taken = Inputs.__getitem__

    def stopping(self: Inputs, k: int) -> object:
        if k == 15:
            raise KeyboardInterrupt
        return taken(self, k)

    with monkeypatch.context() as patch:
        patch.setattr(Inputs, "__getitem__", stopping)
        code, out, err = calibrated(run, net, photos)
    assert (code, out) == (2, "")
    assert "run the same command again to continue" in err
    assert len(list(Path("c.json.parts").iterdir())) == 15
    assert not Path("c.json").exists()
    assert calibrated(run, net, photos)[0] == 0
    assert Path("c.json").read_bytes() == whole
    assert not Path("c.json.parts").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", 0), "budget must be an integer of at least 1"),
        (("--budget", 50), "at least 270 forward passes"),
        (("--level", 1), "level must be a finite number from 0.5"),
        (("--replace", "grey"), "replacement='grey' is not known"),
        (("--regions", "rings"), "forms='rings' is not known"),
        (("--method", "nonsense"), "unknown method 'nonsense'"),
        (("--method", "omenn[at=nowhere]"), "nowhere"),
        (("-o", "c.png"), "does not end in .json"),
    ],
)
def test_what_cannot_be_calibrated(
    run: Run, net: str, photos: Path, words: tuple[object, ...], said: str
) -> None:
    refused(calibrated(run, net, photos, *words), said)
    assert not {name for name in written() if not name.startswith("photos")}


def test_pictures_that_are_none_or_all_alike(run: Run, net: str, inside_tmp: Path) -> None:
    (inside_tmp / "empty").mkdir()
    refused(calibrated(run, net, Path("empty")), "'empty' holds no picture")
    refused(calibrated(run, net, Path("none.png")), "it does not exist")
    (inside_tmp / "same").mkdir()
    for k in range(20):
        Image.new("RGB", (16, 16), (200, 30, 30)).save(inside_tmp / "same" / f"{k}.png")
    refused(calibrated(run, net, Path("same")), "1 different inputs.*at least 18")


def test_calibrations_that_do_not_fit(run: Run, net: str, photos: Path, picture: Path) -> None:
    assert calibrated(run, net, photos)[0] == 0
    words = ("explain", picture, "-m", net, "--calibration", "c.json")
    refused(run(*words, "--contrast", "rest"), "--contrast explains a difference")
    answer = int(json.loads(run(*words, "--json")[1])["results"][0]["target"])
    refused(run(*words, "--target", (answer + 1) % 5), "calibration is of the largest logit")
    other = f"{net.removesuffix('build')}Named"  # other random weights
    Path("net.py").write_text(
        Path("net.py").read_text().replace("nn.Linear(8, 5)", "nn.Linear(8, 5, bias=False)")
    )
    refused(
        run("explain", picture, "-m", other, "--calibration", "c.json"),
        "the calibration is of 'net.py:build' .*not of 'net.py:Named'",
    )
    Path("c.json").write_text('{"kind": "omenn calibration"')
    refused(run(*words), "c.json' is not JSON")
    refused(run(*words[:4], "--calibration", "none.json"), "it does not exist")
