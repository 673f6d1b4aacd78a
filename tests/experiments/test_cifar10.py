"""The ResNet-20 of CIFAR-10: its form, its shortcut, weights as they lie on disk, the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import omenn
from experiments import cifar10
from experiments.cifar10 import Block, ResNet20
from omenn.data.cifar10 import CLASSES
from omenn.models import sources

ROOT = Path(__file__).parents[2]
SPEC = f"{ROOT / 'experiments' / 'cifar10.py'}:resnet20"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """As common trained ones lie there: wrapped, from a model on several devices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        state = ResNet20().state_dict()
    path = tmp_path / "resnet20.th"
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped, "best_prec1": 12.5}, path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for k, name in enumerate(CLASSES[:3]):
        folder = tmp_path / "set" / "test" / name
        folder.mkdir(parents=True)
        pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return tmp_path / "set"


def test_it_is_the_network_of_the_paper() -> None:
    net = ResNet20()
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 20  # 6 n + 2, n = 3: shortcuts have none
    parameters = sum(p.numel() for p in net.parameters())
    assert round(parameters / 1e6, 2) == 0.27  # table 6 of the paper
    sizes = []
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda m, args, out: sizes.append(tuple(out.shape[1:])))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_names_of_common_weights() -> None:
    names = set(ResNet20().state_dict())
    assert {"conv1.weight", "bn1.bias", "linear.bias", "layer3.2.conv2.weight"} <= names
    assert {"layer1.0.conv1.weight", "layer2.1.bn2.running_var"} <= names
    assert not any("shortcut" in name or "downsample" in name for name in names)


def test_the_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    block = Block(2, 6, stride=2).eval()
    for parameter in (block.bn2.weight, block.bn2.bias):
        torch.nn.init.zeros_(parameter)  # what is beside the shortcut is 0
    x = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    out = block(x)
    assert out.shape == (1, 6, 2, 2)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 4:].any()


def test_weights_are_loaded_by_the_command_line_and_here(weights: Path) -> None:
    network, preprocessing = cifar10.load(weights)
    source = sources.load(SPEC, weights=weights)
    for name, value in source.model.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    assert not network.training
    assert source.preprocessing == preprocessing
    assert source.classes == CLASSES
    assert source.weights == "weights of resnet20.th"


def test_it_is_explained_exactly(weights: Path) -> None:
    network, preprocessing = cifar10.load(weights)
    pixels = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    e = omenn.explain(network, preprocessing(Image.fromarray(pixels)))
    assert e.exact


def test_the_command_counts_what_is_right(
    weights: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, preprocessing = cifar10.load(weights)
    answers = []
    for k, name in enumerate(CLASSES[:3]):
        with Image.open(pictures / "test" / name / f"{k}.png") as image:
            answers.append(int(network(preprocessing(image)).argmax()) == k)
    cifar10.main(["--data", str(pictures), "--weights", str(weights)])
    assert capsys.readouterr().out == (
        f"{sum(answers)} of 3 pictures right ({100 * sum(answers) / 3:.1f} %)\n"
    )


def test_what_is_missing_is_said_in_a_line(weights: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^cifar10: the weights '.*none\.th' cannot be read"):
        cifar10.main(["--data", str(pictures), "--weights", str(tmp_path / "none.th")])
    with pytest.raises(SystemExit, match=r"^cifar10: .* does not hold CIFAR-10 as pictures"):
        cifar10.main(["--data", str(tmp_path), "--weights", str(weights)])


def test_it_can_be_judged(weights: Path, pictures: Path, tmp_path: Path) -> None:
    from omenn.bench import running

    plan = {
        "data": f"cifar10:{pictures}",
        "models": [f"{SPEC}[weights={weights}]"],
        "methods": ["omenn"],
        "metrics": ["srg[patch=16]"],
    }
    done = running.run(running.prepare(None, plan, tmp_path / "out"))
    (model,) = done.record["models"]
    assert model["pictures"] == 3
    assert not any(row["failures"] for row in model["methods"])
