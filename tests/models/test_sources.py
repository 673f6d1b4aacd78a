"""Models by name: every kind and every way it fails; weights that are safe, and others."""

from __future__ import annotations

import importlib.util
import pickle
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from omenn.errors import MissingExtra, ModelError, WeightsError
from omenn.modalities.image.preprocessing import IMAGENET_MEAN, Preprocessing
from omenn.models import sources
from omenn.models.checkpoints import load_weights
from omenn.models.randomness import leave_no_layer_trivial, seeded
from refusals import refused

needs_models = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("timm", "torchvision")),
    reason="the extra 'models' is not installed",
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestRemedy:
    @needs_models
    def test_a_fresh_process_may_import_timm_and_nothing_is_faked(self, tmp_path: Path) -> None:
        text = "import timm\n\ndef build():\n    return timm.create_model('test_resnet')\n"
        spec = f"{write(tmp_path / 'net.py', text)}:build"
        code = (
            "from omenn.models import sources, torchvision_remedy\n"
            f"print(sources.load({spec!r}).spec)\n"
            "torchvision_remedy.prepare()\n"
            "import torch, torchvision\n"
            "try:\n"
            "    kept = torchvision.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5)\n"
            "    print('real' if kept.ndim == 1 else 'faked')\n"
            "except RuntimeError as error:\n"
            "    print('real' if 'custom C++ ops' in str(error) else error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout.split(), done.returncode) == ([spec, "real"], 0), done.stderr


@needs_models
class TestLibraries:
    def test_timm(self) -> None:
        source = sources.load("timm:resnet18")
        assert not source.model.training
        assert source.trained is False
        assert source.weights == "random weights, seed 0: the model is not trained"
        settings = source.preprocessing
        assert (settings.size, settings.resize) == ((224, 224), (235, 235))
        assert (settings.interpolation, settings.mean) == ("bicubic", IMAGENET_MEAN)
        assert source.class_name(1).startswith("goldfish")
        assert source.class_name(1000) == "class 1000"

    def test_torchvision(self) -> None:
        source = sources.load("torchvision:squeezenet1_1")
        assert source.trained is False
        assert source.preprocessing.resize == (256, 256)
        assert source.class_name(1) == "goldfish"
        assert source.classes is not None
        assert len(source.classes) == 1000

    def test_a_timm_model_without_classes_has_no_names(self) -> None:
        source = sources.load("timm:test_vit.r160_in1k")
        assert source.classes is not None
        assert sources.load("timm:eva02_tiny_patch14_224").classes is None

    def test_random_weights_come_from_the_seed_alone(self) -> None:
        numpy_state = np.random.get_state()[1].tolist()
        before = torch.get_rng_state(), random.getstate()
        first = sources.load("timm:test_resnet", seed=3).model.state_dict()
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1], numpy_state) == (random.getstate(), np.random.get_state()[1].tolist())
        torch.rand(5)
        again = sources.load("timm:test_resnet", seed=3).model.state_dict()
        other = sources.load("timm:test_resnet", seed=4).model.state_dict()
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])

    def test_no_layer_of_a_fresh_model_is_trivial(self) -> None:
        model = sources.load("timm:test_convnext3").model
        constant = [
            name
            for name, value in [*model.named_parameters(), *model.named_buffers()]
            if value.numel() > 1 and (value == value.flatten()[0]).all()
        ]
        assert constant == []

    @pytest.mark.parametrize(
        ("spec", "remedy"),
        [
            ("timm:resnet-18", "'resnet18'"),
            ("timm:resnet18.nope", "another name"),
            ("timm:hf-hub:timm/resnet18.a1_in1k", ""),
            ("timm:hf_hub:timm/resnet18", ""),
            ("torchvision:resnet_18", "'resnet18'"),
            ("torchvision:fasterrcnn_resnet50_fpn", ""),
        ],
    )
    def test_unknown_names(self, spec: str, remedy: str) -> None:
        with pytest.raises(ModelError) as caught:
            sources.load(spec)
        assert (caught.value.argument, caught.value.got) == ("model", spec)
        assert remedy in caught.value.remedy

    @pytest.mark.parametrize("package", ["timm", "torchvision"])
    def test_missing_extra(self, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == package else find(name)
        )
        with pytest.raises(MissingExtra) as caught:
            sources.load(f"{package}:resnet18")
        assert (caught.value.package, caught.value.extra) == (package, "models")


