"""The page in a real browser: every width, keyboard alone, without script, on paper."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

VISIBLE = "picture => [...picture.children].filter(i => i.offsetParent !== null).map(i => i.alt)"

CONTRAST = """() => {
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parts(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.9) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || element.offsetParent === null) continue;
    if (["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const pair = [light(parts(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) bad.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return bad;
}"""


def shown(tab: Any) -> list[str]:
    """The alternative texts of the maps of C that can be seen."""
    return tab.locator('.picture[aria-label*="C, "]').first.evaluate(VISIBLE)


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_no_width_needs_scrolling_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    for summary in opened.locator("summary").all():
        summary.click()
    wide = opened.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 90))"
    )
    assert wide == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_every_picture_is_decoded(opened: Any) -> None:
    sizes = opened.evaluate("[...document.querySelectorAll('main img')].map(i => i.naturalWidth)")
    assert len(sizes) == 2 * 10 + 2 * 9
    assert set(sizes) == {16}


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_readable_map_is_first_and_large(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    article = opened.locator("article", has=opened.locator(".large")).first
    boxes = [figure.bounding_box() for figure in article.locator("figure").all()]
    large, small = boxes[0], boxes[1:]
    assert len(small) == 5
    assert all(large["width"] > 1.9 * box["width"] for box in small)
    if width < 1024:  # alone in its row, and as wide as the text
        assert all(box["y"] >= large["y"] + large["height"] for box in small)
        assert large["width"] == article.bounding_box()["width"]
    else:  # beside the others, of which the maps of pixels are the second row
        assert all(box["x"] >= large["x"] + large["width"] for box in small)
        rows = [box["y"] for box in small]
        assert rows[0] == rows[1] < rows[2] == rows[3] == rows[4]


def test_how_to_read_it_unfolds(opened: Any) -> None:
    guide = opened.locator(".guide li").first
    assert not guide.is_visible()
    assert opened.locator(".legend").is_visible()
    opened.locator(".guide summary").click()
    assert guide.is_visible()


def test_the_headings_are_an_outline(opened: Any) -> None:
    headings = opened.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => h.tagName)")
    steps = [int(name[1]) for name in headings]
    assert steps.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(steps))


def test_text_can_be_read(opened: Any) -> None:
    for summary in opened.locator("summary").all():
        summary.click()
    assert opened.evaluate(CONTRAST) == []


def test_exact_maps_first_smoothed_ones_on_demand(opened: Any) -> None:
    assert ["smoothed" in alt for alt in shown(opened)] == [False]
    opened.get_by_label("smoothed").check()
    assert ["smoothed" in alt for alt in shown(opened)] == [True]
    opened.get_by_label("exact").check()
    assert ["smoothed" in alt for alt in shown(opened)] == [False]


def test_the_keyboard_alone_is_enough(opened: Any) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "Skip to the results"
    opened.keyboard.press("Enter")
    opened.locator("#view-exact").focus()
    opened.keyboard.press("ArrowRight")
    assert ["smoothed" in alt for alt in shown(opened)] == [True]
    opened.keyboard.press("Tab")
    label = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == "Enlarge: Input, bird.png, birds-resnet"
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    assert opened.locator("dialog").is_visible()
    assert "smoothed" in opened.locator("dialog p").inner_text()
    opened.keyboard.press("Escape")
    assert not opened.locator("dialog").is_visible()
    assert opened.evaluate("document.activeElement.className") == "picture"


def test_a_picture_opens_large_and_closes(opened: Any) -> None:
    opened.locator(".picture").nth(1).click()
    large = opened.locator("dialog img")
    assert large.bounding_box()["width"] > 500
    assert large.get_attribute("alt") == opened.locator("dialog p").inner_text()
    opened.get_by_role("button", name="Close").click()
    assert not opened.locator("dialog").is_visible()
    opened.locator(".picture").nth(1).click()
    opened.mouse.click(5, 5)
    assert not opened.locator("dialog").is_visible()


def test_the_links_lead_to_their_sections(opened: Any) -> None:
    for link in opened.locator("nav a").all():
        link.click()
        target = opened.locator(link.get_attribute("href"))
        assert -1 <= target.bounding_box()["y"] < 900


def test_the_bars_stay_inside_of_their_track(opened: Any) -> None:
    opened.locator("article summary").first.click()
    for bar in opened.locator("article").first.locator(".bars b").all():
        track, inner = bar.bounding_box(), bar.locator("i").bounding_box()
        assert inner["x"] >= track["x"] - 1
        assert inner["x"] + inner["width"] <= track["x"] + track["width"] + 2


def test_the_warning_is_seen_at_once(opened: Any) -> None:
    box = opened.locator(".warning").bounding_box()
    assert box["y"] + box["height"] < 900


def test_without_script_the_page_is_complete(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(report.as_uri())
    tab.get_by_label("smoothed").check()
    assert tab.locator(".picture img.smoothed").first.is_visible()
    assert not tab.locator(".picture img.exact").first.is_visible()
    tab.locator("article summary").first.click()
    assert tab.locator(".bars").first.is_visible()
    context.close()


def test_on_paper(opened: Any) -> None:
    opened.emulate_media(media="print")
    assert not opened.locator(".views").is_visible()
    assert not opened.locator("nav").is_visible()
    assert opened.locator(".picture").first.is_visible()
    assert opened.pdf(format="A4").startswith(b"%PDF")
