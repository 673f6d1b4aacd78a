"""Where constants go: to the cell of their operator, through every layout that models use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets.small import unwindowed, windows
from opcases.case import draw
from opcases.linear import seeded

IMAGE = draw(2, 3, 4, 6)
PLACEMENTS = ("spatial", "bilinear", "attention", "uniform", "separate")


def bias_of(f: Callable[[Tensor], Tensor], x: Tensor, at: tuple[int, ...], **options) -> Tensor:
    """C_b of the output element ``at`` (without the batch dimension), for every sample."""
    e = omenn.explain(f, x, lambda y: y[(slice(None), *at)], **options)
    assert e.exact
    return e.bias


def one_cell(shape: tuple[int, ...], cell: tuple[int, ...], value: float) -> Tensor:
    out = torch.zeros(shape, dtype=torch.float64)
    out[(slice(None), *cell)] = value
    return out


def expect(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def shifted(x: Tensor) -> Tensor:
    """A constant added at every position of a feature map."""
    return x + 2.0


# --- images ----------------------------------------------------------------------------------


def test_constant_of_a_pixel_goes_to_the_pixel() -> None:
    expect(bias_of(shifted, IMAGE, (1, 2, 3)), one_cell((2, 4, 6), (2, 3), 2.0))


def test_bias_of_a_convolution_goes_to_its_position() -> None:
    conv = seeded(nn.Conv2d(3, 2, 3, padding=1))
    got = bias_of(conv, IMAGE, (1, 3, 0))
    expect(got, one_cell((2, 4, 6), (3, 0), conv.bias[1].item()))


def test_bias_of_a_patch_goes_evenly_over_the_patch() -> None:
    patches = seeded(nn.Conv2d(3, 5, 2, stride=2))
    got, wanted = bias_of(patches, IMAGE, (4, 1, 2)), torch.zeros(2, 4, 6, dtype=torch.float64)
    wanted[:, 2:4, 4:6] = patches.bias[4].item() / 4
    expect(got, wanted)


def test_constant_after_pooling_goes_over_the_window() -> None:
    got = bias_of(lambda x: F.max_pool2d(x, 2) + 1, IMAGE, (0, 0, 1))
    wanted = torch.zeros(2, 4, 6, dtype=torch.float64)
    wanted[:, 0:2, 2:4] = 0.25
    expect(got, wanted)


def test_constant_after_global_pooling_goes_everywhere_and_is_not_located() -> None:
    e = omenn.explain(lambda x: x.mean((2, 3)) + 3, IMAGE, 1)
    expect(e.bias, torch.full((2, 4, 6), 3 / 24, dtype=torch.float64))
    assert e.located == 0.0


def test_constant_after_enlarging_goes_to_the_nearest_cell() -> None:
    got = bias_of(lambda x: F.interpolate(x, scale_factor=2) + 1, IMAGE, (0, 7, 4))
    expect(got, one_cell((2, 4, 6), (3, 2), 1.0))


def test_padding_belongs_to_the_rim() -> None:
    got = bias_of(lambda x: F.pad(x, (1, 1, 1, 1), value=5.0), IMAGE, (0, 0, 0))
    expect(got, one_cell((2, 4, 6), (0, 0), 5.0))
    got = bias_of(lambda x: F.pad(x, (1, 1, 1, 1)) + 1, IMAGE, (0, 5, 7))
    expect(got, one_cell((2, 4, 6), (3, 5), 1.0))
    got = bias_of(lambda x: F.pad(x, (1, 1, 1, 1)) + 1, IMAGE, (0, 2, 3))
    expect(got, one_cell((2, 4, 6), (1, 2), 1.0))


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], tuple[int, int]]] = {
    # model, element of its output, cell of the input
    "roll": (lambda x: shifted(x.roll((1, -2), (2, 3))), (0, 0, 0), (3, 2)),
    "rolled back": (lambda x: shifted(x.roll(1, 2)).roll(-1, 2), (0, 2, 5), (2, 5)),
    "flip": (lambda x: shifted(x.flip(3)), (1, 0, 0), (0, 5)),
    "transpose": (lambda x: shifted(x.transpose(2, 3)), (0, 5, 1), (1, 5)),
    "channels last": (lambda x: shifted(x.permute(0, 2, 3, 1)), (3, 4, 1), (3, 4)),
    "tokens": (lambda x: shifted(x.flatten(2).transpose(1, 2)), (8, 0), (1, 2)),
    "tokens and back": (
        lambda x: shifted(x.flatten(2).mT).mT.reshape(2, 3, 4, 6),
        (0, 2, 1),
        (2, 1),
    ),
    "slice": (lambda x: shifted(x[:, :, 1:, ::2]), (0, 2, 1), (3, 2)),
    "crop": (lambda x: shifted(F.pad(x, (-1, -1, -1, 0))), (0, 0, 0), (1, 1)),
    "narrow": (lambda x: shifted(x.narrow(3, 2, 3)), (0, 1, 1), (1, 3)),
    "select": (lambda x: shifted(x[:, :, 2]), (0, 4), (2, 4)),
    "chunk": (lambda x: shifted(x.chunk(2, 3)[1]), (0, 0, 0), (0, 3)),
    "index_select": (
        lambda x: shifted(x.index_select(3, torch.tensor([5, 0]))),
        (0, 1, 0),
        (1, 5),
    ),
    "repeat": (lambda x: shifted(x.repeat(1, 1, 1, 2)), (0, 1, 7), (1, 1)),
    "cat of maps": (lambda x: shifted(torch.cat([x, x.flip(2)], 2)), (0, 5, 0), (2, 0)),
    "cat of channels": (lambda x: shifted(torch.cat([x, 2 * x], 1)), (4, 3, 3), (3, 3)),
    "stack": (lambda x: shifted(torch.stack([x, x], 2)), (0, 1, 1, 4), (1, 4)),
    "elementwise": (lambda x: shifted(F.gelu(x) * 3), (0, 3, 5), (3, 5)),
    "gate": (
        lambda x: shifted(x * x.mean((2, 3), keepdim=True).sigmoid()),
        (0, 3, 0),
        (3, 0),
    ),
    "residual": (lambda x: shifted(x) + x.mean((2, 3), keepdim=True), (0, 0, 1), (0, 1)),
    "norm": (lambda x: shifted(F.layer_norm(x, (6,))), (2, 1, 1), (1, 1)),
    "pixel shuffle": (lambda x: shifted(F.pixel_unshuffle(x, 1)), (0, 2, 2), (2, 2)),
    "write into zeros": (
        lambda x: shifted(torch.zeros(2, 3, 4, 6).double().copy_(x)),
        (0, 2, 3),
        (2, 3),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_carries_the_place(name: str) -> None:
    f, element, cell = LAYOUTS[name]
    expect(bias_of(f, IMAGE, element), one_cell((2, 4, 6), cell, 2.0))


def test_shifted_windows_there_and_back() -> None:
    def model(x: Tensor) -> Tensor:
        rolled = x.permute(0, 2, 3, 1).roll((-1, -1), (1, 2))
        tokens = shifted(windows(rolled, 2))
        return unwindowed(tokens, 2, 4, 6).roll((1, 1), (1, 2))

    for cell in ((0, 0), (2, 3), (3, 5)):
        expect(bias_of(model, IMAGE, (*cell, 1)), one_cell((2, 4, 6), cell, 2.0))


def test_inside_a_shifted_window() -> None:
    """Window 1 of the shifted map, token 2, is row 1 + 1 and column 2 + 1 of the image."""

    def model(x: Tensor) -> Tensor:
        tokens = shifted(windows(x.permute(0, 2, 3, 1).roll((-1, -1), (1, 2)), 2))
        return tokens.view(2, -1, 4, 3)

    expect(bias_of(model, IMAGE, (1, 2, 0)), one_cell((2, 4, 6), (2, 3), 2.0))


# --- tokens ----------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Patches, a class token in front, position embedding, one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 2, stride=2)
        self.token, self.position = nn.Parameter(torch.ones(1, 1, 4)), nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def embed(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(*[self.embed(x)] * 3)[0]


def test_position_embedding_of_a_token_goes_to_its_patch() -> None:
    net = seeded(Tokens())
    constant = (net.patch.bias[1] + net.position.weight[6, 1]).item()
    got, wanted = bias_of(net.embed, IMAGE, (6, 1)), torch.zeros(2, 4, 6, dtype=torch.float64)
    wanted[:, 2:, 4:] = constant / 4
    expect(got, wanted)


def test_class_token_has_no_place() -> None:
    net = seeded(Tokens())
    constant = (net.token[0, 0, 2] + net.position.weight[0, 2]).item()
    e = omenn.explain(net.embed, IMAGE, lambda t: t[:, 0, 2])
    expect(e.bias, torch.full((2, 4, 6), constant / 24, dtype=torch.float64))
    assert e.located == 0.0


def test_located_share_counts_what_the_class_token_takes() -> None:
    net = seeded(Tokens())
    e = omenn.explain(net, IMAGE, lambda t: t[:, 0, 1])
    assert e.exact
    assert 0.05 < e.located < 0.95
    shares = sum(v.sum() for v in e.sources.values())
    torch.testing.assert_close(shares, e.bias_share.sum())


def test_sequence_goes_to_its_step() -> None:
    net = seeded(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)))
    got = bias_of(net, draw(2, 5, 3), (3, 1))
    assert got.shape == (2, 5)
    assert got[:, 3].abs().min() > 0
    assert not got[:, [0, 1, 2, 4]].any()


def test_recurrent_constants_stay_with_their_step() -> None:
    net = seeded(nn.LSTM(3, 4, batch_first=True))
    got = bias_of(lambda x: net(x)[0], draw(2, 5, 3), (2, 0))
    assert got[:, :3].abs().min() > 0
    assert not got[:, 3:].any()


RECURRENT: dict[str, Callable[[Tensor], Tensor]] = {
    "lstm": lambda x: seeded(nn.LSTM(3, 4, batch_first=True))(x)[0],
    "two layers, both ways": lambda x: seeded(
        nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    )(x)[0],
    "projected": lambda x: seeded(nn.LSTM(3, 4, proj_size=2, batch_first=True))(x)[0],
    "gru": lambda x: seeded(nn.GRU(3, 4))(x.transpose(0, 1))[0].transpose(0, 1),
    "rnn": lambda x: seeded(nn.RNN(3, 4, batch_first=True))(x)[0],
    "packed": lambda x: nn.utils.rnn.pad_packed_sequence(
        seeded(nn.GRU(3, 4))(nn.utils.rnn.pack_padded_sequence(x.mT.permute(2, 0, 1), [5, 4]))[0]
    )[0].transpose(0, 1),
    "cells": lambda x: cells(x),
}


def cells(x: Tensor) -> Tensor:
    cell, state, outs = seeded(nn.LSTMCell(3, 4)), None, []
    for t in range(x.shape[1]):
        state = cell(x[:, t], state)
        outs.append(state[0])
    return torch.stack(outs, 1)


@pytest.mark.parametrize("name", RECURRENT)
def test_outputs_of_a_recurrent_layer_lie_at_their_step(name: str) -> None:
    """A constant that is added to output 3 lies at step 3, whatever came before it."""

    def read(extra: float) -> Tensor:
        switch = torch.zeros(5, 1).double()
        switch[3] = extra
        return omenn.explain(
            lambda x: RECURRENT[name](x) + switch, draw(2, 5, 3), lambda y: y[:, 3].sum(1)
        ).bias

    moved = read(1.0) - read(0.0)
    assert moved[:, 3].abs().min() > 0.5
    assert moved[:, [0, 1, 2, 4]].abs().max() < 1e-12


def test_of_two_maps_of_one_size_the_finer_one_has_the_place() -> None:
    """As in feature pyramids, whichever comes first."""
    coarse = lambda x: F.interpolate(F.avg_pool2d(x, (4, 6)), (4, 6))  # noqa: E731
    for model in (
        lambda x: shifted(torch.cat([coarse(x), x], 1)),
        lambda x: shifted(coarse(x) + x),
        lambda x: shifted(x + coarse(x)),
    ):
        expect(bias_of(model, IMAGE, (0, 2, 3)), one_cell((2, 4, 6), (2, 3), 2.0))


def test_table_goes_to_its_column() -> None:
    x = draw(3, 4)
    got = bias_of(lambda x: x + torch.arange(4), x, (2,))
    expect(got, one_cell((3, 4), (2,), 2.0))


def test_mixed_columns_of_a_table_go_everywhere() -> None:
    net = seeded(nn.Linear(4, 2))
    got = bias_of(net, draw(3, 4), (1,))
    expect(got, torch.full((3, 4), net.bias[1].item() / 4, dtype=torch.float64))


def test_time_first_inside_the_model() -> None:
    """(T, B, F) inside: a constant of step t and sample b stays with both."""
    net = seeded(nn.TransformerEncoderLayer(4, 2, 8))

    def model(x: Tensor) -> Tensor:
        return net(x.transpose(0, 1)).transpose(0, 1)

    e = omenn.explain(model, draw(2, 4, 4), lambda y: y[:, 1].sum(1))
    assert e.exact


SPREADING: dict[str, Callable[[Tensor], Tensor]] = {
    "fourier": lambda x: torch.fft.fft(x, dim=-1).real,
    "einsum": lambda x: torch.einsum("...i,...i->...i", x, draw(4)),
    "difference": lambda x: x.diff(dim=-1),
    "diagonal": lambda x: x.diag_embed(),
    "bilinear": lambda x: torch.baddbmm(draw(4, 2, 4), x, draw(4, 4, 4)),
}


@pytest.mark.parametrize("name", SPREADING)
def test_what_has_no_place_still_knows_its_sample(name: str) -> None:
    """Operators that lose the location, with the batch in the second dimension (T, B, F)."""

    def model(x: Tensor) -> Tensor:
        out = SPREADING[name](x.transpose(0, 1)) + 1.0
        return (out * draw(*out.shape)).transpose(0, 1)

    e = omenn.explain(model, draw(2, 4, 4), lambda y: y.reshape(2, -1).sum(1))
    assert e.exact


# --- placements ------------------------------------------------------------------------------


def convnet() -> nn.Module:
    return seeded(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 2), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 3),
        )
    )  # fmt: skip


MODELS = {
    "convolutions": (convnet(), lambda y: y[:, 1]),
    "tokens": (seeded(Tokens()), lambda y: y[:, :, 1].sum(1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_placement_keeps_the_sum_and_the_weight(name: str) -> None:
    net, target = MODELS[name]
    found = {b: omenn.explain(net, IMAGE, target, bias=b) for b in PLACEMENTS}
    for e in found.values():
        assert e.exact
        torch.testing.assert_close(e.weight, found["spatial"].weight)
        torch.testing.assert_close(e.bias_share, found["spatial"].bias_share)
        assert e.sources.keys() == found["spatial"].sources.keys()
        torch.testing.assert_close(sum(e.sources.values()), e.bias_share)
    torch.testing.assert_close(found["spatial"].matrix.sum((1, 2)), found["spatial"].output)


@pytest.mark.parametrize("name", MODELS)
def test_uniform_is_even_and_separate_is_apart(name: str) -> None:
    net, target = MODELS[name]
    even = omenn.explain(net, IMAGE, target, bias="uniform")
    assert even.bias.shape == (2, 4, 6)
    torch.testing.assert_close(even.bias, even.bias.mean((1, 2), keepdim=True).expand(2, 4, 6))
    assert even.located == 0.0
    apart = omenn.explain(net, IMAGE, target, bias="separate")
    assert apart.bias.shape == (2,)
    torch.testing.assert_close(apart.matrix, apart.contribution.sum(1))
    torch.testing.assert_close(apart.bias, even.bias.sum((1, 2)))
    torch.testing.assert_close(apart.matrix.sum((1, 2)) + apart.bias, apart.output)


def test_located_is_a_share() -> None:
    everything = omenn.explain(shifted, IMAGE, lambda y: y.sum((1, 2, 3)))
    assert everything.located == 1.0
    none = omenn.explain(lambda x: 2 * x, IMAGE, lambda y: y.sum((1, 2, 3)))
    assert none.located == 1.0  # no constants: nothing is without a place
    assert none.sources == {}
    half = omenn.explain(lambda x: shifted(x).mean((1, 2, 3)) + 2.0, IMAGE, lambda y: y)
    assert half.located == pytest.approx(0.5)


def test_what_is_not_located_says_why() -> None:
    net = seeded(Tokens())
    e = omenn.explain(net, IMAGE, lambda t: t[:, 0, 1])
    assert e.reasons.keys() == {"token"}
    assert e.reasons["token"] == pytest.approx(1 - e.located)
    assert e.unlocated.keys() <= e.sources.keys()
    assert sum(v for shares in e.unlocated.values() for v in shares.values()) + e.located == (
        pytest.approx(1.0)
    )

    def model(x: Tensor) -> Tensor:
        return shifted(x.mean((2, 3))) + torch.fft.fft2(shifted(x)).real[:, :, 0, 0] + 0.5

    e = omenn.explain(model, IMAGE, 1)
    assert e.reasons.keys() == {"pooled"}
    e = omenn.explain(lambda x: shifted(x.diff(dim=3)), IMAGE, lambda y: y[:, 0, 1, 1])
    assert e.reasons == {"operator": 1.0}
    e = omenn.explain(shifted, IMAGE, lambda y: y[:, 0, 1, 1], bias="uniform")
    assert e.reasons == {"uniform": 1.0}
    assert "without a place: uniform 100%" in str(
        omenn.certify(shifted, IMAGE, lambda y: y[:, 0, 1, 1], bias="uniform")
    )


def test_rows_of_the_resampling_sum_to_one() -> None:
    """A constant of one keeps its sum whatever it is resampled by: each row is an average."""
    convolutions = [nn.Conv2d(3, 2, 3, 2, 1), nn.Conv2d(3, 2, 2, padding=2), nn.MaxPool2d(3, 2)]
    for module in [*convolutions, nn.AvgPool2d(3, 1), nn.AdaptiveAvgPool2d((3, 5))]:
        got = omenn.explain(
            nn.Sequential(seeded(module), nn.Identity()).eval(),
            IMAGE,
            lambda y: y[:, 1, -1, -1] + 1,
        )
        own = 0.0 if getattr(module, "bias", None) is None else module.bias[1].item()
        torch.testing.assert_close(got.bias.sum((1, 2)), torch.full((2,), 1 + own).double())


def test_samples_do_not_mix() -> None:
    """The explanation of a batch is that of its samples."""
    for net, target in MODELS.values():
        both = omenn.explain(net, IMAGE, target)
        for k in range(2):
            one = omenn.explain(net, IMAGE[k : k + 1], target)
            torch.testing.assert_close(both.matrix[k], one.matrix[0])


def test_reused_module_is_one_source() -> None:
    layer = seeded(nn.Linear(4, 4))
    net = nn.Sequential(layer, nn.ReLU(), layer).eval()
    e = omenn.explain(net, draw(2, 4), 0)
    assert set(e.sources) == {"0"}
    assert e.exact


def test_sources_name_the_module_of_each_constant() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.stem(x)) + 1.5

    net = seeded(Net())
    e = omenn.explain(net, draw(2, 4), 1)
    assert set(e.sources) == {"stem", "block.0", "block.1", ""}
    torch.testing.assert_close(e.sources[""], torch.full((2,), 1.5).double())
    torch.testing.assert_close(e.sources["block.1"], torch.full((2,), 0.5).double())


def test_channel_dimension_can_be_named() -> None:
    """(B, H, W, C) images: the matrix is (B, H, W)."""
    x = IMAGE.permute(0, 2, 3, 1)
    e = omenn.explain(lambda t: shifted(t).sum((1, 2)), x, 1, channel_dim=-1)
    assert e.matrix.shape == (2, 4, 6)
    assert e.exact
    with pytest.raises(omenn.InputError, match="channel_dim=-7 does not fit an input of 4"):
        omenn.explain(shifted, x, lambda y: y.sum(), channel_dim=-7)
