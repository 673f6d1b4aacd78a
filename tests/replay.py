"""The frozen network run again on another input: a second, naive engine to hold the first to.

``Replay`` sees a model's calls twice. While it records, it notes the coefficient of every
non-linear call; while it replays, it puts these coefficients to work on whatever input it is given.
So W(x) x′ + b(x) comes out of a forward pass, without autograd, marks or places. It knows the calls
of a few families of models and refuses all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

POINTWISE = frozenset(
    "relu relu_ relu6 gelu silu silu_ hardswish hardswish_ tanh leaky_relu_ elu pow".split()
)
HELD = frozenset("sigmoid sigmoid_ hardsigmoid hardsigmoid_ softmax rsqrt".split())
LINEAR = frozenset(
    "linear conv2d batch_norm avg_pool2d adaptive_avg_pool2d dropout flatten reshape view permute "
    "transpose unbind chunk split cat add add_ __add__ __radd__ __iadd__ __sub__ __getitem__ mean "
    "addcmul roll contiguous expand unsqueeze squeeze pad masked_fill float to neg clone "
    "type_as".split()
)
PRODUCTS = frozenset("mul mul_ __mul__ __rmul__ __imul__ matmul __matmul__".split())


class Replay(TorchFunctionMode):
    """Runs a function once to record, then any number of times at the recorded coefficients."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Any] = []
        self.next: int | None = None  # the note to use now; None while recording

    def record(self, model: Callable[..., Tensor], x: Tensor) -> Tensor:
        return self._run(model, x, None)

    def replay(self, model: Callable[..., Tensor], x: Tensor) -> Tensor:
        return self._run(model, x, 0)

    def _run(self, model: Callable[..., Tensor], x: Tensor, start: int | None) -> Tensor:
        self.next = start
        x = x.clone()
        x.carried = True  # type: ignore[attr-defined]
        with torch.no_grad(), self:
            return model(x)

    def note(self, make: Callable[[], Any]) -> Any:
        """The coefficient of this call: made while recording, looked up while replaying."""
        if self.next is None:
            self.notes.append(make())
            return self.notes[-1]
        self.next += 1
        return self.notes[self.next - 1]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        carried = [a for a in _tensors((args, kwargs)) if getattr(a, "carried", False)]
        if not carried:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("__get__", "size", "dim", "numel", "is_contiguous", "__len__"):
            return func(*args, **kwargs)
        out, held = self._call(name, func, args, kwargs, carried)
        for t in _tensors([out]):
            t.carried = not held  # type: ignore[attr-defined]
        return out

    def _call(
        self, name: str, func: Any, args: Any, kwargs: dict[str, Any], carried: list[Tensor]
    ) -> tuple[Any, bool]:
        plain = lambda: func(*[_copy(a) for a in args], **kwargs)  # noqa: E731
        if name in POINTWISE:
            x = args[0].clone()
            zero = func(torch.zeros_like(x), *args[1:], **kwargs)
            slope = self.note(lambda: ((plain() - zero) / x).nan_to_num(0.0))
            return zero + slope * x, False
        if name in HELD:
            return self.note(plain), True
        if name == "hardtanh":  # passes unchanged, or is a constant
            value, inside = self.note(lambda: (v := plain(), v == args[0]))
            return torch.where(inside, args[0], value), False
        if name == "layer_norm":
            return self._layer_norm(*args, **kwargs), False
        if name == "max_pool2d":
            return self._max_pool(args[0], *args[1:], **kwargs), False
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **kwargs), False
        if name in PRODUCTS and len(carried) == 2:
            a, b = args
            old = self.note(lambda: (a.clone(), b.clone()))
            return (func(old[0], b) + func(a.clone(), old[1])) / 2, False
        if name in LINEAR or name in PRODUCTS:
            return func(*args, **kwargs), False
        raise NotImplementedError(f"replay knows no '{name}'")

    def _layer_norm(self, x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        dims = list(range(-len(shape), 0))
        scale = self.note(lambda: 1 / (x.var(dims, unbiased=False, keepdim=True) + eps).sqrt())
        out = (x - x.mean(dims, keepdim=True)) * scale
        out = out if weight is None else out * weight
        return out if bias is None else out + bias

    def _max_pool(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = dict(zip(names, args, strict=False)) | kwargs | {"return_indices": True}
        index = self.note(lambda: F.max_pool2d(x, **given)[1])
        return x.flatten(2).gather(2, index.flatten(2)).view(index.shape)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        eye = torch.eye(k.shape[-2], dtype=v.dtype).expand(*v.shape[:-2], -1, -1)
        weights = self.note(lambda: F.scaled_dot_product_attention(q, k, eye, *args, **kwargs))
        return weights @ v


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [t for v in value for t in _tensors(v)]
