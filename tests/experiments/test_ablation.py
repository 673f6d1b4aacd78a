"""Exact configurations: their sums, how one is chosen, and both phases of the command."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import omenn
from experiments.ablation import __main__ as ablation
from experiments.ablation import board as board_of
from experiments.ablation import configurations, tables
from experiments.ablation.board import PROTOCOLS, Board, Cell, Phase
from experiments.ablation.configurations import EXACT, PEER, SMOOTHED, TRIVIAL, Row
from experiments.ablation.exact_map import averaged, back, exact, registered, smoothed
from experiments.ablation.figure import figure_of
from omenn.attribution.perturbations import Affine
from omenn.bench.plan_entries import Entry
from omenn.engine.depth import levels_of
from omenn.errors import InputError, OmennError


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Three levels and more, with constants."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 4, 5):
        layers += [nn.Conv2d(channels, channels + 1, 3, 2, 1), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 4)).double().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


TARGETS = torch.tensor([1, 3])


class TestExactMaps:
    @pytest.mark.parametrize(
        "row", configurations.of(configurations.rows(), EXACT), ids=lambda row: row.name
    )
    def test_every_configuration_adds_up(self, row: Row, net: nn.Module, images: Tensor) -> None:
        with registered():
            e = omenn.explain(net, images, TARGETS, method=row.entry.base, **row.entry.options)
        logits = net(images)
        wanted = logits.gather(1, TARGETS[:, None])[:, 0]
        contrast = row.entry.options.get("contrast") or row.entry.options.get("against")
        rows = torch.arange(2)
        others = logits.clone().index_put((rows, TARGETS), torch.tensor(math.nan).double())
        if contrast == "rest":
            wanted = wanted - others.nanmean(1)
        elif contrast == "runner-up":
            wanted = wanted - others.nan_to_num(-math.inf).amax(1)
        total = e.matrix.sum((1, 2))
        if row.entry.options.get("bias") == "separate":
            total = total + e.bias
        torch.testing.assert_close(total, wanted)
        assert e.exact
        assert e.promise == "exact"

    def test_an_average_of_nothing_is_the_map_itself(self, net: nn.Module, images: Tensor) -> None:
        plain = omenn.explain(net, images, TARGETS).matrix
        e = averaged(net, images, TARGETS, samples=3, noise=0.0, moved=False, seed=0)
        torch.testing.assert_close(e.matrix, plain)

    def test_an_average_is_of_weights_and_constants(self, net: nn.Module, images: Tensor) -> None:
        """Two samples, the second wholly noise: half of the weights of each, at x."""
        e = averaged(net, images, TARGETS, samples=2, noise=1.0, moved=False, seed=5)
        generator = torch.Generator().manual_seed(5)
        torch.randn(3, 16, 16, generator=generator)
        noise = torch.randn(3, 16, 16, generator=generator).double().expand(2, -1, -1, -1)
        here, there = (omenn.explain(net, x, TARGETS) for x in (images, noise))
        c = (images * here.weight / 2).sum(1) + (here.bias + there.bias) / 2
        missing = here.output - c.sum((1, 2))
        torch.testing.assert_close(e.matrix, c + missing[:, None, None] / 256)

    def test_what_is_pulled_back_is_the_transpose(self) -> None:
        x, y = torch.randn(2, 1, 2, 9, 9, generator=torch.Generator().manual_seed(0)).double()
        affine = Affine(angle=0.3, right=0.1, down=-0.2, size=1.1, mirror=True)
        torch.testing.assert_close((affine(x) * y).sum(), (x * back(affine, y)).sum())

    def test_levels_by_number(self, net: nn.Module, images: Tensor) -> None:
        second = list(levels_of(net, images))[1]
        e = exact(net, images, TARGETS, depth=["input", "level:2"], mix=[0.5, 0.5])
        assert e.at == ("input", second)
        assert exact(net, images, TARGETS, depth="level:2").at == second

    def test_smoothed_maps_of_another_method(self, net: nn.Module, images: Tensor) -> None:
        raw = omenn.explain(net, images, TARGETS, method="xgradient")
        e = smoothed(net, images, TARGETS, of="xgradient", post="gaussian:2.0")
        torch.testing.assert_close(e.matrix, raw.processed("gaussian:2").matrix)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"depth": "level:9"}, r"depth='level:9': the model has \d levels\."),
            ({"samples": 2, "depth": "auto"}, "Omit depth=, bias='separate', contrast="),
            ({"samples": 2, "bias": "separate"}, "samples=2 averages maps at the input"),
            ({"samples": 2, "contrast": "runner-up"}, "samples=2 averages maps at the input"),
        ],
    )
    def test_refusals(self, options, text: str, net: nn.Module, images: Tensor) -> None:
        with pytest.raises(InputError, match=text):
            exact(net, images, TARGETS, **options)

    def test_a_step_that_loses_mass_is_refused(self, net: nn.Module, images: Tensor) -> None:
        with pytest.raises(OmennError, match=r"the sum of an exact configuration is off by \d"):
            exact(net, images, TARGETS, post="gaussian-lossy:2")

    def test_methods_are_there_only_inside(self) -> None:
        before = dict(omenn.methods())
        with registered():
            assert {"exact", "smoothed"} <= set(omenn.methods())
        assert dict(omenn.methods()) == before
        with pytest.raises(InputError, match="method='odd'"), registered():
            omenn.explain(nn.Linear(2, 2), torch.ones(1, 2), method="odd")
        assert dict(omenn.methods()) == before


class TestRows:
    def test_names_are_unique_and_tell_the_options(self) -> None:
        rows = configurations.rows()
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            assert dict(Entry.read(row.name, "method").options) == dict(row.entry.options)

    def test_short_is_a_part(self) -> None:
        short = {row.name for row in configurations.rows(short=True)}
        full = {row.name for row in configurations.rows()}
        assert short < full
        assert "integrated-gradients[steps=20]" in full - short
        assert "omenn-focused" in short
        assert {"constant", "centre", "edges", "random"} <= short

    def test_labels(self) -> None:
        labels = {row.label for row in configurations.rows()}
        wanted = {"plain", "bias=uniform", "focused", "focused: path=10, wide=0", "*edges*"}
        assert wanted | {"xgradient + gaussian:2.0"} <= labels

    def test_products_make_no_difference_here(self) -> None:
        """Why that axis has no row: no bundled model multiplies two equally bounded factors."""
        from omenn.models import sources

        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        for name in configurations.MODELS:
            model = sources.load(name).model
            left, right = (omenn.explain(model, x, 0, products=p) for p in ("left", "right"))
            torch.testing.assert_close(left.matrix, right.matrix)


def row(group: str, name: str) -> Row:
    return Row(group, "", Entry(name, name, {}))


FINE, ROUGH = row(EXACT, "exact[fine]"), row(EXACT, "exact[rough]")
PEERS = [row(PEER, f"p{k}") for k in range(4)]
BLIND, SOFT = row(TRIVIAL, "constant"), row(SMOOTHED, "smoothed[of=x]")


def board(values: dict[str, dict[str, tuple[float, float, float]]], rows: list[Row]) -> Board:
    """Model → row → values on the three protocols, with intervals of ± 0.1."""
    found = {
        (model, name): {
            protocol: Cell(v, v - 0.1, v + 0.1) for protocol, v in zip(PROTOCOLS, vs, strict=True)
        }
        for model, entries in values.items()
        for name, vs in entries.items()
    }
    return Board(tuple(values), tuple(rows), found, {}, dict.fromkeys(found, 0.002))


class TestChoice:
    one = board(
        {
            "m": {
                FINE.name: (0.85, 0.85, 0.85),  # within all intervals, never first
                ROUGH.name: (1.0, 1.0, 0.2),  # first twice, far off once
                "p0": (0.9, 0.9, 0.9),
                "p1": (0.1, 0.2, math.nan),
                "constant": (0.1, 0.1, 0.1),
            }
        },
        [FINE, ROUGH, *PEERS[:2], BLIND],
    )

    def test_ranks_share_ties_and_put_nan_last(self) -> None:
        ranks = self.one.ranks
        assert ranks["m", PROTOCOLS[0], ROUGH.name] == 1
        assert ranks["m", PROTOCOLS[0], "p1"] == ranks["m", PROTOCOLS[0], "constant"] == 4.5
        assert ranks["m", PROTOCOLS[2], "p1"] == 5
        assert self.one.mean_rank(ROUGH) == pytest.approx((1 + 1 + 3) / 3)
        assert self.one.mean_rank(PEERS[2]) == math.inf

    def test_shortfall_is_the_worst_protocol_in_intervals(self) -> None:
        assert self.one.shortfall("m", FINE) == pytest.approx(1.5)
        assert self.one.shortfall("m", ROUGH) == pytest.approx(7)
        assert self.one.shortfall("m", PEERS[1]) == math.inf

    def test_the_best_is_near_everywhere_and_of_equal_counts_the_default_ranks_best(self) -> None:
        assert self.one.chosen("m") == FINE
        assert self.one.default() == ROUGH

    def test_within_is_not_below_the_interval_of_the_first(self) -> None:
        first = self.one.first("m", PROTOCOLS[0])
        assert first == ROUGH
        assert self.one.within("m", PROTOCOLS[0], ROUGH, first)
        assert self.one.within("m", PROTOCOLS[0], PEERS[0], first)
        assert not self.one.within("m", PROTOCOLS[0], FINE, first)

    def test_the_place_is_among_other_methods_and_trivial_maps(self) -> None:
        assert [self.one.place("m", p, FINE) for p in PROTOCOLS] == [2, 2, 2]
        same = dict.fromkeys(("p0", "p1"), (0.9, 0.9, 0.9)) | {"p2": (0.9, 0.9, 0.5)}
        twins = board({"m": {FINE.name: (0.8, 0.8, 0.8), **same}}, [FINE, *PEERS[:3]])
        assert [twins.place("m", p, FINE) for p in PROTOCOLS] == [3, 3, 2]
        assert self.one.place("m", PROTOCOLS[2], ROUGH) == 2

    def test_the_default_is_most_often_among_the_first_three(self) -> None:
        values = {
            FINE.name: (0.8, 0.8, 0.8),  # third of the methods everywhere
            ROUGH.name: (1, 1, 0.6),  # first twice, fourth once, of better mean rank
            **{"p0": (0.9, 0.9, 0.9), "p1": (0.85, 0.85, 0.85), "p2": (0.1, 0.1, 0.7)},
        }
        some = board({"m": values}, [FINE, ROUGH, *PEERS[:3]])
        assert some.mean_rank(ROUGH) < some.mean_rank(FINE)
        assert [some.among_first(row) for row in (FINE, ROUGH)] == [3, 2]
        assert some.default() == FINE

    def test_a_default_needs_every_model(self) -> None:
        values = {"a": {"p0": (0, 0, 0), FINE.name: (0.1, 0.1, 0.1), ROUGH.name: (1, 1, 1)}}
        values["b"] = {"p0": (0, 0, 0), FINE.name: (0.1, 0.1, 0.1)}
        two = board(values, [FINE, ROUGH, PEERS[0]])
        assert two.default() == FINE
        assert two.chosen("a") == ROUGH

    def test_a_smoothed_peer_counts_as_a_method(self) -> None:
        values = {"m": {FINE.name: (0.5, 0.5, 0.5), SOFT.name: (0.9, 0.9, 0.9)}}
        soft = board(values, [FINE, SOFT])
        assert soft.first("m", PROTOCOLS[0]) == SOFT
        assert soft.place("m", PROTOCOLS[0], FINE) == 2

    def test_methods_count_once_only_if_they_agree_to_six_digits(self) -> None:
        for apart, place in ((1e-8, 2), (1e-4, 4)):
            near = {f"p{k}": (0.6 + k * apart,) * 3 for k in range(3)}
            values = {"m": {FINE.name: (0.5, 0.5, 0.5), **near}}
            few = board(values, [FINE, *PEERS[:3]])
            assert few.place("m", PROTOCOLS[0], FINE) == place

    def test_goal_table(self) -> None:
        chosen = {"m": FINE}
        lines = tables.goal(self.one, self.one, chosen, ROUGH).splitlines()[2:]
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        assert [line[3] for line in cells] == ["1 of 3", "1 of 3", "1 of 3"]
        assert [line[5] for line in cells] == ["**yes**"] * 3
        assert [line[7] for line in cells] == ["no", "no", "**yes**"]
        assert [line[9:] for line in cells] == [
            ["1", "**yes**"],
            ["1", "**yes**"],
            ["2", "**yes**"],
        ]
        assert cells[2][2] == "p0: 0.900 (0.800–1.000)"
        words = tables.goal_in_words(self.one, self.one, chosen, ROUGH)
        assert "Of 3 pairs" in words
        assert "of the first, in 3; the one" in words
        assert "protocols of the model in 1." in words
        assert words.endswith("in 3; it is not `omenn-focused` as the library makes it.")
        library = replace(ROUGH, entry=Entry("omenn-focused", "omenn-focused", {}))
        words = tables.goal_in_words(self.one, self.one, chosen, library)
        assert words.endswith("it is `omenn-focused` as the library makes it.")

    def test_rows_with_the_value_of_the_first_are_counted(self) -> None:
        zeros = dict.fromkeys((FINE.name, "p0", "constant"), (0.0, 0.0, 0.0))
        even = board({"m": zeros}, [FINE, PEERS[0], BLIND])
        line = tables.goal(even, even, {"m": FINE}, FINE).splitlines()[2]
        assert f"| {FINE.label} and 2 more: 0.000" in line
        assert line.count("**yes**, but not above a trivial map") == 3
        words = tables.goal_in_words(even, even, {"m": FINE}, FINE)
        assert "of the first, in 0; the one" in words
        assert "protocols of the model in 0." in words
        assert "smoothed or not, in 0;" in words

    def test_what_is_best_by_a_protocol_is_chosen_by_validation(self) -> None:
        swapped = {FINE.name: (0.9, 0.9, 0.9), ROUGH.name: (0.1, 0.1, 0.1), "p0": (0.2, 0.2, 0.2)}
        test = board({"m": {**swapped, "constant": (0, 0, 0)}}, [FINE, ROUGH, PEERS[0], BLIND])
        lines = tables.goal(self.one, test, {"m": FINE}, FINE).splitlines()[2:]
        assert ["no" in line.split("|")[6] for line in lines] == [True, True, False]

    def test_goal_says_where_a_trivial_map_is_not_beaten(self) -> None:
        values = {FINE.name: (0.5, 0.5, 0.5), "p0": (0.1, 0.1, 0.1), "constant": (0.5, 0.4, 0.55)}
        blind = board({"m": values}, [FINE, PEERS[0], BLIND])
        lines = tables.goal(blind, blind, {"m": FINE}, FINE).splitlines()[2:]
        wanted = [3, 0, 3]
        assert [line.count("not above a trivial map") for line in lines] == wanted

    def test_ablation_table_tells_why_a_row_failed(self) -> None:
        rows = (*self.one.rows, PEERS[2])
        why = {("m", "p2"): "no attention. Use another method."}
        text = tables.ablation(Board(("m",), rows, self.one.found, why, {}), "m", (PEER,), {})
        assert "| p2 | no attention | – | – | – | – |" in text
        first = "| p0 | 0.900 (0.800–1.000) | 0.900 (0.800–1.000) | **0.900 (0.800–1.000)** |"
        assert f"{first} 1.00 | – |" in text
        assert "| p1 |" in text
        assert "exact" not in text

    def test_ablation_table_marks_rows_and_costs(self) -> None:
        text = tables.ablation(self.one, "m", (EXACT,), {FINE.name: "chosen"})
        assert "| fine (chosen) | 0.850 (0.750–0.950) |" in text
        assert "| rough | **1.000 (0.900–1.100)** |" in text
        assert text.endswith("| 7.00 | 2.0 |")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    names = ("exact", "xgradient", "rollout", "constant")
    rows = [row for row in configurations.rows() if row.name in names]
    assert len(rows) == len(names)
    monkeypatch.setattr(configurations, "rows", lambda short=False: list(rows))
    return rows


class TestCommand:
    def test_both_phases_resume_and_write(
        self,
        few: list[Row],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        page, picture = tmp_path / "page.md", tmp_path / "page.png"
        names = ("goal", "choice", "exact", "peers")
        page.write_text(
            "".join(f"<!-- ablation-{n}:begin -->\n<!-- ablation-{n}:end -->\n" for n in names)
        )
        monkeypatch.setattr(ablation, "PAGE", page)
        monkeypatch.setattr(ablation, "PICTURE", picture)
        words = [
            "--scenes",
            "4",
            "--mosaics",
            "2",
            "--models",
            "birds-convnet",
            "--work",
            str(tmp_path / "work"),
        ]
        words.append("--write")
        late = few.pop()
        assert late.group == TRIVIAL
        with pytest.raises(SystemExit, match="birds-convnet has no finished trivial row on valid"):
            ablation.main(words)
        kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*exact*/*.json")}
        few.append(late)
        ablation.main(words)
        assert kept
        assert all(p.stat().st_mtime_ns == at for p, at in kept.items())
        first = capsys.readouterr().out
        text = page.read_text()
        assert text.count("birds-convnet:\n") == 2
        assert "the model has no softmax attention" in text
        assert "Chosen on 4 validation scenes and 2 mosaics of four (GAE), reported on" in text
        assert "reported on 4 test scenes and 2 mosaics; 95 %" in text
        assert "](images/ablation.png)" in text
        assert picture.read_bytes()[:4] == b"\x89PNG"
        ablation.main([*words, "--no-run"])
        assert capsys.readouterr().out == first
        assert page.read_text() == text
        gone = next((tmp_path / "work").glob("test-*/cells/birds-convnet/rollout/*.json"))
        gone.unlink()
        page.write_text(text)
        with pytest.raises(SystemExit, match=r"1 of 4 rows are not finished, the first is rollout"):
            ablation.main([*words, "--no-run"])
        assert page.read_text() == text
        ablation.main(words)
        validation = Phase("validation", 4, 2, tmp_path / "work").read(["birds-convnet"], few)
        test = Phase("test", 4, 2, tmp_path / "work").read(["birds-convnet"], few)
        assert validation.found.keys() == test.found.keys() != set()
        assert validation.found != test.found
        own = next(row for row in few if row.group == EXACT)
        shown = figure_of(test, {"birds-convnet": own}, own).axes
        assert [panel.get_title() for panel in shown] == list(PROTOCOLS)

    def test_cells_of_other_rows_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def store() -> object:
            return Phase("test", 4, 2, tmp_path).parts[0].store

        store()
        store()
        monkeypatch.setattr(board_of, "rows_code", lambda: "0")
        with pytest.raises(InputError, match=r"holds results of other rows: the code of exact_map"):
            store()

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["--models", "huge"], "no model 'huge'. Choose from: birds-resnet, "),
            (["--scenes", "1"], "--scenes is 1; it must be at least 2."),
            (["--mosaics", "1"], "--mosaics is 1; it must be at least 2."),
            (["--test-mosaics", "1"], "--test-mosaics is 1; it must be at least 2."),
            (["--write", "--phase", "validation"], "--write needs the test phase."),
        ],
    )
    def test_what_is_refused(self, words, text, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as exit:
            ablation.main(words)
        assert exit.value.code == 2
        assert (
            capsys.readouterr()
            .err.splitlines()[-1]
            .startswith(f"experiments.ablation: error: {text}")
        )
