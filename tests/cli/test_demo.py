"""``omenn demo``: the page, the pictures, the numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from commands import Run, refused, written
from omenn import cli


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one demonstration."""
    out = tmp_path_factory.mktemp("demo") / "omenn-demo"
    assert cli.main(["demo", "--out", str(out)]) == 0
    return out


class TestDemo:
    def test_what_is_there(self, demo: Path) -> None:
        from omenn.cli.demonstration import NETWORKS

        pictures = {path.name for path in (demo / "pictures").iterdir()}
        for bird in range(1, 5):
            for network in NETWORKS:
                for panel in ("readable", "input", "contrast", "c", "weight", "bias"):
                    assert f"bird-{bird}-{network}-{panel}.png" in pictures
                assert f"bird-{bird}-{network}.png" in pictures
        assert {path.name for path in demo.iterdir()} == {"index.html", "pictures"}

    def test_the_page_holds_what_is_promised(self, demo: Path) -> None:
        html = (demo / "index.html").read_text(encoding="utf-8")
        assert html.count('<article class="answer"') == 12
        assert html.count('<span class="badge yes">exact</span>') == 27  # C, R and certificates
        assert html.count('<figure class="large">') == 12
        assert html.count("R and C both add up to the logit") == 4
        assert "not exact" not in html.replace("exact is not", "")
        assert html.count("Where the logit comes from, module by module") == 12
        assert 'class="badge warn"' not in html
        assert "http" not in re.sub(r'"data:[^"]*"', "", html)

    def test_most_birds_are_recognised(self, demo: Path) -> None:
        html = (demo / "index.html").read_text(encoding="utf-8")
        assert html.count("(right)</h3>") >= 10

    @pytest.mark.slow
    def test_photographs_and_a_network_of_imagenet(self, tmp_path: Path, run: Run) -> None:
        code, out, err = run("demo", "--real", "-o", tmp_path / "real", "--json")
        found = json.loads(out)
        assert (code, err) == (0, "")
        answers = {result["input"]: result["answer"] for result in found["results"]}
        assert "tiger cat" in answers["Chelsea the cat"]
        assert "espresso" in answers["A cup of coffee"]
        assert all(result["exact"] for result in found["results"])
        for result in found["results"]:
            assert (result["readable"]["method"], result["readable"]["exact"]) == (
                "omenn-clear",
                True,
            )
            assert result["readable"]["sum"] == pytest.approx(result["output"], abs=1e-4)
        html = (tmp_path / "real" / "index.html").read_text(encoding="utf-8")
        assert "CC0" in html
        assert "omenn demo --real" in html

    @pytest.mark.slow
    def test_json_and_a_second_run_over_the_first(self, demo: Path, run: Run) -> None:
        before = (demo / "pictures" / "bird-1-birds-resnet-c.png").read_bytes()
        code, out, err = run("demo", "-o", demo, "--json")
        found = json.loads(out)
        assert (code, err) == (0, "")
        assert len(found["results"]) == 12
        assert all(result["exact"] for result in found["results"])
        assert all(certificate["exact"] for certificate in found["certificates"].values())
        assert (demo / "pictures" / "bird-1-birds-resnet-c.png").read_bytes() == before

    def test_a_place_that_cannot_be_written(self, run: Run, inside_tmp: Path) -> None:
        Path("file").touch()
        refused(run("demo", "--out", "file"), "is a file, not a folder")
        assert written() == {"file"}
