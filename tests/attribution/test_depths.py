"""Mixtures over depths, the depths that are chosen by themselves, and contrasts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import omenn
from nets.small import seeded, strided

NAMES = ["input", "0", "2", "3"]


def image(n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 3, 16, 16, generator=generator, dtype=torch.float64)


weights = st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any)


@settings(max_examples=20)
@given(weights)
def test_every_convex_mixture_is_exact(counts: list[int]) -> None:
    net, mix = strided(), [c / sum(counts) for c in counts]
    e = omenn.explain(net, image(), 1, at=NAMES, mix=mix)
    assert e.exact
    assert e.promise == "exact"
    parts = [omenn.explain(net, image(), 1, at=n).matrix for n in NAMES]
    wanted = sum(w * p for w, p in zip(mix, parts, strict=True))
    torch.testing.assert_close(e.matrix, wanted)
    torch.testing.assert_close(e.matrix.sum((1, 2)), e.output)
    torch.testing.assert_close(sum(e.sources.values()), e.bias_share)


def test_what_a_mixture_holds() -> None:
    e = omenn.explain(strided(), image(), 1, at=["input", "3"])
    assert e.at == ("input", "3")
    assert e.mix == (0.5, 0.5)
    assert e.weight["input"].shape == (2, 3, 16, 16)
    assert e.contribution["3"].shape == e.inputs["3"].shape == (2, 5, 4, 4)
    assert e.bias.shape == e.matrix.shape == (2, 16, 16)
    assert 0 < e.located <= 1


def test_the_input_by_its_name_is_the_plain_explanation() -> None:
    net = strided()
    plain = omenn.explain(net, image(), 1)
    for at in ("input", ["input"]):
        found = omenn.explain(net, image(), 1, at=at)
        assert torch.equal(found.matrix, plain.matrix)
    assert omenn.explain(net, image(), 1, at="input").at is None


def test_a_module_that_is_called_input_is_itself() -> None:
    net = nn.Sequential()
    net.add_module("input", nn.Conv2d(3, 4, 4, 4))
    net.add_module("rest", nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    e = omenn.explain(seeded(net), image(), 1, at="input")
    assert e.at == "input"
    assert e.weight.shape == (2, 4, 4, 4)


def test_constants_kept_apart_are_mixed_too() -> None:
    e = omenn.explain(strided(), image(), 1, at=["input", "3"], bias="separate")
    assert e.exact
    torch.testing.assert_close(e.matrix.sum((1, 2)) + e.bias, e.output)


def test_a_mixture_is_saved_and_read(tmp_path: Path) -> None:
    e = omenn.explain(strided(), image(), 1, at=["input", "3"], mix=[0.25, 0.75])
    back = omenn.Explanation.load(e.save(tmp_path / "mixture.safetensors"))
    assert (back.at, back.mix, back.resample) == (e.at, e.mix, e.resample)
    assert torch.equal(back.weight["3"], e.weight["3"])
    assert e.save(tmp_path / "mixture.png").stat().st_size > 1000
    assert e.save(tmp_path / "mixture.html").stat().st_size > 1000


# What is asked for → the argument at fault, and how it is quoted.
REFUSED = {
    "no depth": ({"at": []}, "at", "[]"),
    "twice": ({"at": ["0", "0"]}, "at", "['0', '0']"),
    "too few": ({"at": ["0", "2"], "mix": [1.0]}, "mix", "[1.0]"),
    "no numbers": ({"at": ["0"], "mix": ["x"]}, "mix", "['x']"),
    "no list": ({"at": ["0"], "mix": 3}, "mix", "3"),
    "sum": ({"at": ["0", "2"], "mix": [0.5, 0.6]}, "mix", "[0.5, 0.6]"),
    "negative": ({"at": ["0", "2"], "mix": [1.5, -0.5]}, "mix", "[1.5, -0.5]"),
    "one depth": ({"at": "0", "mix": [1.0]}, "mix", "[1.0]"),
    "chosen": ({"at": "auto", "mix": [1.0]}, "mix", "[1.0]"),
    "no place": ({"at": ["input", "5"]}, "at", "'5'"),
    "where they are": ({"at": ["input", "1"], "resample": "none"}, "resample", "'none'"),
    "another method": ({"at": ["0", "1"], "method": "attnlrp"}, "at", "['0', '1']"),
}


@pytest.mark.parametrize(("options", "argument", "got"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_mixture_is_refused(options, argument: str, got: str) -> None:
    with pytest.raises(omenn.InputError) as caught:
        omenn.explain(strided(), image(), 1, **options)
    error = caught.value
    assert (error.argument, error.got) == (argument, got)
    assert got in str(error)
    assert error.remedy


def test_an_unknown_depth_of_a_mixture() -> None:
    with pytest.raises(omenn.ModelError, match="at='nope' is not a module of the model"):
        omenn.explain(strided(), image(), 1, at=["input", "nope"])


# --- auto ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "chosen"), [(16, ("input",)), (32, ("input", "1")), (64, ("input", "1", "3"))]
)
def test_auto_mixes_the_input_with_levels_of_at_least_16_cells(side, chosen) -> None:
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    e = omenn.explain(strided(), x, 1, at="auto")
    several = len(chosen) > 1
    assert e.at == (chosen if several else None)
    assert e.mix == ((1 / len(chosen),) * len(chosen) if several else ())
    assert e.exact


def test_auto_of_a_function_and_of_a_table_is_the_input() -> None:
    table = seeded(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    for model in (table, lambda x: table(x)):
        e = omenn.explain(model, torch.randn(2, 4, dtype=torch.float64), 1, at="auto")
        assert e.at is None
        assert e.exact


def test_one_input_by_its_name_and_several() -> None:
    net, x = strided(), torch.randn(2, 3, 32, 32, dtype=torch.float64)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixels: Tensor) -> Tensor:
            return self.net(pixels)

    wanted = omenn.explain(net, x, 1, at="auto")
    found = omenn.explain(Named().eval(), {"pixels": x}, 1, at="auto")
    assert found.at == ("input", "net.1")
    torch.testing.assert_close(found.matrix, {"pixels": wanted.matrix})
    pair = omenn.explain(lambda a, b: net(a + b), (x, x), 1, at="auto")  # no module, so no levels
    assert pair.exact
    assert [m.shape for m in pair.matrix] == [(2, 32, 32)] * 2


def test_a_batch_that_is_one_object_is_brought_to_the_input_too() -> None:
    net = strided()
    e = omenn.explain(net, image(), lambda y: y[:, 1].sum(), at="1")
    each = omenn.explain(net, image(), 1, at="1")
    assert e.matrix.shape == (1, 2, 16, 16)
    torch.testing.assert_close(e.matrix[0], each.matrix)


# --- contrasts -------------------------------------------------------------------------------


def test_contrast_with_the_rest_and_the_runner_up_is_exact_by_linearity() -> None:
    net, x = strided(), image()
    logits = net(x).detach()
    each = torch.stack([omenn.explain(net, x, k).matrix for k in range(4)], 1)  # (B, K, H, W)
    e = omenn.explain(net, x, omenn.Contrast(2, "rest"))
    assert e.exact
    others = [0, 1, 3]
    torch.testing.assert_close(e.output, logits[:, 2] - logits[:, others].mean(1))
    torch.testing.assert_close(e.matrix, each[:, 2] - each[:, others].mean(1))
    top = logits.argsort(1, descending=True)
    e = omenn.explain(net, x, omenn.Contrast(top[:, 0], "runner-up"))
    rows = torch.arange(2)
    torch.testing.assert_close(e.matrix, each[rows, top[:, 0]] - each[rows, top[:, 1]])
    e = omenn.explain(net, x, omenn.Contrast(top[:, 2], "runner-up"))  # the largest other one
    torch.testing.assert_close(e.matrix, each[rows, top[:, 2]] - each[rows, top[:, 0]])


def test_contrasts_that_cannot_be_drawn() -> None:
    with pytest.raises(omenn.TargetError) as error:
        omenn.explain(strided(), image(), omenn.Contrast(0, "best"))  # type: ignore[arg-type]
    assert str(error.value) == (
        "Contrast(a, 'best') is not known. Give a class, 'rest' or 'runner-up'."
    )
    one = seeded(nn.Sequential(nn.Flatten(), nn.Linear(768, 1)))
    with pytest.raises(omenn.TargetError) as error:
        omenn.explain(one, image(), omenn.Contrast(0, "rest"))
    assert str(error.value) == "the model has one output, so there is nothing to contrast with."
