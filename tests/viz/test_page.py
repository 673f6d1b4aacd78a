"""The page: self-contained, escaped, accessible, and with every number it promises."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from omenn.viz.page import Report, page
from omenn.viz.panels import Case, panels
from omenn.viz.stated_regions import StatedRegion, StatedRegions
from omenn.viz.wording import number

MakeCase = Callable[..., Case]
VOID = {"meta", "img", "input", "br", "link"}


class Structure(HTMLParser):
    """Checks that every tag is closed in order; collects tags with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(*cases: Case, **fields: object) -> Report:
    words: dict[str, object] = {
        "title": "What a network saw",
        "introduction": "Some pictures.",
        "cases": cases,
        "certificates": [("birds-resnet", True, "exact\nsum        it adds up\n           well")],
    }
    return Report(**(words | fields))  # type: ignore[arg-type]


def test_the_page_is_well_formed_and_self_contained(case: MakeCase) -> None:
    html = page(report(case(), sigma=1.0))
    structure = Structure(html)
    assert structure.open == []
    sources = [attributes["src"] for attributes in structure.all("img") if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert structure.all("link") == []
    assert "http" not in re.sub(r'"data:[^"]*"', "", html)
    targets = [attributes["href"] for attributes in structure.all("a")]
    identifiers = {attributes.get("id") for _, attributes in structure.tags}
    assert all(target.startswith("#") and target[1:] in identifiers for target in targets)


def test_the_pictures_are_the_panels(case: MakeCase) -> None:
    given = case()
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB"))
        for found in re.findall(r"data:image/png;base64,([^\"]+)", page(report(given)))
    ]
    wanted = [panel.exact.pixels for panel in panels(given)]
    assert len(shown) == len(wanted)
    assert all(np.array_equal(one, two) for one, two in zip(shown, wanted, strict=True))


def test_every_picture_has_words_for_those_who_do_not_see_it(case: MakeCase) -> None:
    structure = Structure(page(report(case(), sigma=1.0)))
    pictures = [attributes for attributes in structure.all("img") if "src" in attributes]
    assert all(len(attributes["alt"] or "") > 10 for attributes in pictures)
    buttons = [found for found in structure.all("button") if found.get("class") == "picture"]
    assert len({button["aria-label"] for button in buttons}) == len(buttons) == 6


def test_the_readable_map_is_first_and_large(pair: Case) -> None:
    html = page(report(pair, sigma=1.0))
    structure = Structure(html)
    assert structure.open == []
    article = html[html.index("<article") :]
    assert article.index('<figure class="large">') == article.index("<figure")
    assert article.count("<figure") == 6
    assert structure.text.count("R and C both add up to the logit") == 1
    assert "ΣR" in structure.text
    residual = float(pair.readable.residual[0])  # type: ignore[union-attr]
    assert number(residual, digits=2) in structure.text
    assert html.count('<span class="badge yes">exact</span>') == 3  # R, C, the certificate


def test_a_readable_map_that_misses_the_logit_is_marked(pair: Case) -> None:
    off = pair.readable.with_matrix(2 * pair.readable.matrix)  # type: ignore[union-attr]
    html = page(report(dataclasses.replace(pair, readable=off)))
    assert '<span class="badge no">not exact</span>' in html


def test_why_there_is_no_readable_map(case: MakeCase) -> None:
    html = page(report(case(unreadable="omenn-clear: <b>no rule</b>.")))
    assert "No readable map: omenn-clear: &lt;b&gt;no rule&lt;/b&gt;." in html
    assert 'class="large"' not in html
    assert "No readable map" not in page(report(case()))


def test_all_numbers_are_there(case: MakeCase) -> None:
    given = case()
    text = Structure(page(report(given))).text
    result = given.explanation
    for value in (result.output[0], result.total[0], result.bias_share[0]):
        assert number(float(value)) in text
    assert number(float(result.residual[0]), digits=2) in text
    assert "0.25 s" in text


