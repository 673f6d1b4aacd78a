"""What belongs to the model that is explained: its modules by name, its parameters and buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omenn.engine.explainable import modules_of, precision
from omenn.engine.model_state import State
from omenn.engine.trace.inplace import memory_of


class Own:
    """Names of modules and ids of tensors of a model, and the addresses of their memory.

    NOTE held while they are keys. A forward pass may drop a buffer or a module; were it gone, a new
    tensor could get its id or its address, and count as the model's own.
    """

    def __init__(self, model: nn.Module | None, state: State | None) -> None:
        self.names: dict[int, str] = {}
        self.ids: set[int] = set()
        self.memory: set[int] = set()
        types: set[torch.dtype] = set()
        self._held: list[nn.Module | Tensor] = []
        for name, m in [] if model is None else modules_of(model):
            self.names[id(m)] = name
            self._held.append(m)
            for t in (*m._parameters.values(), *m._buffers.values()):
                if t is not None:
                    self._held.append(t)
                    if state is None or not state.exchanged(t):  # else its values may change
                        self.ids.add(id(t))
                    self.memory.add(memory_of(t))
                    types.add(t.dtype)
        self.memory.discard(0)
        self.dtype = precision(types)
