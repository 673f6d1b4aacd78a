"""Attributions to train on: shaped like the input, with a derivative by the parameters.

All run the model in evaluation mode, whatever mode it is in, and without autocast: batch statistics
and dropout belong to the loss. Flags and random numbers are as before afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from omenn.check import misshapen, wrong
from omenn.engine.explain import explain
from omenn.engine.model_state import modules_of
from omenn.engine.target import pick_output, select
from omenn.engine.torch_private import RunningNorm
from omenn.errors import InputError, ModelError, TargetError, reason
from omenn.xdnn.double_backward import Ordinary


@dataclass(eq=False)
class Samples:
    """The samples of a step of training: which of a model's numbers are attributed to which tensor.

    ``x`` (B, …) is that tensor, given to the model alone or, with ``key``, as that argument with
    those ``beside`` it. ``y``: for each sample the index of an output, or None for the largest (the
    only one, if there is one). ``index`` (B,) is what that was, once the model has run.
    """

    model: Any
    key: str | None
    x: Tensor
    beside: dict[str, Any]
    y: Any = None
    output: Any = None
    index: Tensor | None = None

    @classmethod
    def of(cls, model: Any, x: Any, y: Any, output: Any) -> Samples:
        """Raises ModelError, InputError and TargetError for what has no attributions."""
        if not callable(model):
            raise wrong("model", model, "a torch.nn.Module", kind=ModelError)
        key, tensor, beside = _split(x)
        if y is not None:
            _check_index(y, len(tensor))
        return cls(model, key, tensor, beside, y, output)

    def rows(self, rows: Tensor, x: Tensor | None = None) -> Samples:
        """The same of some samples, each as often as it is named; ``x``: at other points."""
        n = len(self.x)
        beside = {k: rows_of(v, rows, n) for k, v in self.beside.items()}
        x = rows_of(self.x, rows, n) if x is None else x
        return replace(self, x=x, beside=beside, y=rows_of(self.y, rows, n))

    def call(self, x: Tensor) -> Any:
        return self.model(x) if self.key is None else self.model(**self.beside, **{self.key: x})

    def pick(self, out: Any) -> Tensor:
        """f (B,): the explained numbers in what the model returned."""
        return self.select(pick_output(out, self.output))

    def select(self, logits: Tensor) -> Tensor:
        y = self.y
        if y is not None and (logits.ndim == 1 or logits.shape[1:] == (1,)):
            high = int(torch.as_tensor(y).max())
            if high > 0:
                raise TargetError(
                    f"y is {high}, but it is the index of an output, and the model has one.",
                    argument="y",
                    got=str(high),
                    expected="0",
                    remedy="For such a model omit y.",
                )
        f, self.index = select(logits, y, len(self.x))
        return f

    def settle(self) -> None:
        """The outputs as they are at x, so that they are these at any other point as well."""
        if self.y is None:
            with torch.no_grad():
                self.pick(self.call(self.x))
            self.y = self.index


def _check_index(y: Any, samples: int) -> None:
    """Raises TargetError for what is no index of an output for each sample."""
    whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.dtype == torch.bool)
    if isinstance(y, bool) or not (whole or isinstance(y, int)):
        remedy = "Of a model with a single output omit y."
        expected = "the index of an output for each sample"
        raise wrong("y", y, expected, remedy, TargetError)
    y = torch.as_tensor(y)
    if y.ndim and tuple(y.shape) != (samples,):
        raise misshapen("y", y, f"({samples},)", kind=TargetError)
    if int(y.min()) < 0:
        raise wrong("y", int(y.min()), "at least 0", kind=TargetError)


def _split(x: Any) -> tuple[str | None, Tensor, dict[str, Any]]:
    """(name of the argument, explained tensor, arguments beside it)."""
    key, beside = None, {}
    if isinstance(x, Mapping):
        real = [k for k, v in x.items() if isinstance(v, Tensor) and v.is_floating_point()]
        if len(real) != 1:
            raise InputError(
                f"x has {len(real)} tensors of real numbers{': ' if real else ''}"
                f"{', '.join(map(str, real))}; attributions belong to one.",
                argument="x",
                got=f"{len(real)} tensors",
                expected="one tensor",
                remedy="Give that one, and let a module of yours add the others.",
            )
        key = real[0]
        beside = {k: v for k, v in x.items() if k != key}
        x = x[key]
    if not isinstance(x, Tensor):
        raise wrong("x", x, "a tensor (B, …) or a mapping of arguments")
    if x.ndim < 2 or not x.numel():
        raise misshapen("x", x, "(B, …)", "Give a batch of samples.")
    return key, x, beside


def rows_of(value: Any, rows: Tensor, samples: int) -> Any:
    """Some rows of a tensor with a row for each sample; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == samples:
        return value[rows.to(value.device)]
    return value


