"""Multiplications counted, time by kind, and how cost grows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import floor, profile, scaling
from experiments.axes import AXES, Encoder
from experiments.scaling import Point


def called(main: Callable[[list[str]], None], *words: object) -> int:
    """The exit code of a command in this process, whose settings it may not keep."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            main([str(word) for word in words])
    except SystemExit as exit:
        return int(exit.code or 0)
    finally:
        torch.set_num_threads(threads)
    return 0


class Attention(nn.Module):
    """One head, written by hand or fused; ``frozen`` keeps the weights out of the gradient."""

    def __init__(self, fused: bool, frozen: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.fused, self.frozen = fused, frozen

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q, self.k, self.v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q @ k.transpose(-2, -1)).softmax(-1)
            mixed = (weights.detach() if self.frozen else weights) @ v
        return mixed.squeeze(1).mean(1)


class TestFloor:
    def test_what_is_spared_is_what_constant_weights_spare(self) -> None:
        x = torch.randn(2, 5, 8)
        plain, frozen = (floor.count(Attention(False, h).eval(), x) for h in (False, True))
        assert plain.spared > 0
        assert plain.gradient - plain.spared == frozen.gradient

    def test_fused_attention(self) -> None:
        n, d = 5, 8
        found = floor.count(Attention(True).eval(), torch.randn(1, n, d))
        assert found.forward == 3 * n * d * d + 2 * n * n * d
        # The backward kernel computes the weights again: five products.
        assert found.gradient == 2 * found.forward + 3 * n * n * d
        assert found.spared == 2 * n * d * d + 3 * n * n * d

    def test_products_that_are_added_in_place_count(self) -> None:
        with floor.Multiplications() as counted:
            torch.zeros(2, 3, 5).baddbmm_(torch.ones(2, 3, 4), torch.ones(2, 4, 5))
            torch.zeros(3, 5).addmm_(torch.ones(3, 4), torch.ones(4, 5))
        assert counted.count == 2 * 60 + 60

    def test_a_network_without_attention_has_no_room(self) -> None:
        found = floor.count(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(1, 4))
        assert (found.forward, found.gradient, found.ratio) == (16, 32, 1.0)

    def test_the_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert called(floor.main, "--models", "tiny") == 0
        assert "| a tiny network |" in capsys.readouterr().out
        assert called(floor.main, "--models", "huge") == 2
        assert capsys.readouterr().err.startswith("experiments.floor: error: no model 'huge'.")


class TestProfile:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("aten::mkldnn_convolution", "convolution"),
            ("aten::addmm", "matrix products"),
            ("aten::bmm", "attention and batched products"),
            (
                "aten::_scaled_dot_product_flash_attention_for_cpu",
                "attention and batched products",
            ),
            ("aten::native_layer_norm", "normalisation"),
            ("aten::copy_", "moving and filling"),
            ("aten::t", "moving and filling"),
            ("aten::gelu", "pointwise and sums"),
            ("aten::sum", "pointwise and sums"),
            ("FrozenBackward", "Python, autograd, dispatch"),
        ],
    )
    def test_kinds(self, name: str, kind: str) -> None:
        assert profile.kind_of(name) == kind

    def test_kinds_add_up_to_the_call(self) -> None:
        layer = nn.Linear(256, 256)
        spent = profile.by_kind(lambda: layer(torch.ones(64, 256)), 3)
        whole = spent.pop("profiled")
        assert spent["matrix products"] > 0
        assert sum(spent.values()) == pytest.approx(whole)

    def test_the_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        threads = torch.get_num_threads()
        assert called(profile.main, "--models", "tiny", "--calls", 2, "--threads", threads) == 0
        assert "whole call, without the profiler" in capsys.readouterr().out
        assert called(profile.main, "--models", "huge") == 2


class TestScaling:
    def test_a_short_curve_and_its_figure(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
    ) -> None:
        words = ("--only", "depth", "--most", 2, "--rounds", 1, "--work", tmp_path / "work")
        words += ("--threads", torch.get_num_threads(), "--figure", tmp_path / "curves.png")
        assert called(scaling.main, *words) == 0
        first = capsys.readouterr().out
        assert "2 – 2 blocks" in first
        with Image.open(tmp_path / "curves.png") as picture:
            assert min(picture.size) > 400

        def again(*_: object) -> None:
            raise AssertionError("measured twice")

        monkeypatch.setattr(scaling, "measure", again)
        assert called(scaling.main, *words) == 0
        assert capsys.readouterr().out == first

    def test_an_unknown_axis(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert called(scaling.main, "--only", "width") == 2
        line = "experiments.scaling: error: no axis 'width'. Choose from: tokens, depth, "
        assert capsys.readouterr().err.startswith(line)

    def test_growth_is_that_of_the_curve(self) -> None:
        def point(n: int) -> Point:
            cost = {"gradient": float(n), "explain": float(n * n)}
            return Point(n, cost, [1.0, 2.0, 3.0], cost)

        text = scaling.growth({"tokens": [point(n) for n in (2, 4, 8)]})
        assert text.endswith(
            "| 2 – 8 tokens | 2.00 – 2.00 | 2.00 – 8.00 | n^1.0 | n^2.0 | n^1.0 | n^2.0 |"
        )

    def test_the_axes_reach_as_far_as_they_say(self) -> None:
        ends = {name: (axis.values[0], axis.values[-1]) for name, axis in AXES.items()}
        assert ends["tokens"] == (128, 4096)
        assert ends["side-vit"] == ends["side-resnet"] == (64, 512)
        assert (ends["batch"], ends["outputs"], ends["depth"]) == ((1, 32), (1, 100), (2, 48))
        assert Encoder(1).eval()(torch.randn(2, 3, 192)).shape == (2, 10)
