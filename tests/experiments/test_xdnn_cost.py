"""``experiments.xdnn.cost``: its steps on a small network, its table, its command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments import command
from experiments.timing import ratios
from experiments.xdnn import cost
from experiments.xdnn.cost import NONE, ROWS, Row, cells, groups, measured, written_out
from experiments.xdnn.networks import Network, Scenes
from omenn.xdnn import AttributionPrior

Main = Callable[..., tuple[int, str, str]]


def small() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip
    return Network("birds-resnet", model.eval().requires_grad_(False), "small")


def few(count: int = 4) -> Scenes:
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Scenes(x, torch.arange(count) % 3)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Main:
    """The command in this process, on the small network: exit code, output, error."""
    monkeypatch.setattr(cost, "loaded", lambda *_: small())
    monkeypatch.setattr(cost, "scenes", lambda split, count, *_: few(count))

    def runner(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            threads = ("--threads", str(torch.get_num_threads()))
            cost.main([*map(str, words), *threads, "--work", str(tmp_path / "work")])
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    return runner


def test_plain_pytorch_gives_the_same_term_and_derivative() -> None:
    given, found = few(), []
    for term in (written_out, AttributionPrior("sparsity", cost.WEIGHT)):
        model = small().model.train().requires_grad_(True)
        value: Tensor = term(model, given.x, given.y)
        value.backward()
        assert model.training
        weight = model[0].weight.grad  # pyright: ignore
        found.append((value.detach(), weight))
        assert weight.any()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_step_trains_on_what_the_row_says(row: Row) -> None:
    term = row.term(few().x)
    if isinstance(term, AttributionPrior):
        assert (term.method, term.fraction) == (row.method, row.fraction)
        assert term.options.get("steps", 1) == (16 if "16" in row.name else 1)
    model = small().model.train().requires_grad_(True)
    before = [p.detach().clone() for p in model.parameters()]
    terms: list[Tensor] = []

    def kept(*arguments: object) -> Tensor:
        terms.append(term(*arguments))  # pyright: ignore
        return terms[-1]

    cost.step_of(model, few(), kept)()
    assert terms[0].requires_grad
    assert all(p.grad is not None for p in model.parameters())
    for p, old in zip(model.parameters(), before, strict=True):  # the rate is 0
        assert torch.equal(p, old)


def test_all_rows_are_timed_and_the_slow_ones_less_often() -> None:
    found = groups(11)
    assert [row for rows, _ in found for row in rows] == sorted(ROWS, key=lambda row: row.slow)
    assert [rounds for _, rounds in found] == [11, 5, 5]
    assert all(len(rows) == 1 and rows[0].slow for rows, _ in found[1:])
    assert [rounds for _, rounds in groups(2)] == [2, 2, 2]


def test_the_network_is_as_before() -> None:
    network = small()
    before = {name: t.clone() for name, t in network.model.state_dict().items()}
    taken = measured(network, few(), [Row("omenn", "omenn")], 2)
    assert list(taken) == [NONE, "omenn"]
    assert all(len(each) == 2 and min(each) > 0 for each in taken.values())
    assert not network.model.training
    for name, t in network.model.state_dict().items():
        assert torch.equal(t, before[name])


def test_ratios_are_within_a_round() -> None:
    taken = {NONE: [1.0, 2.0, 4.0], "a": [3.0, 4.0, 4.0]}
    assert ratios(taken, "a", NONE) == [3, 2, 1]
    assert cells([taken, {NONE: [1.0], "b": [16.5]}]) == [
        [NONE, "1", "2000 (1000–4000)"],
        ["a", "2.00 (1.00–3.00)", "4000 (3000–4000)"],
        ["b", "16.50 (16.50–16.50)", "16500 (16500–16500)"],
    ]


def test_the_command_measures_once_and_writes(
    run: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = tmp_path / "xdnn-experiments.md"
    document.write_text("before\n<!-- cost:begin -->\nold\n<!-- cost:end -->\nafter\n")
    monkeypatch.setattr(command, "DOCS", tmp_path)
    code, out, _ = run("--batch", 2, "--rounds", 1)
    assert code == 0
    for row in ROWS:
        assert f"| {row.name} |" in out
    assert "2 scenes of 64 px, float32, cpu; medians over 1 paired rounds" in out
    assert f"torch {torch.__version__}" in out
    assert "old" in document.read_text()

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(cost, "measured", never)
    code, again, _ = run("--batch", 2, "--rounds", 1, "--write")
    assert (code, again) == (0, out)
    text = document.read_text()
    assert "old" not in text
    assert text == f"before\n<!-- cost:begin -->\n{out.strip()}\n<!-- cost:end -->\nafter\n"
    with pytest.raises(AssertionError, match="measured again"):
        run("--batch", 2, "--rounds", 1, "--fresh")


def test_the_short_form_is_short() -> None:
    short, full = cost.parsed(["--short"]), cost.parsed([])
    assert (short.batch, short.rounds) == (8, 3)
    assert (full.batch, full.rounds, full.threads, full.arch) == (64, 11, 1, "birds-resnet")
    chosen = cost.parsed(["--short", "--batch", "4", "--rounds", "2"])
    assert (chosen.batch, chosen.rounds) == (4, 2)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--batch", 1], "--batch is 1; it must be at least 2."),
        (["--rounds", 0], "--rounds is 0; it must be at least 1."),
        (["--short", "--write"], "--write publishes the full form: omit --short."),
    ],
)
def test_what_cannot_be_measured(run: Main, words: list[object], text: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"experiments.xdnn.cost: error: {text}")
    assert err.count("\n") == 1


def test_a_network_that_is_not_bundled(run: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "loaded", lambda *_: None)
    code, _, err = run("--arch", "birds-xvit")
    assert (code, err) == (2, "experiments.xdnn.cost: error: birds-xvit is not bundled.\n")
