"""From the output of a module back to the input: its map at the resolution of the input.

The module's output lies on the input as every tensor does that depends on it: each of its elements
has a :class:`~omenn.engine.location.Place`, a mean of input locations, the rows of a linear map
that sum to one. The transposed map spreads what an element has over these locations. Its columns
sum to one, so the sum over the input is that over the module's output, whatever layout lies between
(windows, channels last, tokens in any order). What has no place is spread evenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omenn.engine.inputs import Inputs
from omenn.engine.location import Place, full, resampled
from omenn.engine.location.constants import spread
from omenn.engine.location.entries import Reoriented, structured
from omenn.engine.model_state import State
from omenn.engine.trace.guards import hooked
from omenn.engine.trace.marks import released
from omenn.engine.trace.opaque import raise_opaque
from omenn.engine.trace.refusals import blame
from omenn.engine.trace.tracer import Tracer
from omenn.errors import OmennError, UnsupportedOperator

RESAMPLINGS = ("bilinear", "nearest", "none")


@dataclass(frozen=True)
class Located:
    """One tensor that the module returned: its shape, and where its elements lie."""

    shape: tuple[int, ...]
    place: Place | None

    @property
    def channel(self) -> int | None:
        """The dimension along which the place does not change, from the end; None if there is none.

        Where several do not, the last.
        """
        if self.place is None:
            return None
        cells = full(self.place.cells, self.shape)
        dims = [d for d in range(1, cells.ndim) if cells.shape[d] == 1 < self.shape[d]]
        return dims[-1] - cells.ndim if dims else None

    @property
    def on_input(self) -> bool:
        """Whether any element has a place on the input."""
        return self.place is not None and bool(self.place.located().any())


class Depth:
    """The output of module ``at`` as it lies on the one explained input of the model."""

    def __init__(self, given: Inputs, found: Sequence[Located], resample: str) -> None:
        self.found, self.resample = found, resample
        (index,) = set(given.owners)
        entry = given.entries[index]
        self.inputs, self.entry = given, entry
        self.ones, self.mean, self.batch = entry.ones, entry.place.grid.mean, entry.axis

    def channels(self) -> list[int | None]:
        return [one.channel for one in self.found]

    def describes(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that the module returned."""
        return [tuple(t.shape) for t in tensors] == [one.shape for one in self.found]

    def shaped(self, one: Tensor) -> Any:
        """A map at the input in the structure of the inputs."""
        keys = [key for key, _ in self.inputs.items]
        return structured(self.inputs.kind, keys, {self.entry.key: one})

    def brought(
        self, maps: Sequence[Tensor], batch: Sequence[int], acts: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The maps of all tensors, summed at the locations of the input, (B, *locations).

        ``batch``: the dimension of each tensor that came first in its map, that of the samples.
        ``acts``: where each tensor acts on the output, everywhere if not given. What has no place
        on the input is spread over the locations of those that have one and act.
        """
        acts = [torch.ones_like(m) for m in maps] if acts is None else acts
        located, amounts, seen = [], [], []
        for m, act, one, dim in zip(maps, acts, self.found, batch, strict=True):
            if one.place is None:
                amounts.append(m.reshape(len(self.mean) - 1, -1).sum(1))
                continue
            there, amount = self._back(m, one.place, one, dim)
            amounts.append(amount)
            seen.append(self._back(act.detach().to(m.dtype), one.place, one, dim)[0] > 0)
            if self.resample == "bilinear" and there.ndim > 2 and one.on_input:
                for axis, width in enumerate(self._footprint(one.place), start=1):
                    there = boxed(there, axis, width)
            located.append(there)
        (everywhere,) = spread([torch.stack(amounts).sum(0)], [torch.stack(seen).any(0)])
        return torch.stack([*located, everywhere]).sum(0)

    def _back(
        self, matrix: Tensor, place: Place, one: Located, batch: int
    ) -> tuple[Tensor, Tensor]:
        """What the elements of a map have at the locations of the input; and without a place."""
        cells = full(place.cells, one.shape)
        if one.channel is not None:
            cells = cells.select(one.channel, 0)
        cells = cells.movedim(batch, 0)
        with torch.enable_grad():
            total = (place.grid.u[cells] * matrix).sum()
        there, amount = torch.autograd.grad(
            total,
            [self.ones, self.mean],
            retain_graph=True,
            create_graph=matrix.requires_grad,
            materialize_grads=True,
        )
        # A module's output has no row that is common to its samples.
        return there.movedim(self.batch, 0), amount[:-1]

    def _footprint(self, place: Place) -> list[int]:
        """How many locations of the input a cell covers, along each of its dimensions."""
        cells = place.cells[place.located()]
        middle = cells.flatten()[cells.numel() // 2]
        with torch.enable_grad():
            (seen,) = torch.autograd.grad(place.grid.u[middle], self.ones, retain_graph=True)
        hit = seen.movedim(self.batch, 0).nonzero()
        extent = hit.amax(0) - hit.amin(0) + 1
        return extent[1:].tolist()


def boxed(maps: Tensor, dim: int, width: int) -> Tensor:
    """The moving mean over ``width`` locations, reflected at the border: columns sum to one.

    On a map that is constant over blocks of this width it is linear interpolation between the
    middles of the blocks. An even width has half a weight at either end.
    """
    size = maps.shape[dim]
    if width < 2 or width > size:
        return maps
    reach = width // 2
    weights = torch.ones(2 * reach + 1, dtype=maps.dtype, device=maps.device)
    if width % 2 == 0:
        weights[0] = weights[-1] = 0.5
    weights = weights / weights.sum()
    source = torch.arange(size, device=maps.device)
    to = source[:, None] + torch.arange(-reach, reach + 1, device=maps.device)
    to = torch.where(to < 0, -1 - to, to)
    to = torch.where(to >= size, 2 * size - 1 - to, to)
    kernel = torch.zeros(size, size, dtype=maps.dtype, device=maps.device)
    kernel = kernel.index_put((to, source[:, None].expand_as(to)), weights.expand(to.shape), True)
    return (maps.movedim(dim, -1) @ kernel.T).movedim(-1, dim)


def depth_of(
    model: nn.Module,
    inputs: Any,
    at: str,
    channel_dim: int | None,
    resample: str,
    batched: bool = True,
    channel_dims: Mapping[int, int] | None = None,
) -> Depth | None:
    """Where the output of module ``at`` lies; None if it has no place on one explained input.

    One forward pass under the tracer, which follows places alone. If an operator in front of
    the module has no rule, the cells of a feature map are taken to lie as in the input.
    """
    state, found = State(model), list[Located]()

    def followed() -> Inputs:
        mode = Tracer(model, state=state)
        given = Inputs(mode, inputs, "mapped", channel_dim, batched, channel_dims=channel_dims)
        found.clear()

        def note(module: nn.Module, out: Any) -> None:
            found.extend(_located(mode, out))

        try:
            there = hooked([model.get_submodule(at)], note)
            with there, torch.inference_mode(False), torch.enable_grad():
                given.run(model, None)
        except UnsupportedOperator:
            pass  # behind the module it will be met again; in front of it, it does not matter
        return given

    try:
        given = state.run(followed)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Reoriented as other:
        channel_dims = {**(channel_dims or {}), other.index: other.channel}
        return depth_of(model, inputs, at, channel_dim, resample, batched, channel_dims)
    except Exception:
        return None  # said, if it matters, by the explanation itself
    if not found:
        found = _as_feature_map(model, given, at, state)
    if len(set(given.owners)) != 1 or not any(one.on_input for one in found):
        return None
    return Depth(given, found, resample)


def _located(mode: Tracer, out: Any) -> list[Located]:
    """Where what a module returns lies."""
    found = []
    with mode.pause():
        for t in _tensors(out):
            raise_opaque(mode, t)
            mark = mode.mark_of(t)
            found.append(Located(tuple(t.shape), None if mark is None else mark.place))
    return found


def _tensors(out: Any) -> list[Tensor]:
    """The floating-point tensors of a module's output, in the order in which they are explained."""
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    if isinstance(out, dict):
        out = list(out.values())
    return [t for o in out for t in _tensors(o)] if isinstance(out, (tuple, list)) else []


def _as_feature_map(model: nn.Module, given: Inputs, at: str, state: State) -> list[Located]:
    """The module's feature maps (B, C, *size), each cell lying as in an input (B, C, *size)."""
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, out: Any) -> None:
        shapes.extend(tuple(t.shape) for t in _tensors(out))

    def plainly() -> None:
        shapes.clear()
        args, kwargs = given.arguments()
        with torch.no_grad(), hooked([model.get_submodule(at)], note):
            model(*args, **kwargs)

    try:
        state.watched(plainly)
    except Exception:
        return []  # the explanation itself says what is wrong
    if len(given.leaves) != 1:
        return []
    leaf = given.leaves[0]
    place = given.mode.location.homes[0][2] if given.mode.location.homes else None
    if place is None or leaf.ndim < 3 or any(len(s) != leaf.ndim for s in shapes):
        return []
    with torch.enable_grad():
        return [Located(s, resampled(place, tuple(leaf.shape), s[2:])) for s in shapes]


