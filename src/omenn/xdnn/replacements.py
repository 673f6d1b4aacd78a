"""Homogeneous stand-ins: modules are replaced, functions exchanged where they are called.

A module that calls ``F.gelu`` keeps its code. It gets a subclass of its own class, in which the
methods that call such functions run under a torch function mode that exchanges them. So names in
the state dict, other methods and ``isinstance`` stay as they were, and whatever mode is around
(``omenn.explain``) sees the functions that stand in.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.engine.trace.handler import Handler
from omenn.engine.trace.spelling import bind, by_function
from omenn.xdnn.homogeneous_layers import (
    ReLUSoftmax,
    ScaleNorm,
    UnitGate,
    UnitGLU,
    relu_attention,
    relu_multi_head,
    relu_softmax,
    unit_gate,
    unit_glu,
)
from omenn.xdnn.obstacle_check import EXCHANGED, FUNCTIONS, OURS, function_kind, kind_of

# --- modules -------------------------------------------------------------------------------------


def swap(root: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """The model with modules replaced, by ``id``, wherever they stand; the root itself as well."""
    for module in list(root.modules()):
        for name, child in module._modules.items():
            if id(child) in new:
                module._modules[name] = new[id(child)]
    return new.get(id(root), root)


def replace_modules(root: nn.Module, kinds: Iterable[str]) -> tuple[nn.Module, set[str]]:
    """(the model with stand-ins for its modules of these kinds, the kinds that were found)."""
    done: set[str] = set()
    for kind in ("norms", *(k for k in kinds if k != "norms")):  # a norm may have an act inside
        if kind not in kinds:
            continue
        found = [m for m in root.modules() if kind_of(m) == kind]
        new = {id(m): made for m in found if (made := _stand_in(m, kind)) is not m}
        if found:
            done.add(kind)
        for module in found:
            if id(module) in new:
                new[id(module)].train(module.training)
            else:  # it keeps its parameters, and its class is exchanged
                exchange(module, ["forward"], [kind])
        root = swap(root, new)
    return root, done


def _stand_in(module: nn.Module, kind: str) -> nn.Module:
    """The module to put in its place; itself where its functions are to be exchanged."""
    if kind == "norms":
        return scale_norm(module)
    if kind == "activations":
        return nn.ReLU(inplace=bool(getattr(module, "inplace", False)))
    if isinstance(module, nn.GLU):
        return UnitGLU(module.dim)
    if kind == "gates":
        hard = "hard" in type(module).__name__.lower()
        return UnitGate(F.hardsigmoid if hard else torch.sigmoid)
    if isinstance(module, nn.Softmax2d):
        return ReLUSoftmax(-3)
    if isinstance(module, nn.Softmax) and module.dim is not None:
        return ReLUSoftmax(module.dim)
    return module


def scale_norm(norm: nn.Module) -> ScaleNorm:
    """A ``ScaleNorm`` for the features of a norm, with its scale and its running variance if any.

    What else a norm has inside (an activation, as timm's have) is applied after it.
    """
    weight = getattr(norm, "weight", None)
    shape, dim = _features(norm)
    made = ScaleNorm(
        shape,
        eps=float(getattr(norm, "eps", None) or 1e-5),
        momentum=getattr(norm, "momentum", 0.1),
        affine=weight is not None,
        dim=dim,
        acts=dict(norm.named_children()),
    )
    variance = getattr(norm, "running_var", None)
    like = next((t for t in (weight, variance) if isinstance(t, Tensor)), None)
    if like is not None:
        made.to(like.device)
        _like(made, like)
    with torch.no_grad():
        if weight is not None and made.weight is not None:
            made.weight.copy_(weight.reshape(made.weight.shape))
            made.weight.requires_grad_(weight.requires_grad)
        if isinstance(variance, Tensor):
            made.running_square.copy_(variance)
    made.train(norm.training)
    return made


def _like(made: ScaleNorm, like: Tensor) -> None:
    """Its own tensors in the type of the norm's; not those of the acts."""
    if made.weight is not None:
        made.weight.data = made.weight.data.to(like.dtype)
    made.running_square = made.running_square.to(like.dtype)


def _features(norm: nn.Module) -> tuple[int | tuple[int, ...], int]:
    """(how many features a norm has, where they are)."""
    count = getattr(norm, "num_features", None) or getattr(norm, "num_channels", None)
    if isinstance(count, int):  # BatchNorm, InstanceNorm, GroupNorm
        return count, 1
    shape = getattr(norm, "normalized_shape", None)
    if not isinstance(shape, (tuple, list)):
        own = [p for p in (*norm._parameters.values(), *norm._buffers.values()) if p is not None]
        shape = tuple(own[0].shape)
    maps = "2d" in type(norm).__name__ or "3d" in type(norm).__name__
    first = len(shape) == 1 and (maps or getattr(norm, "data_format", "") == "channels_first")
    return (tuple(shape), -1) if not first else (shape[0], 1)


# --- functions -----------------------------------------------------------------------------------


def _rectified(*args: Any, **kwargs: Any) -> Tensor:
    return F.relu(args[0] if args else kwargs["input"], bool(kwargs.get("inplace")))


def _weighed(func: Callable[..., Any]) -> Callable[..., Tensor]:
    def softmax(*args: Any, **kwargs: Any) -> Tensor:
        bound = bind(func, args, kwargs)
        scores, dim = bound["input"], bound.get("dim")
        kinds = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
        scores = scores.to(kinds[0]) if kinds else scores
        if dim is None:  # as PyTorch chooses it
            dim = 0 if scores.ndim in (0, 1, 3) else 1
        return relu_softmax(scores, dim)

    return softmax


def _gated(func: Callable[..., Any]) -> Callable[..., Tensor]:
    def gate(*args: Any, **kwargs: Any) -> Tensor:
        return unit_gate(args[0] if args else kwargs["input"], func)

    return gate


def _halved(*args: Any, **kwargs: Any) -> Tensor:
    return unit_glu(*args, **kwargs)


def _inplace(made: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In-place spelling: the result is written where the argument was."""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        return args[0].copy_(made(*args, **kwargs))

    return run


@functools.cache
def _table(kinds: frozenset[str]) -> dict[Any, Callable[..., Any]]:
    """Every spelling of a function → what stands in for it."""
    found: dict[Any, Callable[..., Any]] = {}
    for func, spelling in by_function().items():
        kind = function_kind(spelling.operator, getattr(func, "__name__", ""))
        if kind in kinds:
            made = _exchanged(kind, spelling.operator, func)
            found[func] = _inplace(made) if spelling.inplace else made
    return found


def _exchanged(kind: str, name: str, func: Callable[..., Any]) -> Callable[..., Any]:
    if kind == "activations":
        return _rectified
    if name == "glu":
        return _halved
    if kind == "gates":
        return _gated(torch.sigmoid if name == "sigmoid" else F.hardsigmoid)
    if name == "softmax":
        return _weighed(func)
    return relu_attention if name == "scaled_dot_product_attention" else relu_multi_head


class Exchanged(Handler):
    """Calls what stands in for a function, for the time that a method runs."""

    def __init__(self, kinds: frozenset[str]) -> None:
        super().__init__()
        self.table = _table(kinds)

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        other: Any = self.table.get(func, func)
        return other(*args, **kwargs)


def exchange(module: nn.Module, methods: Iterable[str], kinds: Iterable[str]) -> None:
    """Exchanges functions of these kinds in methods of the module, which gets another class."""
    base, before, earlier = exchanges(type(module))
    names = before | {n for n in methods if inspect.isfunction(getattr(base, n, None))}
    module.__class__ = _subclass(base, names or frozenset({"forward"}), earlier | set(kinds))


def exchanges(kind: type) -> tuple[type, frozenset[str], frozenset[str]]:
    """(the class as it was, methods in which functions are exchanged, their kinds)."""
    return kind.__dict__.get(EXCHANGED, (kind, frozenset(), frozenset()))


@functools.cache
def _subclass(base: type, methods: frozenset[str], kinds: frozenset[str]) -> Any:
    """A subclass under the same name, so that it prints as before; it can be copied and pickled."""

    def reduce(self: nn.Module, protocol: Any) -> Any:
        state = cast(Any, base).__reduce_ex__(self, protocol)
        return _revived, (base, methods, kinds), *state[2:]

    body: dict[str, Any] = {name: _under(getattr(base, name), kinds) for name in methods}
    body |= {"__module__": base.__module__, "__qualname__": base.__qualname__}
    body |= {"__doc__": base.__doc__, "__reduce_ex__": reduce}
    body[EXCHANGED] = (base, methods, kinds)
    return type(base)(base.__name__, (base,), body)  # pyright: ignore[reportCallIssue]


def _revived(base: type, methods: frozenset[str], kinds: frozenset[str]) -> Any:
    made = _subclass(base, methods, kinds)
    return made.__new__(made)


def _under(method: Callable[..., Any], kinds: frozenset[str]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with Exchanged(kinds):
            return method(self, *args, **kwargs)

    return run


# --- functions that cannot be seen without a run -------------------------------------------------


def hinted(root: nn.Module, kinds: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(module, kind, name) of functions that the code of a module names, or that it holds."""
    for path, module in root.named_modules():
        if isinstance(module, OURS):
            continue
        names = _named(type(module)) | {
            getattr(v, "__name__", "").lstrip("_") for v in vars(module).values() if callable(v)
        }
        names -= module._modules.keys()  # a module under such a name, which is no function
        for kind in set(kinds) - exchanges(type(module))[2]:
            for name in sorted(names & FUNCTIONS.get(kind, frozenset())):
                yield path, kind, name


@functools.cache
def _named(kind: type) -> frozenset[str]:
    """Names that the methods of a class use; of PyTorch's own classes none."""
    found: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("torch."):
            methods = [m for m in vars(base).values() if inspect.isfunction(m)]
            found |= {name for m in methods for name in m.__code__.co_names}
    return frozenset(found)
