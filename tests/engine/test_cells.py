"""Cells of coarse maps: a constant spread evenly over them is even on the input, at any size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.engine.location.overlap import averaged, blocks, tents
from opcases.case import draw
from opcases.linear import seeded
from overlaps import hats, overlaps, shares

Net = Callable[[Tensor], Tensor]
PLACED = ("spatial", "bilinear")
SIZES = st.integers(1, 40)


def expect(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-14)


def bias_of(f: Net, x: Tensor, target: Net, bias: str = "spatial") -> Tensor:
    e = omenn.explain(f, x, target, bias=bias)
    assert e.exact
    return e.bias


def convolution(spatial: int, kernel: int, *options: int, **more: int) -> nn.Module:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return seeded(kinds[spatial - 1](1, 2, kernel, *options, bias=False, **more))


# --- weights ---------------------------------------------------------------------------------


@given(SIZES, SIZES)
@pytest.mark.parametrize(("weights", "oracle"), [(blocks, overlaps), (tents, hats)])
def test_weights_are_those_of_the_geometry(
    weights: Callable[[int, int], tuple[Tensor, Tensor]],
    oracle: Callable[[int, int], Tensor],
    have: int,
    count: int,
) -> None:
    if weights is tents:
        have, count = max(have, count), min(have, count)
    index, given_weights = weights(have, count)
    found = torch.zeros(count, have, dtype=torch.float64)
    found.scatter_add_(1, index, given_weights)
    torch.testing.assert_close(found, oracle(have, count), rtol=0, atol=1e-12)
    assert (found.sum(1) - 1).abs().max() < 1e-12
    assert (found.sum(0) - count / have).abs().max() < 1e-12
    assert (given_weights >= 0).all()


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("have", "count"), [(7, 3), (6, 2), (4, 1), (3, 5), (5, 0)])
def test_means_along_a_dimension(have: int, count: int, smooth: bool) -> None:
    values = draw(2, have, 3)
    got = averaged(values, 1, count, smooth)
    wanted = shares("bilinear" if smooth else "spatial", have, count) if count else draw(0, have)
    expect(got, torch.einsum("ij,bjc->bic", wanted, values))


# --- an even map stays even ------------------------------------------------------------------


def behind(pad: tuple[int, ...], module: nn.Module, mode: str = "constant") -> Net:
    return lambda x: module(F.pad(x, pad, mode))


EVEN: dict[str, tuple[Net, tuple[int, ...]]] = {
    "225 to 112": (behind((0, 1, 0, 1), convolution(2, 3, 2)), (1, 1, 224, 224)),
    "113 to 57": (convolution(2, 3, 2, 1), (1, 1, 113, 113)),
    "7 to 3": (convolution(2, 3, 2), (2, 1, 7, 7)),
    "patches": (convolution(2, 4, 4), (2, 1, 16, 12)),
    "patches that leave a rest": (convolution(2, 4, 4), (2, 1, 18, 14)),
    "a signal": (convolution(1, 3, 2), (2, 1, 12)),
    "a signal, padded": (behind((1, 2), convolution(1, 5, 2)), (2, 1, 12)),
    "a volume": (convolution(3, 3, 2), (1, 1, 7, 8, 9)),
    "a volume, padded": (behind((0, 1, 0, 1, 0, 1), convolution(3, 3, 2)), (1, 1, 6, 4, 8)),
    "dilated": (convolution(2, 3, 1, 0, 3), (2, 1, 11, 13)),
    "dilated, strided": (convolution(2, 3, 2, 2, 2), (2, 1, 11, 9)),
    "one side": (convolution(2, 3, (2, 1), (1, 0)), (2, 1, 9, 7)),
    "a pool": (nn.MaxPool2d(3, 2), (2, 1, 10, 8)),
    "a pool, its rest as well": (nn.AvgPool2d(3, 2, ceil_mode=True), (2, 1, 10, 8)),
    "reflected": (behind((2, 2, 1, 1), convolution(2, 3), "reflect"), (2, 1, 6, 7)),
    "around": (behind((1, 2, 2, 1), convolution(2, 3, 2), "circular"), (2, 1, 6, 7)),
    "padded, as large": (behind((1, 1, 1, 1), convolution(2, 1)), (2, 1, 5, 4)),
    "padded twice": (
        lambda x: F.max_pool2d(F.pad(F.pad(x, (0, 1, 0, 1)), (1, 0, 1, 0)), 3, 2), (2, 1, 8, 6),
    ),
    "enlarged": (lambda x: F.interpolate(x, (5, 7)), (2, 1, 3, 4)),
    "enlarged along one side": (lambda x: F.interpolate(x, (9, 2), mode="area"), (2, 1, 3, 4)),
    "transposed": (seeded(nn.ConvTranspose2d(1, 1, 3, 2, bias=False)), (2, 1, 4, 3)),
    "enlarged, then strided": (
        lambda x: F.avg_pool2d(F.interpolate(x, scale_factor=2), 2), (2, 1, 4, 3),
    ),
    "enlarged, padded, strided": (
        lambda x: F.max_pool2d(F.pad(F.interpolate(x, scale_factor=2), (0, 1, 0, 1)), 3, 2),
        (2, 1, 4, 3),
    ),
}  # fmt: skip
STEPS = ("225 to 112", "7 to 3", "padded twice", "a pool", "enlarged")


@pytest.mark.parametrize("bias", PLACED)
@pytest.mark.parametrize("name", EVEN)
def test_even_map_is_even_on_the_input(name: str, bias: str) -> None:
    f, shape = EVEN[name]
    got = bias_of(lambda x: f(x) + 1.0, draw(*shape), lambda y: y.flatten(1).mean(1), bias)
    expect(got, torch.full_like(got, 1 / got[0].numel()))


@pytest.mark.parametrize("bias", PLACED)
def test_even_map_is_even_through_several_steps(bias: str) -> None:
    """As the stages of a network follow one another, each with an odd size of its own."""
    steps = [EVEN[name][0] for name in STEPS if name != "225 to 112"]

    def f(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)[:, :1]
        return x + 1.0

    got = bias_of(f, draw(2, 1, 53, 47), lambda y: y.flatten(1).mean(1), bias)
    expect(got, torch.full_like(got, 1 / (53 * 47)))


def test_in_one_sample_without_a_batch_dimension() -> None:
    conv = convolution(2, 3, 2)
    f = lambda x: conv(x[0]) + 1.0  # noqa: E731
    e = omenn.explain(f, draw(1, 1, 7, 8), lambda y: y.mean(), bias="bilinear")
    expect(e.bias, torch.full_like(e.bias, 1 / 56))


# --- what one cell has -----------------------------------------------------------------------


@pytest.mark.parametrize("bias", PLACED)
@pytest.mark.parametrize(("have", "count"), [((7, 8), (3, 3)), ((8, 5), (3, 2))])
def test_each_cell_has_its_share(bias: str, have: tuple[int, int], count: tuple[int, int]) -> None:
    conv = convolution(2, 3, 2)
    along = [shares(bias, h, n) for h, n in zip(have, count, strict=True)]
    for row in range(count[0]):
        for column in range(count[1]):
            got = bias_of(
                lambda x: conv(x) + 1.0,
                draw(2, 1, *have),
                lambda y, at=(row, column): y[:, 0, at[0], at[1]],
                bias,
            )
            wanted = torch.outer(along[0][row], along[1][column])
            expect(got, wanted.expand_as(got))


@pytest.mark.parametrize("bias", PLACED)
def test_nothing_goes_outside_of_what_is_seen(bias: str) -> None:
    """Rows that the model drops before it begins have nothing of any constant."""
    conv = convolution(2, 3, 2)
    f = lambda x: conv(F.pad(x[:, :, 2:9, 1:8], (0, 1, 0, 1))) + 1.0  # noqa: E731
    got = bias_of(f, draw(2, 1, 11, 9), lambda y: y.flatten(1).mean(1), bias)
    wanted = torch.zeros_like(got)
    wanted[:, 2:9, 1:8] = 1 / 49
    expect(got, wanted)


def test_padding_in_front_of_a_layer_without_stride_keeps_each_cell() -> None:
    for conv in (convolution(2, 3), convolution(2, 3, 1, 0, 1)):
        f = behind((1, 1, 1, 1), conv)
        got = bias_of(lambda x, f=f: f(x) + 1.0, draw(2, 1, 4, 5), lambda y: y[:, 0, 0, 4])
        wanted = torch.zeros_like(got)
        wanted[:, 0, 4] = 1.0
        expect(got, wanted)


@pytest.mark.parametrize("bias", PLACED)
def test_means_are_as_precise_as_their_inputs(bias: str) -> None:
    """Under autocast a matrix product would round the weights to eight bits."""
    conv = convolution(2, 3, 2).float()
    x = draw(1, 1, 7, 7).float()
    with torch.autocast("cpu", torch.bfloat16):
        e = omenn.explain(lambda t: conv(t).float() + 1.0, x, lambda y: y[:, 0, 1, 1], bias=bias)
    assert abs(float(e.bias.sum()) - 1) < 1e-6