@released()
def levels_of(
    model: Any,
    inputs: Any,
    channel_dim: int | None = None,
    channel_dims: Mapping[int, int] | None = None,
) -> dict[str, int]:
    """The last module of each resolution, with its cells per sample, from fine to coarse.

    Every module is noted by how many places on the input its output has. Of those with as many
    the least nested count, and of these the last that is called: stages and not the layers inside
    of them. What is as fine as the input or has no place is left out, and what is called twice.
    """
    if not isinstance(model, nn.Module):
        return {}
    state, calls, passes = State(model), list[tuple[str, list[Located]]](), list[Inputs]()
    names = {module: name for name, module in model.named_modules() if name}

    def followed() -> Inputs:
        mode = Tracer(model, state=state)
        given = Inputs(mode, inputs, "mapped", channel_dim, True, channel_dims=channel_dims)
        passes.append(given)
        calls.clear()

        def note(module: nn.Module, out: Any) -> None:
            if found := _located(mode, out):
                calls.append((names[module], found))

        with hooked(names, note), torch.inference_mode(False), torch.enable_grad():
            given.run(model, None)
        return given

    try:
        given = state.run(followed)
    except (OmennError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise blame(model, passes[-1], error, state) from error
    except Reoriented as other:
        return levels_of(
            model, inputs, channel_dim, {**(channel_dims or {}), other.index: other.channel}
        )
    if len(set(given.owners)) != 1:
        return {}
    levels = _coarser(calls, given.entries[given.owners[0]].ones.numel())
    return {name: cells // given.samples for name, cells in levels.items()}


def _coarser(calls: Sequence[tuple[str, list[Located]]], finest: int) -> dict[str, int]:
    """The levels with all their cells, given the calls of modules in their order."""
    counts: dict[str, int] = {}
    for name, _ in calls:
        counts[name] = counts.get(name, 0) + 1
    best: dict[int, tuple[int, str]] = {}
    for name, found in calls:
        if len(found) != 1 or counts[name] > 1 or not found[0].on_input:
            continue
        place = found[0].place
        assert place is not None
        cells = place.cells[place.located()].unique().numel()
        depth = name.count(".")
        if cells < finest and (cells not in best or depth <= best[cells][0]):
            best[cells] = (depth, name)
    return {name: cells for cells, (_, name) in sorted(best.items(), reverse=True)}