class TestNames:
    @pytest.mark.parametrize(
        ("spec", "remedy"),
        [
            ("bird-resnet", "'birds-resnet'"),
            ("timn:resnet18", "'timm:resnet18'"),
            ("xyz", "birds-resnet, birds-vit, birds-convnet, birds-xconvnet, efficientnet-lite0"),
            ("hf:bert", "birds-resnet"),
            ("timm:", "'timm:NAME'"),
            ("", "birds-resnet"),
        ],
    )
    def test_unknown_specs(self, spec: str, remedy: str) -> None:
        with pytest.raises(ModelError) as caught:
            sources.load(spec)
        assert (caught.value.argument, caught.value.got) == ("model", spec)
        assert remedy in caught.value.remedy

    @pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta:x", ""])
    def test_devices_that_are_not_there(self, device: str) -> None:
        with refused("device", device, ModelError):
            sources.load("birds-resnet", device=device)


NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.layer(x)

def build():
    return Net()
"""


class TestFiles:
    def test_a_plain_function(self, tmp_path: Path) -> None:
        source = sources.load(f"{write(tmp_path / 'net.py', NET)}:build")
        assert not source.model.training
        assert source.trained is None
        assert "not known" in source.weights
        assert source.preprocessing == Preprocessing()
        assert "ImageNet defaults" in source.preprocessing.source
        assert (source.classes, source.example_inputs) == (None, None)

    def test_what_the_model_declares(self, tmp_path: Path) -> None:
        declared = (
            "def declared():\n"
            "    model = Net()\n"
            "    model.preprocess = {'size': 2, 'mean': 0.5, 'std': 0.5}\n"
            "    model.classes = ['cat', 'dog']\n"
            "    model.example_inputs = torch.ones(1, 4)\n"
            "    return model\n"
        )
        source = sources.load(f"{write(tmp_path / 'net.py', NET + declared)}:declared")
        assert source.preprocessing == Preprocessing((2, 2), (0.5,), (0.5,))
        assert source.classes == ("cat", "dog")
        assert torch.equal(source.example_inputs, torch.ones(1, 4))

    def test_neighbours_can_be_imported_and_the_path_is_restored(self, tmp_path: Path) -> None:
        write(tmp_path / "omenn_test_neighbour.py", "import torch\nsize = 3\n")
        path = write(
            tmp_path / "net.py",
            "import torch\nfrom omenn_test_neighbour import size\n"
            "def build():\n    return torch.nn.Linear(size, size)\n",
        )
        before = list(sys.path)
        assert sources.load(f"{path}:build").model.in_features == 3
        assert sys.path == before

    def test_weights_are_seeded(self, tmp_path: Path) -> None:
        path = write(tmp_path / "net.py", NET)
        state = torch.get_rng_state()
        one, two = (sources.load(f"{path}:build", seed=7).model.layer.weight for _ in range(2))
        assert torch.equal(one, two)
        assert torch.equal(state, torch.get_rng_state())

    @pytest.mark.parametrize(
        ("text", "function", "words"),
        [
            (NET, "biuld", "has no function 'biuld': did you mean 'build'"),
            ("x = 3\n", "x", "has no function 'x'"),
            ("def build(:\n", "build", "raised SyntaxError"),
            ("import omenn_no_such_package\n", "build", "raised ModuleNotFoundError"),
            ("raise SystemExit(3)\n", "build", "raised SystemExit"),
            ("def build():\n    raise ValueError('no good')\n", "build", "ValueError: no good"),
            ("def build():\n    return 3\n", "build", "returned int, expected a torch.nn.Module"),
            ("def build(size):\n    return size\n", "build", "raised TypeError"),
        ],
    )
    def test_files_that_do_not_work(
        self, tmp_path: Path, text: str, function: str, words: str
    ) -> None:
        path = write(tmp_path / "net.py", text)
        with pytest.raises(ModelError, match=words):
            sources.load(f"{path}:{function}")

    def test_specs_without_a_file_or_a_function(self, tmp_path: Path) -> None:
        with refused("path", "none.py", ModelError):
            sources.load(f"{tmp_path}/none.py:build")
        with refused("model", "net.py", ModelError):
            sources.load(str(write(tmp_path / "net.py", NET)))
        with refused("model", "net.py:a b", ModelError):
            sources.load(f"{tmp_path}/net.py:a b")

    @pytest.mark.parametrize(
        ("attribute", "argument", "got"),
        [
            ("preprocess = 3", "preprocess", "int"),
            ("preprocess = {'sise': 3}", "preprocessing setting", "sise"),
            ("classes = 'cat'", "classes", "'cat'"),
            ("classes = [1, 2]", "classes", "[1, 2]"),
        ],
    )
    def test_declarations_that_mean_nothing(
        self, tmp_path: Path, attribute: str, argument: str, got: str
    ) -> None:
        text = f"{NET}\ndef bad():\n    model = Net()\n    model.{attribute}\n    return model\n"
        with refused(argument, got, ModelError):
            sources.load(f"{write(tmp_path / 'net.py', text)}:bad")


class Payload:
    """Unpickling it runs code: it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


