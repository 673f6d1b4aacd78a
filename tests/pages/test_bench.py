"""The page of a benchmark in a real browser: sorting, switches, the spider, every width, paper."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench_plans import networks, run
from omenn.metrics.funnybirds_protocol import FunnyBirdsScore
from omenn.viz.bench_table import short
from pages.conftest import opening
from pages.test_report import CONTRAST

pytestmark = pytest.mark.browser

METHODS = ["omenn", "rollout", "abslrp", "omenn[bias=uniform]", "input-x-gradient", "xgradient"]
METRICS = ["funnybirds", "gae[steps=3]", "insertion-deletion[step=64]", "sparseness"]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of two models, a method that fails and trivial maps, and its numbers."""
    folder = tmp_path_factory.mktemp("judged")
    net = networks(folder)
    models = [
        {"model": net, "name": "one"},
        {"model": net, "name": "a_model_with_a_name_that_is_long", "seed": 1},
    ]
    plan = {"models": models, "methods": METHODS, "metrics": METRICS}
    intervals = FunnyBirdsScore.intervals
    with pytest.MonkeyPatch.context() as patch:  # few resamples, as a page needs some interval
        patch.setattr(FunnyBirdsScore, "intervals", lambda self, seed: intervals(self, seed, 20))
        done = run(folder / "out", **plan, trivial=True)
    return folder / "out" / "index.html", done.record


@pytest.fixture
def opened(browser: Any, judged: tuple[Path, dict[str, Any]]) -> Iterator[Any]:
    with opening(browser, judged[0]) as tab:
        yield tab


def column(tab: Any, panel: str, head: str) -> list[str]:
    """The first line of every cell of a column, from top to bottom."""
    return tab.evaluate(
        """([panel, head]) => {
          const table = document.querySelector(`${panel} table.bench`);
          const heads = [...table.tHead.rows[1].cells].map(c => c.textContent.trim());
          const at = heads.indexOf(head);
          return [...table.tBodies[0].rows].map(r => r.cells[at].firstChild.textContent.trim());
        }""",
        [panel, head],
    )


def values(judged: tuple[Path, dict[str, Any]], measure: str, model: int = 0) -> dict[str, float]:
    found = {}
    for method in judged[1]["models"][model]["methods"]:
        for value in method["values"]:
            if value["measure"] == measure:
                found[method["method"]] = math.nan if value["value"] is None else value["value"]
    return found


def test_the_tabs_are_the_models(opened: Any) -> None:
    tabs = opened.get_by_role("tab")
    assert tabs.all_inner_texts() == ["All models", "one", "a_model_with_a_name_that_is_long"]
    assert opened.locator("#all").is_visible()
    opened.get_by_role("tab", name="one", exact=True).click()
    assert not opened.locator("#all").is_visible()
    assert opened.locator("#model-0 table.bench").is_visible()
    opened.keyboard.press("ArrowRight")
    assert opened.locator("#model-1").is_visible()


def test_the_numbers_are_those_of_the_json(
    opened: Any, judged: tuple[Path, dict[str, Any]]
) -> None:
    for model in (0, 1):
        opened.get_by_role("tab").nth(1 + model).click()
        for measure, arrow in (("sparseness", ""), ("gae", ""), ("deletion", " ↓")):
            known = values(judged, measure, model)
            shown = column(opened, f"#model-{model}", measure + arrow)
            names = column(opened, f"#model-{model}", "method")
            for name, text in zip(names, shown, strict=True):
                assert text == (short(known[name]) if name in known else "failed")


def test_sorting(opened: Any, judged: tuple[Path, dict[str, Any]]) -> None:
    opened.get_by_role("tab", name="one", exact=True).click()
    opened.get_by_label("all", exact=True).check()
    for measure, head, reverse in (
        ("sparseness", "sparseness", True),
        ("deletion", "deletion ↓", False),
        ("insertion", "insertion", True),
    ):
        known = {name: v for name, v in values(judged, measure).items() if not math.isnan(v)}
        button = opened.locator("#model-0 thead").get_by_role("button", name=head, exact=True)
        for turn in (False, True):
            button.click()
            ranked = sorted(known.values(), reverse=reverse ^ turn)
            shown = [text for text in column(opened, "#model-0", head) if text != "failed"]
            assert shown == [short(value) for value in ranked]
            order = "descending" if reverse ^ turn else "ascending"
            assert opened.locator("#model-0 th[aria-sort]").count() == 1
            assert opened.locator(f'#model-0 th[aria-sort="{order}"]').inner_text().startswith(head)
            # what failed stays at the end, and rows stay whole
            assert column(opened, "#model-0", "method")[-1] == "rollout"
            names = column(opened, "#model-0", "method")[:-1]
            assert [short(known[name]) for name in names] == shown
    opened.locator("#model-0 thead").get_by_role("button", name="method", exact=True).click()
    names = column(opened, "#model-0", "method")
    assert names == sorted(names)


def test_sorting_by_keyboard(opened: Any) -> None:
    opened.locator("#all thead button").nth(1).focus()
    opened.keyboard.press("Enter")
    assert opened.locator("#all th[aria-sort]").count() == 1


