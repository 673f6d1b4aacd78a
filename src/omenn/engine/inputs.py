"""From the caller's inputs to marked leaves, and from per-leaf results back to their structure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from omenn.check import quoted
from omenn.engine.location import Place, compacted, full, unplaced
from omenn.engine.location.entries import (
    Entries,
    Entry,
    Key,
    Spread,
    direct,
    entry_of,
    look,
    placed,
)
from omenn.engine.location.provenance import placed_for
from omenn.engine.trace.call import substitute
from omenn.engine.trace.guards import hooked
from omenn.engine.trace.marks import ACTIVE, IDS, Mark, tensors_in
from omenn.engine.trace.tracer import Tracer
from omenn.errors import InputError

# What ``bias`` may be for other rule tables than the frozen one: constants are not collected;
# with ``"places"`` it is still known which sample each element of a tensor belongs to, and with
# ``"mapped"`` where on the input it lies.
NOT_COLLECTED = ("none", "places", "mapped")


def default_channel(ndim: int) -> int | None:
    """Channel dimension from the end: images and videos −3, −4; sequences −1; tables none."""
    return {1: None, 2: None, 3: -1}.get(ndim, -(ndim - 1))


class Inputs(Entries):
    """The explained inputs of one run: entries with their leaves, and the call's arguments."""

    def __init__(
        self,
        mode: Tracer,
        inputs: Any,
        bias: str,
        channel_dim: int | None,
        batched: bool,
        known: Sequence[int | None] = (),
        samples: int | None = None,
        axes: Mapping[int, int] | None = None,
        channel_dims: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(*items_of(inputs), batched)
        # Entry -> dimension of its channels, as a convolution told.
        self.channel_dims = channel_dims or {}
        self.guessed: list[int] = []  # entries whose channels are a guess
        self.axes = axes or {}  # entry -> dimension of the samples, where that is known
        self.mode, self.bias = mode, bias
        self.channel_dim = channel_dim
        self.known = known  # channel dimensions of the first leaves, where they are known
        self.mismatch: tuple[int, ...] | None = None  # shape of a leaf without a batch dimension
        self.samples = self._samples(samples)

    def _samples(self, count: int | None) -> int:
        tensors = [(k, v) for k, v in self.items if isinstance(v, Tensor)]
        if not tensors:
            raise InputError("no tensor was given to explain: inputs must hold at least one.")
        for key, t in tensors:
            if self.mode.outer:
                self.mode.refuse_foreign(t)
            check(key, t)
        if not self.batched:
            return 1
        return tensors[0][1].shape[0] if count is None else count

    # --- leaves ----------------------------------------------------------------------------

    def leaf(self, key: Key, value: Tensor, true: Tensor | None = None) -> Tensor:
        """A marked copy of ``value`` for the model; its leaf is remembered under ``key``."""
        channel = self._channel(value)
        entry = self._entry(key, value, channel)
        if not entry.known:
            self.mismatch = self.mismatch or tuple(value.shape)
        return self._leaf(entry, value, true, entry.place, entry.batch, channel)

    def _leaf(
        self,
        entry: Entry,
        value: Tensor,
        true: Tensor | None,
        place: Place | None,
        batch: int,
        channel: int | None,
        home: Place | None = None,
        of: frozenset[int] | None = None,
    ) -> Tensor:
        index = self.entries.index(entry)
        of = of or frozenset([index])
        leaf = value.detach().requires_grad_()
        entry.leaves.append(len(self.leaves))
        self.owners.append(index)
        self.leaves.append(leaf)
        self.channels.append(channel)
        self.batch.append(batch)
        self.spreads.append(None if home is None else Spread(home, self.entries))
        keep = self.mode.create_graph
        self.values.append((true if true is not None else value) if keep else leaf.detach())
        inside = leaf.clone()  # the model may write into its input
        twin = self.values[-1].clone() if keep else None
        place = None if self.bias == "none" else place
        self.mode.set_mark(inside, Mark(self.mode, ACTIVE, place, 0, of, twin))
        self.mode.follow(leaf, of)
        if place is not None:
            self.mode.location.add_home(index, leaf.shape, place, self.bias not in NOT_COLLECTED)
        return inside

    def _entry(self, key: Key, value: Tensor, channel: int | None, own: bool = True) -> Entry:
        """A new entry; ``own``: its value is its leaf."""
        batch, known, unsure = self._batch_dim(value, channel)
        if channel is not None and self.batched and channel % value.ndim == batch:
            raise InputError(
                f"channel_dim={channel} of an input of the shape {tuple(value.shape)} is its batch "
                "dimension. Give the dimension of the channels, or 0 to keep all dimensions."
            )
        types = [value.dtype]
        if not own:
            types = [self.mode.dtype, *(v.dtype for _, v in self.items if isinstance(v, Tensor))]
        wide = torch.float64 if torch.float64 in types else torch.float32
        spread = self.bias not in ("spatial", "bilinear", "attention", "mapped")
        grad = self.bias not in ("separate", "none", "places")
        how = (value, self.samples, batch, channel)
        ones, place = placed(*how, spread, self.batched, wide, grad)
        entry = Entry(key, value, ones, place, batch, channel, known=known, unsure=unsure)
        if not own:
            there = (ones, place)
            if spread:
                there = placed(*how, False, self.batched, wide, True)
            entry.home_ones, entry.home = there
        self.entries.append(entry)
        self.ones.append(ones)
        self.mode.location.add_entries(self.entries)
        return entry

    def _channel(self, leaf: Tensor) -> int | None:
        # A batch of images that is explained as one object is still a batch of images.
        ndim = leaf.ndim + (not self.batched and leaf.ndim < 3)
        channel = default_channel(ndim) if self.channel_dim is None else self.channel_dim
        index = len(self.entries)
        if len(self.channels) < len(self.known):
            channel = self.known[len(self.channels)]
        elif index in self.channel_dims:
            channel = self.channel_dims[index]
        elif self.channel_dim is None and leaf.ndim > 2 and self.batched:
            self.guessed.append(index)
        if isinstance(channel, bool) or not (channel is None or isinstance(channel, int)):
            raise InputError(f"channel_dim must be an integer, but {quoted(channel)} was given.")
        if channel == 0:  # no dimension is summed over
            return None
        if channel is not None and not -leaf.ndim <= channel < 0:
            raise InputError(
                f"channel_dim={channel} does not fit an input of {leaf.ndim} dimensions; count "
                "from the end, −1 being the last, or give 0 to keep all dimensions."
            )
        return channel

    def _batch_dim(self, value: Tensor, channel: int | None) -> tuple[int, bool, bool]:
        """Where the samples are; whether that can be; whether it could be elsewhere as well.

        A tensor of more rows than samples has windows of each sample, which follow one another.
        """
        if not self.batched:
            return 0, True, False
        index, shape = len(self.entries), value.shape
        if index in self.axes:
            return self.axes[index], True, True
        own = None if channel is None else channel % value.ndim
        dims = [d for d, n in enumerate(shape) if n == self.samples and (d == 0 or d != own)]
        if dims:  # of the state of a recurrent layer, (layers, B, D), not the first
            return dims[0], True, dims != [0]
        return 0, shape[0] % self.samples == 0, True

    def _made(self, out: Tensor, given: Tensor, mark: Mark) -> Tensor:
        """A float made of an integer input, element by element or row by row, as a leaf."""
        first, *others = sorted(entry_of(name) for name in mark.inputs)
        entry = self.entries[first]
        assert entry.home is not None
        for k in others:  # ids of two inputs, put together: each has its part
            self.entries[k].reached = True
        rows = out.ndim - given.ndim
        if mark.place is None:
            self.mismatch = self.mismatch or tuple(out.shape)
            home = unplaced(entry.home.grid, out.shape)
        else:
            cells = full(mark.place.cells, given.shape)
            home = mark.place.with_cells(cells.reshape(*cells.shape, *[1] * rows))
        sample = compacted(home.grid.sample[full(home.cells, out.shape)])
        batch = next((d for d, n in enumerate(sample.shape) if n > 1), 0)
        channel = entry.channel if out.shape == entry.value.shape else -1 if rows else None
        place = placed_for(self.mode, mark.inputs, home)
        of = frozenset(map(entry_of, mark.inputs))
        return self._leaf(entry, out, out, place, batch, channel, home, of)

    def _convolved(self, x: Tensor, mark: Mark, spatial: int) -> None:
        if self.guessed and not self.at:
            look(self.entries, self.guessed, x, mark, spatial)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Copies of the caller's arguments: the model may write into its input."""
        return _given((k, v.clone() if isinstance(v, Tensor) else v) for k, v in self.items)

    def described(self) -> str:
        """The inputs in words, for messages."""
        found = []
        for key, value in self.items:
            if isinstance(value, Tensor):
                name = "" if key is None else f"{key!r}: "
                found.append(f"{name}{tuple(value.shape)} {str(value.dtype)[6:]}")
        many = len(found) > 1
        return f"{'inputs of the shapes' if many else 'an input of the shape'} {', '.join(found)}"

    # --- running ---------------------------------------------------------------------------

    def run(self, model: Any, at: str | None) -> Any:
        """Calls the model under the tracer, with marked inputs (or a marked module output)."""
        self.at = at is not None
        if at is None:
            args, kwargs = _given((k, self._enter(k, v)) for k, v in self.items)
        else:
            args, kwargs = self.arguments()

        def capture(module: nn.Module, out: Any) -> Any:
            with self.mode.pause():
                return substitute(out, self._replaced)

        replaced = nullcontext() if at is None else hooked([model.get_submodule(at)], capture)
        with self.mode.taking(self._made, self._convolved), replaced, self.mode:
            out = model(*args, **kwargs)
        if not self.leaves:
            raise self._nothing(at)
        return out

    def _nothing(self, at: str | None) -> InputError:
        if at is not None:
            why = f"'{at}' was never called, or returned no floating-point tensor."
            return InputError(f"nothing could be explained: {why}")
        return InputError(
            "nothing could be explained: no floating-point input, and the integer inputs never "
            f"reached an embedding ({self.described()}). Look the ids up in an nn.Embedding, for "
            "which a one-hot code and a linear layer are another form; give what they stand for "
            "as floating-point numbers; or explain at a module that returns such, with at=."
        )

    def _enter(self, key: Key, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_inference():  # one that autograd accepts
            value = value.clone()
        if value.is_floating_point():
            return self.leaf(key, value, value)
        pixels = value.dtype == torch.uint8 and value.ndim > 3
        entry = self._entry(key, value, self._channel(value) if pixels else None, own=False)
        ids = value.clone()
        name = direct(len(self.entries) - 1)
        place = entry.home if entry.known else None
        self.mode.set_mark(ids, Mark(self.mode, IDS, place, 0, frozenset([name])))
        return ids

    def _replaced(self, t: Tensor) -> Tensor:
        """A tensor that module ``at`` returns, as an explained input."""
        return self.leaf(len(self.entries), t, t) if t.is_floating_point() else t


def _given(items: Iterable[tuple[Key, Any]]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments."""
    found = list(items)
    args = [v for k, v in found if not isinstance(k, str)]
    return args, {k: v for k, v in found if isinstance(k, str)}


# --- what is given -------------------------------------------------------------------------------


def items_of(inputs: Any) -> tuple[str, list[tuple[Key, Any]]]:
    """Whether inputs are a ``tensor``, a ``tuple`` or a ``dict``; and what they are by key."""
    if isinstance(inputs, Tensor):
        return "tensor", [(None, _bare(inputs))]
    if isinstance(inputs, Mapping):
        bad = [k for k in inputs if not isinstance(k, str)]
        if bad:
            raise InputError(
                f"the keys of inputs must be argument names, but {bad[0]!r} was given."
            )
        return "dict", _plain(inputs.items())
    if isinstance(inputs, (tuple, list)):
        return "tuple", _plain(enumerate(inputs))
    raise InputError(
        f"inputs must be a tensor, a tuple or a dict of them, but {type(inputs).__name__} is given."
    )


def _plain(items: Iterable[tuple[Key, Any]]) -> list[tuple[Key, Any]]:
    """The items, none of which may hide tensors inside: those would not be explained."""
    found = list(items)
    for key, value in found:
        if not isinstance(value, Tensor) and tensors_in([value]):
            raise InputError(
                f"input {key!r} is a {type(value).__name__} of tensors. Give each tensor as an "
                "input of its own, and let a function put them together for the model."
            )
    return [(key, _bare(value)) for key, value in found]


def _bare(value: Any) -> Any:
    """A tensor without the class of its own that other libraries give it, and its metadata.

    Such a class (MONAI's MetaTensor, torchvision's tv_tensors) may copy the mark of a tensor along.
    """
    own = isinstance(value, Tensor) and type(value) is not Tensor and not value.is_nested
    return value.as_subclass(Tensor) if own else value


def check(key: Key, t: Tensor) -> None:
    """Raises InputError for a tensor that cannot be explained."""
    name = "the input" if key is None else f"input {key!r}"
    if isinstance(t, (UninitializedBuffer, UninitializedParameter)):
        raise InputError(f"{name} is not initialised: it has neither a shape nor numbers.")
    odd = t.layout != torch.strided or t.is_nested
    if odd or t.is_complex() or t.is_meta or t.is_quantized:
        kind = (
            "complex"
            if t.is_complex()
            else "meta"
            if t.is_meta
            else "nested"
            if t.is_nested
            else "sparse or quantised"
        )
        raise InputError(f"{name} is {kind}; give an ordinary tensor of real numbers.")
    if t.is_floating_point() and t.element_size() < 2:
        raise InputError(
            f"{name} is {str(t.dtype)[6:]}, a type for storage in which nothing is computed. "
            "Convert it with .float() or .half()."
        )
    if t.numel() == 0:
        raise InputError(f"{name} is empty: its shape is {tuple(t.shape)}.")
    if t.is_floating_point() and not bool(torch.isfinite(t).all()):
        count = int((~torch.isfinite(t)).sum())
        raise InputError(
            f"{name} has {count} values that are NaN or infinite; an explanation would be "
            "meaningless. Clean the input first."
        )
    if t.ndim == 0:
        raise InputError(f"{name} is a single number; a batch dimension is needed.")
