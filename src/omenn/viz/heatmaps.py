"""Signed maps as pictures: zero is white, positive is red, negative is blue.

NOTE [one scale]
Maps of the same unit (parts of one logit) are drawn with one scale, so that equal colours mean
equal numbers. The scale is a high quantile of the absolute values: a few extreme pixels would
otherwise turn everything else white. Larger values have the colour of the end.
"""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from omenn.check import positive, real
from omenn.errors import InputError

LEVELS = 127  # steps on each side of zero: 255 colours, with white exactly in the middle
QUANTILE = 0.995
PALE = 0.42  # how dark a picture is under a map, at most


def as_matrix(matrix: Any) -> np.ndarray:
    """A tensor or array (H, W) as float64 on the CPU; ``InputError`` for any other shape or NaN."""
    if hasattr(matrix, "detach"):
        matrix = matrix.detach().to("cpu").double().numpy()
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise InputError(
            f"a heat map needs a matrix (height, width), got shape {values.shape}.",
            argument="matrix",
            got=str(values.shape),
            expected="(height, width)",
            remedy="Choose one sample, and sum over the channels.",
        )
    if not np.isfinite(values).all():
        raise InputError(
            "the heat map contains NaN or infinite values.",
            argument="matrix",
            got=str(values[~np.isfinite(values)][0]),
            expected="finite numbers",
            remedy="Check the model's output.",
        )
    return values


def scale_of(*matrices: Any, quantile: float = QUANTILE) -> float:
    """The number at the end of the colour bar, shared by ``matrices`` (see NOTE [one scale]).

    >>> scale_of([[0.0, -2.0]], quantile=1.0)
    2.0
    """
    sizes = np.concatenate([np.abs(as_matrix(matrix)).ravel() for matrix in matrices])
    scale = float(np.quantile(sizes, quantile)) or float(sizes.max())
    return scale if scale > 0 else 1.0


def signed_rgb(matrix: Any, scale: float | None = None) -> np.ndarray:
    """Draw a signed matrix (H, W) as (H, W, 3), uint8.

    White is exactly zero; ``±scale`` and beyond are the darkest red and blue. ``scale`` is
    ``scale_of(matrix)`` unless given.

    >>> pixels = signed_rgb([[-1.0, 0.0, 1.0]], scale=1.0)
    >>> assert pixels.shape == (1, 3, 3) and tuple(pixels[0, 1]) == (255, 255, 255)
    >>> assert pixels[0, 2, 0] > pixels[0, 2, 2] and pixels[0, 0, 2] > pixels[0, 0, 0]
    """
    return colours()[levels(matrix, scale)]


def levels(matrix: Any, scale: float | None = None) -> np.ndarray:
    """The row of ``colours()`` for every entry of ``matrix``, uint8; zero is row 127."""
    values = as_matrix(matrix)
    scale = scale_of(values) if scale is None else positive("scale", scale)
    return (np.rint(np.clip(values / scale, -1, 1) * LEVELS) + LEVELS).astype(np.uint8)


@functools.cache
def colours() -> np.ndarray:
    """The 255 colours from blue over white to red, (255, 3), uint8.

    Both arms have the same lightness at the same distance from zero (in OKLab, Ottosson 2020), so
    neither sign looks stronger, also in grey and for colour-blind readers.
    """
    distance = np.linspace(0, 1, LEVELS + 1)
    arms = []
    for hue, most in ((math.radians(255), 0.15), (math.radians(30), 0.165)):
        lightness = 1 - 0.60 * distance
        chroma = most * np.sin(np.pi / 2 * np.minimum(1, distance * 1.4))
        arms.append(_oklab_to_srgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue)))
    table = np.concatenate([arms[0][:0:-1], arms[1]])
    table.setflags(write=False)
    return table


def _oklab_to_srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def smooth(matrix: Any, sigma: float) -> np.ndarray:
    """Spread every entry of (H, W) by a Gaussian of ``sigma`` entries; the sum stays the same.

    ``K_H C K_Wᵀ`` where every column of K sums to one: what would leave the picture is reflected
    back in at the border. So a smoothed exact matrix still sums to the logit, but an entry then
    stands for its neighbourhood. See ``omenn.viz.gaussian`` for tensors, batches and tokens.

    >>> import numpy as np
    >>> spike = np.zeros((5, 7)); spike[0, 0] = 3.0
    >>> round(float(smooth(spike, 2.0).sum()), 9)
    3.0
    """
    values = as_matrix(matrix)
    sigma = real("the width of the smoothing", sigma, 0)
    if sigma == 0:
        return values
    import torch

    from omenn.filters import gaussian_filter

    return gaussian_filter(torch.from_numpy(values.copy()), sigma).numpy()


def overlay(image: np.ndarray, matrix: Any, scale: float | None = None) -> np.ndarray:
    """Lay a signed matrix over a pale grey copy of ``image`` (H, W, 3): strong entries cover it.

    The matrix is stretched to the picture without blending its entries.
    """
    values = as_matrix(matrix)
    height, width = image.shape[:2]
    index = levels(values, scale)
    rows = np.arange(height) * index.shape[0] // height
    columns = np.arange(width) * index.shape[1] // width
    index = index[rows][:, columns]
    grey = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    pale = np.repeat((255 - PALE * (255 - grey))[..., None], 3, axis=2)
    cover = (np.abs(index.astype(np.float64) - LEVELS) / LEVELS)[..., None] ** 0.7
    return np.rint(pale * (1 - cover) + colours()[index] * cover).astype(np.uint8)


def png(pixels: np.ndarray, *, enlarge: int = 1) -> bytes:
    """(H, W, 3) uint8 as a PNG file; every pixel becomes a square of ``enlarge`` pixels."""
    image = Image.fromarray(pixels)
    if enlarge > 1:
        size = (image.width * enlarge, image.height * enlarge)
        image = image.resize(size, Image.Resampling.NEAREST)
    few = image.getcolors(256)
    if few is not None:  # a signed map has 255 colours at most: a third of the bytes, no loss
        image = image.quantize(len(few), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()
