"""Pictures, pages and files of explanations; ``Explanation.plot``, ``.save``… end up here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omenn.show.maps import scale_of, signed_rgb, smooth
from omenn.show.outliers import clamp, mad
from omenn.show.postprocess import postprocess
from omenn.show.smoothing import bilateral, gaussian
from omenn.show.store import load, save

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from omenn import Explanation

__all__ = [
    "bilateral",
    "clamp",
    "gaussian",
    "heatmap",
    "load",
    "mad",
    "plot",
    "postprocess",
    "save",
    "scale_of",
    "signed_rgb",
    "smooth",
]


def heatmap(
    explanation: Explanation,
    index: int = 0,
    *,
    smooth: float = 0.0,
    scale: float | None = None,
) -> np.ndarray:
    """The matrix of one sample as a picture (H, W, 3), uint8: white is zero, red adds.

    ``smooth`` is the σ of a Gaussian in entries that keeps the sum; ``scale`` the number at the
    end of the colours (default: the 99.5 % quantile of |C|).

    Raises:
        InputError: no such sample, or a matrix without a picture.

    >>> import omenn, torch
    >>> e = omenn.explain(torch.nn.Flatten().eval(), torch.ones(1, 1, 2, 3), target=4)
    >>> assert e.heatmap().shape == (2, 3, 3)
    """
    from omenn.show import maps, panels

    return maps.signed_rgb(maps.smooth(panels.matrix_of(explanation, index), smooth), scale)


def plot(
    explanation: Explanation,
    index: int = 0,
    *,
    smooth: float = 0.0,
    **case: Any,
) -> Figure:
    """A matplotlib figure of one sample: input, C, C_w ⊙ X and C_b on one scale, with the sums.

    ``smooth`` > 0 adds a row of smoothed maps. More words and pictures may be given by name:
    ``image`` (H, W, 3) uint8, ``name``, ``model``, ``target``, ``warning`` (see
    ``omenn.show.panels.Case``).
    """
    from omenn.show.figure import figure
    from omenn.show.panels import case_of

    return figure(case_of(explanation, index, **case), sigma=smooth)
