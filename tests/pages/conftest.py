"""A real browser, and pages to open in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import omenn
from omenn.viz.page import Report, page
from omenn.viz.panels import Case

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing(what: str) -> None:
    """Without a browser these tests are skipped, or fail where one was promised."""
    if os.environ.get("OMENN_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what}, and OMENN_REQUIRE_BROWSER=1")
    pytest.skip(what)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing(f"none of {', '.join(BROWSERS)} is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with two pictures, two networks, a warning, long names, smoothing, a certificate."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 256, 4)
    ).eval()
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    cases = []
    for name in ("bird.png", "a_very_long_name_of_a_photograph_without_any_space_in_it.jpeg"):
        for model in ("birds-resnet", "path/to/some/deeply/nested/file_of_a_user.py:function"):
            x = torch.randn(1, 3, 16, 16)
            rival, clear, how = omenn.Contrast(1, 2), None, {}
            if name != "bird.png":  # as pictures are shown without --method
                how = {"method": "omenn-clear"}
                clear = omenn.explain(network, x, 1, **how)
            cases.append(
                Case(
                    name=name,
                    model=model,
                    target="Larkolin",
                    explanation=omenn.explain(network, x, 1),
                    image=image,
                    readable=clear,
                    contrast=omenn.explain(network, x, rival, **how),
                    rival="Noomi" if clear is None else "black-and-white-spotted hummingbird",
                    truth="Larkolin",
                    seconds=0.25,
                    warning="Random weights, seed 0: the model is not trained.",
                )
            )
    certificate = omenn.certify(network, torch.randn(1, 3, 16, 16))
    content = page(
        Report(
            title="What small networks saw",
            introduction="Two pictures, two networks.",
            cases=cases,
            certificates=[("birds-resnet", certificate.exact, str(certificate))],
            sigma=1.0,
            footer="omenn, a footer",
        )
    )
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(content, encoding="utf-8")
    return path


@contextmanager
def opening(browser: Any, page: Path) -> Iterator[Any]:
    """A page on a screen of 1280 × 900; any error or request to elsewhere fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    tab = context.new_page()
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on(
        "request",
        lambda request: (
            None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
        ),
    )
    tab.goto(page.as_uri())
    yield tab
    context.close()
    assert problems == []


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    with opening(browser, report) as tab:
        yield tab
