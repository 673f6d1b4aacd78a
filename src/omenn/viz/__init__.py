"""Pictures, pages and files of explanations, behind ``Explanation.plot``, ``.save`` …"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omenn.engine.location.token_grid import token_grid
from omenn.viz.explanation_files import load, save
from omenn.viz.flat_map import drawn
from omenn.viz.heatmaps import scale_of, signed_rgb, smooth
from omenn.viz.outliers import clamp, mad
from omenn.viz.postprocess import postprocess
from omenn.viz.smoothing import bilateral, gaussian

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from omenn import Explanation

__all__ = [
    "bilateral",
    "clamp",
    "drawn",
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
    "token_grid",
]


def heatmap(
    explanation: Explanation,
    index: int = 0,
    *,
    smooth: float = 0.0,
    scale: float | None = None,
    grid: tuple[int, int] | None = None,
    input: str | int | None = None,
) -> np.ndarray:
    """The matrix of one sample as a picture (H, W, 3), uint8: white is zero, red adds.

    Every entry of the matrix is drawn once, whatever its shape; :func:`omenn.viz.drawn` returns the
    numbers. A sequence or a table is one row. Of three axes the first counts slices, which are
    drawn next to each other. Cells without an entry are grey.

    Args:
        smooth: σ of a Gaussian, in entries, that keeps the sum.
        scale: the number at the end of the colours (default: the 99.5 % quantile of |C|).
        grid: (h, w) if the entries are tokens of a picture: the last h·w, line by line. Those in
            front (class token, registers) have a separate line above. It is never guessed;
            :func:`omenn.viz.token_grid` finds it from the locations of a module's tokens.
        input: which of several inputs: a name or a position.

    Raises:
        InputError: no such sample or input, or a matrix without a picture.

    >>> import omenn, torch
    >>> e = omenn.explain(torch.nn.Flatten().eval(), torch.ones(1, 1, 2, 3), target=4)
    >>> assert e.heatmap().shape == (2, 3, 3)
    """
    from omenn.viz import flat_map, heatmaps

    shown = flat_map.sample_of(explanation, index, grid, input).smoothed(smooth)
    return shown.pixels(heatmaps.scale_of(shown.entries()) if scale is None else scale)


def plot(
    explanation: Explanation,
    index: int = 0,
    *,
    smooth: float = 0.0,
    **case: Any,
) -> Figure:
    """A matplotlib figure of one sample: input, C, C_w ⊙ X and C_b on one scale, with the sums.

    ``smooth`` > 0 adds a row of smoothed maps. ``grid`` and ``input``: see :func:`heatmap`. Further
    keyword arguments are fields of ``omenn.viz.panels.Case``: ``image`` (H, W, 3) uint8, ``name``,
    ``model``, ``target``, ``warning``.
    """
    from omenn.check import real
    from omenn.viz.figure import figure
    from omenn.viz.panels import case_of

    return figure(case_of(explanation, index, **case), sigma=real("smooth", smooth, 0))
