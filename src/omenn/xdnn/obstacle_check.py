"""What keeps a model from being homogeneous, by module, with the nearest stand-in.

Not listed: biases, which ``convert`` always removes, and operators that are homogeneous of another
degree, such as a product of two activations; ``check`` finds those.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from omenn.check import wrong
from omenn.engine.explainable import check_model
from omenn.engine.model_state import modules_of
from omenn.engine.operators.degrees import bounded, normalised, smooth
from omenn.engine.operators.table import OPERATORS, known
from omenn.engine.torch_private import BatchNorm
from omenn.errors import ModelError, reason
from omenn.xdnn.homogeneous_layers import ReLUSoftmax, ScaleNorm, UnitGate, UnitGLU
from omenn.xdnn.model_scan import Added, Found, scan

STAND_INS = ("activations", "attention", "gates", "norms")
"""Names of the stand-ins that ``convert`` knows."""

_WHY = {
    "activations": "its slope depends on the size of its input; the nearest is ReLU",
    "attention": "a softmax depends on the size of its scores; the nearest are weights "
    "max(s, 0) / Σ max(s, 0)",
    "gates": "it depends on the size of its input; the nearest gate looks at proportions only",
    "norms": "it divides by the size of its input, so that its output is of degree 0; the nearest "
    "divides by a running root mean square",
}
_NO_PLACE = "it divides by the size of its input, so that its output is of degree 0"
_CURVED = "its value is no power of its input"


@dataclass(frozen=True)
class Obstacle:
    """One thing in a model that is not homogeneous of degree 1.

    ``module``: dotted path, ``""`` is the model itself. ``what``: class, function or parameter.
    ``stand_in``: the name to give ``convert(stand_ins=...)``, None if there is none.
    """

    module: str
    what: str
    reason: str
    stand_in: str | None = None

    def __str__(self) -> str:
        remedy = f" [stand-in: {self.stand_in!r}]" if self.stand_in else ""
        return f"{self.module or '(model)'}: {self.what}: {self.reason}{remedy}"


def obstacles(model: nn.Module, inputs: Any = None) -> tuple[Obstacle, ...]:
    """What ``convert`` cannot make homogeneous unless it is asked to, by module.

    Without ``inputs``: modules, and parameters that may be constants. With ``inputs`` (as in
    :func:`omenn.explain`) the model runs once, in evaluation mode, so that functions
    (``F.gelu``, ``F.softmax``, ``x + position``) are found as well, by the module that calls them.

    Raises ModelError for what is no module or hides its operators; with ``inputs`` also the errors
    of :func:`omenn.explain`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
        >>> (found,) = obstacles(net)
        >>> (found.module, found.what, found.stand_in)
        ('1', 'GELU', 'activations')
        >>> print(found)
        1: GELU: its slope depends on the size of its input; the nearest is ReLU \
