"""The comparison in a real browser: its tabs, its switches, a method that failed, every width."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omenn import cli
from omenn.data import birds
from omenn.viz.wording import memory, number, seconds
from pages.conftest import opening
from pages.test_report import CONTRAST

pytestmark = pytest.mark.browser

METHODS = "omenn,rollout,cp-lrp,abslrp"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page as the command writes it, of a network without attention, and its numbers."""
    folder = tmp_path_factory.mktemp("compared")
    picture, out = folder / "bird.png", folder / "compare.html"
    birds.render(birds.sample_scene(3, "test"), 64).save(picture)
    words = ["compare", str(picture), "-m", "birds-resnet", "--methods", METHODS, "-o", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **options: printed.append(parts[0]))
        assert cli.main([*words, "--json"]) == 0
    return out, json.loads("".join(printed))


@pytest.fixture
def opened(browser: Any, compared: tuple[Path, dict[str, Any]]) -> Iterator[Any]:
    with opening(browser, compared[0]) as tab:
        yield tab


def seen(tab: Any) -> list[str]:
    """The alternative texts of the maps that can be seen, the input aside."""
    return tab.evaluate(
        "[...document.querySelectorAll('main img.map')].filter(i => i.offsetParent !== null)"
        ".map(i => i.alt)"
    )


def test_the_tabs_switch(opened: Any) -> None:
    one, classes = opened.locator("#one"), opened.locator("#classes")
    assert (one.is_visible(), classes.is_visible()) == (True, False)
    opened.get_by_role("tab", name="The top 5 answers").click()
    assert (one.is_visible(), classes.is_visible()) == (False, True)
    assert len(seen(opened)) == 3 * 5
    opened.get_by_role("tab", name="One answer").click()
    assert (one.is_visible(), classes.is_visible()) == (True, False)
    assert len(seen(opened)) == 3


def test_the_tabs_by_keyboard(opened: Any) -> None:
    opened.locator("#tab-one").focus()
    for key, wanted in [
        ("ArrowRight", "tab-classes"),
        ("ArrowRight", "tab-one"),
        ("ArrowLeft", "tab-classes"),
        ("Home", "tab-one"),
        ("End", "tab-classes"),
    ]:
        opened.keyboard.press(key)
        assert opened.evaluate("document.activeElement.id") == wanted
        assert opened.locator(f"#{wanted}").get_attribute("aria-selected") == "true"
        assert opened.locator(f"#{wanted[4:]}").is_visible()
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.id") == "view-exact"


def test_each_map_has_a_scale_of_its_own_unless_it_is_switched(opened: Any) -> None:
    assert all("own scale" in alt for alt in seen(opened))
    ends = opened.locator("#one .bar:visible b:last-child").all_inner_texts()
    assert len(set(ends)) == 3
    opened.get_by_label("one for all").check()
    assert not any("own scale" in alt for alt in seen(opened))


def test_both_switches_together_show_one_map_of_each(opened: Any) -> None:
    for scale, own in (("one for all", False), ("one per map", True)):
        opened.get_by_label(scale).check()
        for view, soft in (("entry by entry", False), ("smoothed", True)):
            opened.get_by_label(view).check()
            alts = seen(opened)
            assert len(alts) == 3
            assert all(("own scale" in alt) == own for alt in alts)
            assert all(("smoothed" in alt) == soft for alt in alts)
            assert opened.locator("#one .bar:visible").count() == 3
    opened.get_by_role("tab", name="The top 5 answers").click()
    assert all("smoothed" in alt for alt in seen(opened))
    assert len(seen(opened)) == 3 * 5


def test_the_cell_that_failed_shows_its_reason(opened: Any) -> None:
    failed = opened.locator("figure.failed")
    assert failed.locator("h3").inner_text() == "rollout"
    assert "no softmax attention" in failed.inner_text()
    opened.get_by_role("tab", name="The top 5 answers").click()
    rows = opened.locator("table.classes tbody tr")
    assert rows.count() == 4
    assert "no softmax attention" in rows.nth(1).inner_text()


def test_the_numbers_are_those_of_the_json(
    opened: Any, compared: tuple[Path, dict[str, Any]]
) -> None:
    found = compared[1]
    lines = opened.locator("table.numbers tbody tr").all_inner_texts()
    for row, line in zip(found["methods"], lines, strict=True):
        cells = line.split("\t")
        assert cells[0] == row["method"]
        if row["error"] is not None:
            assert cells[2] == "no map"
            continue
        assert cells[2:6] == [
            number(row["sum"]),
            number(row["residual"], digits=2),
            seconds(row["seconds"]),
            memory(row["peak_memory_bytes"]),
        ]
        card = opened.locator("figure", has=opened.get_by_text(row["method"], exact=True))
        assert f"sum {number(row['sum'])}" in card.inner_text()
    opened.get_by_role("tab", name="The top 5 answers").click()
    heads = opened.locator("table.classes thead th").all_inner_texts()
    for answer, head in zip(found["answers"], heads, strict=True):
        assert answer["answer"] in head
        assert f"logit {number(answer['logit'])}" in head
    sums = opened.locator("table.classes tbody tr").first.locator("td > span").all_inner_texts()
    wanted = [f"sum {number(one['sum'], digits=3)}" for one in found["methods"][0]["answers"]]
    assert sums == wanted


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_no_width_needs_scrolling_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    for name in ("#tab-one", "#tab-classes"):
        opened.locator(name).click()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        # of two texts beside each other neither may run into the other
        cut = opened.evaluate(
            "[...document.querySelectorAll('.bar span, h3, th b, .cost, .total')].filter("
            "e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML)"
        )
        assert cut == []


def test_text_can_be_read(opened: Any) -> None:
    assert opened.evaluate(CONTRAST) == []
    opened.locator("#tab-classes").click()
    assert opened.evaluate(CONTRAST) == []


def test_a_picture_opens_large(opened: Any) -> None:
    opened.get_by_role("button", name="Enlarge: abslrp").first.click()
    assert opened.locator("dialog img").bounding_box()["width"] > 500
    assert "abslrp" in opened.locator("dialog p").inner_text()


def test_without_script_and_on_paper_both_tabs_are_there(
    browser: Any, compared: tuple[Path, dict[str, Any]], opened: Any
) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(compared[0].as_uri())
    for page in (tab, opened):
        page.emulate_media(media="print" if page is opened else "screen")
        assert page.locator("#one").is_visible()
        assert page.locator("#classes").is_visible()
        assert not page.locator(".tabs").is_visible()
    context.close()
