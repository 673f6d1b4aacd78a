"""The support matrix: a bad model costs one row, a stopped run goes on, the worst is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import omenn
from experiments import zoo_entries, zoo_run
from experiments.zoo_cover import cover
from experiments.zoo_entries import Entry, sides
from experiments.zoo_measure import made, measure
from experiments.zoo_models import perturb
from experiments.zoo_run import FAILED, missing, store
from experiments.zoo_table import every_model, matrix

ROOT = Path(__file__).parents[2]

# In a process of its own, since it forks: this one may have threads.
BAD_MODELS = """
import json, os, signal, sys, time
from pathlib import Path
from experiments.zoo_entries import Entry
from experiments.zoo_run import Runner

def measured(entry):
    if entry.name == "killed":
        os.kill(os.getpid(), signal.SIGSEGV)
    if entry.name == "slow":
        time.sleep(60)
    if entry.name == "large":
        bytearray(8 * 2**30)
    if entry.name == "raises":
        raise ValueError("no such layer")
    return {"status": "exact"}

names = ["killed", "slow", "large", "raises", "good"]
entries = [Entry("timm", "family", name, ()) for name in names]
runner = Runner(measured, Path(sys.argv[1]), jobs=3, seconds=6.0, gigabytes=1)
print(json.dumps({entry.name: row for entry, row in runner(entries)}))
"""


def test_a_crash_a_hang_and_a_memory_limit_cost_one_row_each(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BAD_MODELS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)
    found = {name: row["status"] for name, row in rows.items()}
    assert found == {
        "killed": "crash", "slow": "time-out", "large": "memory", "raises": "crash",
        "good": "exact",
    }  # fmt: skip
    assert rows["killed"]["reason"].startswith("SIGSEGV")
    assert rows["raises"]["reason"] == "ValueError: no such layer"


def entry(name: str, make: object, **options: object) -> Entry:
    def build() -> tuple[nn.Module, torch.Tensor]:
        return make(), torch.randn(2, 4)  # type: ignore[operator]

    return Entry("timm", "family", name, (build,), options)  # type: ignore[arg-type]


class Escaping(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(x) * 2


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("too small")


def test_rows_of_exact_refused_and_broken_models() -> None:
    net = lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))  # noqa: E731
    good, refused, broken = (
        measure(entry(name, make), rounds=1)
        for name, make in (("good", net), ("escaping", Escaping), ("failing", Failing))
    )
    assert good["status"] == "exact"
    assert good["float64"]["residual"] <= 1e-15
    assert 0 < good["float64"]["input_share"] < 1
    assert good["float64"]["moving_constants"] == []
    assert {"linear", "gelu"} <= set(good["float64"]["rules"])
    assert good["ratio"] > 0
    assert refused["status"] == "unsupported"
    assert refused["float64"]["operator"] == "special_i0"
    assert broken["status"] == "unbuilt"
    assert broken["reason"] == "RuntimeError: too small"


def test_the_first_build_that_runs_is_taken() -> None:
    builds = (
        lambda: (Failing(), torch.randn(1, 4)),
        lambda: (nn.Linear(4, 3), torch.randn(1, 4)),
    )
    row = measure(Entry("timm", "family", "second", builds), rounds=1)
    assert row["status"] == "exact"
    assert "reason" not in row


def test_the_signal_lives_in_deep_networks() -> None:
    """Without the statistics of the input nothing of it would reach the output."""

    def deep() -> tuple[nn.Module, torch.Tensor]:
        block = lambda: (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.2), nn.ReLU())  # noqa: E731
        layers = [layer for _ in range(20) for layer in block()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 3)), torch.randn(1, 4, 8, 8)

    found = made(Entry("timm", "family", "deep", (deep,)))
    assert not isinstance(found, str)
    model, x = found
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in model.modules())
    assert all(m.momentum == 0.2 for m in norms)
    e = omenn.explain(model, x)
    assert float(e.contribution.abs().sum() / e.bias.abs().sum()) > 0.01


class Cheating(nn.Module):
    """Its bias is read off the input where no rule can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        with torch._C.DisableTorchFunction():
            hidden = x.detach().sum() * torch.ones(3, dtype=x.dtype)
        return y + hidden


def test_a_constant_that_moves_with_the_input_is_told() -> None:
    row = measure(entry("cheating", Cheating), rounds=1)
    assert row["status"] == "exact"  # the sum is right for the wrong reason
    assert row["float64"]["moving_constants"] == [": add"]
    row |= {"size": "native", "engine": "e", "versions": {}}
    assert "cheating: a constant moves with the input" in matrix([row])