[stand-in: 'activations']
    """
    fresh = copied(model)
    listed = list(_modules(fresh))
    if inputs is None:
        return tuple(listed + list(_parameters(fresh, {o.module for o in listed})))
    found = scan(fresh, inputs)
    return tuple(dict.fromkeys(listed + list(_functions(fresh, found, {o.module for o in listed}))))


def copied(model: Any) -> nn.Module:
    """A deep copy in evaluation mode of a model that can be seen into."""
    if not isinstance(model, nn.Module):
        raise wrong("model", model, "a torch.nn.Module", kind=ModelError)
    try:
        fresh = copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"the model cannot be copied ({reason(error)}).",
            argument="model",
            remedy="Tensors that were computed from parameters cannot be; "
            "torch.nn.utils.parametrizations.weight_norm in place of the older weight_norm can.",
        ) from error
    for module in fresh.modules():
        module.training = False
    check_model(fresh, None)
    return fresh


# --- modules -------------------------------------------------------------------------------------

_INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm
_RECURRENT = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)

_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "activations": (
        nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Mish, nn.Hardswish, nn.Tanh,
        nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh,
        nn.Threshold,
    ),
    "attention": (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d),
    "gates": (nn.Sigmoid, nn.Hardsigmoid, nn.GLU),
    "norms": (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _INSTANCE_NORM),
}  # fmt: skip
# Classes of other libraries, by name: each but a function, or a norm with its scale.
_NAMES = {
    "activations": re.compile(r"gelu|silu|swish|mish|tanh|softplus|(?<!r)elu", re.IGNORECASE),
    "gates": re.compile(r"sigmoid", re.IGNORECASE),
    "norms": re.compile(r"(layer|rms)_?norm", re.IGNORECASE),
}
# On a class whose methods run with other functions: (the class as it was, methods, kinds).
EXCHANGED = "_omenn_exchanged"
OURS = (ScaleNorm, UnitGate, UnitGLU, ReLUSoftmax)


def kind_of(module: nn.Module) -> str | None:
    """The stand-in that there is for a module of this class."""
    if isinstance(module, OURS):
        return None
    for kind, types in _KINDS.items():
        if isinstance(module, types):
            return None if kind in getattr(module, EXCHANGED, ((), (), ()))[2] else kind
    if type(module).__module__.startswith("torch.nn."):
        return None
    own = [p for p in module._parameters.values() if p is not None]
    if module._modules or any(p.ndim != 1 for p in own):
        return None
    kinds, name = ("norms",) if own else ("activations", "gates"), type(module).__name__
    if re.search("mul|glu|gated", name, re.IGNORECASE):  # of two tensors, or of two halves
        return None
    return next((k for k in kinds if _NAMES[k].search(name)), None)


def is_batch_norm(module: nn.Module) -> bool:
    """BatchNorm of any dimension, also frozen (its scale and shift are buffers then)."""
    frozen = type(module).__name__.startswith("FrozenBatchNorm")
    return isinstance(module, BatchNorm) or (frozen and hasattr(module, "running_var"))


def _modules(model: nn.Module) -> Iterator[Obstacle]:
    for path, module in modules_of(model):
        name, kind = type(module).__name__, kind_of(module)
        if kind is not None:
            yield Obstacle(path, name, _WHY[kind], kind)
        elif is_batch_norm(module):
            why = "it subtracts a mean and adds a shift; convert(norm='scale' or 'fixup') ends that"
            yield Obstacle(path, name, why)
        elif isinstance(module, _RECURRENT) or getattr(module, "nonlinearity", "") == "tanh":
            yield Obstacle(path, name, "its gates and its tanh depend on the size of their input")
        elif isinstance(module, (nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.CosineSimilarity)):
            yield Obstacle(path, name, _NO_PLACE)
        elif isinstance(module, (nn.LogSoftmax, nn.Softmin)):
            yield Obstacle(path, name, _CURVED)


def _parameters(model: nn.Module, listed: set[str]) -> Iterator[Obstacle]:
    """Parameters that a module of another library, or of the user, has of its own."""
    known = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
    for path, module in modules_of(model):
        home = type(module).__module__
        if home.startswith("torch.") or isinstance(module, (*known, *OURS)) or path in listed:
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and (parameter.requires_grad or bool(parameter.any())):
                why = "it may be added as a constant, or multiply: only a run with inputs= tells"
                yield Obstacle(path, f"parameter {name!r}", why)


# --- functions -----------------------------------------------------------------------------------


def _by_replacement() -> dict[str, frozenset[str]]:
    """Replacement → the operators, or the names where one operator has several, that it is for."""
    found: dict[str, set[str]] = {}
    for name, operator in OPERATORS.items():
        if operator.replacement:
            names = operator.replaced.split() or [name]
            found.setdefault(operator.replacement, set()).update(names)
    return {kind: frozenset(names) for kind, names in found.items()}


FUNCTIONS = _by_replacement()


def _why(name: str) -> str:
    """Why an operator without a replacement is an obstacle, if it is."""
    operator = known(name)
    if operator.kind == "rescaling" or operator.degree is normalised:
        return _NO_PLACE
    return _CURVED if operator.degree in (smooth, bounded) else ""


def function_kind(operator: str, name: str) -> str | None:
    """The stand-in that there is for a function: its canonical operator, and as it is spelled."""
    name = name.strip("_")
    if name == "softmin":
        return None
    return next((k for k, names in FUNCTIONS.items() if {operator, name} & names), None)


def _functions(model: nn.Module, found: Found, listed: set[str]) -> Iterator[Obstacle]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    removed = set(biases(model))
    for call in found.calls:
        kind, name = function_kind(call.operator, call.name), call.name
        if call.module in listed or name in ("get", ""):
            continue
        if kind is not None:
            yield Obstacle(call.module, f"{name}()", _WHY[kind], kind)
        elif why := _why(call.operator) or _why(name):
            yield Obstacle(call.module, f"{name}()", why)
    for added in found.constants:
        yield from _constant(added, parameters, found.weights, removed, listed)


def _constant(
    added: Added,
    parameters: dict[str, nn.Parameter],
    weights: set[str],
    removed: set[str],
    listed: set[str],
) -> Iterator[Obstacle]:
    if added.origins and added.origins <= removed:
        return
    names = sorted(n for n in added.origins - removed if n in parameters)
    free = [n for n in names if n not in weights]
    for name in free:
        if added.adds or parameters[name].requires_grad:
            why = "it is added as a constant; convert(inputs=...) sets it to zero"
            yield Obstacle(added.module, f"parameter {name!r}", why)
    if free or not added.adds or added.module in listed:
        return
    if names:
        why = "it is added as a constant, and multiplies as well, so that it cannot be zero"
        yield Obstacle(added.module, f"parameter {names[0]!r}", why)
    else:
        made = f" (made of {', '.join(map(repr, sorted(added.origins)))})" * bool(added.origins)
        bound = "it compares with" if added.operator in ("clamp", "maximum") else "it adds"
        yield Obstacle(added.module, f"{added.operator}()", f"{bound} a constant{made}")


# --- biases --------------------------------------------------------------------------------------

_BIASED: tuple[tuple[tuple[Any, ...], Sequence[str]], ...] = (
    ((nn.MultiheadAttention,), ("in_proj_bias", "bias_k", "bias_v")),
    ((nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear), ("bias",)),
    ((nn.LayerNorm, nn.GroupNorm, _INSTANCE_NORM), ("bias",)),
)


def biases_of(module: nn.Module) -> Iterable[str]:
    """Names of the parameters of a module that are its bias, and may be None."""
    for types, keys in _BIASED:
        if isinstance(module, types):
            yield from (key for key in keys if module._parameters.get(key) is not None)


def biases(model: nn.Module) -> Iterator[str]:
    """Dotted names of all of them, also where a module has several."""
    for path, module in model.named_modules(remove_duplicate=False):
        yield from (f"{path}.{key}" if path else key for key in biases_of(module))
