"""From the caller's inputs to marked leaves, and from per-leaf results back to their structure."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omenn.core.call import CARRIED, IDS, Mark
from omenn.core.intercept import Interceptor
from omenn.core.place import Place, input_place
from omenn.core.unknown import tensors_in
from omenn.errors import InputError

Key = int | str | None

# What ``bias`` may be for other books than the frozen one: constants are not carried along; with
# ``"places"`` it is still known which sample each element of a tensor belongs to, and with
# ``"mapped"`` where on the input it lies.
NOT_COLLECTED = ("none", "places", "mapped")


def default_channel(ndim: int) -> int | None:
    """Channel dimension from the end: images and videos −3, −4; sequences −1; tables none."""
    return {1: None, 2: None, 3: -1}.get(ndim, -(ndim - 1))


class Feed:
    """The explained inputs of one run: leaves, their ones images, and the call's arguments."""

    def __init__(
        self,
        mode: Interceptor,
        inputs: Any,
        bias: str,
        channel_dim: int | None,
        batched: bool,
        known: Sequence[int | None] = (),
    ) -> None:
        self.mode, self.bias, self.batched = mode, bias, batched
        self.channel_dim = channel_dim
        self.known = known  # channel dimensions of the first leaves, where they are known
        self.kind, self.items = _items(inputs)
        self.keys: list[Key] = []
        self.leaves: list[Tensor] = []
        self.values: list[Tensor] = []
        self.ones: list[Tensor] = []
        self.channels: list[int | None] = []
        self.batch: list[int] = []
        self.mismatch: tuple[int, ...] | None = None  # shape of a leaf without a batch dimension
        self.samples = self._samples()
        mode.routes = bias == "attention"
        mode.embedded = self._embedded
        self._single = not isinstance(inputs, (tuple, list, Mapping))

    def _samples(self) -> int:
        tensors = [(k, v) for k, v in self.items if isinstance(v, Tensor)]
        if not tensors:
            raise InputError("no tensor was given to explain: inputs must hold at least one.")
        for key, t in tensors:
            self.mode.refuse_foreign(t)
            name = "the input" if key is None else f"input {key!r}"
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
        return tensors[0][1].shape[0] if self.batched else 1

    # --- leaves ----------------------------------------------------------------------------

    def leaf(self, key: Key, value: Tensor, true: Tensor | None = None) -> Tensor:
        """A marked copy of ``value`` for the model; its leaf is remembered under ``key``."""
        index = len(self.keys)
        leaf = value.detach().requires_grad_()
        place, ones, channel = self._place(leaf)
        self.keys.append(key)
        self.leaves.append(leaf)
        self.ones.append(ones)
        self.channels.append(channel)
        keep = self.mode.create_graph
        self.values.append((true if true is not None else value) if keep else leaf.detach())
        inside = leaf.clone()  # the model may write into its input
        twin = self.values[-1].clone() if keep else None
        mark = Mark(self.mode, CARRIED, place, 0, frozenset([index]), twin)
        self.mode.set_mark(inside, mark)
        self.mode.roots.append(leaf)
        if place is not None:
            self.mode.homes.append((tuple(leaf.shape), place))
        return inside

    def _place(self, leaf: Tensor) -> tuple[Place | None, Tensor, int | None]:
        # A batch of images that is explained as one object is still a batch of images.
        ndim = leaf.ndim + (not self.batched and leaf.ndim < 3)
        channel = default_channel(ndim) if self.channel_dim is None else self.channel_dim
        if len(self.channels) < len(self.known):
            channel = self.known[len(self.channels)]
        if channel is not None and not isinstance(channel, int):
            raise InputError(f"channel_dim must be an integer, but {channel!r} was given.")
        if channel is not None and not -leaf.ndim <= channel < 0:
            raise InputError(
                f"channel_dim={channel} does not fit an input of {leaf.ndim} dimensions; count "
                "from the end, −1 being the last."
            )
        shape = list(leaf.shape) if self.batched else [1, *leaf.shape]
        batch = self._batch_dim(leaf)
        if channel is not None:
            del shape[channel]
        wide = torch.float64 if leaf.dtype == torch.float64 else torch.float32
        ones = torch.ones(shape, dtype=wide, device=leaf.device)
        ones.requires_grad_(self.bias not in ("separate", "none", "places"))
        place = input_place(
            ones,
            self.samples,
            batch,
            channel,
            self.bias not in ("spatial", "attention", "mapped"),
            self.batched,
        )
        self.batch.append(batch)
        if self.bias == "none":
            return None, ones, channel
        if self.bias in NOT_COLLECTED:
            return place, ones, channel
        self.mode.means[len(self.keys)] = place.grid.mean
        self.mode.grid = self.mode.grid or place.grid
        return place, ones, channel

    def _batch_dim(self, leaf: Tensor) -> int:
        """Where the samples are: the first dimension (windows of a sample follow one another)."""
        if not self.batched or leaf.shape[0] % self.samples == 0:
            return 0
        if self.samples in leaf.shape:  # the state of a recurrent layer: (layers, B, D)
            return leaf.shape.index(self.samples)
        self.mismatch = self.mismatch or tuple(leaf.shape)
        return 0

    def _embedded(self, out: Tensor, ids: Mark) -> Tensor:
        """Explained ids became vectors: those are the explained input."""
        (key,) = ids.inputs or (None,)
        return self.leaf(key, out, out)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Copies of the caller's arguments: the model may write into its input."""
        items = [(k, v.clone() if isinstance(v, Tensor) else v) for k, v in self.items]
        args = [v for k, v in items if not isinstance(k, str)]
        return args, {k: v for k, v in items if isinstance(k, str)}

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
        """Calls the model under the interceptor, with marked inputs (or a marked module output)."""
        items = [(k, _normal(v)) for k, v in self.items]
        if at is None:
            items = [(k, self._enter(k, v)) for k, v in items]
        args = [v for k, v in items if not isinstance(k, str)]
        kwargs = {k: v for k, v in items if isinstance(k, str)}
        try:
            if at is None:
                with self.mode:
                    out = model(*args, **kwargs)
            else:
                out = self._run_at(model, at, args, kwargs)
        finally:
            self.mode.embedded = None  # no cycle: an explanation is freed as soon as it is dropped
        if not self.leaves:
            why = "no floating-point input, and the integer inputs never reached an embedding."
            why = f"'{at}' was never called, or returned no floating-point tensor." if at else why
            raise InputError(f"nothing could be explained: {why}")
        return out

    def _enter(self, key: Key, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return self.leaf(key, value, value)
        if value.dtype == torch.bool:
            return value
        ids = value.clone()
        self.mode.set_mark(ids, Mark(self.mode, IDS, None, 0, frozenset([key])))
        return ids

    def _run_at(self, model: nn.Module, at: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The output of module ``at`` becomes the explained input.

        NOTE the one hook. A module's output has no other name, so a forward hook stays on that
        one module for the duration of the call. It acts in this thread alone.
        """
        thread = threading.get_ident()

        def capture(module: nn.Module, inputs: Any, out: Any) -> Any:
            if threading.get_ident() != thread:
                return None
            self.mode.paused = True
            try:
                return self._replace(out)
            finally:
                self.mode.paused = False

        handle = model.get_submodule(at).register_forward_hook(capture)
        try:
            with self.mode:
                return model(*args, **kwargs)
        finally:
            handle.remove()

    def _replace(self, out: Any) -> Any:
        if isinstance(out, Tensor):
            if not out.is_floating_point():
                return out
            return self.leaf(len(self.keys), out, out)
        if isinstance(out, (tuple, list)):
            items = [self._replace(o) for o in out]
            return type(out)(*items) if hasattr(out, "_fields") else type(out)(items)
        if isinstance(out, dict):
            fresh = copy.copy(out)  # the module may keep the one it returned
            for key in list(out):
                fresh[key] = self._replace(out[key])
            return fresh
        return out

    # --- results ---------------------------------------------------------------------------

    def located_sum(self, contribution: Tensor, k: int) -> Tensor:
        """Contribution summed over channels, (B, *locations)."""
        c = contribution if self.batched else contribution.unsqueeze(0)
        channel = self.channels[k]
        return self.batch_first(c if channel is None else c.sum(channel), k)

    def batch_first(self, locations: Tensor, k: int) -> Tensor:
        """(B, *locations), wherever the samples of leaf k are."""
        return locations.movedim(self.batch[k], 0)

    def shaped(self, values: Sequence[Tensor]) -> Any:
        """Per-leaf values in the structure of the inputs."""
        if len(values) == 1 and (self._single or not isinstance(self.keys[0], str)):
            return values[0]
        if all(isinstance(k, str) for k in self.keys):
            found: dict[str, Any] = {}
            for k, v in zip(self.keys, values, strict=True):
                found[str(k)] = v if str(k) not in found else (*_many(found[str(k)]), v)
            return found
        return tuple(values)

    @staticmethod
    def register(mode: Interceptor, inputs: Sequence[Tensor]) -> None:
        """The caller's own tensors as explained inputs; nothing is hung on them."""
        for x in inputs:
            true = x.detach() if mode.create_graph else None
            mode.leaves[id(x)] = (x, Mark(mode, CARRIED, None, 0, frozenset([id(x)]), true))
            mode.roots.append(x)


def _normal(value: Any) -> Any:
    """A tensor made under ``torch.inference_mode`` as one that autograd accepts."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _many(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _plain(items: Iterable[tuple[Key, Any]]) -> list[tuple[Key, Any]]:
    """The items, none of which may hide tensors inside: those would not be explained."""
    found = list(items)
    for key, value in found:
        if not isinstance(value, Tensor) and any(True for _ in tensors_in([value])):
            raise InputError(
                f"input {key!r} is a {type(value).__name__} of tensors. Give each tensor as an "
                "input of its own, and let a function put them together for the model."
            )
    return found


def _items(inputs: Any) -> tuple[str, list[tuple[Key, Any]]]:
    if isinstance(inputs, Tensor):
        return "tensor", [(None, inputs)]
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
