"""Convolutions, and the batch norm behind one: together one affine map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omenn.engine.kernels.patches import patches, side_by_side
from omenn.engine.operators import degrees
from omenn.engine.operators.linear import affine_layer
from omenn.engine.operators.record import Operator, records, spatial
from omenn.engine.torch_private import node_class, saved_by
from omenn.engine.trace.autograd_nodes import Affine, Constant
from omenn.engine.trace.call import Call

_BACKWARD = torch.ops.aten.convolution_backward.default
_ONLY_X = [True, False, False]
_OPTIONS = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


def convolution(call: Call) -> Tensor:
    """W ∗ x + b. A weight that depends on the input is a factor (``affine_layer``)."""
    args = call.args
    if call.owner.convolved is not None and (given := call.mark(call.first)) is not None:
        call.owner.convolved(call.first, given, call.get("weight").ndim - 2)
    if len(args) < 3 or len(call.marked) != 1 or args[0] is not call.marked[0][0]:
        return affine_layer(call)
    # Without a detour through the names of the arguments: no other call is as frequent.
    x, weight, bias = args[:3]
    if call.operator == "conv" and side_by_side(x, weight, args[3:]):
        return patches(call, x, weight, bias)
    if call.owner.create_graph or weight.is_inference():
        return affine_layer(call)
    if bias is None:
        return call.func(x, weight.detach(), None, *args[3:], **call.kwargs)
    bias = call.constant(bias)
    out = call.func(x, weight.detach(), bias, *args[3:], **call.kwargs)
    return call.attach(out, bias.reshape(-1, *[1] * (weight.ndim - 2)))


class Behind(NamedTuple):
    """The convolution behind a tensor, read off its autograd node.

    ``x`` is what it was applied to, with the history it had then; ``term`` and ``ones`` its bias.
    """

    x: Tensor
    weight: Tensor
    options: tuple[Any, ...]
    term: Tensor | None
    ones: Tensor | None


def behind(y: Tensor) -> Behind | None:
    """The convolution that made y, if nothing has changed y, or what it was made from, since."""
    node: Any = y.grad_fn
    term = ones = None
    if isinstance(node, node_class(Constant)):
        (term,), ones = node.saved_tensors, node.carried_to
        node = node.next_functions[0][0]
    if type(node).__name__ != "ConvolutionBackward0":
        return None
    (source, _), *others = node.next_functions
    if source is None or any(other is not None for other, _ in others):
        return None  # its weight or bias depends on the input
    try:
        x, weight, *options = saved_by(node, "input", "weight", *_OPTIONS)
    except (RuntimeError, AttributeError):  # overwritten since, or told otherwise by this torch
        return None
    return Behind(x, weight, tuple(options), term, ones) if x.grad_fn is source else None


def scaled_convolution(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor | None:
    """s (W ∗ x + b) + t, with its history at x: the scale joins the weight in the backward pass.

    None where the batch norm has to stand for itself: it is not behind a convolution, or the
    gradients between the two may be asked for.
    """
    if call.owner.location.grid is None or call.owner.create_graph:
        return None
    conv = behind(x)
    if conv is None:
        return None
    value = call.value()
    terms, ones = [shift], call.owner.location.ones_for(call, value)
    if conv.term is not None:
        terms.append(conv.term * scale)
    vjp = input_gradient(conv.x, conv.options)
    return Affine.apply(  # type: ignore[return-value]
        conv.x, [value], vjp, terms, ones, conv.ones, conv.weight, scale
    )


def input_gradient(x: Tensor, options: tuple[Any, ...]) -> Callable[..., Tensor]:
    """(grad, weight, scale) ↦ the gradient at x of the convolution of x, scaled by channel."""
    shape, stride, dtype, device = x.shape, x.stride(), x.dtype, x.device
    transposed = options[3]
    mixes = device.type == "cpu" and options == _MIXES.get(len(shape) - 2)

    def vjp(grad: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        if transposed or weight.numel() > grad.numel():
            grad = grad * scale
        else:
            weight = weight * scale.unsqueeze(-1)
        if mixes and weight[0, 0].numel() == 1 and grad.is_contiguous():
            # One product: PyTorch's kernel for a CPU would lay the columns out once more.
            columns = grad.reshape(*grad.shape[:2], -1)
            back = torch.bmm(
                weight.reshape(weight.shape[:2]).t().expand(len(grad), -1, -1), columns
            )
            return back.reshape(shape)
        # The kernel asks for the shape and the layout of x, not for its values.
        like = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        return _BACKWARD(grad, like, weight, None, *options, _ONLY_X)[0]

    return vjp


# The options of a convolution without stride, padding, dilation and groups, by dimensions.
_MIXES = {n: ((1,) * n, (0,) * n, (1,) * n, False, (0,) * n, 1) for n in (1, 2, 3)}

RECORDS: dict[str, Operator] = records(
    Operator(
        convolution,
        spatial,
        degree=degrees.affine("input", "weight"),
        arguments="input weight bias",
        factors="input weight",
        weight="weight",
        summand="bias",
        kind="layer",
        bounded=0,
    ),
    conv="convolution conv1d conv2d conv3d",
    conv_transpose="conv_transpose1d conv_transpose2d conv_transpose3d",
)
