"""Every method of attribution on one tracer, by name.

One file a method. Importing this package registers them all; what a method needs beyond torch is
imported when it is called. ``propagate`` turns a rule book into an explanation, and ``method``
registers a function as a method.

The package can be called, too: ``omenn.methods()`` is :func:`omenn.methods.registry.methods`,
all methods by name.

Example:
    >>> import omenn
    >>> assert omenn.methods()["omenn"].promise == "exact"
"""

import sys
from collections.abc import Mapping
from types import ModuleType

from omenn.engine.operators import Row
from omenn.methods import (  # noqa: F401
    abslrp,
    alpha1beta0,
    attnlrp,
    captum_gradients,
    composite,
    cp_lrp,
    dave,
    deeplift,
    depths,
    epsilon,
    focused,
    fullgrad,
    gamma,
    generic_attention,
    grad_cam,
    libragrad,
    occlusion,
    reslrp,
    rollout,
    xgradient,
    zplus,
)
from omenn.methods.by_name import explain
from omenn.methods.propagation import Book, propagate, ruled
from omenn.methods.registry import Method, find, method, methods

__all__ = ["Book", "Method", "Row", "explain", "find", "method", "methods", "propagate", "ruled"]


class _Methods(ModuleType):
    # ``omenn.methods`` is this package as soon as it is imported, and a function by its public
    # name: both, so that the order of imports does not decide which.
    def __call__(self) -> Mapping[str, Method]:
        return methods()


sys.modules[__name__].__class__ = _Methods
