"""Affine operators: linear, convolution, sums, averages, resampling, Fourier."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opcases.case import Case, draw, table
from oracle import halves, itself, only, selected

X = draw(2, 3, 4)
Y = draw(2, 3, 4, seed=1)
CONST = draw(2, 3, 4, seed=2)
ROW = draw(4, seed=3)
LINE, IMAGE, VOLUME = draw(2, 4, 5), draw(2, 2, 4, 4), draw(1, 2, 3, 3, 3)
WEIGHT, BIAS = draw(5, 4, seed=4), draw(5, seed=5)
GRID = draw(2, 3, 2, 2, low=-1.2, high=1.2, seed=6)


def seeded(module: nn.Module) -> nn.Module:
    """The module in float64 and evaluation mode, every parameter and buffer drawn."""
    module = module.double().eval()
    for k, (name, t) in enumerate([*module.named_parameters(), *module.named_buffers()]):
        if t.is_floating_point():
            low = 0.3 if "var" in name else -1.0
            t.data.copy_(draw(*t.shape, low=low, high=1.0, seed=11 + k))
    return module


def deprecated(func, **options):
    """A call that torch warns about."""

    def call(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return func(x, **options)

    return call


SQUARE = seeded(nn.Linear(4, 4))

LAYERS: list[Case] = [
    *table("linear", {
        "module": seeded(nn.Linear(4, 5)), "no bias": seeded(nn.Linear(4, 5, bias=False)),
        "function": lambda x: F.linear(x, WEIGHT, BIAS),
        "keyword": lambda x: F.linear(input=x, weight=WEIGHT, bias=BIAS),
        "mixed": lambda x: F.linear(x, weight=WEIGHT),
        "reused": lambda x: SQUARE(SQUARE(x)),
    }, X),
    *table("linear", {"carried bias": lambda x, y: F.linear(CONST[0], y[0, :, :], x[0, 0, :3])},
           X, Y, samples=False),
    *table("linear", {"two inputs": F.linear}, draw(2, 3), draw(4, 3), oracle=halves,
           samples=False),
    *table("conv", {
        "1d": seeded(nn.Conv1d(4, 6, 3, padding=1)),
        "1d stride": seeded(nn.Conv1d(4, 2, 2, stride=2)),
        "1d groups": seeded(nn.Conv1d(4, 4, 3, groups=2)),
        "1d no bias": seeded(nn.Conv1d(4, 3, 2, bias=False)),
        "1d circular": seeded(nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular")),
    }, LINE),
    *table("conv", {
        "2d": seeded(nn.Conv2d(2, 3, 3, padding=1)),
        "2d patch": seeded(nn.Conv2d(2, 5, 2, stride=2)),
        "2d depthwise": seeded(nn.Conv2d(2, 4, 3, groups=2, dilation=1)),
        "2d dilated": seeded(nn.Conv2d(2, 2, 2, dilation=2)),
        "2d same": seeded(nn.Conv2d(2, 2, 3, padding="same")),
        "2d reflect": seeded(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
        "2d function": lambda x: F.conv2d(x, draw(3, 2, 2, 2), draw(3), 2),
        "2d keyword": lambda x: F.conv2d(input=x, weight=draw(3, 2, 1, 1), bias=draw(3), stride=2),
        "2d torch": lambda x: torch.conv2d(x, draw(3, 2, 2, 2)),
    }, IMAGE),
    *table("conv", {"3d": seeded(nn.Conv3d(2, 2, 2))}, VOLUME),
    *table("conv", {"unbatched": seeded(nn.Conv2d(2, 3, 2))}, draw(2, 3, 3), samples=False),
    *table("conv", {"two inputs": F.conv1d}, draw(1, 2, 4), draw(3, 2, 2), oracle=halves,
           samples=False),
    *table("conv_transpose", {
        "1d": seeded(nn.ConvTranspose1d(4, 3, 2, stride=2)),
        "1d groups": seeded(nn.ConvTranspose1d(4, 4, 3, groups=2, padding=1)),
        "1d function": lambda x: F.conv_transpose1d(x, draw(4, 2, 2), draw(2)),
    }, LINE),
    *table("conv_transpose", {
        "2d": seeded(nn.ConvTranspose2d(2, 3, 2, stride=2)),
        "2d output padding": seeded(nn.ConvTranspose2d(2, 2, 3, stride=2, output_padding=1)),
        "2d no bias": seeded(nn.ConvTranspose2d(2, 1, 2, bias=False)),
    }, IMAGE),
    *table("conv_transpose", {"3d": seeded(nn.ConvTranspose3d(2, 1, 2))}, VOLUME),
    *table("embedding", {"carried table": lambda w: F.embedding(torch.tensor([[0, 2], [1, 1]]), w)},
           draw(3, 4), samples=False),
    *table("embedding_bag", {
        how: lambda w, how=how: F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), w, mode=how)
        for how in ("sum", "mean")
    }, draw(3, 4), samples=False),
    *table("embedding_bag", {
        "offsets": lambda w: F.embedding_bag(torch.tensor([0, 2, 1]), w, torch.tensor([0, 2])),
        "torch": lambda w: torch.embedding_bag(w, torch.tensor([0, 2, 1]), torch.tensor([0, 2]))[0],
        "padding": lambda w: F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), w, padding_idx=1),
        "last offset": lambda w: F.embedding_bag(
            torch.tensor([0, 2, 1]), w, torch.tensor([0, 2, 3]), mode="sum",
            include_last_offset=True),
    }, draw(3, 4), samples=False),
    *table("embedding_bag", {
        "max": lambda w: F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), w, mode="max"),
        "largest without padding": lambda w: F.embedding_bag(
            torch.tensor([[0, 2], [1, 1]]), w, mode="max", padding_idx=1),
    }, draw(3, 4), oracle=selected, samples=False),
    *table("embedding_bag", {"weighted": lambda w: F.embedding_bag(
        torch.tensor([[0, 2], [1, 1]]), draw(3, 4), mode="sum", per_sample_weights=w)},
           draw(2, 2), samples=False),
]  # fmt: skip

ADDED: list[Case] = [
    *table("add", {
        "two": lambda x, y: x + y, "function": lambda x, y: torch.add(x, y, alpha=2.5),
        "in place": lambda x, y: x.add_(y, alpha=-1), "augmented": lambda x, y: x.__iadd__(y),
        "residual": lambda x, y: x + (x * 2 + y),
        "keyword": lambda x, y: torch.add(input=x, other=y),
        "broadcast": lambda x, y: x + y.sum(1, keepdim=True),
    }, X, Y),
    *table("add", {
        "constant": lambda x: x + CONST, "constant first": lambda x: CONST + x,
        "number": lambda x: x + 3, "number first": lambda x: 3.5 + x,
        "row": lambda x: x + ROW, "column": lambda x: x + CONST[:, :, :1],
        "alpha": lambda x: x.add(CONST, alpha=0.5), "alpha first": lambda x: CONST.add(x, alpha=2),
        "constant in place": lambda x: x.add_(ROW), "augmented number": lambda x: x.__iadd__(1.5),
        "integers": lambda x: x + torch.arange(4),
        "integer grid": lambda x: x + torch.arange(24).view(2, 3, 4),
        "truth": lambda x: x + (torch.arange(4) > 1), "zero": lambda x: x + 0,
        "into constant": lambda x: CONST.clone().add_(x), "itself": lambda x: x + x,
        "wider": lambda x: x.sum(1, keepdim=True) + CONST,
        "parameter": lambda x: x + SQUARE.weight[:3],
    }, X),
    *table("sub", {
        "two": lambda x, y: x - y, "function": lambda x, y: torch.sub(x, y, alpha=2),
        "in place": lambda x, y: x.sub_(y), "augmented": lambda x, y: x.__isub__(y),
        "rsub": lambda x, y: torch.rsub(x, y, alpha=3), "subtract": torch.subtract,
    }, X, Y),
    *table("sub", {
        "constant": lambda x: x - CONST, "constant first": lambda x: CONST - x,
        "number": lambda x: x - 2, "number first": lambda x: 2 - x,
        "rsub number": lambda x: torch.rsub(x, 1.5),
        "rsub alpha": lambda x: torch.rsub(x, CONST, alpha=2),
        "constant in place": lambda x: x.sub_(ROW), "augmented row": lambda x: x.__isub__(ROW),
        "into constant": lambda x: CONST.clone().sub_(x), "one minus": lambda x: 1 - x.mean(1),
        "alpha": lambda x: torch.sub(x, CONST, alpha=3), "dunder": lambda x: x.__rsub__(2.0),
    }, X),
]  # fmt: skip

REDUCED: list[Case] = [
    *table("sum", {
        "method": lambda x: x.sum(1), "dims": lambda x: x.sum((1, 2)),
        "keepdim": lambda x: x.sum(-1, True),
        "function": lambda x: torch.sum(x, dim=2, keepdim=True), "axis": lambda x: x.sum(axis=1),
        "keyword": lambda x: torch.sum(input=x, dim=(1,)),
        "dtype": lambda x: x.sum(1, dtype=torch.float64),
    }, X),
    *table("sum", {"all": lambda x: x.sum(), "none": lambda x: torch.sum(x, None),
                   "over samples": lambda x: x.sum(0)}, X, samples=False),
    *table("mean", {"method": lambda x: x.mean(1), "dims": lambda x: x.mean([1, 2]),
                    "keepdim": lambda x: x.mean((2,), keepdim=True),
                    "function": lambda x: torch.mean(x, 1)}, X),
    *table("mean", {"all": lambda x: x.mean(),
                    "over samples": lambda x: x.mean(0)}, X, samples=False),
    *table("nanmean", {"method": lambda x: x.nanmean(1)}, X),
    *table("dropout", {
        "module": nn.Dropout(0.5).eval(), "function": lambda x: F.dropout(x, 0.5, False),
        "keyword": lambda x: F.dropout(x, p=0.3, training=False),
        "torch": lambda x: torch.dropout(x, 0.5, False),
        "alpha": nn.AlphaDropout().eval(), "1d": nn.Dropout1d().eval(),
        "in place": nn.Dropout(0.5, inplace=True).eval(),
        "feature": nn.FeatureAlphaDropout().eval(),
        "no chance": lambda x: F.dropout(x, 0.0, True),
    }, X),
    *table("dropout", {"2d": nn.Dropout2d().eval()}, IMAGE),
]  # fmt: skip

PEAKS = torch.tensor([[[0, 3], [8, 14]], [[5, 2], [13, 11]]]).expand(2, 2, 2, 2)

MAPS: list[Case] = [
    *table("avg_pool", {
        "2d": nn.AvgPool2d(2), "2d stride": nn.AvgPool2d(3, stride=1, padding=1),
        "2d function": lambda x: F.avg_pool2d(x, 2, count_include_pad=False),
        "adaptive 2d": nn.AdaptiveAvgPool2d(3), "global": nn.AdaptiveAvgPool2d(1),
        "uneven": lambda x: F.adaptive_avg_pool2d(x, (3, 1)),
        "keyword": lambda x: F.avg_pool2d(input=x, kernel_size=2, ceil_mode=True),
    }, IMAGE),
    *table("avg_pool", {"1d": nn.AvgPool1d(2), "adaptive 1d": nn.AdaptiveAvgPool1d(2)}, LINE),
    *table("avg_pool", {"3d": nn.AvgPool3d(2), "adaptive 3d": nn.AdaptiveAvgPool3d(2)}, VOLUME),
    *table("pixel_shuffle", {"module": nn.PixelShuffle(2),
                             "function": lambda x: F.pixel_shuffle(x, 2)},
           draw(1, 4, 2, 3)),
    *table("pixel_unshuffle", {"module": nn.PixelUnshuffle(2)}, IMAGE),
    *table("channel_shuffle", {"function": lambda x: F.channel_shuffle(x, 2),
                               "module": nn.ChannelShuffle(2)}, draw(2, 4, 2, 2)),
    *table("native_channel_shuffle", {"function": lambda x: torch.native_channel_shuffle(x, 2)},
           draw(2, 4, 2, 2)),
    *table("interpolate", {
        "nearest": lambda x: F.interpolate(x, scale_factor=2),
        "size": lambda x: F.interpolate(x, (3, 5)),
        "bilinear": lambda x: F.interpolate(x, size=6, mode="bilinear"),
        "corners": lambda x: F.interpolate(x, (5, 5), mode="bilinear", align_corners=True),
        "bicubic": lambda x: F.interpolate(x, (3, 3), mode="bicubic"),
        "antialias": lambda x: F.interpolate(x, (2, 2), mode="bilinear", antialias=True),
        "exact": lambda x: F.interpolate(x, (3, 3), mode="nearest-exact"),
        "area": lambda x: F.interpolate(x, (2, 2), mode="area"),
        "module": nn.Upsample(scale_factor=2),
        "keyword": lambda x: F.interpolate(input=x, scale_factor=0.5, mode="bicubic",
                                           antialias=True),
    }, IMAGE),
    *table("interpolate", {"upsample": deprecated(F.upsample, size=3, mode="nearest"),
                           "upsample_nearest": deprecated(F.upsample_nearest, scale_factor=2),
                           "upsample_bilinear": deprecated(F.upsample_bilinear, size=(6, 5))},
                           IMAGE),
    *table("interpolate", {"linear": lambda x: F.interpolate(x, 7, mode="linear")}, LINE),
    *table("interpolate", {"trilinear": lambda x: F.interpolate(x, 2, mode="trilinear"),
                           "nearest 3d": lambda x: F.interpolate(x, 4)}, VOLUME),
    *table("max_unpool", {"2d": lambda x: F.max_unpool2d(x, PEAKS, 2),
                          "module": lambda x: nn.MaxUnpool2d(2)(x, PEAKS)}, draw(2, 2, 2, 2)),
    *table("max_unpool", {"1d": lambda x: F.max_unpool1d(x, PEAKS[:, :, 0, :1] % 2, 2)},
           draw(2, 2, 1)),
    *table("affine_grid",
           {"function": lambda t: F.affine_grid(t, [2, 1, 3, 4], align_corners=False)},
           draw(2, 2, 3)),
    *table("fold", {"function": lambda x: F.fold(x, (3, 3), 2)}, draw(2, 4, 4)),
    *table("unfold", {"function": lambda x: F.unfold(x, 2, stride=2),
                      "module": nn.Unfold(3, padding=1),
                      "tensor": lambda x: x.unfold(2, 2, 1)}, IMAGE),
    *table("grid_sample", {
        "bilinear": lambda x: F.grid_sample(x, GRID, align_corners=False),
        "nearest": lambda x: F.grid_sample(x, GRID, "nearest", "border", True),
        "reflection": lambda x: F.grid_sample(x, GRID, padding_mode="reflection",
                                              align_corners=False),
        "bicubic": lambda x: F.grid_sample(x, GRID, mode="bicubic", align_corners=True),
    }, IMAGE),
    *table("grid_sample",
           {"carried positions": lambda x, g: F.grid_sample(x, g, align_corners=False)},
           IMAGE, GRID, oracle=only(0)),
]  # fmt: skip


def spectrum(transform):
    """Real and imaginary part of a transform: one real-valued linear map."""

    def call(x: Tensor) -> Tensor:
        z = transform(x)
        return torch.cat([z.real, z.imag], -1) if z.is_complex() else z

    return call


FOURIER: list[Case] = [
    *table("fourier", {name: spectrum(f) for name, f in {
        "fft": torch.fft.fft, "ifft": lambda x: torch.fft.ifft(x, norm="ortho"),
        "rfft": lambda x: torch.fft.rfft(x, dim=1), "fft2": torch.fft.fft2,
        "rfft2": lambda x: torch.fft.rfft2(x, norm="ortho"),
        "fftn": lambda x: torch.fft.fftn(x, dim=(1, 2)),
        "ifft2": torch.fft.ifft2, "rfftn": lambda x: torch.fft.rfftn(x, dim=(1, 2)),
        "irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x) * (1 + 0.5j), n=4),
        "irfft2": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * draw(3, 3), s=(3, 4)),
        "irfftn": lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(1, 2)), s=(3, 4), dim=(1, 2)),
        "ifftn": lambda x: torch.fft.ifftn(x, dim=(1, 2)),
        "fftshift": lambda x: torch.fft.fftshift(x, dim=1),
        "ifftshift": lambda x: torch.fft.ifftshift(x, dim=2),
        "plus constant": lambda x: torch.fft.fft(x) + (1 - 2j),
    }.items()}, X, oracle=itself),
]  # fmt: skip

CASES = LAYERS + ADDED + REDUCED + MAPS + FOURIER
