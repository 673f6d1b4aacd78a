"""Operators that are others put together: written out, each part seen by the tracer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from omenn.engine.operators.record import Operator
from omenn.engine.trace.call import Call, substitute


def composed(twin: Callable[..., Any], **known: Any) -> Operator:
    """The record of an operator whose plain form is ``twin``, with the same arguments."""

    def rule(call: Call) -> Any:
        with call.context:  # back in force: what follows is seen operator by operator
            if not call.inplace:
                try:
                    return twin(*call.args, **call.kwargs)
                except NotImplementedError as why:
                    raise call.refuse(str(why)) from None
            # NOTE [outlive the write]: the parts need the tensor as it was.
            target, before = call.first, call.first.clone()
            args, kwargs = substitute(
                (call.args, call.kwargs), lambda t: before if t is target else t
            )
            return target.copy_(twin(*args, **kwargs))

    return Operator(rule, composite=True, **known)


# --- sums and products -------------------------------------------------------------------------


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + (tensor1 / tensor2) * value


def _addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _sum(input, beta, mat @ vec, alpha)


def _addr(
    input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    return _sum(input, beta, torch.outer(vec1, vec2), alpha)


def _sum(base: Tensor, beta: float, product: Tensor, alpha: float) -> Tensor:
    """β base + α product; what is multiplied by zero is not looked at."""
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else (base if beta == 1 else base * beta) + product


def _vdot(input: Tensor, other: Tensor) -> Tensor:
    return (input.conj() * other).sum()


def _vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    return (x.conj() * y).sum(dim)


def _chain(*matrices: Any) -> Tensor:
    """The product of several matrices, from the left."""
    if len(matrices) == 1 and not isinstance(matrices[0], Tensor):
        matrices = tuple(matrices[0])
    return reduce(torch.matmul, matrices)


def _cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        dim = next(d for d, n in enumerate(input.shape) if n == 3)
    return _last_cross(input, other, dim=dim)


def _last_cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    a, b = torch.broadcast_tensors(input, other)
    return a.roll(-1, dim) * b.roll(-2, dim) - a.roll(-2, dim) * b.roll(-1, dim)


def _ldexp(input: Tensor, other: Tensor) -> Tensor:
    return input * torch.pow(2.0, other)


def _hypot(input: Tensor, other: Tensor) -> Tensor:
    return (input * input + other * other).sqrt()


def _polar(abs: Tensor, angle: Tensor) -> Tensor:
    return torch.complex(abs * angle.cos(), abs * angle.sin())


def _xlogy(input: Any, other: Any) -> Tensor:
    return _logged(input, other, torch.log)


def _xlog1py(input: Any, other: Any) -> Tensor:
    return _logged(input, other, torch.log1p)


def _logged(x: Any, y: Any, log: Callable[[Tensor], Tensor]) -> Tensor:
    """x log y, and zero where x is: whatever y is there."""
    x, y = (t if isinstance(t, Tensor) else torch.as_tensor(float(t)) for t in (x, y))
    safe = torch.where((x == 0) & ~y.isnan(), torch.ones_like(y), y)
    return x * log(safe)


def _cov(
    input: Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None
) -> Tensor:
    if fweights is not None or aweights is not None:
        raise NotImplementedError("weighted observations have no rule")
    x = torch.atleast_2d(input) if input.ndim < 2 else input
    centred = x - x.mean(1, keepdim=True)
    return (centred @ centred.mH).squeeze() / (x.shape[1] - correction)


# --- moments -----------------------------------------------------------------------------------


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """``var_mean`` and ``std_mean``: the two of them, one by one."""

    def both(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        names = ("unbiased",) if args and isinstance(args[0], bool) else ("dim", "unbiased")
        given = dict(zip((*names, "keepdim"), args, strict=False)) | kwargs
        dim = given.get("dim", given.get("axis"))
        keep = given.get("keepdim", False)
        every = list(range(input.ndim)) if dim is None else dim
        return spread(input, *args, **kwargs), input.mean(every, keepdim=keep)

    return both


# --- layout ------------------------------------------------------------------------------------


def _several(tensors: Sequence[Any]) -> list[Tensor]:
    """Tensors given one by one, or as a list."""
    one = len(tensors) == 1 and not isinstance(tensors[0], Tensor)
    return list(tensors[0]) if one else list(tensors)


def _broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    given = _several(tensors)
    shape = torch.broadcast_shapes(*[t.shape for t in given])
    return tuple(t.expand(shape) for t in given)


def _meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    given = [t.reshape(-1) for t in _several(tensors)]
    swap = indexing == "xy" and len(given) > 1
    if swap:
        given[:2] = given[1::-1]
    shape = [t.numel() for t in given]
    found = [
        t.reshape([-1 if d == k else 1 for d in range(len(given))]).expand(shape)
        for k, t in enumerate(given)
    ]
    if swap:
        found[:2] = found[1::-1]
    return tuple(found)


def _cartesian_prod(*tensors: Any) -> Tensor:
    given = _several(tensors)
    if len(given) == 1:
        return given[0].view_as(given[0])
    return torch.stack([t.reshape(-1) for t in _meshgrid(*given)], 1)


def _combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    number = torch.arange(input.numel(), device=input.device)
    return input[torch.combinations(number, r, with_replacement)]


def _block_diag(*tensors: Any) -> Tensor:
    given = [torch.atleast_2d(t) for t in _several(tensors)]
    width = sum(t.shape[1] for t in given)
    found, start = [], 0
    for t in given:
        found.append(F.pad(t, (start, width - start - t.shape[1])))
        start += t.shape[1]
    return torch.cat(found)


def _column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t if t.ndim > 1 else t.reshape(-1, 1) for t in tensors], 1)


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    parts = [torch.atleast_1d(t) for t in tensors]
    return torch.cat(parts, min(1, parts[0].ndim - 1))


def _vstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.atleast_2d(t) for t in tensors])


def _dstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.atleast_3d(t) for t in tensors], 2)


def _diag(input: Tensor, diagonal: int = 0) -> Tensor:
    if input.ndim == 1:
        return torch.diag_embed(input, diagonal)
    return input.diagonal(diagonal).clone()


def _diagflat(input: Tensor, offset: int = 0) -> Tensor:
    return torch.diag_embed(input.reshape(-1), offset)


def _sum_to_size(input: Tensor, *size: Any) -> Tensor:
    shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
    lead = input.ndim - len(shape)
    wide = [d for d in range(len(shape)) if shape[d] == 1 < input.shape[lead + d]]
    out = input.sum(list(range(lead))) if lead else input
    return out.sum(wide, keepdim=True) if wide else out


def _msort(input: Tensor) -> Tensor:
    return torch.sort(input, 0).values


def _fill_diagonal(input: Tensor, fill_value: float, wrap: bool = False) -> Tensor:
    mask = torch.zeros(input.shape, dtype=torch.bool, device=input.device)
    return input.masked_fill(mask.fill_diagonal_(True, wrap), fill_value)


def _made(data: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
    """``torch.tensor`` and kin: a copy of tensors that is followed like a detached one."""
    if isinstance(data, Tensor):
        out = data.detach().clone()
    else:
        parts = [d if isinstance(d, (int, float, complex)) else _made(d) for d in data]
        like = next(p for p in parts if isinstance(p, Tensor))
        out = torch.stack([p if isinstance(p, Tensor) else like.new_full((), p) for p in parts])
    return out if dtype is None and device is None else out.to(dtype=dtype, device=device)


def _new(like: Tensor, data: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    return _made(data, like.dtype if dtype is None else dtype, options.get("device", like.device))


def _as_tensor(data: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        return _made(data, dtype, device)
    return data if dtype is None and device is None else data.to(dtype=dtype, device=device)


# --- layers ------------------------------------------------------------------------------------


def _power_pooled(dims: int) -> Callable[..., Tensor]:
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]

    def pooled(
        input: Tensor,
        norm_type: float,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
    ) -> Tensor:
        sizes = [kernel_size] * dims if isinstance(kernel_size, int) else list(kernel_size)
        stride = kernel_size if stride is None else stride
        mean = pool(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
        size = reduce(lambda a, b: a * b, sizes)
        return (torch.sign(mean) * F.relu(torch.abs(mean)) * size).pow(1.0 / norm_type)

    return pooled


def _conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    x, w = input.permute(1, 2, 0), weight.permute(2, 1, 0)
    return F.conv1d(x, w, bias, padding=pad).permute(2, 0, 1)


_TWINS: dict[str, Callable[..., Any]] = {
    "addcdiv": _addcdiv,
    "addmv": _addmv,
    "addr": _addr,
    "vdot": _vdot,
    "vecdot": _vecdot,
    "ldexp": _ldexp,
    "polar": _polar,
    "xlogy": _xlogy,
    "xlog1py": _xlog1py,
    "cov": _cov,
    "var_mean": _with_mean(torch.var),
    "broadcast_tensors": _broadcast_tensors,
    "meshgrid": _meshgrid,
    "cartesian_prod": _cartesian_prod,
    "combinations": _combinations,
    "block_diag": _block_diag,
    "column_stack": _column_stack,
    "hstack": _hstack,
    "dstack": _dstack,
    "diag": _diag,
    "diagflat": _diagflat,
    "sum_to_size": _sum_to_size,
    "msort": _msort,
    "fill_diagonal_": _fill_diagonal,
    "tensor": _made,
    "new_tensor": _new,
    "lp_pool1d": _power_pooled(1),
    "lp_pool2d": _power_pooled(2),
    "lp_pool3d": _power_pooled(3),
    "conv_tbc": _conv_tbc,
}


def crossed(call: Call) -> Any:
    """a × b: along the first dimension of three, or in ``torch.linalg`` along the last."""
    return composed(_last_cross if call.func is torch.linalg.cross else _cross).rule(call)


RECORDS: dict[str, Operator] = {name: composed(twin) for name, twin in _TWINS.items()} | {
    "hypot": composed(_hypot, joins=True),
    "vstack": composed(_vstack, names="row_stack"),
    "multi_dot": composed(_chain, names="chain_matmul"),
    "as_tensor": composed(_as_tensor, names="asarray"),
    "std_mean": composed(_with_mean(torch.std), degree=1),
    "cross": Operator(crossed, composite=True),
}
