"""What the pages under docs/ say can be run, and what they point to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
with_pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
EXAMPLES = [p for p in PAGES if "```python\n" in p.read_text(encoding="utf-8")]


@pytest.mark.usefixtures("inside_tmp")
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda p: p.name)
def test_python_of_the_page_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S), 1):
        exec(compile(block, f"{page.name}, example {number}", "exec"), names)
    assert names


@with_pages
def test_links_of_the_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    local = [t for t in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in t]
    assert [t for t in local if not (page.parent / t).exists()] == []