@contextmanager
def evaluating(model: Any, device: torch.device) -> Iterator[None]:
    """Evaluation mode for every module, float32, and each flag and random number put back.

    Running statistics are copies meanwhile: a forward pass in training changes them in place, and
    the derivative of what was made here must not mind whether that comes before or after. The
    autocast that accelerate lays around a ``forward`` is off as well.
    """
    modules = [m for _, m in modules_of(model)] if isinstance(model, nn.Module) else []
    flags = [m.training for m in modules]
    running = [
        (m._buffers, name, t)
        for m in modules
        if isinstance(m, RunningNorm)
        for name in ("running_mean", "running_var")
        if (t := m._buffers.get(name)) is not None
    ]
    wrapped = [
        (m, m.__dict__["_original_forward"], m.__dict__["forward"])
        for m in modules
        if {"_original_forward", "forward"} <= m.__dict__.keys()
    ]
    gpus = [device] if device.type == "cuda" else []
    try:
        for m, own, _ in wrapped:
            m.forward = own
        for m in modules:
            m.training = False  # not .eval(), which a module may have made to do more
        with (
            torch.random.fork_rng(devices=gpus),
            torch.inference_mode(False),
            torch.autocast(device.type, enabled=False),
        ):
            for buffers, name, t in running:
                buffers[name] = t.clone()
            yield
    finally:
        for buffers, name, t in running:
            buffers[name] = t
        for m, flag in zip(modules, flags, strict=True):
            m.training = flag
        for m, _, around in wrapped:
            m.forward = around


def own_type(model: Any, x: Tensor) -> torch.dtype:
    """The type that x has to have: that of the weights where autocast would have seen to it."""
    if not isinstance(model, nn.Module) or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)


def ordinary(value: Any) -> Any:
    """A tensor made under ``torch.inference_mode`` as one that autograd may keep."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def gradient(batch: Samples, graph: bool) -> Tensor:
    """∂f/∂x at ``batch.x``."""
    x = batch.x
    leaf = x if graph and x.requires_grad else x.detach().requires_grad_()
    mode = Ordinary(graph)
    with torch.enable_grad():
        with mode.running():
            out = batch.call(leaf.clone())  # the model may write into its input
        f = batch.pick(out)
        try:
            found = mode.gradient(f, leaf) if f.requires_grad else None
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            text = f"the model has no gradient by its input: {reason(error)}."
            raise ModelError(text, argument="model") from error
    if found is None:
        raise TargetError("the explained output does not depend on the input.", argument="y")
    return found


def along(batch: Samples, starts: Tensor, shares: Tensor, chunk: int, graph: bool) -> Tensor:
    """The mean over k of (x − r_k) ⊙ ∂f/∂x at r_k + α_k (x − r_k).

    ``starts``: r (B or 1, K or 1, …). ``shares``: α (B, K). At most ``chunk`` points, or one of
    each sample, go through the model together.
    """
    batch.settle()
    x, (samples, steps) = batch.x.unsqueeze(1), shares.shape
    way = x - starts
    total = torch.zeros_like(batch.x)
    size = max(1, chunk // samples)
    for k in range(0, steps, size):
        part = slice(k, min(k + size, steps))
        d = way if way.shape[1] == 1 else way[:, part]
        times = min(size, steps - k)
        there = x - (1 - shares[:, part]).reshape(samples, times, *[1] * (x.ndim - 2)) * d
        each = torch.arange(samples).repeat_interleave(times)
        some = batch.rows(each, there.flatten(0, 1))
        grads = gradient(some, graph)
        assert some.index is not None
        batch.index = some.index[::times]
        total = total + (grads.unflatten(0, (samples, times)) * d).sum(1)
    return total / steps


def explained(batch: Samples, options: Mapping[str, Any], graph: bool) -> Tensor:
    """C = C_w ⊙ X + C_b of ``omenn``, C_b spread evenly over the channels, so that Σ C = f.

    With ``bias="separate"`` the constants are left out: C_w ⊙ X.
    """
    model = batch.model
    if batch.key is not None:
        model = _Beside(model, batch.key, batch.beside)
    with torch.set_grad_enabled(graph):
        e = explain(
            model,
            batch.x,
            batch.select,
            output=batch.output,
            create_graph=graph,
            **options,
        )
    c = e.contribution
    if options.get("bias") == "separate":
        return c
    if e.bias.ndim == c.ndim:
        return c + e.bias
    channel = e.channel_dim or -1  # the rows that ids look up have their features last
    return c + e.bias.unsqueeze(channel) / c.shape[channel]


class _Beside(nn.Module):
    """A model as a function of one of its arguments; its modules keep their names."""

    def __init__(self, model: Any, key: str, beside: dict[str, Any]) -> None:
        super().__init__()
        self.training = False
        self.model, self.key, self.beside = model, key, beside

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.named_modules(*args, **kwargs)

    def forward(self, x: Tensor) -> Any:
        return self.model(**self.beside, **{self.key: x})