def test_main_measures_or_all(opened: Any) -> None:
    opened.get_by_role("tab", name="one", exact=True).click()
    heads = opened.locator("#model-0 thead tr:last-child th:visible")
    few = [text.strip() for text in heads.all_inner_texts()]
    assert few[:3] == ["method", "mean", "completeness"]
    assert "csdc" not in few
    charts = opened.locator("#model-0 .chart:visible").count()
    opened.get_by_label("all", exact=True).check()
    every = [text.strip() for text in heads.all_inner_texts()]
    assert {"csdc", "local consistency", "insertion", "deletion ↓"} <= set(every)
    assert opened.locator("#model-0 .chart:visible").count() > charts
    # in both views the groups are as wide as their columns
    for view in ("the main ones", "all"):
        opened.get_by_label(view, exact=True).check()
        spans = opened.evaluate(
            "[...document.querySelectorAll('#model-0 .group')].filter(g => g.offsetParent)"
            ".reduce((sum, g) => sum + g.colSpan, 0)"
        )
        assert spans + 1 == heads.count()


def test_best_and_not_above_trivial(opened: Any, judged: tuple[Path, dict[str, Any]]) -> None:
    opened.get_by_role("tab", name="one", exact=True).click()
    opened.get_by_label("all", exact=True).check()
    marked = {"strong": set(), "low": set()}
    for method in judged[1]["models"][0]["methods"]:
        for value in method["values"]:
            if value["best"]:
                marked["strong"].add((method["method"], short(value["value"])))
            if not (value["above_trivial"] or method["trivial"] or value["value"] is None):
                marked["low"].add((method["method"], short(value["value"])))
    for kind, selector in (("strong", "td strong"), ("low", "td.low")):
        found = opened.evaluate(
            "s => [...document.querySelectorAll(`#model-0 tbody ${s}`)].map(e => "
            "[e.closest('tr').cells[0].firstChild.textContent, e.firstChild.textContent])",
            selector,
        )
        assert {(name, text) for name, text in found} == marked[kind]
        assert marked[kind]


def test_the_cells_that_failed_say_why(opened: Any) -> None:
    opened.get_by_role("tab", name="one", exact=True).click()
    failed = opened.locator("#model-0 td .failed").first
    assert "no softmax attention" in failed.get_attribute("title")
    assert "no softmax attention" in opened.locator("#model-0 .failures").inner_text()
    assert "8 of the cells failed" in opened.locator(".warning").first.inner_text()


def test_the_spider_shows_what_is_ticked(opened: Any) -> None:
    opened.get_by_role("tab", name="one", exact=True).click()
    boxes = opened.locator("#model-0 .legend input")
    shapes = opened.locator("#model-0 .spider .shape:not(.hidden)")
    assert boxes.count() == 5  # rollout failed
    assert shapes.count() == opened.locator("#model-0 .legend input:checked").count() == 4
    for box in boxes.all():
        box.set_checked(False)
    assert shapes.count() == 0
    opened.locator("#model-0 .legend").get_by_label("abslrp").check()
    (title,) = opened.locator("#model-0 .shape:not(.hidden) title").all_text_contents()
    assert title == "abslrp"
    assert opened.locator("#model-1 .shape:not(.hidden)").count() == 4
    # no label is cut off
    assert opened.evaluate(
        "[...document.querySelectorAll('#model-0 .spider text')].every(t => {"
        " const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();"
        " return a.left >= b.left - 1 && a.right <= b.right + 1; })"
    )


def test_bars_are_as_long_as_their_numbers(
    opened: Any, judged: tuple[Path, dict[str, Any]]
) -> None:
    opened.get_by_role("tab", name="one", exact=True).click()
    chart = opened.locator("#model-0 .chart", has=opened.get_by_text("sparseness", exact=True))
    known = values(judged, "sparseness")
    names = chart.locator(".who").all_inner_texts()
    assert names == sorted(known, key=lambda name: -known[name])
    widths = [level.bounding_box()["width"] for level in chart.locator(".level").all()]
    scale = widths[0] / known[names[0]]
    for name, width in zip(names, widths, strict=True):
        assert width == pytest.approx(scale * known[name], abs=2)
    trivial = max(known[name] for name in ("constant", "centre", "edges", "random"))
    left = chart.locator(".track").first.bounding_box()["x"]
    mark = chart.locator(".floor").first.bounding_box()
    assert mark["x"] + mark["width"] / 2 - left == pytest.approx(scale * trivial, abs=2)


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_no_width_needs_scrolling_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    opened.get_by_label("all", exact=True).check()
    for number in range(3):
        opened.get_by_role("tab").nth(number).click()
        for summary in opened.locator("summary:visible").all():
            summary.click()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        cut = opened.evaluate(
            "[...document.querySelectorAll('h2, h3, h4, .who, .much, tbody th b, dd')].filter("
            "e => e.offsetParent && e.scrollWidth > e.clientWidth + 1 && "
            "getComputedStyle(e).display !== 'inline').map(e => e.outerHTML)"
        )
        assert cut == []


def test_text_can_be_read(opened: Any) -> None:
    opened.get_by_label("all", exact=True).check()
    for number in range(3):
        opened.get_by_role("tab").nth(number).click()
        assert opened.evaluate(CONTRAST) == []


def test_without_script_and_on_paper_all_is_there(
    browser: Any, judged: tuple[Path, dict[str, Any]], opened: Any
) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(judged[0].as_uri())
    for page in (tab, opened):
        page.emulate_media(media="print" if page is opened else "screen")
        for name in ("#all", "#model-0", "#model-1"):
            assert page.locator(f"{name} table.bench").is_visible()
        assert page.locator("#model-0 .shape:not(.hidden)").first.is_visible()
        assert not page.locator(".tabs").is_visible()
    context.close()
