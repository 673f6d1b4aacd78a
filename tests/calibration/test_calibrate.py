"""``omenn.calibrate`` on small networks: what it measures, what it keeps, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn import Calibration, InputError, ModelError, calibrate
from omenn.calibration import Box, Cells, Entries
from omenn.calibration.interventions import drops_of, replaced_by

COUNT = 40


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)).eval()


def curved() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 3)
    ).eval()


def pictures(count: int = COUNT) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def made(model: nn.Module | None = None, inputs: Any = None, **options: Any) -> Calibration:
    given = {"method": "omenn", "each": 2, "replacement": "zero"} | options
    return calibrate(model or curved(), pictures() if inputs is None else inputs, **given)


def test_a_linear_network_loses_what_its_map_says() -> None:
    net = linear().double()
    found = made(net, pictures().double(), target=1)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    e = omenn.explain(net, x, 1)
    for region in (Box(1, 2, 5, 7), Cells(4, 4, [(0, 0), (3, 3)])):
        interval = found.interval(e, region, index=1)
        mask = region.mask((8, 8))
        with torch.no_grad():
            lost = net(x[1:])[0, 1] - net(torch.where(mask, 0, x[1:]))[0, 1]
        assert interval.half_width < 1e-9
        assert abs(interval.expected - float(lost)) < 1e-9
        assert abs(interval.sum - float(e.matrix[1][mask].sum())) < 1e-12
    assert all(size.typical < 1e-9 < size.without for size in found.sizes if size is not None)


def test_intervals_are_those_of_the_formula() -> None:
    net, found = curved(), made(level=0.8)
    e = omenn.explain(net, pictures(1))
    several = found.interval(e, [Box(0, 0, 4, 4), Box(0, 0, 2, 2)])
    assert [round(one.share, 3) for one in several] == [0.25, 0.062]
    size = found.sizes[4]
    assert size is not None
    assert several[0].level == 0.8
    m = several[0].sum
    part = sum(abs(m) >= cut for cut in size.cuts)
    half = size.quantiles[part][0.8] * (abs(m) + size.fit.delta) ** size.fit.c
    middle = size.fit.a * 0.25 + size.fit.b * m
    assert abs(several[0].low - (middle - half)) < 1e-9
    assert abs(several[0].high - (middle + half)) < 1e-9
    wide = found.interval(e, Box(0, 0, 4, 4), level=0.9)
    assert wide.high - wide.low >= several[0].high - several[0].low


def test_drops_are_of_the_replaced_input() -> None:
    net, x = curved(), pictures(1)
    masks = torch.stack([Box(0, 0, 4, 4).mask((8, 8)), Box(2, 2, 3, 8).mask((8, 8))])
    before, drops = drops_of(net, x, 1, masks, "mean", channel_dim=-3)
    with torch.no_grad():
        for mask, drop in zip(masks, drops, strict=True):
            changed = torch.where(mask, x.mean(), x)
            assert abs(float(net(x)[0, 1] - net(changed)[0, 1]) - float(drop)) < 1e-5
        assert abs(before - float(net(x)[0, 1])) < 1e-6


def test_rows_of_a_table_by_groups_and_tokens_by_positions() -> None:
    table = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    rows = torch.randn(COUNT, 6)
    found = made(table, rows, groups=[[0, 1], [2, 3], [4], [5]], replacement=rows.mean(0))
    e = omenn.explain(table, rows[:1])
    assert found.interval(e, Entries([0, 1])).share == pytest.approx(1 / 3)
    assert found.replacement == "given by the caller"
    assert found.forms == ("groups",)

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.relu(self.embed(ids)).mean(1))

    words, ids = Words().eval(), torch.randint(1, 20, (COUNT, 10))
    of_words = made(words, ids, replacement=0)
    e = omenn.explain(words, ids[:1])
    assert of_words.interval(e, Entries([3, 4])).share == pytest.approx(0.2)


def test_inputs_count_once_and_their_order_does_not_matter() -> None:
    net, x = curved(), pictures()
    first = made(net)
    assert made(net, x.flip(0)) == first
    assert made(net, torch.cat([x, x[:7]])) == first
    assert made(net, [one[None] for one in x]) == first
    assert made(net, seed=1) != first


def test_nothing_of_the_caller_changes() -> None:
    net, state = curved(), torch.get_rng_state()
    weights = {name: t.clone() for name, t in net.state_dict().items()}
    made(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert all(torch.equal(t, weights[name]) for name, t in net.state_dict().items())


class Stopping(Sequence[Tensor]):
    """Inputs that are interrupted after some."""

    def __init__(self, after: int) -> None:
        self.after, self.asked = after, 0

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, k: Any) -> Tensor:
        self.asked += 1
        if self.asked > self.after + 1:  # the first is asked for twice
            raise KeyboardInterrupt
        return pictures()[k : k + 1]


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    folder, net = tmp_path / "parts", curved()
    with pytest.raises(KeyboardInterrupt):
        made(net, Stopping(25), folder=folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(kept) == 25
    (folder / next(iter(kept)).name).write_text("cut o")  # measured again
    asked: list[Any] = []
    net.register_forward_pre_hook(lambda module, args: asked.append(args[0]))
    found = made(net, folder=folder)
    again = len(asked)
    assert not folder.exists()
    asked.clear()
    assert made(net) == found
    assert again < 0.5 * len(asked)
    first, second = (found.save(tmp_path / name).read_bytes() for name in ("a.json", "b.json"))
    assert first == second


def test_results_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    net = curved()
    with pytest.raises(KeyboardInterrupt):
        made(net, Stopping(30), folder=tmp_path, replacement="mean")
    assert made(net, folder=tmp_path) == made(net)


def test_the_file_says_all_of_it(tmp_path: Path) -> None:
    net = curved()
    found = made(net, name="mine", method="gamma", options={"gamma": 0.5, "complete": True})
    path = found.save(tmp_path / "deep" / "c.json")
    assert path.stat().st_size < 20_000
    read = Calibration.load(path)
    assert read == found
    assert read.options == {"gamma": 0.5, "complete": True}
    read.check(net)
    e = omenn.explain(net, pictures(1), method="gamma", gamma=0.5, complete=True)
    assert read.interval(e, Box(0, 0, 4, 4)) == found.interval(e, Box(0, 0, 4, 4))
    with pytest.raises(ModelError, match=r"of 'mine'.*not of 'other'") as error:
        read.check(curved(), "other")
    assert (error.value.argument, error.value.got, error.value.expected) == (
        "calibration", "other", "mine",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a calibration"),
        ('{"kind": "omenn calibration", "version": 99}', "has version 99"),
        ('{"kind": "omenn calibration", "version": 1}', "is damaged"),
        ("sizes", "is damaged"),
        ("quantiles", "is damaged"),
    ],
)
def test_files_that_are_none(tmp_path: Path, change: str, words: str) -> None:
    path = made().save(tmp_path / "c.json")
    content = json.loads(path.read_text())
    if change == "sizes":
        content["sizes"] = content["sizes"][:2]
    elif change == "quantiles":
        next(one for one in content["sizes"] if one)["quantiles"] = []
    path.write_text(json.dumps(content) if change in ("sizes", "quantiles") else change)
    with pytest.raises(InputError, match=words) as error:
        Calibration.load(path)
    assert error.value.argument == "path"
    assert error.value.got == str(path)
    with pytest.raises(InputError, match="cannot be read"):
        Calibration.load(tmp_path / "none.json")


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)) * 0)


@pytest.mark.parametrize(
    ("given", "argument", "words"),
    [
        ({"inputs": torch.zeros(0, 3, 8, 8)}, "inputs", "no inputs"),
        ({"inputs": []}, "inputs", "no inputs"),
        ({"inputs": "photos"}, "inputs", "must be a tensor"),
        ({"inputs": [torch.zeros(2, 3, 8, 8)] * 20}, "inputs", "must be a tensor"),
        ({"inputs": torch.ones(30, 3, 8, 8)}, "inputs", "1 different inputs"),
        ({"inputs": pictures(17)}, "inputs", "17 different inputs.*at least 18"),
        ({"budget": 0}, "budget", "must be an integer of at least 1"),
        ({"budget": 100}, "budget", "at least 270 forward passes, 15 for each of 18 inputs"),
        ({"level": 1.0}, "level", "from 0.5 to 0.99"),
        ({"each": 0}, "each", "at least 1"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"replacement": "grey"}, "replacement", "is not known"),
        ({"replacement": "blur:wide"}, "replacement", "blur:0.1"),
        ({"replacement": "mean:2"}, "replacement", "blur:0.1"),
        ({"replacement": torch.zeros(5)}, "replacement", "does not fit"),
        ({"replacement": lambda x: x[:, :1]}, "replacement", "does not fit"),
        ({"forms": ("rings",)}, "forms", "is not known"),
        ({"groups": [[0]]}, "groups", "lists of different numbers"),
        ({"model": lambda x: x}, "model", "torch.nn.Module"),
        ({"method": "nonsense"}, "method", "is not known"),
    ],
)
def test_what_cannot_be_calibrated(given: dict[str, Any], argument: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        made(**given)
    assert error.value.argument == argument
    assert "\n" not in str(error.value)


def test_models_that_cannot_be_calibrated() -> None:
    with pytest.raises(ModelError, match="the same whatever is replaced") as error:
        made(Constant().eval())
    assert error.value.argument == "model"
    with pytest.raises(ModelError, match="returns probabilities") as error:
        made(nn.Sequential(curved(), nn.Softmax(1)).eval())
    assert (error.value.got, error.value.expected) == ("probabilities", "logits")
    with pytest.raises(InputError, match="does not fit inputs of the shape"):
        made(nn.Linear(4, 2).eval(), torch.rand(COUNT, 4), replacement="blur")


def test_a_budget_takes_the_first_inputs() -> None:
    net = curved()
    assert made(net, budget=15 * 20 + 14) == made(net, pictures()[:20])


def test_questions_that_a_calibration_does_not_answer() -> None:
    net, found = curved(), made(target=1)
    e = omenn.explain(net, pictures(1), 1)
    cases: list[tuple[Any, Any, str, str]] = [
        (e.processed("gaussian:1"), Box(0, 0, 4, 4), "e", "by 'omenn, gaussian"),
        (omenn.explain(net, pictures(1), 1, method="xgradient"), Box(0, 0, 4, 4), "e", "by 'xgrad"),
        (omenn.explain(net, pictures(1), 2), Box(0, 0, 4, 4), "e", "of output 1"),
        (omenn.explain(linear(), torch.rand(1, 3, 8, 8), 1), Entries([0]), "region", "numbers"),
        (e, torch.zeros(8, 8, dtype=torch.bool), "region", "at least one location"),
        (e, torch.zeros(4, 4, dtype=torch.bool), "region", "was expected"),
    ]
    for one, region, argument, words in cases:
        with pytest.raises(InputError, match=words) as error:
            found.interval(one, region)
        assert error.value.argument == argument
    wide = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(200, 3)).eval()
    with pytest.raises(InputError, match="has the locations") as error:
        found.interval(omenn.explain(wide, torch.rand(1, 3, 12, 12), 1), Box(0, 0, 4, 4))
    assert error.value.expected == "(8, 8)"
    with pytest.raises(InputError, match="level must be one of"):
        found.interval(e, Box(0, 0, 4, 4), level=0.42)
    with pytest.raises(InputError, match=r"no interval is known for a region of 3\.1 %"):
        made(inputs=pictures(18)).interval(
            omenn.explain(net, pictures(1)), Box(0, 0, 1, 2), level=0.95
        )


def test_replacements() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(replaced_by("black", x)[1], torch.full((3, 16, 16), float(x[1].min())))
    assert torch.equal(replaced_by(0.5, x), torch.full_like(x, 0.5))
    assert torch.equal(replaced_by(lambda t: t.flip(2), x), x.flip(2))
    channels = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    assert torch.equal(replaced_by(channels, x)[0], channels.expand(3, 16, 16))
    spread = [float(replaced_by(f"blur:{s}", x).std()) for s in (0.05, 0.1, 0.3)]
    assert spread == sorted(spread, reverse=True)
    assert replaced_by(7, torch.tensor([[1, 2]])).tolist() == [[7, 7]]
