"""Convolutions."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from omenn.engine.kernels.patches import patches, side_by_side
from omenn.engine.operators.linear import LAYER, affine_layer
from omenn.engine.operators.record import Operator, spatial
from omenn.engine.trace.call import Call


def convolution(call: Call) -> Tensor:
    """W ∗ x + b. A weight that depends on the input is a factor (``affine_layer``)."""
    note_slide(call)
    x, weight = call.get("input"), call.get("weight")
    alone = len(call.marked) == 1 and call.is_active(x)
    if alone and call.operator == "conv" and side_by_side(x, weight, call.args[3:]):
        return patches(call, x, weight, call.get("bias"))
    return affine_layer(call)


def note_slide(call: Call) -> None:
    """Tells the run what a convolution slides over, from which it learns the channels."""
    if not call.operator.startswith("conv") or call.context.convolved is None:
        return
    x = call.get("input")
    if (given := call.mark(x)) is not None:
        call.context.convolved(x, given, call.get("weight").ndim - 2)


_CONVOLUTION = replace(LAYER, rule=convolution, placer=spatial)

RECORDS: dict[str, Operator] = {
    "conv": replace(_CONVOLUTION, names="convolution conv1d conv2d conv3d"),
    "conv_transpose": replace(
        _CONVOLUTION, names="conv_transpose1d conv_transpose2d conv_transpose3d"
    ),
}
