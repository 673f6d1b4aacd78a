"""The page of ``omenn tune`` in a real browser: every width, contrast, the switch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omenn import cli
from omenn.data import birds
from pages.conftest import opening
from pages.test_report import CONTRAST

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page as the command writes it."""
    folder = tmp_path_factory.mktemp("tuned")
    for k in range(12):
        birds.render(birds.sample_scene(k, "validation"), 64).save(folder / f"{k}.png")
    words = ["tune", "birds-resnet", str(folder), "-o", str(folder / "out"), "--sets", "8"]
    more = ["--candidates", "omenn-clear,gamma[gamma=0.1;complete=true]", "--no-check"]
    assert cli.main([*words, *more]) == 0
    return folder / "out" / "index.html"


@pytest.fixture
def opened(browser: Any, tuned: Path) -> Iterator[Any]:
    with opening(browser, tuned) as tab:
        yield tab


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_no_width_needs_scrolling_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_text_can_be_read(opened: Any) -> None:
    assert opened.evaluate(CONTRAST) == []


def test_the_switch_shows_one_map_of_each(opened: Any, tuned: Path) -> None:
    found = json.loads(tuned.with_name("results.json").read_text("utf-8"))
    count = 2 * len({found["best"], found["default"]})  # of two pictures
    for view, soft in (("entry by entry", False), ("smoothed", True)):
        opened.get_by_label(view).check()
        alts = opened.evaluate(
            "[...document.querySelectorAll('main img.map')]"
            ".filter(i => i.offsetParent !== null).map(i => i.alt)"
        )
        assert len(alts) == count
        assert all(("smoothed" in alt) == soft for alt in alts)