def test_what_is_finished_is_not_measured_again(tmp_path: Path) -> None:
    entries = [entry(name, nn.Identity) for name in ("a model/with a name", "failed", "new")]
    kept = store(tmp_path)
    for one, status in zip(entries, ("exact", FAILED[0]), strict=False):
        kept.put(zoo_run.key(one, "native"), {"status": status})
    todo, done = missing(kept, entries, "native", retry=False)
    assert ([e.name for e in todo], len(done)) == (["new"], 2)
    todo, _ = missing(kept, entries, "native", retry=True)
    assert [e.name for e in todo] == ["failed", "new"]
    assert {row["status"] for row in store(tmp_path).all()} == {"exact", FAILED[0]}
    kept.made["versions"] = {"torch": "another"}
    assert missing(kept, entries, "native", retry=False) == (entries, [])


def test_the_table_tells_the_worst_variant() -> None:
    row = {
        "group": "timm", "family": "resnet", "size": "native", "engine": "e", "versions": {},
        "status": "exact", "float64": {"residual": 1e-17, "located": 0.5, "fidelity": 0.0,
        "bias_share": 0.1, "input_share": 0.5,
        "unlocated": [{"kind": "token", "share": 0.5, "module": "head"}]},
        "float32": {"residual": 1e-8},
    }  # fmt: skip
    worse = {"status": "not exact", "float64": {"status": "not exact", "residual": 1e-3,
             "fidelity": 0.1}}  # fmt: skip
    good = matrix([row | {"name": "one"}])
    assert "| resnet | 1 | exact | 1e-17 | 1e-08 |" in good
    assert "class token 50% (`head`)" in good
    assert "**1 of 1**" in good
    (line,) = every_model([row | {"name": "one"}]).to_dict("records")
    assert (line["model"], line["located"], line["time"]) == ("one", "50%", "–")
    bad = matrix([row | {"name": "one"}, row | {"name": "two"} | worse])
    assert "| resnet | 2 | **not exact** (1) | 1e-03 |" in bad
    assert "- two (resnet): not exact: float64 residual 1e-03, fidelity 1e-01" in bad
    assert "**0 of 1**" in bad


def test_image_sides_keep_what_windows_need() -> None:
    assert sides(224, 256) == [224]
    assert sides(224, 128) == [112, 224]
    assert sides(896, 256)[0] == 224
    assert all(448 % s == 0 for s in sides(448, 128))


def test_every_parameter_is_perturbed() -> None:
    """Layer scales, zero-initialised heads and statistics move; other buffers do not."""
    zoo_entries.prepare()
    import timm

    for name in ("test_vit2", "test_convnext", "test_nfnet", "test_resnet"):
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        buffers = {k: v.clone() for k, v in model.named_buffers()}
        perturb(model)
        for key, value in model.named_parameters():
            assert not torch.equal(value, before[key]), key
            assert value.numel() == 1 or float(value.detach().std()) > 1e-3, key
        for key, value in model.named_buffers():
            assert torch.equal(value, buffers[key]) == (not key.endswith(("_mean", "_var"))), key


@pytest.mark.parametrize("group", ["transformers", "graphs", "torchvision"])
def test_every_entry_has_a_name_of_its_own(group: str) -> None:
    zoo_entries.prepare()
    made = {
        "transformers": zoo_entries.transformers_entries,
        "graphs": zoo_entries.graph_entries,
        "torchvision": lambda: zoo_entries.torchvision_entries(256),
    }[group]()
    names = [e.key for e in made]
    assert len(names) == len(set(names)) >= 5


def test_few_models_cover_all_calls() -> None:
    def row(name: str, *calls: str, parameters: float = 0) -> dict[str, object]:
        return {"name": name, "parameters": parameters, "float64": {"spellings": calls}}

    rows = [
        row("large", "add", "mul", "exp", "max", parameters=1e8),
        row("first", "add", "mul", "sub"),  # taken first, and not needed in the end
        row("second", "add", "mul", "exp"),
        row("third", "sub", "max"),
    ]
    chosen = cover(rows)
    assert {r["name"] for r, _ in chosen} == {"second", "third"}
    assert set().union(*(adds for _, adds in chosen)) == {"add", "mul", "sub", "exp", "max"}
