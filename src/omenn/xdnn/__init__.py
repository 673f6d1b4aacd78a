"""Networks whose gradient is their explanation, and training with priors on attributions.

``convert`` makes a copy without additive terms, ``obstacles`` lists what else is in the way,
``check`` proves that a network is homogeneous, ``priors`` and ``AttributionPrior`` train on
attributions of any network.

Source: Hesse et al. 2021, "Fast Axiomatic Attribution for Neural Networks", arXiv 2111.07668.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Not on first use: a module of the same name would then take the name.
from omenn.xdnn.conversion import convert
from omenn.xdnn.obstacle_check import Obstacle, obstacles

if TYPE_CHECKING:
    from omenn.xdnn import priors
    from omenn.xdnn.homogeneity import Homogeneity, check
    from omenn.xdnn.priors.prior_loss import AttributionPrior

_HOMES = {
    "AttributionPrior": "priors.prior_loss",
    "Homogeneity": "homogeneity",
    "check": "homogeneity",
    "priors": "priors",
}

__all__ = [
    "AttributionPrior",
    "Homogeneity",
    "Obstacle",
    "check",
    "convert",
    "obstacles",
    "priors",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'omenn.xdnn' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"omenn.xdnn.{home}")
    value = module if name == home else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
