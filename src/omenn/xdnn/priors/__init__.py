"""What attributions should be like, as a term of a loss, and adapters for training loops.

``penalties`` holds the priors, ``prior_loss`` the term of the loss, ``lightning`` and ``trainer``
the adapters.
"""

from omenn.xdnn.priors.penalties import (
    PRIORS,
    Prior,
    consistency,
    expected_sign,
    find,
    right_reasons,
    smoothness,
    sparsity,
)

__all__ = [
    "PRIORS",
    "Prior",
    "consistency",
    "expected_sign",
    "find",
    "right_reasons",
    "smoothness",
    "sparsity",
]
