"""With second derivatives, whether a result is active or only its coefficients have a history.

NOTE whose history. With ``create_graph`` parameters and coefficients keep theirs, so that a history
alone does not tell that the explained input flows through a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge


class Flow:
    """The autograd nodes that the arguments of one call had before it."""

    def __init__(self, active: Sequence[Tensor], marked: Iterable[tuple[Tensor, Any]]) -> None:
        self.active = {_node(t) for t in active if t.requires_grad}
        # A write through a view joins the history of what the view is a part of.
        self.active |= {_node(b) for t in active if (b := t._base) is not None} - {None}
        known = [t for _, m in marked if (t := m.true) is not None]
        known += [t for t, _ in marked]
        self.others = {_node(t) for t in known if t.requires_grad} - self.active

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
