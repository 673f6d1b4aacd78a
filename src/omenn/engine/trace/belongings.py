"""What belongs to the model that is explained: its modules by name, its parameters and buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omenn.engine.explainable import modules_of, precision
from omenn.engine.model_state import State
from omenn.engine.trace.marks import addresses


class Own:
    """Names of modules and ids of tensors of a model, and the addresses of their memory.

    NOTE held while they are keys. A forward pass may drop a buffer or a module; were it gone, a new
    tensor could get its id or its address, and count as the model's own.
    """

    def __init__(self, model: nn.Module | None, state: State | None) -> None:
        self.names: dict[int, str] = {}
        self.ids: set[int] = set()
        types: set[torch.dtype] = set()
        self._held: list[nn.Module | Tensor] = []
        for name, m in [] if model is None else modules_of(model):
            self.names[id(m)] = name
            found = [t for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
            self._held += [m, *found]
            self.ids.update(map(id, found))
            types.update([t.dtype for t in found])
        self.memory = addresses([t for t in self._held if isinstance(t, Tensor)])
        if state is not None:  # values of what is written into may change
            self.ids -= state.exchanged()
        self.dtype = precision(types)
