"""Maps judged on regular and X networks, contrast, and X-Gradient beside integrated gradients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments import command
from experiments.xdnn import contrast, identity, networks, quality
from experiments.xdnn.networks import Network, Scenes
from omenn.errors import WeightsError
from omenn.models.architectures import ARCHITECTURES

MAPS = list(quality.MAPS)
CONTRAST = (
    contrast.turned, contrast.moved, contrast.measure, contrast.right, contrast.maps
)  # fmt: skip
IG, EG = MAPS[3], MAPS[5]


class Tiny(nn.Module):
    """ReLU convolutions on 64 × 64, with and without additive terms."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 4, 4, bias=bias),
            nn.ReLU(),
            nn.Conv2d(6, 8, 4, 4, bias=bias),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 50, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def tiny(name: str) -> Network:
    torch.manual_seed(0)
    model = Tiny(name not in networks.PAIRS.values()).eval().requires_grad_(False)
    for key, value in model.state_dict().items():
        if key.endswith("bias"):
            value.copy_(torch.randn_like(value))
    return Network(name, model, "digest")


@pytest.fixture(scope="module")
def given() -> Scenes:
    return networks.scenes("test", 4, "cpu", None)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """All commands find these two."""
    found = [tiny("birds-resnet"), tiny("birds-xresnet")]
    monkeypatch.setattr(networks.Trained, "networks", lambda self, a: found)
    return found


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "xdnn-experiments.md"
    names = ("quality", "contrast", "identity")
    path.write_text("".join(f"<!-- {n}:begin -->\n<!-- {n}:end -->\n" for n in names))
    monkeypatch.setattr(command, "DOCS", tmp_path)
    for module in (quality, contrast):
        monkeypatch.setattr(module, "IMAGE", tmp_path / f"{module.__name__}.png")
    return path


def words(tmp_path: Path, *more: str) -> list[str]:
    threads = str(torch.get_num_threads())
    return ["--scenes", "3", "--threads", threads, "--work", str(tmp_path / "runs" / "own"), *more]


