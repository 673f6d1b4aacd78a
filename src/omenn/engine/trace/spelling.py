"""Every spelling of an operator: function, method, dunder, in-place twin, keyword form.

``SPELLINGS[func]`` names the canonical operator of a function object and how it was spelled. The
rules (``omenn.engine.operators``) know canonical operators only. ``bind`` gives arguments their
names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Spelling(NamedTuple):
    operator: str
    inplace: bool
    reverse: bool


# Where a canonical name is looked for, under its own name and with a trailing underscore.
_HOMES: tuple[Any, ...] = (
    torch,
    Tensor,
    torch.nn.functional,
    torch._C._nn,  # pyright: ignore[reportAttributeAccessIssue]
    torch.special,
    torch.linalg,
    torch.fft,
)

# Spellings under another name: other name -> canonical operator.
_ALIASES = {
    "__add__": "add", "__iadd__": "add", "__radd__": "add",
    "__sub__": "sub", "__isub__": "sub", "__rsub__": "sub", "subtract": "sub", "rsub": "sub",
    "__mul__": "mul", "__imul__": "mul", "__rmul__": "mul", "multiply": "mul",
    "__truediv__": "div", "__itruediv__": "div", "__rtruediv__": "div", "__rdiv__": "div",
    "__div__": "div", "__idiv__": "div", "divide": "div", "true_divide": "div",
    "__matmul__": "matmul", "__imatmul__": "matmul", "__rmatmul__": "matmul",
    "mm": "matmul", "mv": "matmul", "dot": "matmul", "ger": "outer",
    "__pow__": "pow", "__ipow__": "pow", "__rpow__": "rpow", "__neg__": "neg", "negative": "neg",
    "__abs__": "abs", "absolute": "abs", "__pos__": "positive",
    "__getitem__": "getitem", "__setitem__": "setitem",
    "concat": "cat", "concatenate": "cat", "clip": "clamp", "clip_": "clamp",
    "clamp_min": "clamp", "clamp_max": "clamp", "hardtanh": "clamp", "relu6": "clamp",
    "threshold": "clamp", "hardshrink": "clamp",
    "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim",
    "view_as": "view", "reshape_as": "reshape", "ravel": "flatten",
    "expand_as": "expand", "type_as": "to", "float": "to", "double": "to", "half": "to",
    "bfloat16": "to", "type": "to", "cpu": "to", "cuda": "to",
    "split_with_sizes": "split", "tensor_split": "split", "hsplit": "split", "vsplit": "split",
    "dsplit": "split",
    "unsafe_chunk": "chunk", "unsafe_split": "split",
    "hstack": "stacked", "vstack": "stacked", "dstack": "stacked",
    "expit": "sigmoid", "erf": "erf", "selu": "elu", "celu": "elu",
    "vector_norm": "norm", "matrix_norm": "norm",
    "dropout1d": "dropout", "dropout2d": "dropout", "dropout3d": "dropout",
    "alpha_dropout": "dropout", "feature_alpha_dropout": "dropout", "feature_dropout": "dropout",
    "softmin": "softmax", "min": "max", "amin": "amax", "aminmax": "amax",
    "fmax": "maximum", "fmin": "maximum", "minimum": "maximum",
    "upsample": "interpolate", "special_softmax": "softmax",
    "conj_physical": "conj",
    "scatter_reduce": "scatter", "nan_to_num": "clamp",
    "masked_scatter": "index_put", "resolve_conj": "conj", "resolve_neg": "conj",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh", "fix": "trunc", "psi": "digamma",
    "float_power": "pow", "__mod__": "remainder", "__rmod__": "remainder",
    "__imod__": "remainder", "__floordiv__": "floor_divide", "__rfloordiv__": "floor_divide",
    "__ifloordiv__": "floor_divide", "row_stack": "stacked", "unsafe_split_with_sizes": "split",
    "__reversed__": "flip", "cdouble": "to", "cfloat": "to", "chalf": "to",
    "convolution": "conv", "grid_sampler": "grid_sample", "grid_sampler_2d": "grid_sample",
    "grid_sampler_3d": "grid_sample", "affine_grid_generator": "affine_grid",
    "constant_pad_nd": "pad", "chain_matmul": "multi_dot", "inverse": "inv", "pinverse": "pinv",
    "asarray": "as_tensor", "nanquantile": "quantile", "trapz": "trapezoid", "nansum": "sum",
    "slice_copy": "narrow",
}  # fmt: skip

# Twins that give a copy where the operator gives a view.
_COPIES = (
    "alias detach diagonal expand narrow permute select split split_with_sizes squeeze t "
    "transpose unbind unfold unsqueeze view view_as_real"
)

_FAMILIES = {
    "conv": "conv1d conv2d conv3d",
    "conv_transpose": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "avg_pool": "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d lp_pool_none",
    "max_pool": "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices",
    "max_unpool": "max_unpool1d max_unpool2d max_unpool3d",
    "fourier": "fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift "
    "ifftshift hfft ihfft hfft2 ihfft2 hfftn ihfftn",
}

_PROPERTIES = {"T": "transpose", "mT": "transpose", "H": "transpose", "mH": "transpose",
               "data": "detach", "real": "real", "imag": "imag"}  # fmt: skip

_ATTRIBUTES = "shape dtype device ndim layout is_cuda is_sparse is_mkldnn is_quantized is_meta"
_METHODS = (
    "size dim ndimension numel nelement stride element_size get_device is_contiguous "
    "is_floating_point is_complex __len__"
)
# What tells shape, type or device of a tensor and no value of it.
UNTOUCHED: frozenset[Any] = frozenset(
    [getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split()]
    + [getattr(Tensor, name) for name in _METHODS.split()]
    + [torch.is_floating_point, torch.is_complex, torch.numel]
)

# Argument names in order. A name found here can be read with ``bind`` in any spelling.
SIGNATURES: dict[str, str] = {
    "add": "input other alpha", "sub": "input other alpha",
    "mul": "input other", "floor_divide": "input other", "div": "input other rounding_mode",
    "pow": "input exponent",
    "linear": "input weight bias", "bilinear": "input1 input2 weight bias",
    "conv": "input weight bias", "conv_transpose": "input weight bias",
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "group_norm": "input num_groups weight bias eps",
    "instance_norm": "input running_mean running_var weight bias use_input_stats momentum eps",
    "rms_norm": "input normalized_shape weight eps", "normalize": "input p dim eps",
    "local_response_norm": "input size alpha beta k",
    "softmax": "input dim", "log_softmax": "input dim",
    "scaled_dot_product_attention":
        "query key value attn_mask dropout_p is_causal scale enable_gqa",
    "sum": "input dim keepdim", "mean": "input dim keepdim", "amax": "input dim keepdim",
    "max": "input dim keepdim", "median": "input dim keepdim",
    "var": "input dim correction keepdim", "std": "input dim correction keepdim",
    "norm": "input p dim keepdim dtype", "matmul": "input other", "bmm": "input other",
    "addmm": "input mat1 mat2 beta alpha", "baddbmm": "input mat1 mat2 beta alpha",
    "addbmm": "input mat1 mat2 beta alpha", "addcmul": "input tensor1 tensor2 value",
    "cat": "tensors dim", "stack": "tensors dim", "pad": "input pad mode value",
    "dropout": "input p training inplace", "embedding": "input weight",
    "prelu": "input weight", "grid_sample": "input grid", "glu": "input dim",
    "where": "condition input other", "maximum": "input other", "lerp": "input end weight",
    "roll": "input shifts dim", "topk": "input k dim", "kthvalue": "input k dim keepdim",
    "sort": "input dim descending", "nanmean": "input dim keepdim",
    "nanmedian": "input dim keepdim", "logsumexp": "input dim keepdim",
    "channel_shuffle": "input groups", "native_channel_shuffle": "input groups",
    "cosine_similarity": "x1 x2 dim eps", "outer": "input other", "inner": "input other",
    "tensordot": "input other dims", "kron": "input other", "einsum": "equation",
    "fill": "input value", "cdist": "x1 x2 p", "renorm": "input p dim maxnorm",
    "solve": "A B", "solve_triangular": "A B", "cholesky_solve": "B L upper",
    "quantile": "input q dim keepdim", "mode": "input dim keepdim",
}  # fmt: skip

# Spellings whose own argument order differs from their operator's.
_ORDERS = {
    "vector_norm": "input p dim keepdim dtype", "matrix_norm": "input p dim keepdim dtype",
    "F.softmax": "input dim _stacklevel dtype", "F.log_softmax": "input dim _stacklevel dtype",
    "F.dropout": "input p training inplace", "torch.dropout": "input p training",
    "torch.batch_norm": "input weight bias running_mean running_var training momentum eps cudnn",
    "torch.instance_norm":
        "input weight bias running_mean running_var use_input_stats momentum eps cudnn",
    "Tensor.where": "input condition other", "constant_pad_nd": "input pad value",
}  # fmt: skip

# Names used for the same argument by different spellings.
_SYNONYMS = {
    "self": "input", "tensor": "input", "axis": "dim", "ord": "p", "axes": "dim", "mat2": "other",
    "vec": "other", "dims": "dim", "keepdims": "keepdim", "input1": "input1", "batch1": "mat1",
    "batch2": "mat2", "vec2": "other", "exponent": "exponent",
}  # fmt: skip


def _build() -> tuple[dict[Any, Spelling], dict[Any, tuple[str, ...]]]:
    from omenn.engine.operators import OPERATORS  # the table names the operators; spellings follow

    names = {name: name for name in OPERATORS} | _ALIASES
    names |= {f"{name}_copy": names.get(name, "clone") for name in _COPIES.split()}
    for family, members in _FAMILIES.items():
        names |= dict.fromkeys(members.split(), family)
    table: dict[Any, Spelling] = {}
    orders: dict[Any, tuple[str, ...]] = {}
    for name, operator in names.items():
        for home in _HOMES:
            for spelled in (name, name + "_") if not name.endswith("_") else (name,):
                func = getattr(home, spelled, None)
                if not callable(func) or isinstance(func, type):
                    continue
                inplace = spelled.endswith("_") and not spelled.endswith("__")
                inplace |= spelled.startswith("__i") or spelled in ("__setitem__", "copy_")
                reverse = spelled in (
                    "__rsub__",
                    "__rtruediv__",
                    "__rdiv__",
                    "rsub",
                    "__rmod__",
                    "__rfloordiv__",
                    "__rpow__",
                    "__rmatmul__",
                )
                table.setdefault(func, Spelling(operator, inplace, reverse))
                order = _order(home, name, operator)
                if order:
                    orders.setdefault(func, order)
    for name, operator in _PROPERTIES.items():
        getter = getattr(Tensor, name).__get__
        table[getter] = Spelling(operator, False, False)
    return table, orders


def _order(home: Any, name: str, operator: str) -> tuple[str, ...]:
    prefix = {id(torch): "torch.", id(torch.nn.functional): "F.", id(Tensor): "Tensor."}
    own = _ORDERS.get(prefix.get(id(home), "") + name) or _ORDERS.get(name)
    return tuple((own or SIGNATURES.get(operator, "input")).split())


_TABLES: tuple[dict[Any, Spelling], dict[Any, tuple[str, ...]]] | None = None


def tables() -> tuple[dict[Any, Spelling], dict[Any, tuple[str, ...]]]:
    """(function -> spelling, function -> argument names); built once, at the first explanation."""
    global _TABLES
    if _TABLES is None:
        _TABLES = _build()
    return _TABLES


def spell(func: Callable[..., Any]) -> Spelling | None:
    """The canonical operator of a torch function, or None if it is not in the table."""
    return tables()[0].get(func)


def spellings(name: str) -> list[tuple[Callable[..., Any], bool]]:
    """Every torch function of a name, with its in-place twins: (function, in place)."""
    found = {}
    for prefix in ("special_", "linalg_", "fft_"):  # as torch names what lies in these modules
        name = name.removeprefix(prefix)
    for home in _HOMES if name.isidentifier() else ():
        for spelled in dict.fromkeys((name, name if name.endswith("_") else name + "_")):
            func = getattr(home, spelled, None)
            if callable(func) and not isinstance(func, type):
                found.setdefault(func, spelled.endswith("_") and not spelled.endswith("__"))
    return list(found.items())


def bind(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, as far as the signature table names them.

    >>> import torch
    >>> bound = bind(torch.nn.functional.linear, (), {"input": 1, "weight": 2, "bias": None})
    >>> assert bound == {"input": 1, "weight": 2, "bias": None}
    """
    bound = dict(zip(names_of(func), args, strict=False))
    if kwargs:
        bound |= {_SYNONYMS.get(key, key): value for key, value in kwargs.items()}
    return bound


def names_of(func: Any) -> tuple[str, ...]:
    """The names of a function's arguments in order, as far as the signature table has them."""
    return tables()[1].get(func, ("input",))
