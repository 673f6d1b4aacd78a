"""Windows that overlap: the short-time Fourier transform and its inverse, strided views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omenn.engine import location as places
from omenn.engine.location import Place
from omenn.engine.operators.layout import linear
from omenn.engine.operators.record import Operator, at_source, placed_by, unlocated
from omenn.engine.trace.call import Call


@at_source
def framed(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """``stft`` (B, T) → (B, frequencies, frames): the frames lie along the signal, in order."""
    if x.ndim != 2:
        return unlocated(call, out)
    cells = places.full(place.cells, x.shape).unsqueeze(1)
    there = places.resampled(
        place.with_cells(cells),
        (x.shape[0], 1, x.shape[1]),
        [int(out.shape[2])],
        call.context.location.smooth,
    )
    return there if out.ndim == 3 else there.with_cells(there.cells.unsqueeze(-1))


@at_source
def unframed(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """``istft`` (B, frequencies, frames) → (B, T)."""
    if x.ndim != 3 or out.ndim != 2:
        return unlocated(call, out)
    there = places.resampled(place, x.shape, [int(out.shape[-1])])
    cells = there.cells
    return there.with_cells(cells.squeeze(1) if cells.ndim == 3 else cells)


def strided(call: Call) -> Tensor:
    """``as_strided``: linear, where it reads elements of its tensor alone."""
    x, shown = call.active[0], call.value()
    if call.inplace:
        raise call.refuse("it changes the layout of a tensor in place", "Use x = x.as_strided(…).")
    seen = _laid(x, torch.ones((), dtype=torch.bool, device=x.device).expand(x.shape))
    if not bool(seen(shown).all()):
        raise call.refuse(
            "it reads memory around the tensor that it is given", "Call it on the whole tensor."
        )
    return call.run()


def _laid(x: Tensor, values: Tensor) -> Any:
    """Values for the elements of x, to be read with the layout of another view of its memory."""
    size = x.untyped_storage().nbytes() // x.element_size()
    memory = torch.zeros(size, dtype=values.dtype, device=x.device)
    memory.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(values)
    return lambda view: memory.as_strided(view.shape, view.stride(), view.storage_offset())


@at_source
def strided_place(call: Call, out: Tensor, x: Tensor, place: Place) -> Any:
    """Each element of the view has the cell of the element that it shows."""

    def make() -> Place:
        read = _laid(x, places.full(place.cells, x.shape).expand(x.shape))
        return place.with_cells(read(call.value()))

    return placed_by(call, x, place, make)


RECORDS: dict[str, Operator] = {
    "stft": Operator(linear, framed, 1, true=True),
    "istft": Operator(linear, unframed, 1, true=True),
    "as_strided": Operator(strided, strided_place, 1, true=False),
}