def rows(text: str, begin: str = "| ") -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(begin)]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def numbers(cell: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?[\d.]+(?:e[+-]\d+)?", cell)]


# --- quality ----------------------------------------------------------------------------------


class TestQuality:
    def test_maps_are_what_they_say(self, given: Scenes) -> None:
        """On an X network X-Gradient, input × gradient, IG, omenn and C_w ⊙ X are one map."""
        made = {n: quality.MAPS[n](tiny("birds-xresnet").model, given, given.x[:2]) for n in MAPS}
        assert all(map.shape == (4, 64, 64) for map in made.values())
        assert made["*constant*"].std() == 0
        assert made["*random*"].std() > 0.9
        for name in (IG, "input × gradient", "omenn", "omenn without C_b"):
            torch.testing.assert_close(made[name], made["X-Gradient"], atol=1e-6, rtol=1e-4)
        assert not torch.allclose(made["gradient"], made["X-Gradient"])
        assert float(made["gradient"].min()) < 0

    def test_the_maps_of_a_network_with_biases_differ(self, given: Scenes) -> None:
        made = {n: quality.MAPS[n](tiny("birds-resnet").model, given, given.x[:2]) for n in MAPS}
        for name in (IG, EG, "omenn"):
            apart = (made[name] - made["X-Gradient"]).abs().max() / made[name].abs().max()
            assert float(apart) > 0.05, name
        torch.testing.assert_close(made["omenn without C_b"], made["X-Gradient"])
        logits = tiny("birds-resnet").model(given.x).gather(1, given.y[:, None])[:, 0]
        torch.testing.assert_close(made["omenn"].sum((1, 2)), logits, atol=1e-4, rtol=1e-4)

    def test_expected_gradients_of_a_linear_model(self, given: Scenes) -> None:
        """w ⊙ (x − mean of the references), whatever the random points."""
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 50)).eval()
        references = torch.randn(3, 3, 64, 64)
        weight = net[1].weight.detach()[given.y].view(-1, 3, 64, 64)
        expected = (weight * (given.x - references.mean(0))).sum(1)
        torch.testing.assert_close(quality.MAPS[EG](net, given, references), expected)

    def test_command(
        self, twins: list[Network], document: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(quality, "REFERENCES", 2)
        quality.main(words(tmp_path, "--write"))
        text = capsys.readouterr().out
        assert text.strip() in document.read_text()
        assert (tmp_path / "experiments.xdnn.quality.png").stat().st_size > 20_000
        head, *found = rows(text)
        assert head[1:7] == ["KPM ↑", "KNM ↓", "KAM ↑", "RPM ↓", "RNM ↑", "RAM ↓"]
        assert head[7:] == ["RPM* ↓", "RNM* ↑", "RAM* ↓"]
        found = [row for row in found if row[0] != "map"]
        assert [row[0] for row in found] == 2 * MAPS
        for row in found:
            for cell in row[1:]:
                mean, low, high = numbers(cell)
                assert low - 1e-3 <= mean <= high + 1e-3
        for k, pick in enumerate((max, min, max, min, max, min), start=1):
            column = [(numbers(row[k])[0], row[k].startswith("**")) for row in found[: len(MAPS)]]
            best = pick(mean for mean, _ in column)
            assert all(bold == (mean == best) for mean, bold in column)
        x = {row[0]: row[1:] for row in found[len(MAPS) :]}
        assert x["X-Gradient"] == x["input × gradient"] == x["omenn"]
        assert "without birds-xconvnet, birds-xvit" in text

        monkeypatch.setattr(quality, "score", lambda *_: pytest.fail("measured again"))
        quality.main(words(tmp_path))
        assert rows(capsys.readouterr().out) == rows(text)

    def test_maps_that_order_nothing_are_named(self) -> None:
        found = {"constant": 0, "empty": dict.fromkeys(("kpm", "knm"), 0)}
        none = {"constant": 2, "empty": {"kpm": 1, "knm": 1}}
        assert quality.counted("net", {"omenn": found, "*constant*": none}) == ""
        text = quality.counted("net", {"omenn": found, "gradient": none})
        assert text == (
            "net, maps that order nothing: gradient: 2 constant, 1 without a positive pixel, "
            "1 without a negative pixel."
        )


# --- contrast ---------------------------------------------------------------------------------


class TestContrast:
    def test_how_far_a_map_turns(self) -> None:
        there = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0], [0, 0], [0, 0]])
        here = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0, 0], [1, 0]])
        expected = torch.tensor([0, 1, 2, 1 - 0.5**0.5, 0, 1], dtype=torch.float64)
        torch.testing.assert_close(contrast.turned(there[:, None], here[:, None]), expected)

    def test_how_far_a_map_moves(self) -> None:
        here = torch.tensor([[1.0, -3.0], [1.0, -3.0], [0.0, 0.0], [0.0, 0.0]])
        there = torch.tensor([[0.5, -1.5], [1.0, -3.0], [0.0, 0.0], [1.0, 0.0]])
        expected = torch.tensor([0, 1, 0, 1], dtype=torch.float64)
        torch.testing.assert_close(contrast.moved(there, here, 0.5), expected)

    def test_an_x_network_does_not_mind_and_one_with_biases_does(self, given: Scenes) -> None:
        x, regular = (contrast.measure(tiny(n), given) for n in ("birds-xresnet", "birds-resnet"))
        for found in (x, regular):
            assert len(found["right"]) == len(contrast.ALPHAS) == 10
        assert all(row == x["right"][0] for row in x["right"])
        for method in contrast.METHODS:
            assert max(max(row) for row in x["turned"][method]) < 1e-9
            assert max(max(row) for row in x["moved"][method]) < 1e-4
            assert min(regular["turned"][method][-1]) > 1e-3
            assert min(regular["moved"][method][-1]) > 1e-2

    def test_right_is_the_class_of_the_scene(self, given: Scenes) -> None:
        bright = Network("birds-resnet", Brightness(), "")
        scenes = Scenes(torch.full((3, 3, 8, 8), 0.6), torch.tensor([1, 0, 1]))
        assert contrast.right(bright, scenes, 1.0).tolist() == [1, 0, 1]
        assert contrast.right(bright, scenes, 0.5).tolist() == [0, 1, 0]

    def test_command(
        self, twins: list[Network], document: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        contrast.main(words(tmp_path, "--write"))
        text = capsys.readouterr().out
        assert text.strip() in document.read_text()
        assert (tmp_path / "experiments.xdnn.contrast.png").stat().st_size > 20_000
        accuracies = [row for row in rows(text) if len(row) == 11]
        assert accuracies[0][1:] == [f"α = {k / 10:g}" for k in range(10, 0, -1)]
        assert [row[0] for row in accuracies[1:]] == ["birds-resnet", "birds-xresnet"]
        assert len(set(accuracies[2][1:])) == 1
        changes = [row for row in rows(text) if len(row) == 6 and row[0] == "birds-xresnet"]
        assert [row[1] for row in changes] == ["X-Gradient", "omenn"]
        assert all(numbers(cell)[0] < 1e-4 for row in changes for cell in row[2:])

        key = contrast.version(*CONTRAST)
        monkeypatch.setattr(contrast, "version", lambda *_: key)
        monkeypatch.setattr(contrast, "measure", lambda *_: pytest.fail("measured again"))
        contrast.main(words(tmp_path))
        assert rows(capsys.readouterr().out) == rows(text)


class Brightness(nn.Module):
    """Class 1 where the mean is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([torch.full_like(mean, 0.5), mean], 1)


# --- identity ---------------------------------------------------------------------------------


class TestIdentity:
    def test_distance(self) -> None:
        a, b = torch.tensor([[4.0, -2.0]]), torch.tensor([[3.0, -2.5]])
        assert identity.distance([a, a], [b, a]) == pytest.approx(1.5 / 12)

    def test_x_gradient_is_ig_on_an_x_network_alone(self, given: Scenes) -> None:
        x = identity.distances(tiny("birds-xresnet"), given)
        for n, found in zip(identity.POINTS, x["float64"], strict=True):
            weights = torch.tensor(np.polynomial.legendre.leggauss(n)[1] / 2).float().double()
            missed = abs(float(weights.sum()) - 1)  # captum keeps its weights in float32
            assert found == pytest.approx(missed, rel=1e-3, abs=1e-14)
        assert max(x["float64"]) < 1.01 * identity.rounding() < 1e-7
        assert max(x["float32"]) < 1e-5
        regular = identity.distances(tiny("birds-resnet"), given)
        assert min(regular["float32"] + regular["float64"]) > 0.05

    def test_the_calls_of_the_clock_compute_the_same(self, given: Scenes) -> None:
        made = identity.calls(tiny("birds-xresnet").model, given.x, given.y)
        gradient, own, ig = (call() for call in made.values())
        torch.testing.assert_close(own.contribution, given.x * gradient)
        torch.testing.assert_close(own.contribution, ig.contribution, atol=1e-6, rtol=1e-4)

    def test_command(
        self, twins: list[Network], document: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        identity.main(words(tmp_path, "--write", "--rounds", "2"))
        text = capsys.readouterr().out
        assert text.strip() in document.read_text()
        apart = [row for row in rows(text) if row[1] in identity.DTYPES]
        assert [row[0] for row in apart] == ["birds-resnet"] * 2 + ["birds-xresnet"] * 2
        assert float(apart[3][-1]) < 1e-8
        assert float(apart[1][-1]) > 0.05
        timed = [row for row in rows(text) if row[1] == "1"]
        for row in timed:
            (own, *_), (ig, *_), (faster, *_) = map(numbers, row[2:5])
            assert ig > own > 0
            assert faster > 1

        monkeypatch.setattr(identity.timing, "paired", lambda *_, **__: pytest.fail("again"))
        identity.main(words(tmp_path, "--rounds", "2"))
        assert rows(capsys.readouterr().out) == rows(text)


# --- networks and arguments -------------------------------------------------------------------


class TestNetworks:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setitem(ARCHITECTURES, "birds-xconvnet", Tiny)
        for seed in (0, 1):
            torch.manual_seed(seed)
            path = tmp_path / f"birds-xconvnet-{seed}" / "birds-xconvnet.safetensors"
            path.parent.mkdir()
            save_file(Tiny().state_dict(), path)
        return tmp_path

    def test_those_of_a_folder(self, folder: Path) -> None:
        state = torch.get_rng_state()
        one, two = (networks.loaded("birds-xconvnet", folder, seed) for seed in (0, 1))
        assert torch.equal(state, torch.get_rng_state())
        assert one
        assert two
        assert one.x
        assert not one.model.training
        assert one.digest != two.digest
        torch.manual_seed(1)
        assert torch.equal(two.model.state_dict()["layers.0.weight"], Tiny().layers[0].weight)

    def test_bundled_ones_and_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = networks.loaded("birds-convnet", tmp_path, 0)
        assert found
        assert not found.x
        monkeypatch.setattr(networks.bundled, "names", lambda: ())
        assert networks.loaded("birds-xvit", None, 0) is None

    def test_weights_that_do_not_fit(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ARCHITECTURES, "birds-xconvnet", lambda: Tiny(bias=True))
        with pytest.raises(WeightsError, match="do not fit the model: 3 missing"):
            networks.loaded("birds-xconvnet", folder, 0)

    def test_a_short_run_takes_twins(self, folder: Path) -> None:
        own = networks.Trained("own", "", scenes=9, short=2)
        threads = str(torch.get_num_threads())
        a = own.parse(["--short", "--weights", str(folder), "--threads", threads])
        assert a.scenes == 2
        found = own.networks(a)
        names = [network.name for network in found]
        assert names[:1] == ["birds-convnet"] or names == ["birds-resnet", "birds-xresnet"]

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (["--models", "birds-net"], "no model 'birds-net'. Choose from: birds-resnet, birds-x"),
            (["--scenes", "1"], "--scenes is 1; it must be at least 2."),
            (["--threads", "0"], "--threads is 0; it must be at least 1."),
            (["--write", "--short"], "--write publishes the full form: omit --short."),
            (
                ["--write", "--models", "birds-resnet"],
                "--write publishes all networks: omit --models.",
            ),
            (
                ["--write"],
                "--write publishes all networks, and there are no weights of birds-xresnet",
            ),
            (["--weights", "/nowhere"], "--weights /nowhere: there is no such folder."),
        ],
    )
    def test_arguments_that_cannot_be_used(self, given: list[str], text: str, capsys: Any) -> None:
        for module in (quality, contrast, identity):
            with pytest.raises(SystemExit) as exit:
                module.main(given)
            assert exit.value.code == 2
            assert capsys.readouterr().err.startswith(f"{module.COMMAND.name}: error: {text}")

    def test_networks_that_are_not_there(
        self, tmp_path: Path, capsys: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(networks.bundled, "names", lambda: ("birds-resnet",))
        threads = ["--threads", str(torch.get_num_threads())]
        for more, text in (
            (
                ["--models", "birds-xvit"],
                "no weights of birds-xvit: it is not bundled, and --weights ",
            ),
            (["--weights", str(tmp_path)], f"--weights {tmp_path} has no birds-resnet-0/"),
        ):
            with pytest.raises(SystemExit):
                quality.main([*threads, *more])
            assert text in capsys.readouterr().err

    def test_rounds(self, capsys: Any) -> None:
        with pytest.raises(SystemExit):
            identity.main(["--rounds", "0", "--threads", str(torch.get_num_threads())])
        assert "--rounds is 0; it must be at least 1." in capsys.readouterr().err
