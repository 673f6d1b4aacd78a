"""Whose exception it was: the ordinary model's on this input, or that of freezing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from omenn.errors import InputError, ModelError, OmennError, reason

if TYPE_CHECKING:
    from omenn.core.inputs import Feed


def blame(model: Any, feed: Feed, error: Exception) -> OmennError:
    """The error to raise for one that a frozen pass raised."""
    args, kwargs = feed.arguments()
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as own:
        return InputError(f"the model cannot take {feed.described()}: {reason(own)}.")
    return ModelError(
        f"the model runs, but not in its frozen form: {reason(error)}. Explain at a later "
        "module with at=, or report it with the model."
    )
