"""The ones image U and the places of tensors: where on the input a constant term belongs.

NOTE [places] Every tensor that depends on the input has a :class:`Place`: an integer tensor
``cells`` with the tensor's own dimensions (1 where the place does not change, as along channels)
that points into a :class:`Grid` of cells. A grid holds ``u``, the ones image resampled to those
cells by a linear map whose rows sum to one. Layout operators (reshape, permute, roll, slicing) act
on ``cells`` alone; pooling, convolution and reductions make a new grid by averaging. So a constant
term added to a tensor reaches the input through ``u[cells]``. ``u`` is one everywhere, so that the
forward pass never changes: it is only differentiated.

Each grid ends with slots, one per sample and reason: the place of what has no place, and why it has
none (:data:`REASONS`). Their ones are leaves of their own, one a sample.
"""

from omenn.engine.location.grid import (
    REASONS,
    Grid,
    Place,
    compacted,
    finest,
    full,
    input_place,
    joint,
    mixed,
    nowhere,
    unplaced,
)
from omenn.engine.location.movement import (
    joined,
    overwritten,
    reshaped,
    squeezed,
    viewed,
)
from omenn.engine.location.resampling import folded, merged, padded, reduced, resampled
from omenn.engine.location.routing import routed, settled

__all__ = [
    "REASONS",
    "Grid",
    "Place",
    "compacted",
    "finest",
    "folded",
    "full",
    "input_place",
    "joined",
    "joint",
    "merged",
    "mixed",
    "nowhere",
    "overwritten",
    "padded",
    "reduced",
    "resampled",
    "reshaped",
    "routed",
    "settled",
    "squeezed",
    "unplaced",
    "viewed",
]
