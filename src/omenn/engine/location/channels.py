"""Which dimension of an input holds channels: a guess by its rank, until a convolution tells.

A convolution slides along its last dimensions and mixes the one in front of them. Where it slides
along the dimension that was taken for the channels (a signal (B, C, T), images with their channels
last), the pass begins again with the right one; the convolution is the first operator or nearly so.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from omenn.engine.location import full
from omenn.engine.location.entries import Entry
from omenn.engine.trace.call import Mark


class Reoriented(BaseException):
    """The channels of an entry are in another dimension. No error: models must not catch it."""

    def __init__(self, index: int, channel: int) -> None:
        super().__init__(f"input {index} has its channels in dimension {channel}")
        self.index, self.channel = index, channel


def look(
    entries: Sequence[Entry], guessed: Sequence[int], x: Tensor, mark: Mark, spatial: int
) -> None:
    """Raises Reoriented where a convolution over the last ``spatial`` dimensions of x says so."""
    for k in guessed:
        entry = entries[k]
        if mark.inputs != {k} or entry.channel is None or x.ndim < spatial + 2:
            continue
        if mark.place is None:  # no places are followed
            wrong = x.shape == entry.value.shape and -entry.channel <= spatial
        elif mark.place.grid is entry.place.grid:
            cells = full(mark.place.cells, x.shape)
            last = range(x.ndim - spatial, x.ndim)
            wrong = any(cells.shape[d] == 1 < x.shape[d] for d in last)
        else:
            continue
        if wrong:
            raise Reoriented(k, _channel(entry, x, spatial))


def _channel(entry: Entry, x: Tensor, spatial: int) -> int:
    """The channels of a convolution as a dimension of the input; 0 where it has none of its own."""
    shape, mixed = entry.value.shape, x.shape[-spatial - 1]
    if x.shape == shape:
        return -spatial - 1
    found = [d for d, n in enumerate(shape) if n == mixed and d != entry.batch]
    return found[0] - len(shape) if len(found) == 1 and x.ndim == len(shape) else 0
