"""Walks over the autograd graph: is every node linear, and does a tensor flow into another?

NOTE [whose history] With ``create_graph`` parameters and coefficients keep theirs, so that a
history alone does not tell that the explained input flows through a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from omenn.engine.torch_private import node_class
from omenn.engine.trace.autograd_nodes import NODES, Halve, Opaque

# Native nodes that are linear in everything that flows through them: moving, adding, selecting.
_LINEAR = frozenset(
    """
    AccumulateGrad Add AddSub Sub Rsub Neg Sum Mean Cumsum Nansum Trace Alias AsStrided View
    Reshape ReshapeAlias UnsafeView Permute Transpose T Adjoint Movedim Expand Squeeze Unsqueeze
    Select Slice Narrow Split SplitWithSizes Chunk Unbind Unfold Diagonal DiagEmbed Index
    IndexSelect IndexPut IndexAdd IndexCopy IndexFill Gather Take MaskedSelect MaskedFill
    MaskedScatter Where Scatter ScatterAdd ScatterReduce CopySlices CopyBackwards Copy ToCopy
    Clone Contiguous Cat Stack Repeat RepeatInterleave Roll Flip Rot90 Tril Triu Fill Zero
    ConstantPadNd Pad ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D
    ReplicationPad2D ReplicationPad3D PixelShuffle PixelUnshuffle ChannelShuffle
    NativeChannelShuffle Im2Col Col2Im AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool1D
    AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D UpsampleNearest1D
    UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D
    UpsampleNearestExact3D UpsampleLinear1D UpsampleBilinear2D UpsampleBilinear2DAa
    UpsampleBicubic2D UpsampleBicubic2DAa UpsampleTrilinear3D Real Imag Complex Conj ViewAsReal
    ViewAsComplex ResolveConj FftR2C FftC2R FftC2C GridSampler2D GridSampler3D CudnnGridSampler
    Relu LeakyRelu RreluWithNoise PreluKernel Prelu Abs Sgn Maximum Minimum Max Min Amax Amin
    Aminmax Median Nanmedian Kthvalue Mode Topk Sort MaxPool2DWithIndices MaxPool3DWithIndices
    MaxPool2D AdaptiveMaxPool2D AdaptiveMaxPool3D Cummax Cummin Embedding LiftFresh Detach
    UnsafeSplit UnsafeChunk SqueezeMultiple NegView Deg2Rad Rad2Deg Fmax Fmin
    PackPaddedSequence ConjPhysical MaxUnpool2D MaxUnpool3D AffineGridGenerator
    UnsafeSplitWithSizes UnfoldBackward NarrowCopy SelectScatter SliceScatter DiagonalScatter
    """.split()
)

# Native nodes of products: linear if at most one of their factors depends on the input.
_PRODUCTS = frozenset(
    """
    Mul Div Mm Mv Bmm Dot Addmm Baddbmm Addbmm Addmv Addcmul Linear MkldnnLinear Convolution
    MkldnnConvolution CudnnConvolution ConvolutionOverrideable SlowConv2D ThnnConv2D Lerp Matmul
    GroupedMm Trilinear SlowConvDilated2D SlowConvTranspose2D SlowConvDilated3D ConvDepthwise2D Pow
    """.split()
)


def short(node: Any) -> str:
    """``AddmmBackward0`` -> ``Addmm``; ``ViewBackward0_copy`` -> ``View``."""
    return type(node).__name__.removesuffix("_copy").rstrip("0123456789").removesuffix("Backward")


def reaches(node: Any, roots: Sequence[Tensor]) -> bool:
    """Whether any of the leaves ``roots`` is upstream of ``node``."""
    wanted = {id(r) for r in roots}
    seen, todo = set(), [node]
    while todo:
        here = todo.pop()
        if here is None or here in seen:
            continue
        seen.add(here)
        if id(getattr(here, "variable", None)) in wanted:
            return True
        todo += [n for n, _ in here.next_functions]
    return False


def violations(
    output: Tensor, roots: Sequence[Tensor], vouched: Set[Any] = frozenset()
) -> list[str]:
    """Nodes between the leaves ``roots`` and ``output`` that are not linear at fixed coefficients.

    Those in ``vouched`` count as linear.

    A native node must be known as linear, a product may have one factor on a path to the leaves
    (or two halved ones), and a Python node must be one of the engine's own.

    Raises the UnsupportedOperator of an opaque value, if one of the nodes made it.
    """
    if not _doubtful(output.grad_fn, vouched):
        return []
    order = _topological(output.grad_fn)
    wanted = {id(r) for r in roots}
    live: set[Any] = set()
    for node in order:  # leaves first
        leaf = id(getattr(node, "variable", None)) in wanted
        if leaf or any(n in live for n, _ in node.next_functions):
            live.add(node)
    found = []
    for node in order:
        if node in live and node not in vouched:
            problem = _problem(node, live)
            if problem:
                found.append(problem)
    return list(dict.fromkeys(found))


def _doubtful(root: Any, vouched: Set[Any]) -> bool:
    """Whether any node could break linearity, if all that is upstream depended on the input."""
    seen, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        edges = [n for n, _ in node.next_functions]
        todo += edges
        if isinstance(node, NODES) or node in vouched:
            continue
        name = short(node)
        if name in _LINEAR:
            continue
        if name not in _PRODUCTS or name == "Pow" or sum(n is not None for n in edges) > 1:
            return True
        if name == "Div" and edges[0] is None:
            return True
    return False


def _problem(node: Any, live: set[Any]) -> str | None:
    if isinstance(node, NODES):
        return None
    if isinstance(node, node_class(Opaque)):
        raise copy(node.error)  # pyright: ignore[reportAttributeAccessIssue]
    name = short(node)
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return f"custom autograd.Function '{name}'"
    if name in _PRODUCTS:
        factors = node.next_functions[1:] if name.startswith("Add") else node.next_functions
        if name == "Lerp":  # linear in both ends
            factors = factors[2:]
        live_factors = [n for n, _ in factors if n in live]
        halved = all(_is_halved(n) for n in live_factors)
        if len(live_factors) > 1 and not (halved and len(live_factors) == 2):
            return f"'{name}' of two tensors that depend on the input"
        if name == "Div" and len(node.next_functions) > 1 and node.next_functions[1][0] in live:
            return "'Div' by a tensor that depends on the input"
        return "'Pow'" if name == "Pow" else None
    return None if name in _LINEAR else f"'{name}'"


# Linear nodes that torch itself puts between a factor and the kernel of a product.
_BETWEEN = frozenset(
    "View ReshapeAlias UnsafeView Reshape Expand Unsqueeze Squeeze Transpose Permute T Sum Clone "
    "Alias".split()
)


def _is_halved(node: Any) -> bool:
    while short(node) in _BETWEEN and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return isinstance(node, node_class(Halve))


def _topological(root: Any) -> list[Any]:
    """All nodes upstream of ``root``, each after its own inputs; without recursion."""
    order: list[Any] = []
    state: dict[Any, bool] = {}
    todo = [(root, False)]
    while todo:
        node, done = todo.pop()
        if node is None:
            continue
        if done:
            order.append(node)
        elif node not in state:
            state[node] = True
            todo.append((node, True))
            todo += [(n, False) for n, _ in node.next_functions]
    return order


# --- flow ----------------------------------------------------------------------------------------


class Flow:
    """The autograd nodes that the arguments of one call had before it."""

    def __init__(self, active: Sequence[Tensor], marked: Iterable[tuple[Tensor, Any]]) -> None:
        self.active = {_node(t) for t in active if t.requires_grad}
        # A write through a view joins the history of what the view is a part of.
        self.active |= {_node(b) for t in active if (b := t._base) is not None} - {None}
        known = [t for _, m in marked if (t := m.true) is not None]
        known += [t for t, _ in marked]
        self.others = {_node(t) for t in known if t.requires_grad} - self.active

    def starts_at(self, t: Tensor) -> None:
        """Takes in an active tensor that a rule goes back to, past the arguments of its call."""
        self.active.add(_node(t))
        self.others -= self.active

    def reaches(self, out: Tensor) -> bool:
        """Whether any of the active tensors flows into ``out``."""
        seen: set[Any] = set(self.others)
        todo = [_node(out)]
        while todo:
            node = todo.pop()
            if node in self.active:
                return True
            if node is None or node in seen:
                continue
            seen.add(node)
            todo += [n for n, _ in reversed(node.next_functions)]
        return False


def _node(t: Tensor) -> Any:
    return get_gradient_edge(t).node if t.requires_grad else None
