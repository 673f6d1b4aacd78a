"""Every method of attribution on one tracer, by name.

Importing this package registers them all; what a method needs beyond torch is imported when it is
called. ``omenn.methods()`` is :func:`omenn.attribution.registry.methods`, all by name.
``method`` registers a function as a method, and so do the shorter forms of
:mod:`omenn.attribution.registry`; ``propagate`` turns a table of rules into an explanation.

Example:
    >>> import omenn
    >>> assert omenn.methods()["omenn"].promise == "exact"
"""

from omenn.attribution import (  # noqa: F401
    abslrp,
    attnlrp,
    composite,
    dave,
    depths,
    focused,
    fullgrad,
    grad_cam,
    gradients,
    lrp,
    occlusion,
    rollout,
    xgradient,
)
from omenn.attribution.by_name import explain
from omenn.attribution.question import propagate
from omenn.attribution.registry import Method, find, method, methods
from omenn.attribution.rule_table import RuleTable, ruled
from omenn.engine.operators.table import Operator

__all__ = [
    "Method", "Operator", "RuleTable", "explain", "find", "method", "methods",
    "propagate", "ruled",
]  # fmt: skip
