"""The page of a search: what it says of the figures, the maps and the file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import omenn
from omenn.viz.comparison import Cell
from omenn.viz.panels import case_of
from omenn.viz.tune_page import Example, Line, TunePage, tune_page


@pytest.fixture
def page() -> TunePage:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4)).eval()
    x = torch.randn(1, 3, 8, 8)
    maps = {
        "omenn": Cell(case_of(omenn.explain(net, x, 1))),
        "gamma[complete=true]": Cell(
            case_of(omenn.explain(net, x, 1, method="gamma", complete=True))
        ),
    }
    image = np.zeros((8, 8, 3), np.uint8)
    return TunePage(
        model="<net>",
        verdict="gamma[complete=true] is better than omenn.",
        better=True,
        default="omenn",
        best="gamma[complete=true]",
        chosen="gamma[complete=true]",
        lines=[
            Line("omenn", "default", "0.1", "0.2", "0.3", "3.0"),
            Line("gamma[complete=true]", "candidate", "0.2", "0.3", "0.4", "6.0"),
            Line("zplus", "candidate", "–", "–", "–", "–", error="no <luck>"),
            Line("edges", "trivial", "–", "0.0", "0.0", "–"),
        ],
        examples=[Example("one.png", "a & b", image, maps), Example("two.png", "c", None, maps)],
        pictures=8,
        settings={"across": 14, "sets": 64, "share": 0.2, "fill": "blur"},
        remarks=["16 of 17 pictures are used."],
        warning="Random weights.",
        sigma=1.0,
        toml='method = "gamma"\n',
    )


def test_everything_is_said(page: TunePage) -> None:
    html = tune_page(page)
    for words in (
        page.verdict, page.remarks[0], page.warning, "14 × 14 cells", "64 copies", "20 %",
        "best to choose by", "ignores the network", "one.png: a &amp; b", "no &lt;luck&gt;",
        "method = &#34;gamma&#34;", "The method for &lt;net&gt;",
    ):  # fmt: skip
        assert words in html, words
    assert "<net>" not in html
    assert html.count("<h3>Input</h3>") == 1
    assert html.count("<h3>Default</h3>") == html.count("<h3>Best candidate</h3>") == 2
    assert html.count("Written to method.toml.") == 2
    assert html.count("Not written.") == 2


def test_only_the_default(page: TunePage) -> None:
    alone = [replace(one, maps={"omenn": one.maps["omenn"]}) for one in page.examples]
    html = tune_page(replace(page, best="omenn", chosen="omenn", examples=alone, sigma=0.0))
    assert "<h3>Best candidate</h3>" not in html
    assert "view-smoothed" not in html.split("<main")[1].split("<script")[0]