class TestWeights:
    @pytest.fixture
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    @pytest.fixture
    def state(self) -> dict[str, torch.Tensor]:
        with seeded(1):
            trained = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
            leave_no_layer_trivial(trained)
        return trained.state_dict()

    def test_safetensors(self, tmp_path: Path, model: nn.Module, state: dict[str, Any]) -> None:
        save_file(state, tmp_path / "w.safetensors")
        load_weights(model, tmp_path / "w.safetensors")
        assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
    def test_torch_files(
        self,
        tmp_path: Path,
        model: nn.Module,
        state: dict[str, Any],
        wrapper: str | None,
        prefix: str,
        zipped: bool,
    ) -> None:
        content: Any = {prefix + key: value for key, value in state.items()}
        if wrapper is not None:
            content = {wrapper: content, "epoch": 3, "best": 0.5}
        torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        load_weights(model, tmp_path / "w.pt")
        assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)

    @pytest.mark.parametrize("how", ["pickle", "torch", "torch legacy"])
    def test_code_in_a_pickle_is_refused_and_not_run(
        self, tmp_path: Path, model: nn.Module, state: dict[str, Any], how: str
    ) -> None:
        trace, path = tmp_path / "trace", tmp_path / "w.pt"
        content = {**state, "payload": Payload(trace)}
        if how == "pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
        with pytest.raises(WeightsError, match="could run code"):
            load_weights(model, path)
        assert not trace.exists()

    def test_a_whole_model_in_a_pickle_is_refused(self, tmp_path: Path, model: nn.Module) -> None:
        torch.save(model, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match="could run code"):
            load_weights(model, tmp_path / "w.pt")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04nonsense", b"hello" * 10, b"\x80\x02."])
    def test_damaged_files(self, tmp_path: Path, model: nn.Module, content: bytes) -> None:
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            load_weights(model, tmp_path / "w.pt")
        assert "\n" not in str(caught.value)

    def test_truncated_safetensors(
        self, tmp_path: Path, model: nn.Module, state: dict[str, Any]
    ) -> None:
        save_file(state, tmp_path / "whole")
        (tmp_path / "w").write_bytes((tmp_path / "whole").read_bytes()[:-4])
        with refused("path", str(tmp_path), WeightsError):
            load_weights(model, tmp_path / "w")

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, 3])
    def test_files_without_weights(self, tmp_path: Path, model: nn.Module, content: Any) -> None:
        torch.save(content, tmp_path / "w.pt")
        with refused("path", "w.pt", WeightsError):
            load_weights(model, tmp_path / "w.pt")

    def test_missing_file_and_folder(self, tmp_path: Path, model: nn.Module) -> None:
        for place in (tmp_path / "none.pt", tmp_path):
            with refused("path", str(place), WeightsError):
                load_weights(model, place)

    def test_misfits_are_named_shortly_and_change_nothing(
        self, tmp_path: Path, model: nn.Module, state: dict[str, Any]
    ) -> None:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        wrong = {**state, "0.weight": torch.zeros(5, 3), "extra": torch.zeros(1)}
        wrong |= {f"more.{index}": torch.zeros(1) for index in range(9)}
        del wrong["1.bias"]
        save_file(wrong, tmp_path / "w.safetensors")
        with pytest.raises(WeightsError) as caught:
            load_weights(model, tmp_path / "w.safetensors")
        assert "1 missing (1.bias), 10 unexpected (extra, more.0, more.1, …)" in str(caught.value)
        assert "1 of another shape (0.weight 5x3 instead of 2x3)" in str(caught.value)
        assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)

    def test_a_source_says_where_its_weights_come_from(self, tmp_path: Path) -> None:
        path = write(tmp_path / "net.py", NET)
        save_file(
            {"layer.weight": torch.ones(2, 4), "layer.bias": torch.zeros(2)},
            tmp_path / "w.safetensors",
        )
        source = sources.load(f"{path}:build", weights=tmp_path / "w.safetensors")
        assert source.model(torch.ones(1, 4)).tolist() == [[4.0, 4.0]]
        assert (source.weights, source.trained) == ("weights of w.safetensors", True)
