"""Which models can be explained: in evaluation mode, with weights and operators to be seen."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from omenn.check import quoted
from omenn.engine.model_state import modules_of
from omenn.engine.torch_private import Overload
from omenn.errors import ModelError


def check_model(model: Any, at: str | None) -> None:
    """Refuses models in training mode and unknown modules."""
    if model is None:
        return
    if not callable(model):
        raise ModelError(
            f"the model must be a torch.nn.Module or a function, but {type(model).__name__} was "
            "given."
        )
    if isinstance(model, type):
        raise ModelError(f"the model is the class {model.__name__}; give an instance of it.")
    if not isinstance(model, nn.Module):
        if at is not None:
            raise ModelError("at= needs a torch.nn.Module; a function has no modules.")
        return
    modules = modules_of(model)
    _check_kinds(model, modules, at)
    training = [name or "(model)" for name, m in modules if m.training]
    if training:
        raise ModelError(
            f"the model is in training mode ({len(training)} modules, first '{training[0]}'), "
            "where dropout and batch statistics make its output random. Call model.eval() first."
        )
    if at is not None and not isinstance(at, str):
        raise ModelError(f"at= is the dotted name of a module, but {quoted(at)} was given.")
    if at is not None and at not in (names := dict(modules)):
        close = difflib.get_close_matches(at, names, 3)
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        raise ModelError(
            f"at={quoted(at)} is not a module of the model.{hint} See model.named_modules()."
        )


_FLOAT = "Explain the floating-point model that it was made from."
_PLAIN = "Explain the plain Python module that it was made from."

# Modules that cannot be seen into, by the name of a class; so that nothing is imported.
_HIDDEN = {
    "ScriptModule": f"is a TorchScript module, which hides its operators. {_PLAIN}",
    "DistributedDataParallel": "synchronises processes at every call. Explain its .module.",
    "FullyShardedDataParallel": "has its weights in several processes. Explain a model that has "
    "them all (load its full state dict into an unsharded one).",
    "FSDPModule": "has its weights in several processes. Explain a model that has them all (load "
    "its full state dict into an unsharded one).",
}
# The same by the place of the class.
_HIDDEN_HOMES = {
    "torch.ao.nn.quantized": f"is quantised: its weights are packed integers. {_FLOAT}",
    "torch.ao.nn.intrinsic.quantized": f"is quantised: its weights are packed integers. {_FLOAT}",
    "torch.ao.nn.sparse.quantized": f"is quantised: its weights are packed integers. {_FLOAT}",
    "torch.ao.quantization": "observes or imitates quantisation, which rounds. " + _FLOAT,
}


def _check_kinds(
    model: nn.Module, modules: Sequence[tuple[str, nn.Module]], at: str | None
) -> None:
    """Refuses modules whose operators cannot be seen, whose weights are not there, or exported."""
    if _exported(model):
        raise ModelError(
            "the model was exported (torch.export, make_fx): it calls kernels in place of "
            f"operators. {_PLAIN}"
        )
    known: set[type] = set()
    for prefix, m in modules:
        if type(m) not in known:
            why = _hidden(m)
            # Upstream of at= it does no harm; behind it the graph shows it.
            if why is not None and at is None:
                raise ModelError(f"module '{prefix or '(model)'}' {why}")
            if "DataParallel" not in _kinds(m):  # of which each one counts
                known.add(type(m))
        for key, t in (*m._parameters.items(), *m._buffers.items()):
            name = f"{prefix}.{key}" if prefix else key
            if isinstance(t, (UninitializedBuffer, UninitializedParameter)):
                raise ModelError(
                    f"'{name}' is not initialised. Call the model once on an input first."
                )
            # accelerate's hooks bring the values of offloaded weights when the module is called.
            if t is not None and t.is_meta and not hasattr(m, "_hf_hook"):
                raise ModelError(
                    f"'{name}' is on the meta device: it has no values. Load the weights."
                )


def _hidden(m: nn.Module) -> str | None:
    if "DataParallel" in _kinds(m) and len(getattr(m, "device_ids", ())) > 1:
        return "runs its copies in threads of their own, one a GPU. Explain its .module."
    kind = next((k for k in _HIDDEN if k in _kinds(m)), None)
    if kind is not None:
        return _HIDDEN[kind]
    home = next((h for h in _HIDDEN_HOMES if type(m).__module__.startswith(h)), None)
    return None if home is None else _HIDDEN_HOMES[home]


def _exported(model: nn.Module) -> bool:
    """A graph that calls overloads of ATen (``torch.ops.aten.relu.default``)."""
    graph = getattr(model, "graph", None)
    return "GraphModule" in _kinds(model) and any(
        isinstance(node.target, Overload) for node in getattr(graph, "nodes", ())
    )


def _kinds(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}
