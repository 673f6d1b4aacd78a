"""What a rule that a user wrote returns: vouched for, and checked to depend on its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from omenn.engine.trace.call import Call

if TYPE_CHECKING:
    from omenn.engine.operators.table import Operator


def run_own(call: Call, row: Operator) -> tuple[Any, set[Any]]:
    """The result of the rule, and its nodes, which count as linear at fixed coefficients.

    They may be those of the operator itself. Whether the rule is right the sum shows; but not of
    one that drops its arguments, since what does not depend on the input is a constant.
    """
    before = {_node(t) for t in call.active}
    out, vouched = row.rule(call), set[Any]()
    for t in [out] if isinstance(out, Tensor) else out:
        if not isinstance(t, Tensor) or not (t.is_floating_point() or t.is_complex()):
            continue
        made, reached = _between(t, before)
        if not (reached or call.result_frozen):
            raise call.refuse(
                "its rule returns a result that nothing flows back from",
                "Let the rule return call.run(), call.frozen(...) or what is computed from its "
                "arguments; call.freeze() for a coefficient.",
            )
        vouched |= made
    return out, vouched


def _between(out: Tensor, before: set[Any]) -> tuple[set[Any], bool]:
    """The nodes between an output and the arguments, and whether there is a way to one of these."""
    made: set[Any] = set()
    todo, reached = [_node(out)], False
    while todo:
        node = todo.pop()
        if node in before:
            reached = reached or node is not None
        elif node is not None and node not in made:
            made.add(node)
            todo += [n for n, _ in node.next_functions]
    return made, reached


def _node(t: Tensor) -> Any:
    return get_gradient_edge(t).node if t.requires_grad else None