def test_bars_of_the_modules_add_up_to_the_sum(case: MakeCase) -> None:
    given = case()
    html = page(report(given))
    rows = re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td>\s*<td class="track">', html)
    assert {name for name, _ in rows} == {"the pixels", "first", "second", "head"}
    total = sum(float(value.replace("−", "-")) for _, value in rows if "·" not in value)
    assert total == pytest.approx(float(given.explanation.output), abs=2e-3)


def test_many_modules_are_folded_into_one_line(case: MakeCase) -> None:
    import torch

    given = case()
    sources = {f"layer{index}": torch.tensor([0.01 * index]) for index in range(40)}
    many = dataclasses.replace(given.explanation, sources=sources)
    html = page(report(dataclasses.replace(given, explanation=many)))
    assert "28 other modules" in html
    assert "layer39" in html
    assert "layer5<" not in html


def test_words_from_outside_are_escaped(case: MakeCase) -> None:
    evil = '<script>alert("1")</script>'
    html = page(
        report(
            case(name=evil, model=evil, target=evil, rival=evil, truth=evil, warning=evil),
            title=evil,
            introduction=evil,
            footer=evil,
            certificates=[(evil, False, f"NOT EXACT\nsum  {evil}")],
        )
    )
    assert "<script>alert" not in html
    assert html.count("<script>") == 1
    assert Structure(html).open == []


def test_random_weights_are_said_plainly_at_the_top_and_at_every_answer(case: MakeCase) -> None:
    warning = "Random weights, seed 0: the model is not trained."
    html = page(report(case(warning=warning), case(name="two.png", warning=warning)))
    assert html.count(f'<div class="warning" role="note"><p>{warning}') == 1
    assert html.count(f'<span class="badge warn">{warning}') == 2


def test_right_and_wrong_answers(case: MakeCase) -> None:
    text = Structure(page(report(case(truth="Larkolin"), case(truth="Noomi")))).text
    assert "The right answer is Larkolin." in text
    assert "Larkolin (right)" in text
    assert "Larkolin (wrong)" in text


def test_cases_of_one_name_share_a_section(case: MakeCase) -> None:
    html = page(report(case(), case(model="birds-vit"), case(name="other.png")))
    assert html.count('<section class="case"') == 2
    assert html.count('<article class="answer"') == 3


def test_an_inexact_result_is_marked(inexact: Case) -> None:
    html = page(report(inexact))
    assert '<span class="badge no">not exact</span>' in html
    assert "≠ ΣC" in html


def test_the_views_appear_only_with_smoothing(case: MakeCase) -> None:
    assert 'id="view-smoothed"' not in page(report(case()))
    html = page(report(case(), sigma=2.5))
    assert "σ = 2.5" in html
    assert html.count('class="smoothed map"') == 4


def test_the_limits_are_stated(case: MakeCase) -> None:
    text = Structure(page(report(case()))).text
    assert "Exact is not the same as faithful." in text
    assert "The location of the constants is a choice." in text
    assert "Other exact maps exist." in text


def test_the_certificate_becomes_a_list(case: MakeCase) -> None:
    html = page(report(case()))
    assert "<dt>sum</dt><dd>it adds up</dd><dt></dt><dd>well</dd>" in html


def test_the_same_report_gives_the_same_bytes(case: MakeCase) -> None:
    given = report(case(), sigma=1.0)
    assert page(given) == page(given)


def test_the_main_squares_of_a_calibration_are_said(case: MakeCase) -> None:
    regions = [StatedRegion(2, 3, "+3.1", "costs between 2 and 4.4")]
    stated = StatedRegions(regions, 4, "omenn-clear", "blurring it", "90", 60)
    plain = case()
    content = page(Report(title="t", introduction="i", cases=[replace(plain, regions=stated)]))
    assert "left:50%;top:25%;width:25%;height:25%" in content
    words = " ".join(re.sub(r"<[^>]+>", "", content).split())
    assert "Row 2, column 3: the map gives it +3.1 of the logit" in words
    assert "Blurring it costs between 2 and 4.4." in words
    without = page(Report(title="t", introduction="i", cases=[plain]))
    assert "stated-picture" not in without.split("</style>")[1]
