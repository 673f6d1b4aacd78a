"""Grad-CAM, computed by captum (extra ``peers``), for feature maps and for tokens.

NOTE a probe. captum takes channels to be the second dimension of a layer, and all others to be
positions. So it is shown a module of ours through which the layer's output passes, with its
channels there and class tokens left out. Where channels are, and which tokens have a place on the
input, the tracer knows.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.attribution.captum_adapter import Task
from omenn.attribution.contributions import over_channels, spread_over_locations
from omenn.attribution.ordinary_gradient import OrdinaryRun
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import flag, quoted, wrong
from omenn.engine.inputs import Inputs
from omenn.engine.location import Place, full
from omenn.engine.target import pick_output, select
from omenn.engine.trace.guards import active, hooked
from omenn.errors import InputError, ModelError, did_you_mean
from omenn.explanation import Explanation, leaves

# They are part of a step, not its result: no choice for a layer unless it is named.
_STEPS = (nn.Linear, nn.Identity, nn.Dropout)
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, eq=False)
class Output:
    """What a module returned: one dimension is ``channel``, the others are positions."""

    name: str
    module: nn.Module
    tensor: Tensor
    place: Place
    channel: int

    def kept(self) -> Tensor:
        """Indices of the positions that are places on the input, among all of them in order."""
        located = full(self.place.located(), self.tensor.shape).select(self.channel, 0)
        return located.flatten(1).all(0).nonzero().squeeze(1)

    def flat(self, t: Tensor) -> Tensor:
        """(B, channels, positions) of a tensor of this shape."""
        return t.movedim(self.channel, 1).flatten(2)

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(n for d, n in enumerate(self.tensor.shape) if d not in (0, self.channel))


def output_of(name: str, module: nn.Module, out: Tensor, place: Place | None) -> Output | None:
    """None if it is not at several places of the input, with channels along one dimension."""
    if place is None or out.ndim < 3:
        return None
    cells = full(place.cells, out.shape)
    dims = [d for d in range(1, cells.ndim) if cells.shape[d] == 1 < out.shape[d]]
    found = Output(name, module, out, place, dims[0]) if len(dims) == 1 else None
    return found if found is not None and len(found.kept()) > 1 else None


def _outputs(model: nn.Module, question: Question) -> tuple[OrdinaryRun, list[tuple[str, Any]]]:
    """A run, and what every module returned in it, in the order of the calls."""
    names = {m: name for name, m in model.named_modules() if name}
    found: list[tuple[str, Output | None]] = []

    def note(module: nn.Module, out: Any) -> None:
        modes = active()
        if not modes or not isinstance(out, Tensor):
            return
        mode = modes[-1]
        with mode.pause():
            mark = mode.mark_of(out)
            place = None if mark is None else mark.place
            found.append((names[module], output_of(names[module], module, out, place)))

    with hooked(names, note):
        run = question.ordinary_run(bias="mapped")
    return run, found


def layer_of(model: nn.Module, question: Question, layer: str | None) -> tuple[Output, Inputs]:
    """The output of the named layer, or of the last one that f depends on at several places.

    Raises:
        ModelError: there is none, or it is called more than once, or has no place on the input.
    """
    names = [name for name, _ in model.named_modules() if name]
    if layer is not None and layer not in names:
        raise ModelError(
            f"layer={quoted(layer)} is not a module:",
            argument="layer",
            got=quoted(layer),
            remedy=did_you_mean(str(layer), names),
        )
    run, found = _outputs(model, question)
    calls = [name for name, _ in found]
    usable = [one for name, one in found if one is not None and calls.count(name) == 1]
    if layer is None:
        usable = [one for one in usable if not isinstance(one.module, _STEPS)]
        usable = _seen(usable, run, question)
        if not usable:
            raise ModelError(
                "no layer was found whose output lies on the input and moves the explained number.",
                argument="layer",
                remedy="Name one with layer=, or use another method.",
            )
        return usable[-1], run.inputs
    named = [one for one in usable if one.name == layer]
    if not named:
        times = calls.count(layer)
        why = f"is called {times} times" if times != 1 else "has no channels at places of the input"
        raise ModelError(
            f"layer={layer!r} {why}, so Grad-CAM has no map of it.",
            argument="layer",
            got=quoted(layer),
            module=layer,
            remedy="Name another one.",
        )
    return named[0], run.inputs


def _seen(outputs: list[Output], run: OrdinaryRun, question: Question) -> list[Output]:
    """Those with a derivative at places on the input; a class token alone is none."""
    with torch.enable_grad(), run.mode:
        logits = pick_output(run.out, question.output)
        f = select(logits, question.target, run.inputs.samples)[0].sum()
    wrt = [one.tensor for one in outputs]
    grads = torch.autograd.grad(f, wrt, retain_graph=True, allow_unused=True) if wrt else []
    return [
        one
        for one, g in zip(outputs, grads, strict=True)
        if g is not None and bool((one.flat(g)[:, :, one.kept()] != 0).any())
    ]


def _through(probe: nn.Module, there: Output) -> AbstractContextManager[None]:
    """The output of the layer passes the probe as (B, channels, positions with a place)."""
    channel, kept = there.channel, there.kept()

    def pass_on(module: nn.Module, out: Tensor) -> Tensor:
        moved = out.movedim(channel, 1)
        if len(kept) == moved[0, 0].numel():
            return probe(moved).clone().movedim(1, channel)
        flat = moved.flatten(2)
        flat = flat.index_copy(2, kept, probe(flat[:, :, kept]))
        return flat.reshape(moved.shape).movedim(1, channel)

    return hooked([there.module], pass_on)


@attribution(
    "grad-cam",
    promise="none",
    summary="activations of a late layer weighted by their mean gradient",
    source="arXiv 1610.02391",
    extra="peers",
    at=False,
)
def grad_cam(
    question: Question,
    *,
    layer: str | None = None,
    relu: bool = True,
) -> Explanation:
    """Σ_k α_k A_k with α_k the mean of ∂f/∂A_k over positions, at the resolution of the input.

    A_k is a channel of the layer's output: a feature map in either layout, or the tokens that have
    a place on the input, without a class token. Feature maps are resized bilinearly.

    Args:
        layer: dotted name of a module. Default: the last one whose output lies on the input at
            several places that f depends on (linear layers, identities and dropout aside), which
            is the last stage of a convolutional network, and in a vision transformer with a class
            token the norm in front of the last attention.
        relu: only what speaks for the target, as published; ``False`` keeps the sign.

    Raises:
        InputError: ``relu`` is no truth value.
        ModelError: no such layer, or none that fits.
        MissingExtra: captum is not installed.

    Example:
        >>> import torch, omenn
        >>> layers = torch.nn.Conv2d(1, 4, 3, 2), torch.nn.ReLU(), torch.nn.Flatten()
        >>> net = torch.nn.Sequential(*layers, torch.nn.Linear(36, 2)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 1, 8, 8), 1, method="grad-cam", relu=False)
        >>> assert e.matrix.shape == (1, 8, 8)

    Source: Selvaraju et al. 2017, arXiv 1610.02391; captum's LayerGradCam.
    """
    flag("relu", relu)
    if question.channel_dim == 0:  # positions are those without the channels, which have it evenly
        e = grad_cam(replace(question, channel_dim=None), layer=layer, relu=relu)
        return Task("grad-cam", question).explanation(leaves(e.contribution))
    task, there, inputs, own = _task_at(question, layer)
    probe = nn.Identity()

    def attribute(captum: Any, xs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> Any:
        cam = captum.LayerGradCam(task, probe)
        with _through(probe, there):
            return cam.attribute(xs, additional_forward_args=extras, relu_attributions=relu)

    (found,) = task.attributions(attribute)
    there_map = _at_input(found.squeeze(1), there, inputs, own)
    return task.explanation(over_channels(task.inputs, [there_map]))


def _task_at(question: Question, layer: str | None) -> tuple[Task, Output, Inputs, int]:
    """The task, the output of the layer, and which entry of the inputs is the explained input."""
    model = question.model
    if not isinstance(model, nn.Module):
        remedy = "Method 'grad-cam' needs its layers."
        raise wrong("model", model, "a torch.nn.Module", remedy, ModelError)
    task = Task("grad-cam", question)
    if len(task.xs) > 1:
        raise InputError(
            f"method 'grad-cam' explains one input, but {len(task.xs)} floating-point ones are "
            "given.",
            argument="inputs",
            got=f"{len(task.xs)} inputs",
            expected="one input",
            remedy="Fix the others in a module around the model.",
        )
    there, inputs = layer_of(model, question, layer)
    explained = [k for k, entry in enumerate(inputs.entries) if entry.leaves]
    if len(explained) > 1:
        raise InputError(
            "method 'grad-cam' explains one input, but the model looks up integer ids beside the "
            "floating-point one.",
            argument="inputs",
            expected="one input",
            remedy="Fix them in a module around the model, or use another method.",
        )
    (own,) = explained
    channel = inputs.entries[own].channel
    if channel != task.inputs.entries[0].channel:  # which a convolution said
        task = Task("grad-cam", replace(question, channel_dim=channel or 0))
    return task, there, inputs, own


def _at_input(found: Tensor, there: Output, inputs: Inputs, own: int) -> Tensor:
    """A map at the positions of a layer, (B, *positions), at those of an entry of the input."""
    size = inputs.ones[own].shape[1:]
    shape, kept = there.tensor.shape, there.kept()
    if len(there.positions) == len(size) and len(kept) == math.prod(there.positions):
        mode = _MODES.get(len(size), "nearest")
        return F.interpolate(found.unsqueeze(1), tuple(size), mode=mode).squeeze(1)
    found = found.flatten(1)
    whole = found.new_zeros(shape[0], math.prod(there.positions)).index_copy(1, kept, found)
    cells = full(there.place.cells, shape).select(there.channel, 0)
    cells = cells.expand(shape[0], *there.positions).flatten(1)
    there_map = spread_over_locations(inputs, there.place.with_cells(cells), whole, True)[own]
    return there_map * (size.numel() / len(kept))  # as high as on the tokens
